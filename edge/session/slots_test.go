package session

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

// heldLog keeps the answers to appends until the test gives them.
type heldLog struct {
	events  []*topics.Event
	answers []func(error)
}

// TryAppend implements Log.
func (l *heldLog) TryAppend(ev *topics.Event, done func(error)) {
	l.events, l.answers = append(l.events, ev), append(l.answers, done)
}

// A client that subscribes without pause writes no record for each: while one waits for the log the next is made of what is true
// then; and nothing is said that the log shows already (B21).
func TestChannelsAreSaidOnce(t *testing.T) {
	log := &heldLog{}
	l := newSlots(slotOptions{Log: log, Node: "n", NodeName: "n", Logger: slog.New(slog.DiscardHandler)})
	l.all["s"] = &slot{session: "s", user: "alice", namespace: topics.Dashboard, pid: "p", phase: slotHeld, logged: true, shows: showsSession,
		shownPID: "p", answer: make(chan answer, 1)}
	said := func() []string { // what the latest record says; the log takes it, and the fold reads it
		t.Helper()
		ev := log.events[len(log.events)-1]
		if err := topics.Valid(ev); err != nil {
			t.Fatal(err)
		}
		v := topics.ReadSession(ev)
		log.answers[len(log.answers)-1](nil)
		l.read(presence.Notice{Kind: presence.Said, Node: "n", Session: v.ID, PID: v.PID, Channels: v.Channels})
		return v.Channels
	}
	want := func(what string, appended int) {
		t.Helper()
		if len(log.events) != appended {
			t.Fatalf("%s: %d records, want %d", what, len(log.events), appended)
		}
	}
	var channels []string
	for k := range topics.MaxChannels {
		channels = append(channels, fmt.Sprintf("c%03d", k))
		l.say("s", "p", slices.Clone(channels))
	}
	want("while the first waits for the log", 1)
	if first := said(); len(first) != 1 {
		t.Errorf("the first says %q", first)
	}
	want("when the log has it", 2)
	if last := said(); !slices.Equal(last, channels) {
		t.Errorf("the last says %q", last)
	}
	for range 100 {
		l.say("s", "p", slices.Clone(channels))
	}
	want("what the log shows already", 2)
}
