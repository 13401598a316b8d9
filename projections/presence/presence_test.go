package presence_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

func TestMain(m *testing.M) { testenv.Exit(m) }

type fold struct {
	t *testing.T
	*presence.Fold
	next    int64
	lost    []string
	changes chan presence.Change
}

func newFold(t *testing.T, end int64) *fold {
	f := &fold{t: t, changes: make(chan presence.Change, 100)}
	f.Fold = presence.New(presence.Options{Limits: presence.Limits{PerUser: 100, PerNamespace: 100}, Grace: 300 * time.Millisecond,
		Start: func(context.Context) (int64, bool, error) { return 0, true, nil }, End: func(context.Context) (int64, error) { return end, nil },
		Notify: func(n presence.Notice) {
			if n.Kind == presence.NodeLost {
				f.lost = append(f.lost, n.Node)
			}
		},
		Changed: func(cs []presence.Change) {
			for _, c := range cs {
				f.changes <- c
			}
		}})
	if _, err := f.Position(t.Context(), topics.Presence.Partition(0)); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fold) apply(typ, node, name, session, user string) {
	f.t.Helper()
	f.applyWith(typ, node, name, session, user)
}

func (f *fold) applyWith(typ, node, name, session, user string, more ...any) {
	f.t.Helper()
	fields := append([]any{"node", node, "name", name}, more...)
	if session != "" {
		fields = append(fields, "session", session, "userId", user, "namespace", "/dashboard")
	}
	e := &topics.Event{Topic: topics.Presence, Offset: f.next, Time: f.next, Key: []byte(session), Meta: topics.Meta{Type: typ},
		Value: topics.Fields(fields...)}
	if err := topics.Valid(topicstest.Sign(e)); err != nil {
		f.t.Fatal(err)
	}
	if err := f.Apply(f.t.Context(), pipeline.Batch{Topic: topics.Presence, From: f.next, To: f.next + 1,
		Events: []*topics.Event{e}}); err != nil {
		f.t.Fatal(err)
	}
	f.next++
}

func (f *fold) want(online ...string) {
	f.t.Helper()
	if n := f.OnlineUsers(topics.Dashboard); n != len(online) {
		f.t.Errorf("%d users online, want %v", n, online)
	}
	for _, u := range online {
		if !f.Online(topics.Dashboard, u) {
			f.t.Errorf("%s is not online", u)
		}
	}
}

func TestSessionsAndNodes(t *testing.T) {
	f := newFold(t, 0)
	f.apply(topics.TypeNodeHeartbeat, "n1", "A", "", "")
	f.apply(topics.TypeConnected, "n1", "A", "s1", "alice")
	f.apply(topics.TypeConnected, "n1", "A", "s1", "alice") // repeated
	f.apply(topics.TypeConnected, "n2", "B", "s2", "alice")
	f.apply(topics.TypeConnected, "n2", "B", "s3", "bob")
	f.want("alice", "bob")
	f.apply(topics.TypeDisconnected, "n1", "A", "s1", "alice")
	f.want("alice", "bob")
	// A new boot of B ends the earlier one, whose late records count no more.
	f.apply(topics.TypeNodeHeartbeat, "n3", "B", "", "")
	f.apply(topics.TypeConnected, "n2", "B", "s9", "ghost")
	f.want()
	f.apply(topics.TypeConnected, "n3", "B", "s4", "carol")
	// Three heartbeats of one other node without a record of n3: alive; a record starts the count anew; four: dead.
	for range 3 {
		f.apply(topics.TypeNodeHeartbeat, "n1", "A", "", "")
	}
	f.want("carol")
	f.apply(topics.TypeNodeHeartbeat, "n3", "B", "", "")
	for range 3 {
		f.apply(topics.TypeNodeHeartbeat, "n1", "A", "", "")
	}
	f.want("carol")
	f.apply(topics.TypeNodeHeartbeat, "n1", "A", "", "")
	f.want()
	if !slices.Contains(f.lost, "n3") || slices.Contains(f.lost, "n1") {
		t.Errorf("lost nodes: %v, want n3", f.lost)
	}
	f.apply(topics.TypeConnected, "n3", "B", "s4", "carol") // it was alive after all
	f.want("carol")
}

