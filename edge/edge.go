package edge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/olahol/melody"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

// Inbox answers what the edge must know of stored messages.
type Inbox interface {
	// Message finds a message of the user, or returns inbox.ErrNotFound.
	Message(ctx context.Context, user, id string) (inbox.Message, error)
	// Await returns once everything below ends is folded.
	Await(ctx context.Context, t topics.Topic, ends map[int32]int64) error
	// Feed reads what sessions missed.
	Feed(ctx context.Context, s inbox.Span, entries, bytes int) ([]inbox.Entry, error)
}

// Stats answers what stats_update shows.
type Stats interface {
	Counts(ctx context.Context, users []string) (map[string]stats.Counts, error)
	// Reached tells whether everything below ends is counted.
	Reached(ctx context.Context, ends stats.Ends) (bool, error)
	// Last is what Counts answered last for a user.
	Last(user string) (c stats.Counts, known bool)
}

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
	// HeartbeatInterval is how often this node tells the log that it lives, RepeatInterval how often it tells all its sessions anew.
	HeartbeatInterval, RepeatInterval time.Duration
}

// Edge serves the sessions of one node. Make it with New, then Run it; its handlers may be called as soon as it runs.
type Edge struct {
	o        Options
	node     string // new at every start
	nameJSON []byte // NodeName
	hub      *hub
	log      appender // takes what this node says of itself
	tail     *pipeline.Tail
	live     func() bool // the tail reads
	fold     *presence.Fold
	folding  *pipeline.Consumer // feeds fold
	ids      *contentIDs
	// rates counts messages over all nodes; connects, lookups and publishes count what users do on this one: attempts to
	// connect, and keys asked for and published.
	rates, connects, lookups, publishes *limiter
	slots                               *slots
	stats                               *statistics
	metrics                             *metrics
	schedule                            *schedule
	typing                              *typing
	// topicIDs identify the topics in resume offsets.
	topicIDs map[topics.Topic][4]byte

	melody   *melody.Melody
	draining atomic.Bool
	// admissions ends when Drain begins, working when Drain has ended.
	admissions, working    context.Context
	endAdmissions, endWork context.CancelFunc
	// superseded is closed when another process of this node's name has begun: all ignore this one from then on.
	superseded     chan struct{}
	supersededOnce sync.Once
	unacked        tally // appends of clients that wait for their answer
	serving        tally // connections

	mu      sync.Mutex
	open    map[transport]bool
	engines map[string]*engine       // Engine.IO sessions that began with long-polling, by sid
	rooms   map[userIn]chan struct{} // closed when a session of the user ends, for those who wait for that
}

// New prepares an edge: it notes where the log ends, from where on it delivers.
func New(ctx context.Context, o Options) (*Edge, error) {
	e := newEdge(o, o.Producer)
	var err error
	e.tail, err = pipeline.NewTail(ctx, pipeline.TailOptions{Kafka: o.Kafka, Producer: o.Producer, Log: o.Log, Logger: o.Logger,
		Topics: []topics.Topic{topics.Messages, topics.Notifications, topics.Broadcasts, topics.Signals, topics.Devices},
		Keep:   slices.Concat(feedTopics[topics.Dashboard], feedTopics[topics.Messaging]), Windows: o.Windows, Watch: o.Watch, Route: e.route})
	if err != nil {
		return nil, err
	}
	e.live = e.tail.Live
	for _, behind := range feedTopics {
		for _, t := range behind {
			if e.topicIDs[t], err = o.Log.TopicHash(ctx, t); err != nil {
				return nil, err
			}
		}
	}
	e.fold = e.newFold(e.presenceStart, func(ctx context.Context) (int64, error) {
		ends, err := o.Log.Ends(ctx, topics.Presence)
		return ends[0], err
	})
	e.folding = &pipeline.Consumer{Name: "presence", Kafka: o.Kafka, Log: o.Logger, Topics: []topics.Topic{topics.Presence}, Sink: e.fold, Watch: o.Watch}
	return e, nil
}

// newEdge makes an edge that has no tail and no presence fold yet; log takes what the node says of itself.
func newEdge(o Options, log appender) *Edge {
	e := &Edge{o: o, node: randomID(), log: log, rates: newLimiter(o.RateLimit, o.RateWindow),
		connects: newLimiter(10*o.RateLimit, o.RateWindow), lookups: newLimiter(o.RateLimit, o.RateWindow),
		publishes: newLimiter(max(1, o.RateLimit/10), o.RateWindow), ids: newContentIDs(o.ContentWindow), topicIDs: make(map[topics.Topic][4]byte),
		superseded: make(chan struct{}), schedule: newSchedule(), open: make(map[transport]bool), engines: make(map[string]*engine),
		rooms: make(map[userIn]chan struct{})}
	e.admissions, e.endAdmissions = context.WithCancel(context.Background())
	e.working, e.endWork = context.WithCancel(context.Background())
	e.nameJSON, _ = json.Marshal(o.NodeName) // a string always encodes
	e.stats, e.metrics = newStatistics(e), newMetrics(e, o.Metrics)
	e.hub = newHub(e.metrics.sent)
	e.typing = newTyping(log.TryAppend, e.sendTyping)
	e.slots = newSlots(slotOptions{Log: log, Node: e.node, Event: e.presenceEvent, Logger: o.Logger})
	e.melody = melody.New()
	e.melody.Config.MessageBufferSize = 1 // its queue is not used
	e.melody.Upgrader = &websocket.Upgrader{ReadBufferSize: 512, WriteBufferSize: 512, WriteBufferPool: &sync.Pool{},
		EnableCompression: true, CheckOrigin: func(*http.Request) bool { return true }} // the API has judged the origin
	e.melody.HandleConnect(func(s *melody.Session) { s.MustGet(keyServe).(func(*melody.Session))(s) })
	return e
}

