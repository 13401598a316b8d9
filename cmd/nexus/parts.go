package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/edge"
	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/edge/push/fcm"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/keys"
	"github.com/nexus/nexus/projections/revocations"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

// part is one of the things that a node is made of. Opening, running, health, nexus rebuild, adopt and repartition walk the
// list of them (allParts); none of these names a part.
type part struct {
	name string
	// needs are the parts whose fields of app open uses; they stand above this one in the list.
	needs []string
	// open makes the part ready; nothing of it works yet. What it opens it hands to app.onClose, also where it fails later.
	open func(ctx context.Context) (opened, error)
	// keeps tells of a part that reads the log where its positions are, and so who reads what.
	keeps keeping
	// rebuilds tells that nexus rebuild may empty it, and then fold it anew.
	rebuilds bool
	// skips tells that nexus adopt has it go on from the log's end: nobody wants what was appended while no node ran.
	skips bool
}

// keeping is where a part's positions are.
type keeping int

const (
	// nowhere: no positions are kept. A projection in memory is folded anew by every node at every start.
	nowhere keeping = iota
	// ownStore: a store of this node's own, which needs every partition.
	ownStore
	// sharedStore: a store of all nodes, which share the partitions in a consumer group.
	sharedStore
)

// opened is a part that is open. Each of these may be nil.
type opened struct {
	// run works until ctx ends; then it returns nil. An error ends the node.
	run func(ctx context.Context) error
	// probe says what is wrong, for GET /readyz; nil: the part is not asked there.
	probe func(ctx context.Context) error
	// consumer reads the log for the part. run has it run.
	consumer *pipeline.Consumer
}

// allParts are the parts of a node, from the ground up: a part stands below those that it needs. To add a projection of a store,
// add its line; what else it offers is found by its methods (see projection).
func (a *app) allParts() []part {
	sql, olap := storeOf(a.c.DatabaseURL), storeOf(a.c.ClickHouseURL)
	return []part{
		{name: "data", open: a.openData},
		{name: "http", needs: []string{"data"}, open: a.listen}, // early: a port that is taken is told at once; served last, by api
		{name: "log", needs: []string{"data"}, open: a.openLog},
		{name: "database", needs: []string{"data"}, open: a.openDatabase},
		a.projection(part{name: "inbox", needs: []string{"log", "database"}, keeps: sql, rebuilds: true}, inbox.Topics(), a.openInbox),
		a.projection(part{name: "stats", needs: []string{"log"}, keeps: olap, rebuilds: true}, stats.Topics(), a.openStats),
		a.projection(part{name: "control", needs: []string{"log"}}, revocations.Topics(), a.openRevocations),
		a.projection(part{name: "keys", needs: []string{"log", "database"}, keeps: sql, rebuilds: true}, keys.Topics(), a.openKeys),
		{name: "edge", needs: []string{"data", "log", "inbox", "stats", "control"}, open: a.openEdge},
		a.projection(part{name: "push", needs: []string{"log", "database", "inbox", "edge"}, keeps: sql, skips: true}, push.Topics(), a.openPush),
		{name: "gate", needs: []string{"log"}, keeps: sharedStore, open: a.openGate},
		{name: "api", needs: []string{"http", "log", "inbox", "stats", "control", "keys", "edge", "push"}, open: a.openAPI}, // last: it knows all
	}
}

// storeOf is who reads for a store: all nodes together for one that a URL names, else each for its own SQLite file.
func storeOf(url string) keeping {
	if url == "" {
		return ownStore
	}
	return sharedStore
}

// What a projection may offer beside pipeline.Sink: work of its own beside the folding, its engine's answer to a ping, whether it
// has nothing to do (then nobody waits for it), to be emptied with its positions (nexus rebuild), to take another log on (nexus adopt).
type (
	runner interface {
		Run(ctx context.Context) error
	}
	pinger interface {
		Ping(ctx context.Context) error
	}
	switched interface{ On() bool }
	resetter interface {
		Reset(ctx context.Context) error
	}
	adopter interface {
		Adopt(ctx context.Context, to map[topics.Partition]pipeline.Position) error
	}
)

// projection completes a part that folds topics: a consumer feeds what open opens.
func (a *app) projection(p part, ts []topics.Topic, open func(ctx context.Context) (pipeline.Sink, error)) part {
	p.open = func(ctx context.Context) (opened, error) {
		sink, err := open(ctx)
		if err != nil {
			return opened{}, err
		}
		c := a.newConsumer(p, ts, sink)
		return opened{consumer: c, probe: probeOf(sink, c), run: func(ctx context.Context) error {
			g, ctx := errgroup.WithContext(ctx)
			g.Go(func() error { return c.Run(ctx) })
			if r, ok := sink.(runner); ok {
				g.Go(func() error { return r.Run(ctx) })
			}
			return g.Wait()
		}}, nil
	}
	return p
}