// What a session was subscribed to is kept under its pid, for its user and namespace, until five minutes after its end,
// also where its node died or began anew.
func TestRecall(t *testing.T) {
	f := newFold(t, 0)
	const minute = int64(60000)
	say := func(at int64, typ, node, session, user string, more ...any) {
		t.Helper()
		f.next = max(f.next, at)
		f.applyWith(typ, node, "A", session, user, more...)
	}
	want := func(when, pid, user, channels string) {
		t.Helper()
		got, known := f.Recall(pid, user, topics.Dashboard)
		if s := fmt.Sprint(known, got); s != channels {
			t.Errorf("%s: %s of %s: %s, want %s", when, pid, user, s, channels)
		}
	}
	say(1, topics.TypeConnected, "n1", "s1", "alice", "pid", "p1", "channels", []string{})
	want("alive", "p1", "alice", "true []")
	say(2, topics.TypeSessionChannels, "n1", "s1", "alice", "pid", "p1", "channels", []string{"news"})
	want("alive", "p1", "alice", "true [news]")
	want("another's", "p1", "bob", "false []")
	want("unknown", "p2", "alice", "false []")
	say(3, topics.TypeDisconnected, "n1", "s1", "alice")
	want("gone", "p1", "alice", "true [news]")
	say(minute, topics.TypeConnected, "n1", "s2", "alice", "pid", "p1", "channels", []string{"news"}) // it comes back
	say(9*minute, topics.TypeNodeHeartbeat, "n1", "", "")
	want("back", "p1", "alice", "true [news]")
	say(10*minute, topics.TypeNodeHeartbeat, "n2", "", "") // a new boot
	want("node gone", "p1", "alice", "true [news]")
	say(14*minute, topics.TypeNodeHeartbeat, "n2", "", "")
	want("node long gone", "p1", "alice", "true [news]")
	say(16*minute, topics.TypeNodeHeartbeat, "n2", "", "")
	want("forgotten", "p1", "alice", "false []")
	say(17*minute, topics.TypeConnected, "n2", "s3", "alice", "pid", "p3", "channels", []string{"news"})
	say(17*minute, topics.TypeSessionChannels, "n2", "s3", "alice", "pid", "p4", "channels", []string{})
	want("renamed", "p3", "alice", "false []")
	want("renamed", "p4", "alice", "true []")
}

// A client that comes back before its broken connection is missed takes its own place, and no second one.
func TestSucceed(t *testing.T) {
	var verdicts, evicted []string
	f := &fold{t: t}
	f.Fold = presence.New(presence.Options{Limits: presence.Limits{PerUser: 2, PerNamespace: 100},
		Start: func(context.Context) (int64, bool, error) { return 0, true, nil }, End: func(context.Context) (int64, error) { return 0, nil },
		Notify: func(n presence.Notice) {
			switch n.Kind {
			case presence.Judged:
				verdicts = append(verdicts, fmt.Sprint(n.Session, " ", n.Verdict))
			case presence.Evicted:
				evicted = append(evicted, n.Session)
			}
		}})
	if _, err := f.Position(t.Context(), topics.Presence.Partition(0)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ session, user, pid string }{{"s1", "alice", "p1"}, {"s2", "alice", "p2"}, {"s3", "alice", "p3"}, // full
		{"s4", "alice", "p1"}, {"s5", "bob", "p2"}, {"s6", "alice", "p1"}} {
		f.applyWith(topics.TypeConnected, "n1", "A", c.session, c.user, "pid", c.pid)
	}
	f.applyWith(topics.TypeConnected, "n1", "A", "s6", "alice", "pid", "p1", "repeated", true)
	if got := fmt.Sprint(verdicts, evicted); got != "[s1 0 s2 0 s3 1 s4 0 s5 0 s6 0] [s1 s4]" {
		t.Errorf("verdicts and evictions %s", got)
	}
	if n := len(f.Sessions("alice")); n != 2 || f.Connections(topics.Dashboard) != 3 {
		t.Errorf("%d sessions of alice, %d in all", n, f.Connections(topics.Dashboard))
	}
}