func (e *Edge) newFold(start func(context.Context) (int64, bool, error), end func(context.Context) (int64, error)) *presence.Fold {
	return presence.New(presence.Options{Limits: e.o.Limits, Notify: e.read, Grace: e.o.PresenceGrace, Changed: e.presenceChanged, Start: start, End: end})
}

const keyServe = "serve"

func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// Tail is where this node's appends are awaited.
func (e *Edge) Tail() *pipeline.Tail { return e.tail }

// Presence tells who is online.
func (e *Edge) Presence() *presence.Fold { return e.fold }

// GetOnlineUsersCount is how many users are online on the dashboard (the guide's DashboardGateway).
func (e *Edge) GetOnlineUsersCount() int { return e.fold.OnlineUsers(topics.Dashboard) }

// IsUserOnline tells whether a user is online on the dashboard (the guide's DashboardGateway).
func (e *Edge) IsUserOnline(user string) bool { return e.fold.Online(topics.Dashboard, user) }

// AllowLookup limits how often a user may ask for keys of others, AllowPublish how often it may publish its own, which
// are kept forever: a *apierr.Error where it is too often.
func (e *Edge) AllowLookup(user string) error { return allowed(e.lookups, user) }

// AllowPublish limits how often a user may publish keys.
func (e *Edge) AllowPublish(user string) error { return allowed(e.publishes, user) }

func allowed(l *limiter, user string) error {
	if wait, ok := l.allow(user, time.Now()); !ok {
		return rateLimited(wait)
	}
	return nil
}

// Ready reports whether sessions are admitted.
func (e *Edge) Ready() bool {
	select {
	case <-e.fold.Ready():
		return e.live() && !e.draining.Load()
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
	g.Go(func() error { return e.tail.Run(ctx) })
	g.Go(func() error { return e.folding.Run(ctx) })
	g.Go(func() error { return e.fold.Run(ctx) })
	g.Go(func() error { return e.stats.run(ctx) })
	g.Go(func() error { return every(ctx, e.o.HeartbeatInterval, e.heartbeat) })
	g.Go(func() error { return e.slots.run(ctx) })
	g.Go(func() error { return every(ctx, e.o.RepeatInterval, e.slots.sayAll) })
	g.Go(func() error { return e.schedule.run(ctx) })
	g.Go(func() error { return every(ctx, time.Second, e.sweep) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-e.superseded:
			return fmt.Errorf("another process of NODE_NAME %s has begun, this one is ignored by all others and ends: give each live node a name of its own", e.o.NodeName)
		}
	})
	return g.Wait()
}

// every calls fn at once and then at each interval until ctx ends.
func every(ctx context.Context, interval time.Duration, fn func()) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		fn()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (e *Edge) transports() []transport {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Keys(e.open))
}

// sweep forgets what has had its time, once a second.
func (e *Edge) sweep() {
	now := time.Now()
	e.typing.sweep(now)
	e.rates.sweep(now)
	e.connects.sweep(now)
	e.lookups.sweep(now)
	e.publishes.sweep(now)
	e.ids.sweep(now)
}

func (e *Edge) source() string { return "/nodes/" + e.node }

// tryAppend appends a client's event; Drain waits for its answer.
func (e *Edge) tryAppend(ev *topics.Event, done func(duplicate bool, err error)) {
	e.unacked.begin()
	e.tail.TryAppend(ev, func(duplicate bool, err error) {
		defer e.unacked.end()
		done(duplicate, err)
	})
}

// appendLater appends what nobody waits for.
func (e *Edge) appendLater(ev *topics.Event) {
	e.o.Producer.Post(ev, func(err error) {
		e.o.Logger.Warn("an event of the edge's own could not be appended", "type", ev.Type, "err", err)
	})
}

func (e *Edge) heartbeat() {
	ev := topics.New(topics.Presence, e.node, topics.Meta{Type: topics.TypeNodeHeartbeat, Source: e.source(), ID: topics.NewID()},
		topics.Fields("node", e.node, "name", e.o.NodeName))
	e.log.TryAppend(ev, func(err error) {
		if err != nil {
			e.o.Logger.Warn("a heartbeat could not be appended", "err", err)
		}
	})
}

func (e *Edge) presenceStart(ctx context.Context) (start int64, whole bool, err error) {
	ends, err := e.o.Log.Ends(ctx, topics.Presence)
	if err != nil {
		return 0, false, err
	}
	starts, err := e.o.Log.Rewind(ctx, topics.Presence, ends, presence.Keep)
	if err != nil {
		return 0, false, err
	}
	// What retention removed before the first record is older than any live session's last one.
	firsts, err := e.o.Log.Starts(ctx, topics.Presence)
	return starts[0], starts[0] == firsts[0], err
}

// problem maps an append's error to what a client is told.
func problem(err error) *apierr.Error {
	var known *apierr.Error
	switch {
	case errors.As(err, &known):
		return known
	case pipeline.TooLarge(err):
		return &apierr.Error{Code: apierr.CodeTooLarge, Message: "the event is larger than the log takes"}
	}
	return apierr.Unavailable()
}

// checked judges an event that is about to be appended as every consumer will judge it.
func checked(ev *topics.Event) error {
	if err := topics.Valid(ev); err != nil {
		return apierr.Invalid(err.Error())
	}
	return nil
}
