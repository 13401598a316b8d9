package live

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/edge/session/sessiontest"
	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/edge/wire/wiretest"
	"github.com/nexus/nexus/internal/contract"
	"github.com/nexus/nexus/internal/testenv/logtest"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

// noInbox has nothing.
type noInbox struct{}

func (noInbox) Await(context.Context, topics.Ends) error { return nil }
func (noInbox) Feed(context.Context, inbox.Span, int, int) ([]inbox.Entry, error) {
	return nil, nil
}

type noStats struct{}

func (noStats) Counts(context.Context, []string) (map[string]stats.Counts, error) { return nil, nil }
func (noStats) Reached(context.Context, topics.Ends) (bool, error)                { return true, nil }

// onLog is a live on an embedded log that is being read.
func onLog(t *testing.T) (*Live, *pipeline.Tail) {
	t.Helper()
	log := logtest.Open(t, logtest.Start(t, pipeline.BrokerOptions{}).Addr, 2)
	var v *Live
	fed := []topics.Topic{topics.Messages, topics.Notifications, topics.Broadcasts}
	tail, err := pipeline.NewTail(t.Context(), pipeline.TailOptions{Kafka: log.Kafka, Producer: log.Producer, Log: log.Log,
		Logger: logtest.Quiet(), Topics: fed, Keep: fed,
		Windows: pipeline.NewWindows(time.Minute), Route: func(b pipeline.Batch) { v.Route(b) }})
	if err != nil {
		t.Fatal(err)
	}
	v = New(Options{Sessions: sessiontest.New(), Tail: tail, Inbox: noInbox{}, Stats: stats.Remember(noStats{}), Logger: logtest.Quiet(),
		Working: context.Background(),
		Post:    func(*topics.Event) {}, Seen: func(*topics.Event) {}, TopicIDs: make(map[topics.Topic][4]byte), NodeName: "n",
		CompressionThreshold: 1 << 20, MaxQueueBytes: 1 << 20})
	for _, topic := range fed {
		if v.o.TopicIDs[topic], err = log.Log.TopicHash(t.Context(), topic); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tail.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return v, tail
}

// examplesOf are events as the vocabulary shows them, one for each key that the kind may have.
func examplesOf(k *topics.Kind) (list []*topics.Event) {
	keys := map[topics.AudienceKind]string{topics.User: topics.UserKey("bob"), topics.Channel: topics.ChannelKey("news"),
		topics.Everyone: topics.EveryoneKey}
	for _, in := range k.In {
		for _, kind := range in.Keys {
			meta := topics.Meta{Type: k.Type, ID: topics.NewID(), Source: "/test"}
			list = append(list, topics.New(in.Topic, keys[kind], meta, contract.Example(k.Fields)))
		}
	}
	return list
}

// What a client is given of what it missed is what it would have been shown: the same frames for every kind of the feed, for every
// user that it concerns, in both protocols.
func TestReplayedAsShown(t *testing.T) {
	v, tail := onLog(t)
	events := []*topics.Event{
		topics.Draft{ReceiverID: "bob", Content: "hello"}.Message("alice", ""),
		topics.Draft{ReceiverID: "alice", Content: "note to self"}.Message("alice", ""),
		topics.MessageRead{MessageID: "m1", UserID: "bob"}.Event("alice"),
	}
	for _, k := range topics.Kinds() {
		if k.Feed && k.Ingest != "" {
			events = append(events, examplesOf(k)...)
		}
	}
	for _, k := range topics.Kinds() {
		if k.Feed && !slices.ContainsFunc(events, func(ev *topics.Event) bool { return ev.Type == k.Type }) {
			t.Errorf("%s is of the feed and not tried", k.Type)
		}
	}
	type client struct {
		user  string
		ns    topics.Namespace
		style wire.Style
	}
	start, shown := make(map[topics.Namespace]string), make(map[client]*wiretest.Recorder)
	for _, ns := range topics.Namespaces() {
		start[ns] = v.offset(ns, nil)
		for _, user := range []string{"alice", "bob", "carol"} {
			for _, style := range []wire.Style{{}, {SocketIO: true}, {Canonical: true}} {
				s, out := sessiontest.Admit(v.o.Sessions, user, ns)
				s.Style = style
				v.o.Sessions.Join(s, func() {})
				if ns == topics.Dashboard {
					v.o.Sessions.Subscribe(s, "news")
				}
				shown[client{user, ns, style}] = out
			}
		}
	}
	for _, ev := range events {
		if err := topics.Valid(ev); err != nil {
			t.Fatal(ev.Type, err)
		}
		if _, err := tail.Append(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
	for c, out := range shown {
		back := session.Comeback{Offset: start[c.ns]}
		if c.ns == topics.Dashboard {
			back.Channels = []string{"news"}
		}
		s, replayed := sessiontest.Admit(v.o.Sessions, c.user, c.ns)
		s.Style = c.style
		v.rejoin(s, back, func(recovered *bool, _ string) {
			if !*recovered {
				t.Errorf("%+v: not recovered", c)
			}
		})
		if want, got := slices.Sorted(slices.Values(out.Texts())), slices.Sorted(slices.Values(replayed.Texts())); !slices.Equal(got, want) {
			t.Errorf("%+v was shown %q and is replayed %q", c, want, got)
		}
	}
	public := 0 // what everybody with the channel news is shown
	for _, ev := range events {
		if ev.Topic == topics.Broadcasts {
			public++
		}
	}
	for c, want := range map[client]int{
		{"bob", topics.Messaging, wire.Style{}}:                  3,
		{"alice", topics.Messaging, wire.Style{Canonical: true}}: 3,
		{"carol", topics.Messaging, wire.Style{}}:                0,
		{"bob", topics.Dashboard, wire.Style{SocketIO: true}}:    len(events) - 3, // those that are no messages
		{"carol", topics.Dashboard, wire.Style{}}:                public,
	} {
		if got := shown[c].Texts(); len(got) != want {
			t.Errorf("%+v was shown %q, want %d", c, got, want)
		}
	}
}
