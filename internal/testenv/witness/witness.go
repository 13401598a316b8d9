// Package witness holds what a server sends to the clients of a test against the contract.
package witness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/internal/contract"
	"github.com/nexus/nexus/topics"
)

// Witness holds all that clients are sent against the contract. What breaks it fails the test, whatever the test is about. It is safe
// for concurrent use.
type Witness struct {
	*contract.Book

	mu     sync.Mutex
	broken []string
	asked  map[string]string // commands by the id of the acknowledgement that they asked for
}

var book = sync.OnceValues(contract.NewBook)

// New makes a witness that has seen nothing.
func New(t testing.TB) *Witness {
	t.Helper()
	b, err := book()
	if err != nil {
		t.Fatal(err)
	}
	return &Witness{Book: b, asked: make(map[string]string)}
}

// maxBroken bounds what is told.
const maxBroken = 20

// Note takes what the book said of something; nil: it was in order.
func (w *Witness) Note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && len(w.broken) < maxBroken {
		w.broken = append(w.broken, err.Error())
	}
}

// Tell fails the test for what has broken the contract.
func (w *Witness) Tell(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, what := range w.broken {
		t.Errorf("breaks the contract: %s", what)
	}
	w.broken = nil
}

// Ask notes a command that a client of either kind sends and that asks for an acknowledgement. A Socket.IO packet names its namespace.
func (w *Witness) Ask(ns topics.Namespace, sent string) {
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

// Raw checks a frame that a bare client got.
func (w *Witness) Raw(ns topics.Namespace, text []byte) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var f topics.RawFrame
	switch err := d.Decode(&f); {
	case err != nil:
		w.Note(fmt.Errorf("a frame: %w, in %s", err, text))
	case f.Event == topics.EventAck:
		w.ack(ns, string(f.ID), f.Data)
	default:
		w.Note(w.Frame(ns, f.Event, f.Data))
	}
}

func (w *Witness) ack(ns topics.Namespace, id string, data []byte) {
	w.mu.Lock()
	event, ok := w.asked[string(ns)+id]
	w.mu.Unlock()
	if ok {
		w.Note(w.Ack(ns, event, data))
	}
}

// Closed checks the code with which a client was closed. 1005 and 1006 are none: no code came (RFC 6455, section 7.4.1).
func (w *Witness) Closed(err error) {
	var c *websocket.CloseError
	if !errors.As(err, &c) || c.Code == websocket.CloseNoStatusReceived || c.Code == websocket.CloseAbnormalClosure {
		return
	}
	if !slices.ContainsFunc(apierr.Closes(), func(known apierr.Close) bool { return known.Code == c.Code }) {
		w.Note(fmt.Errorf("closed with %d, which is not in the contract", c.Code))
	}
}

// Packet checks a packet that a Socket.IO client got.
func (w *Witness) Packet(text string) {
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
		w.Note(fmt.Errorf("a packet is no event with one argument: %s", text))
		return
	}
	if m[3] == topics.EventOffset {
		return
	}
	w.Note(w.Frame(topics.Namespace(m[1]), m[3], args[1]))
}