// newConsumer makes what feeds a projection. One in memory is folded by every node for itself, from the log's beginning.
func (a *app) newConsumer(p part, ts []topics.Topic, sink pipeline.Sink) *pipeline.Consumer {
	c := &pipeline.Consumer{Name: p.name, Kafka: a.kafka, Log: a.component(p.name), Topics: ts, Sink: sink}
	if slices.ContainsFunc(ts, topics.Topic.Deduplicated) {
		c.Windows = a.windows
	}
	if p.keeps == nowhere {
		return c
	}
	c.Watch, c.WayOut, c.SetAside = a.watch, wayOut(p), a.producer.SetAside
	if p.keeps == sharedStore && !a.embedded() { // a log of this process's own has no other readers
		c.Group, c.Instance = a.group(p.name), a.instance(p.name)
	}
	return c
}

// group is the consumer group of a part, the same on all nodes of a log; instance is this node in it, at every start.
func (a *app) group(name string) string    { return a.c.Kafka.Names.Prefix + name }
func (a *app) instance(name string) string { return a.c.NodeName + "/" + name }

// probeOf asks a projection's engine, then whether it is up to date.
func probeOf(sink pipeline.Sink, c *pipeline.Consumer) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		if p, ok := sink.(pinger); ok {
			if err := reached("its database", p.Ping(ctx)); err != nil {
				return err
			}
		}
		if s, ok := sink.(switched); ok && !s.On() {
			return nil
		}
		return c.Problem()
	}
}

// wayOut tells an operator what to do where a part's store remembers another log.
func wayOut(p part) string {
	adopt := "if store and log belong together (see the URLs and NEXUS_TOPIC_PREFIX), stop all nodes and run nexus adopt " + p.name +
		" to go on from here"
	if p.rebuilds {
		return adopt + " with what it has, or nexus rebuild " + p.name + " to fold it anew from this log"
	}
	return adopt
}

// openData makes DATA_DIR, and finds the secret that tokens are signed with.
func (a *app) openData(context.Context) (opened, error) {
	if err := os.MkdirAll(a.c.DataDir, 0o700); err != nil {
		return opened{}, fmt.Errorf("DATA_DIR: %w", err)
	}
	secret, err := secretOf(a.c)
	if err != nil {
		return opened{}, err
	}
	if a.c.JWTSecret == "" {
		a.log.Info("JWT_SECRET is not set: using one of this server's own", "file", secretFile(a.c.DataDir))
	}
	a.tokens = tokensOf(a.c, secret)
	return opened{}, nil
}

// listen takes the port, so that a second process ends here before it touches anything, and names the node after it.
func (a *app) listen(context.Context) (opened, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(a.c.Host, a.c.Port))
	if err != nil {
		return opened{}, listenHint(a.c.Host, a.c.Port, err)
	}
	a.listener = a.guarded(ln)
	a.onClose(func() { a.listener.Close() })
	if a.c.NodeName != "" {
		return opened{}, nil
	}
	if a.c.Port == "0" {
		a.c.NodeName, err = kept(filepath.Join(a.c.DataDir, "node-name"), topics.NewID)
		return opened{}, err
	}
	host, err := os.Hostname()
	a.c.NodeName = host + ":" + a.c.Port
	return opened{}, err
}

func (a *app) openInbox(ctx context.Context) (_ pipeline.Sink, err error) {
	a.inbox, err = inbox.Open(ctx, a.db, a.c.FeedRetention, a.component("inbox"))
	return a.inbox, err
}

func (a *app) openStats(ctx context.Context) (pipeline.Sink, error) {
	store, err := a.openStatsStore(ctx)
	if err != nil {
		return nil, err
	}
	a.counts = stats.Remember(store)
	return store, nil
}

func (a *app) openRevocations(context.Context) (pipeline.Sink, error) {
	a.revoked = revocations.New()
	return a.revoked, nil
}

func (a *app) openKeys(ctx context.Context) (_ pipeline.Sink, err error) {
	a.keys, err = keys.Open(ctx, a.db, a.logs)
	return a.keys, err
}

// How often a node says in the log that it lives, and that its sessions do. What others conclude from silence follows from
// these (projections/presence), so they are no settings.
const (
	heartbeatInterval = 5 * time.Second
	repeatInterval    = 2 * time.Minute
)

func (a *app) openEdge(ctx context.Context) (opened, error) {
	set := a.c.Edge
	set.ContentWindow = min(set.ContentWindow, a.window) // beyond that a copy is another message
	var err error
	a.edge, err = edge.New(ctx, edge.Options{Kafka: a.kafka, Producer: a.producer, Log: a.logs, Windows: a.windows, Watch: a.watch,
		Inbox: a.inbox, Stats: a.counts,
		Logger: a.component("edge"), Metrics: a.registry, NodeName: a.c.NodeName, Verify: a.identify,
		Revoked:  func(id edge.Identity) bool { return a.revoked.IsRevoked(id.User, id.TokenID, id.Issued) },
		Settings: set, HeartbeatInterval: heartbeatInterval, RepeatInterval: repeatInterval})
	if err != nil {
		return opened{}, err
	}
	a.revoked.Revoked = a.edge.Revoke // the one circle: each asks the other; nothing runs before both are there
	return opened{consumer: a.edge.Tail().Consumer(), run: a.edge.Run, probe: func(context.Context) error { return a.edge.Problem() }}, nil
}

