package presence_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fold struct {
	t *testing.T
	*presence.Fold
	next    int64
	lost    []string
	changes chan presence.Change
}

func newFold(t *testing.T, end int64) *fold {
	f := &fold{t: t, changes: make(chan presence.Change, 100)}
	f.Fold = presence.New(presence.Options{Grace: 300 * time.Millisecond,
		Start: func(context.Context) (int64, error) { return 0, nil }, End: func(context.Context) (int64, error) { return end, nil },
		Lost: func(node string) { f.lost = append(f.lost, node) },
		Changed: func(cs []presence.Change) {
			for _, c := range cs {
				f.changes <- c
			}
		}})
	if _, err := f.Position(t.Context(), topics.Presence, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fold) apply(typ, node, name, session, user string) {
	f.t.Helper()
	fields := []any{"node", node, "name", name}
	if session != "" {
		fields = append(fields, "session", session, "userId", user, "namespace", "/dashboard")
	}
	e := &topics.Event{Topic: topics.Presence, Offset: f.next, Time: f.next, Key: []byte(session), Meta: topics.Meta{Type: typ}, Value: topics.Fields(fields...)}
	if err := topics.Valid(e); err != nil {
		f.t.Fatal(err)
	}
	if err := f.Apply(f.t.Context(), pipeline.Batch{Topic: topics.Presence, From: f.next, To: f.next + 1, Events: []*topics.Event{e}}); err != nil {
		f.t.Fatal(err)
	}
	f.next++
}

func (f *fold) want(online ...string) {
	f.t.Helper()
	if n := f.OnlineUsers(presence.Dashboard); n != len(online) {
		f.t.Errorf("%d users online, want %v", n, online)
	}
	for _, u := range online {
		if !f.Online(presence.Dashboard, u) {
			f.t.Errorf("%s is not online", u)
		}
	}
}

func TestSessionsAndNodes(t *testing.T) {
	f := newFold(t, 0)
	f.apply(topics.NodeHeartbeat, "n1", "A", "", "")
	f.apply(topics.Connected, "n1", "A", "s1", "alice")
	f.apply(topics.Connected, "n1", "A", "s1", "alice") // repeated
	f.apply(topics.Connected, "n2", "B", "s2", "alice")
	f.apply(topics.Connected, "n2", "B", "s3", "bob")
	f.want("alice", "bob")
	f.apply(topics.Disconnected, "n1", "A", "s1", "alice")
	f.want("alice", "bob")
	// A new boot of B ends the earlier one, whose late records count no more.
	f.apply(topics.NodeHeartbeat, "n3", "B", "", "")
	f.apply(topics.Connected, "n2", "B", "s9", "ghost")
	f.want()
	f.apply(topics.Connected, "n3", "B", "s4", "carol")
	// Three heartbeats of one other node without a record of n3: alive; a record starts the count anew; four: dead.
	for range 3 {
		f.apply(topics.NodeHeartbeat, "n1", "A", "", "")
	}
	f.want("carol")
	f.apply(topics.NodeHeartbeat, "n3", "B", "", "")
	for range 3 {
		f.apply(topics.NodeHeartbeat, "n1", "A", "", "")
	}
	f.want("carol")
	f.apply(topics.NodeHeartbeat, "n1", "A", "", "")
	f.want()
	if !slices.Contains(f.lost, "n3") || slices.Contains(f.lost, "n1") {
		t.Errorf("lost nodes: %v, want n3", f.lost)
	}
	f.apply(topics.Connected, "n3", "B", "s4", "carol") // it was alive after all
	f.want("carol")
}

// What is shown: arrivals soon, departures after the grace, flaps and history not at all.
func TestShown(t *testing.T) {
	f := newFold(t, 2)
	f.apply(topics.Connected, "n1", "A", "s1", "before")
	select {
	case <-f.Ready():
		t.Fatal("ready before the end was reached")
	default:
	}
	f.apply(topics.Connected, "n1", "A", "s2", "before")
	<-f.Ready()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	f.apply(topics.Connected, "n1", "A", "s3", "alice")
	if c := <-f.changes; fmt.Sprintf("%s %v", c.User, c.Online) != "alice true" {
		t.Errorf("shown %+v, want alice online", c)
	}
	f.apply(topics.Disconnected, "n1", "A", "s3", "alice")
	f.apply(topics.Connected, "n1", "A", "s4", "alice") // back within the grace: nothing is shown
	f.apply(topics.Disconnected, "n1", "A", "s1", "before")
	f.apply(topics.Disconnected, "n1", "A", "s2", "before")
	f.want("alice", "before")
	if c := <-f.changes; fmt.Sprintf("%s %v %d", c.User, c.Online, c.At) != "before false 6" {
		t.Errorf("shown %+v, want before offline", c)
	}
	f.want("alice")
	cancel()
	if err := <-done; err != nil || len(f.changes) != 0 {
		t.Errorf("Run: %v; also shown: %d", err, len(f.changes))
	}
}
