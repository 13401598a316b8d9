package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// Bounds of what is read of a log at a test's end.
const (
	maxWitnessed = 5000
	witnessWait  = 10 * time.Second
)

// records has the witness check the records of an embedded log, as far as they are valid: tests append others on purpose.
func (i *instance) records(broker string) error {
	ctx, cancel := context.WithTimeout(context.Background(), witnessWait)
	defer cancel()
	names := topics.Names{Prefix: "nexus."}
	var all []string
	for _, s := range topics.Specs() {
		all = append(all, names.Name(s.Topic))
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumeTopics(all...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(50*time.Millisecond))
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	ends, err := adm.ListEndOffsets(ctx, all...)
	if err != nil {
		return err
	}
	starts, err := adm.ListStartOffsets(ctx, all...)
	if err != nil {
		return err
	}
	left := int64(0)
	ends.Each(func(o kadm.ListedOffset) {
		s, _ := starts.Lookup(o.Topic, o.Partition)
		left += max(0, o.Offset-s.Offset)
	})
	for left = min(left, maxWitnessed); left > 0; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			left--
			topic, _ := names.Topic(r.Topic)
			if ev := pipeline.EventOf(topic, r); topic != topics.DeadLetters && topics.Valid(ev) == nil {
				i.Note(i.Record(ev.Type, ev.Value))
			}
		})
	}
	return nil
}

// schemathesis finds the program, beside validators of OpenAPI, AsyncAPI and JSON Schema for Python.
func schemathesis(t *testing.T) (program, root string) {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(root, ".cache/schemathesis/bin/schemathesis")
	if _, err := os.Stat(program); err != nil {
		missing(t, "schemathesis is not installed; run internal/testenv/setup.sh")
	}
	return program, root
}

// Schemathesis calls every route of /openapi.yaml with what fits its schemas and what does not, at random: the running server answers
// nothing that is not declared, and no 5xx.
func TestSchemathesis(t *testing.T) {
	program, root := schemathesis(t)
	i := start(t, map[string]string{"RATE_LIMIT_MESSAGES": "1000000"})
	run := func(user, seconds string, more ...string) {
		args := append([]string{"--config-file", filepath.Join(root, "internal/testenv/contract/schemathesis.toml"), "run", "http://" +
			i.base + "/openapi.yaml",
			"--url", "http://" + i.base, "--header", "Authorization: Bearer " + tokenFor(t, user, api.ScopePublish, api.ScopeAdmin),
			"--max-time", seconds, "--no-color"}, more...)
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Dir = t.TempDir() // what it keeps of its own
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("schemathesis: %v\n%s", err, out)
		}
		t.Logf("%s", out[max(0, len(out)-500):])
	}
	run("alice", "45", "--exclude-path", "/revocations")
	run("root", "5", "--include-path", "/revocations") // it revokes its own token sooner or later
	if log := i.log.String(); strings.Contains(log, "panic") || strings.Contains(log, "a request failed") {
		t.Errorf("the server's log has failures: %s", log)
	}
}

// The documents are what they say they are, by official validators; and the test suite's own reading of JSON Schema says the same as
// an official one.
func TestContractDocuments(t *testing.T) {
	program, root := schemathesis(t)
	cmd := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(program), "python"), "internal/testenv/contract/validate.py")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The limits that docs/protocol.md tells are settings, with their defaults.
func TestLimitsInProtocol(t *testing.T) {
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	defaults := make(map[string]string)
	for _, s := range settings() {
		defaults[s.name] = s.fallback
	}
	rows := regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| (\\S+) \\|").FindAllStringSubmatch(string(text), -1)
	if len(rows) < 10 {
		t.Fatalf("only %d limits were found", len(rows))
	}
	for _, row := range rows {
		if defaults[row[1]] != row[2] {
			t.Errorf("%s is %q, and docs/protocol.md says %q", row[1], defaults[row[1]], row[2])
		}
	}
}