// What is shown: arrivals soon, departures after the grace, flaps and history not at all.
func TestShown(t *testing.T) {
	f := newFold(t, 2)
	f.apply(topics.TypeConnected, "n1", "A", "s1", "before")
	select {
	case <-f.Ready():
		t.Fatal("ready before the end was reached")
	default:
	}
	f.apply(topics.TypeConnected, "n1", "A", "s2", "before")
	<-f.Ready()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	f.apply(topics.TypeConnected, "n1", "A", "s3", "alice")
	if c := <-f.changes; fmt.Sprintf("%s %v", c.User, c.Online) != "alice true" {
		t.Errorf("shown %+v, want alice online", c)
	}
	f.apply(topics.TypeDisconnected, "n1", "A", "s3", "alice")
	f.apply(topics.TypeConnected, "n1", "A", "s4", "alice") // back within the grace: nothing is shown
	f.apply(topics.TypeDisconnected, "n1", "A", "s1", "before")
	f.apply(topics.TypeDisconnected, "n1", "A", "s2", "before")
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

// Places: every fold judges alike from the log alone; one that has not read everything judges nothing for two minutes,
// and sessions that are said again always count.
func TestPlaces(t *testing.T) {
	const minute = 60_000
	type record struct {
		typ, session, user string
		at                 int64
		repeated           bool
	}
	connect := func(session, user string, at int64) record {
		return record{topics.TypeConnected, session, user, at, false}
	}
	for name, tc := range map[string]struct {
		whole    bool
		limits   presence.Limits
		records  []record
		verdicts string // in order
		evicted  string
		left     string // who is online
	}{
		"a user's": {true, presence.Limits{PerUser: 2, PerNamespace: 9},
			[]record{connect("1", "a", 0), connect("2", "a", 1), connect("3", "a", 2), connect("4", "b", 3)},
			"1:0 2:0 3:1 4:0", "", "a a b"},
		"a namespace's": {true, presence.Limits{PerUser: 2, PerNamespace: 2},
			[]record{connect("1", "a", 0), connect("2", "b", 1), connect("3", "c", 2),
				{topics.TypeDisconnected, "1", "a", 3, false}, connect("4", "c", 4)}, "1:0 2:0 3:2 4:0", "", "b c"},
		"evicted": {true, presence.Limits{PerUser: 2, PerNamespace: 9, EvictOldest: true},
			[]record{connect("1", "a", 0), connect("2", "a", 1), connect("3", "a", 2)},
			"1:0 2:0 3:0", "1", "a a"},
		"said again": {true, presence.Limits{PerUser: 1, PerNamespace: 9},
			[]record{connect("1", "a", 0), {topics.TypeConnected, "2", "a", 1, true}, connect("3", "a", 2)},
			"1:0 3:1", "", "a a"},
		"blind": {false, presence.Limits{PerUser: 1, PerNamespace: 9},
			[]record{connect("1", "a", 5), connect("2", "a", 2*minute+4), connect("3", "a", 2*minute+5)},
			"1:0 2:0 3:1", "", "a a"},
	} {
		t.Run(name, func(t *testing.T) {
			var verdicts, evicted []string
			f := presence.New(presence.Options{Limits: tc.limits, Start: func(context.Context) (int64, bool, error) { return 0, tc.whole, nil },
				End: func(context.Context) (int64, error) { return 0, nil },
				Notify: func(n presence.Notice) {
					switch n.Kind {
					case presence.Judged:
						verdicts = append(verdicts, fmt.Sprintf("%s:%d", n.Session, n.Verdict))
					case presence.Evicted:
						evicted = append(evicted, n.Session)
					}
				}})
			if _, err := f.Position(t.Context(), topics.Presence.Partition(0)); err != nil {
				t.Fatal(err)
			}
			for n, r := range tc.records {
				fields := []any{"session", r.session, "node", "n", "name", "N", "userId", r.user, "namespace", "/ws"}
				if r.repeated {
					fields = append(fields, "repeated", true)
				}
				e := &topics.Event{Topic: topics.Presence, Offset: int64(n), Time: 1 + r.at, Key: []byte(r.session), Meta: topics.Meta{Type: r.typ},
					Value: topics.Fields(fields...)}
				if err := f.Apply(t.Context(), pipeline.Batch{Topic: topics.Presence, From: int64(n), To: int64(n) + 1,
					Events: []*topics.Event{topicstest.Sign(e)}}); err != nil {
					t.Fatal(err)
				}
			}
			var left []string
			for _, u := range []string{"a", "b", "c"} {
				for range f.Sessions(u) {
					left = append(left, u)
				}
			}
			if got := strings.Join(verdicts, " "); got != tc.verdicts {
				t.Errorf("verdicts %s, want %s", got, tc.verdicts)
			}
			if got := strings.Join(evicted, " "); got != tc.evicted {
				t.Errorf("evicted %q, want %q", got, tc.evicted)
			}
			if got := strings.Join(left, " "); got != tc.left || f.Connections(topics.Messaging) != len(left) {
				t.Errorf("left %q, want %q", got, tc.left)
			}
		})
	}
}