func (a *app) openPush(ctx context.Context) (pipeline.Sink, error) {
	channels, err := a.openChannels(ctx)
	if err != nil {
		return nil, err
	}
	a.pusher, err = push.New(ctx, push.Options{Settings: a.c.Push, DB: a.db, Log: a.logs, Producer: a.producer, Presence: a.edge.Presence(),
		Channels: channels, Node: a.c.NodeName, Logger: a.component("push"), Metrics: push.NewMetrics(a.registry)})
	return a.pusher, err
}

// openChannels makes what carries pushes. To add a channel, add its line.
func (a *app) openChannels(ctx context.Context) ([]push.Channel, error) {
	if !a.c.pushes() {
		a.log.Info("mobile push is off: " + a.c.pushOff()) //nolint:sloglint // one of two sentences
	}
	var list []push.Channel
	for _, open := range []func(context.Context) (push.Channel, error){
		a.openFCM,
	} {
		ch, err := open(ctx)
		if err != nil {
			return nil, err
		}
		list = append(list, ch)
	}
	return list, nil
}

func (a *app) openFCM(ctx context.Context) (push.Channel, error) {
	return fcm.New(context.WithoutCancel(ctx), fcm.Options{Credentials: a.c.Firebase, Log: a.logs, Inbox: a.inbox, Producer: a.producer,
		Node: a.c.NodeName, Logger: a.component("push")})
}

func (a *app) openGate(context.Context) (opened, error) {
	p := part{name: "gate"}
	o := pipeline.GateOptions{Kafka: a.kafka, Producer: a.producer, Windows: a.windows, Log: a.component("gate"), WayOut: wayOut(p),
		Watch:     a.watch,
		Positions: a.group("gate"), Instance: a.instance("gate")}
	if !a.embedded() {
		o.Group = o.Positions
	}
	g := pipeline.NewGate(o)
	a.onClose(g.Close)
	c := g.Consumer()
	return opened{consumer: c, run: g.Run, probe: func(context.Context) error { return c.Problem() }}, nil
}

func (a *app) openAPI(context.Context) (opened, error) {
	if a.c.AllowedOrigins == nil {
		a.log.Info("ALLOWED_ORIGIN is not set: browsers may come from any origin")
	}
	a.health = newHealth(a.probes())
	// requests have contexts of their own
	a.api = api.New(api.Options{Verify: a.verify, Producer: a.producer, Tail: a.edge.Tail(), Inbox: a.inbox, Messages: a.edge,
		Presence: a.edge.Presence(), Stats: a.counts, Logger: a.component("api"), Metrics: a.registry, Push: a.pusher.On(),
		Parts: a.health.names(), Problems: a.health.problems, Build: api.Build(buildOf()),
		Keys: a.keys, AllowLookup: a.edge.AllowLookup, AllowPublish: a.edge.AllowPublish,
		MaxBody: int64(a.c.Edge.MaxMessageBytes), Origins: a.c.AllowedOrigins,
		Handlers: map[string]http.Handler{"/dashboard": a.edge.Raw(topics.Dashboard), "/ws": a.edge.Raw(topics.Messaging),
			"/socket.io/": a.edge.SocketIO(), "/metrics": promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{})}})
	return opened{}, nil
}

// tokensOf is what tokens are verified and signed with.
func tokensOf(c *Config, secret string) api.Tokens {
	t := c.Tokens
	t.Secrets = [][]byte{[]byte(secret)}
	if c.JWTSecretPrevious != "" {
		t.Secrets = append(t.Secrets, []byte(c.JWTSecretPrevious))
	}
	return t
}

// verify checks a token, also against the revocations; before all of those are read it admits nobody.
func (a *app) verify(token string) (api.Claims, error) {
	c, err := a.tokens.Verify(token)
	switch {
	case err != nil:
		return c, err
	case !a.consumer("control").CaughtUp():
		return c, apierr.Unavailable()
	case a.revoked.IsRevoked(c.User, c.ID, c.Issued):
		return c, &apierr.Error{Code: apierr.CodeTokenRevoked, Message: "the token has been revoked"}
	}
	return c, nil
}

func (a *app) identify(token string) (edge.Identity, error) {
	c, err := a.verify(token)
	return edge.Identity{User: c.User, Expires: c.Expires, Issued: c.Issued, TokenID: c.ID, Channels: c.Channels}, err
}
