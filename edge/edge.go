package edge

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nexus/nexus/edge/gateway"
	"github.com/nexus/nexus/edge/live"
	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

// Inbox answers what the edge must know of stored messages.
type Inbox interface {
	gateway.Inbox
	live.Inbox
}

// Stats answers what stats_update shows.
type Stats = live.Stats

// Identity is what a verified token says.
type Identity = session.Identity

// Options are what an edge needs.
type Options struct {
	Kafka    pipeline.Kafka
	Producer *pipeline.Producer
	Log      *pipeline.Log
	Windows  *pipeline.Windows // the process's dedup windows
	Watch    *pipeline.Watch   // where the log ends; may be nil
	Inbox    Inbox
	Stats    Stats
	Logger   *slog.Logger
	// Verify checks a token; the error is a *apierr.Error fit for the client.
	Verify func(token string) (Identity, error)
	// Revoked tells whether a token that was good has been revoked since.
	Revoked func(Identity) bool
	// Metrics takes in what is shown to Prometheus; nil: nothing is.
	Metrics prometheus.Registerer
	// NodeName is the same at every start of this node.
	NodeName string

	Settings
	// DedupWindow is the log's; ContentWindow is at most that.
	DedupWindow time.Duration
	// HeartbeatInterval is how often the node says that it lives, RepeatInterval how often it says its sessions again.
	HeartbeatInterval, RepeatInterval time.Duration
}

// Edge serves the sessions of one node. Make it with New, then Run it; its handlers may be called as soon as it runs.
type Edge struct {
	server   *wire.Server
	sessions *session.Sessions
	gateway  *gateway.Gateway
	live     *live.Live

	tail    *pipeline.Tail
	fold    *presence.Fold
	folding *pipeline.Consumer // feeds fold

	reading  func() bool // the tail reads
	draining atomic.Bool
	// endWork ends what is asked of others for clients.
	endWork context.CancelFunc
}

// tail is what a node appends by and reads back (pipeline.Tail).
type tail interface {
	gateway.Tail
	live.Tail
}

// log is what an edge has of the log.
type log struct {
	session.Log // takes what the node says of itself
	tail        tail
	reading     func() bool
	post        func(*topics.Event)
	topicIDs    map[topics.Topic][4]byte
	// start and end are where topic presence is read from, and where it ends.
	start func(context.Context) (int64, bool, error)
	end   func(context.Context) (int64, error)
}

// New prepares an edge: it notes where the log ends, from where on it delivers.
func New(ctx context.Context, o Options) (*Edge, error) {
	var e *Edge
	read, err := pipeline.NewTail(ctx, pipeline.TailOptions{Kafka: o.Kafka, Producer: o.Producer, Log: o.Log, Logger: o.Logger,
		Topics: []topics.Topic{topics.Messages, topics.Notifications, topics.Broadcasts, topics.Signals, topics.Devices},
		Keep:   fed(), Windows: o.Windows, Watch: o.Watch, Route: func(b pipeline.Batch) { e.live.Route(b) }})
	if err != nil {
		return nil, err
	}
	l := log{Log: o.Producer, tail: read, reading: read.Live, topicIDs: make(map[topics.Topic][4]byte)}
	for _, t := range fed() {
		if l.topicIDs[t], err = o.Log.TopicHash(ctx, t); err != nil {
			return nil, err
		}
	}
	l.post = func(ev *topics.Event) {
		o.Producer.Post(ev, func(err error) {
			o.Logger.Warn("an event of the edge's own could not be appended", "type", ev.Type, "err", err)
		})
	}
	l.start = func(ctx context.Context) (int64, bool, error) { return presenceStart(ctx, o.Log) }
	l.end = func(ctx context.Context) (int64, error) {
		ends, err := o.Log.Ends(ctx, topics.Presence)
		return ends[presenceLog], err
	}
	e = wired(o, l)
	e.tail = read
	e.folding = &pipeline.Consumer{Name: "presence", Kafka: o.Kafka, Log: o.Logger, Topics: []topics.Topic{topics.Presence}, Sink: e.fold,
		Watch: o.Watch}
	return e, nil
}

// fed are the topics behind the feeds.
func fed() []topics.Topic {
	return slices.Concat(topics.FeedTopics(topics.Dashboard), topics.FeedTopics(topics.Messaging))
}

