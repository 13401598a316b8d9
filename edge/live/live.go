package live

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

// Tail is what this node has read of the log (pipeline.Tail).
type Tail interface {
	Vector(v []pipeline.Point, t topics.Topic) []pipeline.Point
	Partitions(t topics.Topic) int
	Begun(v []int64, t topics.Topic) []int64
	// Await returns once everything below these positions of a topic's partitions has been routed, or when ctx ends.
	Await(ctx context.Context, t topics.Topic, v []int64) error
	Recent(of topics.Partition, from, to int64, want func(*topics.Event) bool) (list []*topics.Event, low int64)
	Verify(ctx context.Context, points map[topics.Partition]pipeline.Point) (bool, error)
}

// Inbox has what sessions missed.
type Inbox interface {
	// Await returns once everything below ends is folded.
	Await(ctx context.Context, ends topics.Ends) error
	// Feed reads what sessions missed.
	Feed(ctx context.Context, s inbox.Span, entries, bytes int) ([]inbox.Entry, error)
}

// Stats answers what stats_update shows.
type Stats interface {
	Counts(ctx context.Context, users []string) (map[string]stats.Counts, error)
	// Reached tells whether everything below ends is counted.
	Reached(ctx context.Context, ends topics.Ends) (bool, error)
	// Last is what Counts answered last for a user.
	Last(user string) (c stats.Counts, known bool)
}

// Options are what Live needs. Zero values are not replaced.
type Options struct {
	Sessions *session.Sessions
	Tail     Tail
	Inbox    Inbox
	Stats    Stats
	Logger   *slog.Logger
	// Metrics takes in what is shown to Prometheus; nil: nothing is.
	Metrics prometheus.Registerer
	// Working ends when no client is served any more.
	Working context.Context
	// Post appends what nobody waits for.
	Post func(*topics.Event)
	// Seen is told of every event that is read, before it is shown.
	Seen func(*topics.Event)
	// TopicIDs identify the topics in resume offsets.
	TopicIDs map[topics.Topic][4]byte
	// NodeName is the same at every start of this node.
	NodeName string
	// StatsInterval is how often every user of the dashboard is shown his numbers.
	StatsInterval time.Duration
	// CompressionThreshold is above how many bytes a text is compressed.
	CompressionThreshold int
	// MaxQueueBytes bounds what is held back for a session that is being given what it missed.
	MaxQueueBytes int
}

// Live shows sessions what the log says. It is safe for concurrent use.
type Live struct {
	o       Options
	stats   *statistics
	typing  *typing
	metrics *metrics
	// feedTopics are the topics behind each namespace's feed, in the order in which offsets have them.
	feedTopics map[topics.Namespace][]topics.Topic
}

// New makes a Live that has shown nothing yet.
func New(o Options) *Live {
	v := &Live{o: o, metrics: newMetrics(o.Metrics), feedTopics: make(map[topics.Namespace][]topics.Topic)}
	for _, ns := range topics.Namespaces() {
		v.feedTopics[ns] = topics.FeedTopics(ns)
	}
	v.stats = newStatistics(v)
	v.typing = newTyping(v.showTyping)
	return v
}

// Run shows statistics until ctx ends.
func (v *Live) Run(ctx context.Context) error { return v.stats.run(ctx) }

// Shutdown has nothing end by itself any more.
func (v *Live) Shutdown() { v.typing.close() }

// Greet makes a session reachable: connected comes before anything else, and before that what before sends. One that has
// ended meanwhile stays as it is; one that must end is told why.
func (v *Live) Greet(s *session.Session, back session.Comeback, before func()) {
	welcome := func(recovered *bool, offset string) {
		before()
		s.Out.Deliver(v.welcome(s, recovered, offset), s.Style)
	}
	var in bool
	switch {
	case back.Offset != "":
		in = v.rejoin(s, back, welcome)
	case back.Claims:
		v.metrics.resumed.WithLabelValues("unknown_pid").Inc()
		in = v.o.Sessions.Join(s, func() { welcome(new(bool), v.offset(s.Namespace, nil)) })
	default:
		in = v.o.Sessions.Join(s, func() { welcome(nil, v.offset(s.Namespace, nil)) })
	}
	if !in {
		return
	}
	if s.Namespace == topics.Dashboard {
		v.stats.show(s.User)
	}
	v.o.Sessions.Open(s)
}

// welcome is the first frame of a session.
func (v *Live) welcome(s *session.Session, recovered *bool, offset string) *wire.Message {
	m := v.plain(s.Namespace, topics.EventConnected, topics.Connected{UserID: s.User, At: time.Now().UnixMilli(),
		Message: greeting(s.Namespace), Recovered: recovered}.Data())
	m.Offset = offset
	return m
}

func greeting(ns topics.Namespace) string {
	if ns == topics.Dashboard {
		return "Dashboard connection established"
	}
	return "Messaging connection established"
}

// plain is a message that is not resumed.
func (v *Live) plain(ns topics.Namespace, event string, data []byte) *wire.Message {
	return &wire.Message{Namespace: ns, Event: event, Data: data, Threshold: v.o.CompressionThreshold}
}

// framed is a message of the table: a frame's, with the data of its event.
func (v *Live) framed(f *topics.Frame, data []byte) *wire.Message {
	m := v.plain(f.Namespace, f.Event, data)
	m.Alias = f.Alias
	return m
}

// metrics are what is shown to Prometheus. No label names a user.
type metrics struct {
	resumed *prometheus.CounterVec
	latency *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		resumed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nexus_sessions_resumed_total",
			Help: "Sessions that asked for what they missed, by outcome."}, []string{"outcome"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "nexus_append_to_delivery_seconds",
			Help: "From an event's record time to its frames standing in the sessions' queues.", Buckets: prometheus.ExponentialBuckets(0.001, 2,
				15)}, []string{"event"}),
	}
	if reg != nil {
		reg.MustRegister(m.resumed, m.latency)
	}
	return m
}
