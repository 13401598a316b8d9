package presence_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

// What is said again of a session that a fold has holds in that fold: it may have missed what changed.
func TestRepeatCorrects(t *testing.T) {
	f := newFold(t, 0)
	f.applyWith(topics.TypeConnected, "n1", "A", "s1", "alice", "pid", "p1", "channels", []string{"old"})
	f.applyWith(topics.TypeConnected, "n1", "A", "s1", "alice", "pid", "p2", "channels", []string{"new"}, "repeated", true)
	if got := f.Sessions("alice"); len(got) != 1 || !slices.Equal(got[0].Channels, []string{"new"}) {
		t.Errorf("sessions %v, want one in channel new", got)
	}
	if _, known := f.Recall("p1", "alice", topics.Dashboard); known {
		t.Error("still found by the old pid")
	}
	if channels, known := f.Recall("p2", "alice", topics.Dashboard); !known || !slices.Equal(channels, []string{"new"}) {
		t.Errorf("by the new pid: %v, %v", channels, known)
	}
}

// The notices tell all that a node must know of its own sessions.
func TestNotices(t *testing.T) {
	var got []string
	f := &fold{t: t}
	names := []string{"said", "left", "judged", "evicted", "lost", "superseded"}
	f.Fold = presence.New(presence.Options{Limits: presence.Limits{PerUser: 1, PerNamespace: 2},
		Start: func(context.Context) (int64, bool, error) { return 0, true, nil }, End: func(context.Context) (int64, error) { return 0, nil },
		Notify: func(n presence.Notice) { got = append(got, names[n.Kind]+" "+n.Node+n.Session) }})
	if _, err := f.Position(t.Context(), topics.Presence.Partition(0)); err != nil {
		t.Fatal(err)
	}
	f.applyWith(topics.TypeConnected, "n1", "A", "s1", "alice", "pid", "p1")
	f.applyWith(topics.TypeConnected, "n1", "A", "s2", "alice", "pid", "p2") // full
	f.applyWith(topics.TypeConnected, "n1", "A", "s3", "alice", "pid", "p1") // takes over
	f.applyWith(topics.TypeSessionChannels, "n1", "A", "s1", "alice", "pid", "p1")
	f.applyWith(topics.TypeSessionChannels, "n1", "A", "s3", "alice", "pid", "p1")
	f.apply(topics.TypeDisconnected, "n1", "A", "s1", "alice")
	f.apply(topics.TypeNodeHeartbeat, "n2", "A", "", "")
	want := "[judged n1s1 said n1s1 judged n1s2 evicted n1s1 judged n1s3 said n1s3 said n1s3 left n1s1 superseded n1]"
	if s := fmt.Sprint(got); s != want {
		t.Errorf("notices\n%s, want\n%s", s, want)
	}
}

// The indices by user and by node tell what the list of all sessions tells, whatever came.
func TestIndices(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		f := &fold{t: t}
		live := make(map[string]presence.Notice)
		f.Fold = presence.New(presence.Options{Limits: presence.Limits{PerUser: 2, PerNamespace: 7, EvictOldest: rnd.IntN(2) == 0},
			Start: func(context.Context) (int64, bool, error) { return 0, true, nil }, End: func(context.Context) (int64, error) { return 0, nil },
			Notify: func(n presence.Notice) {
				switch n.Kind {
				case presence.Said:
					live[n.Session] = n
				case presence.Left, presence.Evicted:
					delete(live, n.Session)
				case presence.NodeLost, presence.NodeSuperseded:
					for id, x := range live {
						if x.Node == n.Node {
							delete(live, id)
						}
					}
				}
			}})
		for range 100 {
			f.random(rnd)
			users, totals := make(map[string]int), make(map[topics.Namespace]int)
			for _, n := range live {
				totals[n.Namespace]++
				users[string(n.Namespace)+n.User]++
			}
			for _, ns := range []topics.Namespace{topics.Dashboard, topics.Messaging} {
				online := 0
				for k := range 4 {
					user := fmt.Sprint("u", k)
					if want := users[string(ns)+user]; f.Count(ns, user) != want || f.Connected(ns, user) != (want > 0) {
						t.Fatalf("SEED %d: %s has %d sessions in %s, want %d", seed, user, f.Count(ns, user), ns, want)
					}
					if f.Online(ns, user) { // who has left is still shown: nothing runs the fold
						online++
					}
				}
				if f.Connections(ns) != totals[ns] || f.OnlineUsers(ns) != online {
					t.Fatalf("SEED %d: %d sessions of %d users in %s, want %d of %d", seed, f.Connections(ns), f.OnlineUsers(ns), ns, totals[ns], online)
				}
			}
		}
	}
}

// random applies some record.
func (f *fold) random(rnd *rand.Rand) {
	node := rnd.IntN(3)
	user, ns := fmt.Sprint("u", rnd.IntN(4)), []string{"/dashboard", "/ws"}[rnd.IntN(2)]
	session := fmt.Sprint(user, ns, rnd.IntN(4), "of", node)
	fields := []any{"node", fmt.Sprint("n", node), "name", fmt.Sprint("N", node)}
	if rnd.IntN(10) == 0 { // another boot of the same name
		fields[1] = fmt.Sprint("n", node, "-", rnd.IntN(3))
	}
	typ := []string{topics.TypeConnected, topics.TypeConnected, topics.TypeDisconnected, topics.TypeSessionChannels,
		topics.TypeNodeHeartbeat}[rnd.IntN(5)]
	if typ != topics.TypeNodeHeartbeat {
		fields = append(fields, "session", session, "userId", user, "namespace", ns, "pid", fmt.Sprint("p", rnd.IntN(6)))
	}
	if typ == topics.TypeConnected && rnd.IntN(3) == 0 {
		fields = append(fields, "repeated", true)
	}
	e := &topics.Event{Topic: topics.Presence, Offset: f.next, Time: f.next, Key: []byte(session), Meta: topics.Meta{Type: typ},
		Value: topics.Fields(fields...)}
	if err := f.Apply(f.t.Context(), pipeline.Batch{Topic: topics.Presence, From: f.next, To: f.next + 1,
		Events: []*topics.Event{e}}); err != nil {
		f.t.Fatal(err)
	}
	f.next++
}
