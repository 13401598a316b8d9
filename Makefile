.DEFAULT_GOAL := help
SHELL := /bin/bash
REPORT := $(CURDIR)/.cache/report

.PHONY: help build run facts test test-embedded test-containers fuzz bench lint

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

build: ## the binary, bin/nexus
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -o bin/nexus ./cmd/nexus

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

lint: ## formatting and vet
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	go vet ./...