// wired makes an edge of its parts.
func wired(o Options, l log) *Edge {
	e := &Edge{reading: l.reading}
	var working context.Context
	working, e.endWork = context.WithCancel(context.Background())
	e.fold = presence.New(presence.Options{Limits: o.Limits, Grace: o.PresenceGrace, Start: l.start, End: l.end,
		Notify:  func(n presence.Notice) { e.sessions.Notice(n) },
		Changed: func(changes []presence.Change) { e.live.PresenceChanged(changes) }})
	e.server = wire.NewServer(wire.ServerOptions{Ready: e.Ready, Logger: o.Logger,
		PingInterval: o.PingInterval, PingTimeout: o.PingTimeout, ConnectTimeout: o.ConnectTimeout,
		CompressionThreshold: o.CompressionThreshold, MaxMessageBytes: o.MaxMessageBytes, MaxQueueBytes: o.MaxQueueBytes,
		MaxEngines: 4 * o.Limits.PerNamespace}) // those that may join both namespaces, and as many that have not yet
	e.sessions = session.New(session.Options{Log: l, Presence: e.fold, Logger: o.Logger, Metrics: o.Metrics, NodeName: o.NodeName,
		Revoked: o.Revoked, Limits: o.Limits, PingTimeout: o.PingTimeout, HeartbeatInterval: o.HeartbeatInterval,
		RepeatInterval: o.RepeatInterval, CompressionThreshold: o.CompressionThreshold})
	e.live = live.New(live.Options{Sessions: e.sessions, Tail: l.tail, Inbox: o.Inbox, Stats: o.Stats, Logger: o.Logger,
		Metrics: o.Metrics, Working: working, Post: l.post, Seen: func(ev *topics.Event) { e.gateway.Seen(ev) }, TopicIDs: l.topicIDs,
		NodeName: o.NodeName, StatsInterval: o.StatsInterval, CompressionThreshold: o.CompressionThreshold, MaxQueueBytes: o.MaxQueueBytes})
	e.gateway = gateway.New(gateway.Options{Server: e.server, Sessions: e.sessions, Live: e.live, Tail: l.tail, Log: l, Inbox: o.Inbox,
		Logger: o.Logger, Metrics: o.Metrics, Verify: o.Verify, Ready: e.Ready, Working: working, RateLimit: o.RateLimit,
		RateWindow: o.RateWindow, ContentWindow: min(o.ContentWindow, o.DedupWindow), DedupWindow: o.DedupWindow,
		MaxMessageBytes: o.MaxMessageBytes, MaxContentBytes: o.MaxContentBytes})
	if o.Metrics != nil {
		o.Metrics.MustRegister(e.server)
	}
	return e
}

// presenceLog is the one partition of topic presence.
var presenceLog = topics.Presence.Partition(0)

// presenceStart is where topic presence is read from: far enough back to meet every live session's last record. whole tells that
// nothing that may still live stands before it.
func presenceStart(ctx context.Context, l *pipeline.Log) (start int64, whole bool, err error) {
	ends, err := l.Ends(ctx, topics.Presence)
	if err != nil {
		return 0, false, err
	}
	starts, err := l.Rewind(ctx, ends, presence.Keep)
	if err != nil {
		return 0, false, err
	}
	// What retention removed before the first record is older than any live session's last one.
	firsts, err := l.Starts(ctx, topics.Presence)
	return starts[presenceLog], starts[presenceLog] == firsts[presenceLog], err
}

// Raw serves a namespace to bare WebSocket clients: text frames {"event":…,"data":…} both ways.
func (e *Edge) Raw(ns topics.Namespace) http.Handler { return e.gateway.Raw(ns) }

// SocketIO serves /socket.io/: Socket.IO protocol 5 over Engine.IO 4.
func (e *Edge) SocketIO() http.Handler { return e.gateway.SocketIO() }

// Send appends a chat message of sender and returns once this node has read it back from the log. Errors are
// *apierr.Error.
func (e *Edge) Send(ctx context.Context, sender string, d topics.Draft) (topics.Receipt, error) {
	return e.gateway.Send(ctx, sender, d)
}

// AllowLookup limits how often a user may ask for keys of others: a *apierr.Error where it is too often.
func (e *Edge) AllowLookup(user string) error { return e.gateway.AllowLookup(user) }

// AllowPublish limits how often a user may publish keys, which are kept forever: a *apierr.Error where it is too often.
func (e *Edge) AllowPublish(user string) error { return e.gateway.AllowPublish(user) }

// Revoke ends the sessions of a user whose tokens are revoked.
func (e *Edge) Revoke(user string) { e.sessions.Revoke(user) }

// Tail is where this node's appends are awaited.
func (e *Edge) Tail() *pipeline.Tail { return e.tail }

// Presence tells who is online.
func (e *Edge) Presence() *presence.Fold { return e.fold }

// GetOnlineUsersCount is how many users are online on the dashboard (the guide's DashboardGateway).
func (e *Edge) GetOnlineUsersCount() int { return e.fold.OnlineUsers(topics.Dashboard) }

// IsUserOnline tells whether a user is online on the dashboard (the guide's DashboardGateway).
func (e *Edge) IsUserOnline(user string) bool { return e.fold.Online(topics.Dashboard, user) }

// Ready reports whether sessions are admitted.
func (e *Edge) Ready() bool {
	select {
	case <-e.fold.Ready():
		return e.reading() && !e.draining.Load()
	default:
		return false
	}
}

// Problem says why sessions are not admitted or get nothing; nil where all is well.
func (e *Edge) Problem() error {
	if e.draining.Load() {
		return errors.New("is draining")
	}
	for _, c := range []*pipeline.Consumer{e.tail.Consumer(), e.folding} {
		if err := c.Problem(); err != nil {
			return err
		}
	}
	if !e.Ready() {
		return errors.New("is not reading the log yet")
	}
	return nil
}

// Run serves until ctx ends. Before that, Drain closes the sessions.
func (e *Edge) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	parts := []func(context.Context) error{e.tail.Run, e.folding.Run, e.fold.Run, e.server.Run, e.sessions.Run, e.gateway.Run, e.live.Run}
	for _, run := range parts {
		g.Go(func() error { return run(ctx) })
	}
	return g.Wait()
}

// Drain stops admitting, ends admissions under way, answers what was sent, closes every session as going away, and waits
// for them and for the log to have taken their ends; no longer than ctx. The clients come back elsewhere.
func (e *Edge) Drain(ctx context.Context) {
	defer e.endWork()
	e.draining.Store(true)
	e.gateway.Shutdown()
	e.server.Shutdown()
	e.sessions.Shutdown()
	e.gateway.Wait(ctx)
	e.live.Shutdown()
	e.server.Drain(ctx)
	e.sessions.Wait(ctx)
}
