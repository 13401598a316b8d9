package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/internal/contract"
	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// witness holds all that an instance sends to the tests' clients against the contract, and at its end all records of its log. What
// breaks the contract fails the test, whatever the test is about.
type witness struct {
	book *contract.Book

	mu     sync.Mutex
	broken []string
	asked  map[string]string // commands by the id of the acknowledgement that they asked for
}

var book = sync.OnceValues(contract.NewBook)

func newWitness(t testing.TB) *witness {
	t.Helper()
	b, err := book()
	if err != nil {
		t.Fatal(err)
	}
	return &witness{book: b, asked: make(map[string]string)}
}

// maxBroken bounds what is told.
const maxBroken = 20

func (w *witness) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && len(w.broken) < maxBroken {
		w.broken = append(w.broken, err.Error())
	}
}

// tell fails the test for what has broken the contract.
func (w *witness) tell(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, what := range w.broken {
		t.Errorf("breaks the contract: %s", what)
	}
	w.broken = nil
}

// ask notes a command that a client of either kind sends and that asks for an acknowledgement.
func (w *witness) ask(ns topics.Namespace, sent string) {
	var id, event string
	if m := socketIOEvent.FindStringSubmatch(sent); len(m) == 4 && m[2] != "" {
		ns, id, event = topics.Namespace(m[1]), m[2], m[3]
	} else {
		var f struct {
			Event string
			ID    json.RawMessage
		}
		if json.Unmarshal([]byte(sent), &f) != nil || f.ID == nil {
			return
		}
		id, event = string(f.ID), f.Event
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[string(ns)+id] = event
}

var (
	socketIOEvent = regexp.MustCompile(`^42(/[a-z]+),(\d*)\["([^"]*)"`)
	socketIOAck   = regexp.MustCompile(`^43(/[a-z]+),(\d+)\[(.*)\]$`)
)

// raw checks a frame that a bare client got.
func (w *witness) raw(ns topics.Namespace, text []byte) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var f topics.RawFrame
	switch err := d.Decode(&f); {
	case err != nil:
		w.note(fmt.Errorf("a frame: %w, in %s", err, text))
	case f.Event == topics.EventAck:
		w.ack(ns, string(f.ID), f.Data)
	default:
		w.note(w.book.Frame(ns, f.Event, f.Data))
	}
}

func (w *witness) ack(ns topics.Namespace, id string, data []byte) {
	w.mu.Lock()
	event, ok := w.asked[string(ns)+id]
	w.mu.Unlock()
	if ok {
		w.note(w.book.Ack(ns, event, data))
	}
}

// closed checks the code with which a client was closed. 1005 and 1006 are none: no code came (RFC 6455, section 7.4.1).
func (w *witness) closed(err error) {
	var c *websocket.CloseError
	if !errors.As(err, &c) || c.Code == websocket.CloseNoStatusReceived || c.Code == websocket.CloseAbnormalClosure {
		return
	}
	if !slices.ContainsFunc(apierr.Closes(), func(known apierr.Close) bool { return known.Code == c.Code }) {
		w.note(fmt.Errorf("closed with %d, which is not in the contract", c.Code))
	}
}

// packet checks a packet that a Socket.IO client got.
func (w *witness) packet(text string) {
	if m := socketIOAck.FindStringSubmatch(text); m != nil {
		w.ack(topics.Namespace(m[1]), m[2], []byte(m[3]))
		return
	}
	m := socketIOEvent.FindStringSubmatch(text)
	if m == nil {
		return
	}
	var args []json.RawMessage
	if err := json.Unmarshal([]byte(text[strings.IndexByte(text, '['):]), &args); err != nil || len(args) != 2 {
		w.note(fmt.Errorf("a packet is no event with one argument: %s", text))
		return
	}
	if m[3] == topics.EventOffset {
		return
	}
	w.note(w.book.Frame(topics.Namespace(m[1]), m[3], args[1]))
}

// Bounds of what is read of a log at a test's end.
const (
	maxWitnessed = 5000
	witnessWait  = 10 * time.Second
)

// records checks the records of an embedded log, as far as they are valid: tests append others on purpose.
func (w *witness) records(broker string) error {
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
				w.note(w.book.Record(ev.Type, ev.Value))
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
