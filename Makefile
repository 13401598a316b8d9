.DEFAULT_GOAL := help
SHELL := /bin/bash
REPORT := $(CURDIR)/.cache/report

# What nexus version says. Outside of git it says devel. Go asks git itself only where it finds the repository, which it does not in
# every worktree or container: so it is told.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)
DIRTY ?= $(shell test -z "$$(git status --porcelain --untracked-files=no 2>/dev/null)" || echo true)
BUILT = -X main.builtVersion=$(VERSION) -X main.builtCommit=$(COMMIT) -X main.builtDirty=$(DIRTY)

.PHONY: help build run contracts facts test test-embedded test-containers fuzz bench lint format vuln

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

build: ## the binary, bin/nexus
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(BUILT)' -o bin/nexus ./cmd/nexus

run: build ## start it on embedded engines, with two demo users and lines to try
	@exec ./bin/nexus serve --demo

test: ## everything, on real Kafka, PostgreSQL, ClickHouse, kcat and Node clients; fetches what is missing
	@internal/testenv/run.sh all

facts: ## docs/facts.md, the guide's facts and the tests that show them, as the last make test found them
	@test -s .cache/facts.md || { echo "make facts: no table; run make test first, which writes it where every fact's test passed"; exit 1; }
	cp .cache/facts.md docs/facts.md

test-embedded: ## what needs Go and a C compiler only
	@internal/testenv/run.sh embedded

test-containers: ## the conformance suites on services in containers (testcontainers-go)
	@internal/testenv/run.sh containers

fuzz: ## every decoder for 20 s each
	@internal/testenv/fuzz.sh 20s

bench: ## benchmarks beside the code
	go test -run '^$$' -bench . -benchmem ./...

contracts: ## the OpenAPI, AsyncAPI and JSON Schema documents, and the tables of docs/protocol.md
	go run ./internal/contract/make

# The tools' own module keeps their dependencies out of ours. They are built once for each of its versions.
TOOLS := .cache/bin
$(TOOLS)/golangci-lint: internal/tools/go.mod internal/tools/go.sum
	@mkdir -p $(TOOLS)
	CGO_ENABLED=0 go -C internal/tools build -o $(CURDIR)/$(TOOLS)/ tool
	@touch $(TOOLS)/*

lint: $(TOOLS)/golangci-lint ## formatting, vet, linters and the import rules of the rooms (.golangci.yml)
	@GOLANGCI_LINT_CACHE=$(CURDIR)/.cache/golangci-lint $(TOOLS)/golangci-lint run ./...

format: $(TOOLS)/golangci-lint ## gofmt, and what the linters can mend by themselves
	@GOLANGCI_LINT_CACHE=$(CURDIR)/.cache/golangci-lint $(TOOLS)/golangci-lint run --fix ./...

vuln: $(TOOLS)/golangci-lint ## known vulnerabilities of what we call
	@go -C internal/tools build -o $(CURDIR)/$(TOOLS)/ ./vuln && $(TOOLS)/vuln -govulncheck $(TOOLS)/govulncheck
