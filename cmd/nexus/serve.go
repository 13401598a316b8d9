package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/edge"
	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/control"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

const serveHelp = `nexus serve runs the server until SIGTERM or SIGINT. Without settings it needs no other server: log, inbox and
statistics are kept under DATA_DIR. Each setting is a flag, an environment variable or a line of ./.env.

`

func serve(ctx context.Context, args []string, env environment, stdout, stderr io.Writer) error {
	f := newFlags("serve", serveHelp, stderr)
	demo := f.Bool("demo", false, "print tokens of two demo users and lines to try; embedded engines only")
	c, err := load(f, args, env)
	if err != nil {
		return err
	}
	if *demo && c.external() {
		return usageError{errors.New("--demo: only with the embedded engines (unset KAFKA_BROKERS, DATABASE_URL and CLICKHOUSE_URL)")}
	}
	c.Demo = *demo
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // checked by load
	lines := newCalm(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	defer lines.Close()
	s := &server{c: c, log: slog.New(lines), stdout: stdout, registry: prometheus.NewRegistry()}
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.metrics = pipeline.NewMetrics(s.registry)
	defer s.close()
	if err := s.open(ctx); err != nil {
		return err
	}
	return s.run(ctx)
}

// server is the parts of one process, in the order in which they are made; close undoes them backwards.
type server struct {
	c      *Config
	log    *slog.Logger
	stdout io.Writer

	registry *prometheus.Registry
	metrics  *pipeline.Metrics

	tokens   api.Tokens
	kafka    pipeline.Kafka
	embedded bool // the log
	// keepTimes has the embedded log keep the times of what is appended: for nexus repartition.
	keepTimes bool
	logs      *pipeline.Log
	watch     *pipeline.Watch
	producer  *pipeline.Producer
	window    time.Duration
	windows   *pipeline.Windows
	listener  net.Listener
	db        *sqldb.DB // the inbox's
	inbox     *inbox.Inbox
	pusher    *push.Pusher
	stats     statsStore
	counts    *stats.Memory // of stats
	folds     []*pipeline.Consumer
	control   *control.Fold
	controls  *pipeline.Consumer
	gate      *pipeline.Gate
	edge      *edge.Edge
	health    *health
	api       *api.API
	closers   []func()
}

// statsStore is what either engine of the statistics offers.
type statsStore interface {
	pipeline.Sink
	stats.Counter
	Ping(ctx context.Context) error
}

func (s *server) onClose(fn func()) { s.closers = append(s.closers, fn) }

func (s *server) close() {
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
	s.closers = nil
}

func (s *server) component(name string) *slog.Logger { return s.log.With("component", name) }

func (s *server) open(ctx context.Context) error {
	for _, step := range []func(context.Context) error{s.openData, s.listen, s.openLog, s.openInbox, s.openStats, s.openControl, s.openGate, s.openEdge, s.checkLogs} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) openData(context.Context) error {
	if err := os.MkdirAll(s.c.DataDir, 0o700); err != nil {
		return fmt.Errorf("DATA_DIR: %w", err)
	}
	secret, err := secretOf(s.c)
	if err != nil {
		return err
	}
	if s.c.JWTSecret == "" {
		s.log.Info("JWT_SECRET is not set: using one of this server's own", "file", secretFile(s.c.DataDir))
	}
	s.log.Info("engines", s.c.engines()...)
	for _, w := range s.c.Warnings {
		s.log.Warn(w)
	}
	s.tokens = tokensOf(s.c, secret)
	return nil
}

func tokensOf(c *Config, secret string) api.Tokens {
	t := api.Tokens{Secrets: [][]byte{[]byte(secret)}, Issuer: c.JWTIssuer, Audience: c.JWTAudience}
	if c.JWTSecretPrevious != "" {
		t.Secrets = append(t.Secrets, []byte(c.JWTSecretPrevious))
	}
	return t
}

func secretFile(dataDir string) string { return filepath.Join(dataDir, "jwt-secret") }

// secretOf is JWT_SECRET, or else the secret kept under DATA_DIR, made at the first start.
func secretOf(c *Config) (string, error) {
	if c.JWTSecret != "" {
		return c.JWTSecret, nil
	}
	return kept(secretFile(c.DataDir), func() string {
		b := make([]byte, 32)
		_, _ = rand.Read(b) // never fails (crypto/rand)
		return hex.EncodeToString(b)
	})
}

// kept reads a file of one line, or writes what fresh makes there.
func kept(file string, fresh func() string) (string, error) {
	b, err := os.ReadFile(file)
	if err == nil && len(strings.TrimSpace(string(b))) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	v := fresh()
	return v, os.WriteFile(file, []byte(v+"\n"), 0o600)
}

func (s *server) listen(context.Context) error {
	ln, err := net.Listen("tcp", net.JoinHostPort(s.c.Host, s.c.Port))
	if err != nil {
		return listenHint(s.c.Host, s.c.Port, err)
	}
	s.listener = s.guarded(ln)
	s.onClose(func() { s.listener.Close() })
	if s.c.NodeName != "" {
		return nil
	}
	if s.c.Port == "0" {
		s.c.NodeName, err = kept(filepath.Join(s.c.DataDir, "node-name"), topics.NewID)
		return err
	}
	host, err := os.Hostname()
	s.c.NodeName = host + ":" + s.c.Port
	return err
}

func (s *server) openLog(ctx context.Context) error {
	if err := s.reachLog(ctx); err != nil {
		return err
	}
	if err := s.logs.EnsureTopics(ctx, pipeline.TopicOptions{Partitions: int32(s.c.TopicPartitions), Replication: s.c.TopicReplication}); err != nil {
		return err
	}
	contract, err := pipeline.AgreeContract(ctx, s.logs, s.c.DedupWindow, s.c.DedupWindowSet)
	if err != nil {
		return err
	}
	s.window, s.kafka.Partitions = contract.Window, contract.Partitions
	s.windows = pipeline.NewWindows(s.window)
	s.watch = pipeline.NewWatch(pipeline.WatchOptions{Log: s.logs, Contract: contract, Logger: s.component("watch"), Metrics: s.metrics})
	if s.producer, err = pipeline.NewProducer(s.kafka); err != nil {
		return err
	}
	s.onClose(func() { s.producer.Close(s.log) })
	return nil
}

// reachLog opens the embedded log or the connections to Kafka; what is in it is not looked at.
func (s *server) reachLog(ctx context.Context) error {
	brokers := s.c.KafkaBrokers
	if len(brokers) == 0 {
		addr, err := s.openBroker()
		if err != nil {
			return err
		}
		brokers, s.embedded = []string{addr}, true
	} else if s.c.EmbeddedKafkaPortSet {
		s.log.Info("EMBEDDED_KAFKA_PORT is ignored: KAFKA_BROKERS is set")
	}
	s.kafka = pipeline.Kafka{Brokers: brokers, Names: topics.Names{Prefix: s.c.TopicPrefix}, TLS: s.c.KafkaTLS,
		SASLMechanism: s.c.KafkaSASLMechanism, SASLUsername: s.c.KafkaSASLUsername, SASLPassword: s.c.KafkaSASLPassw, Log: s.component("kafka"), Metrics: s.metrics}
	var err error
	if s.logs, err = pipeline.OpenLog(s.kafka); err != nil {
		return fmt.Errorf("KAFKA_BROKERS: %w", err)
	}
	s.onClose(s.logs.Close)
	if err := s.await(ctx, "Kafka at "+strings.Join(brokers, ","), s.logs.Ping); err != nil {
		return kafkaHint(err)
	}
	return nil
}

const defaultKafkaPort = 9092

func (s *server) openBroker() (addr string, err error) {
	port := s.c.EmbeddedKafkaPort
	if !s.c.EmbeddedKafkaPortSet {
		port = defaultKafkaPort
		if !pipeline.FreePort(port) {
			port = 0
			s.log.Info("port 9092 is taken: the embedded Kafka takes a free one")
		}
	}
	b, err := pipeline.StartBroker(pipeline.BrokerOptions{Dir: filepath.Join(s.c.DataDir, "kafka"), Port: port,
		Fsync: s.c.Durability == "fsync", KeepTimes: s.keepTimes, Log: s.component("broker")})
	if err != nil {
		return "", err
	}
	s.onClose(func() {
		if err := b.Close(); err != nil {
			s.log.Error("the embedded Kafka did not close well", "err", err)
		}
	})
	s.log.Info("embedded Kafka is running", "addr", b.Addr())
	return b.Addr(), os.WriteFile(addressFile(s.c.DataDir), []byte(b.Addr()+"\n"), 0o600)
}

// await tries an engine for a while, so that services may be started in any order.
func (s *server) await(ctx context.Context, what string, ping func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.c.StartupTimeout)
	defer cancel()
	for told := false; ; told = true {
		try, done := context.WithTimeout(ctx, 10*time.Second)
		err := ping(try)
		done()
		if err == nil {
			return nil
		}
		if !told {
			s.log.Warn("waiting for an engine", "engine", what, "err", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s cannot be reached: %w", what, err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (s *server) openInbox(ctx context.Context) error {
	db, err := s.openDB(ctx, s.c.DatabaseURL, "inbox.db")
	if err != nil {
		return err
	}
	s.db = db
	if s.inbox, err = inbox.Open(ctx, db, s.c.FeedRetention, s.component("inbox")); err != nil {
		return err
	}
	s.addFold("inbox", inbox.Topics(), s.inbox, s.c.DatabaseURL != "")
	return nil
}

// openDB opens PostgreSQL where it is configured, else an SQLite file.
func (s *server) openDB(ctx context.Context, url, file string) (db *sqldb.DB, err error) {
	if url == "" {
		db, err = sqldb.OpenSQLite(filepath.Join(s.c.DataDir, file))
	} else if db, err = sqldb.OpenPostgres(url); err == nil {
		err = s.await(ctx, "PostgreSQL (DATABASE_URL)", db.Write.PingContext)
	}
	if err != nil {
		return nil, err
	}
	s.onClose(func() { db.Close() })
	return db, nil
}

func (s *server) openStats(ctx context.Context) error {
	if s.c.ClickHouseURL == "" {
		db, err := s.openDB(ctx, "", "stats.db")
		if err != nil {
			return err
		}
		if s.stats, err = stats.OpenSQLite(ctx, db); err != nil {
			return err
		}
		s.addFold("stats", stats.Topics(), s.stats, false)
		return nil
	}
	err := s.await(ctx, "ClickHouse (CLICKHOUSE_URL)", func(ctx context.Context) error {
		ch, err := stats.OpenClickHouse(ctx, s.c.ClickHouseURL)
		if err == nil {
			s.stats = ch
			s.onClose(func() { ch.Close() })
		}
		return err
	})
	if err != nil {
		return clickHouseHint(ctx, s.c.ClickHouseURL, err)
	}
	s.addFold("stats", stats.Topics(), s.stats, true)
	return nil
}

// addFold has a projection fed. Nodes share the work on a store that they share; a store of this node's own needs every
// partition, and a log of its own has no other readers.
func (s *server) addFold(name string, ts []topics.Topic, sink pipeline.Sink, shared bool) {
	c := &pipeline.Consumer{Name: name, Kafka: s.kafka, Log: s.component(name), Topics: ts, Sink: sink, Windows: s.windows, WayOut: wayOut(name), Watch: s.watch,
		SetAside: s.producer.SetAside}
	if shared && !s.embedded {
		c.Group, c.Instance = s.group(name)
	}
	s.folds = append(s.folds, c)
}

func (s *server) group(name string) (group, instance string) {
	return s.c.TopicPrefix + name, s.c.NodeName + "/" + name
}

// openPush makes the sender of pushes, from the same database as the inbox, whose devices it reads.
func (s *server) openPush(ctx context.Context, online push.Presence) (err error) {
	o := push.Options{DB: s.db, Log: s.logs, Producer: s.producer, Inbox: s.inbox, Presence: online, TTL: s.c.PushTTL, Lease: s.c.PushLease, Rate: s.c.PushRate,
		Node: s.c.NodeName, Logger: s.component("push"), Metrics: push.NewMetrics(s.registry)}
	if s.c.pushes() {
		if o.Sender, err = push.NewFCM(context.WithoutCancel(ctx), s.c.Firebase); err != nil {
			return err
		}
	} else {
		s.log.Info("mobile push is off: " + s.c.pushOff())
	}
	if s.pusher, err = push.New(ctx, o); err != nil {
		return err
	}
	s.addFold("push", push.Topics(), s.pusher, s.c.DatabaseURL != "")
	return nil
}

// openControl has topic control folded, by every node for itself.
func (s *server) openControl(context.Context) error {
	s.control = control.New()
	s.control.Revoked = func(user string) { s.edge.Revoke(user) }
	s.controls = &pipeline.Consumer{Name: "control", Kafka: s.kafka, Log: s.component("control"), Topics: []topics.Topic{topics.Control}, Sink: s.control}
	s.folds = append(s.folds, s.controls)
	return nil
}

func (s *server) openGate(context.Context) error {
	o := pipeline.GateOptions{Kafka: s.kafka, Producer: s.producer, Windows: s.windows, Log: s.component("gate"), WayOut: wayOut("gate"), Watch: s.watch}
	o.Positions, o.Instance = s.group("gate")
	if !s.embedded {
		o.Group = o.Positions
	}
	s.gate = pipeline.NewGate(o)
	s.onClose(s.gate.Close)
	return nil
}

// checkLogs makes sure, before anything is folded, that every store remembers the log that is there.
func (s *server) checkLogs(ctx context.Context) error {
	var problems []error
	for _, c := range s.consumers() {
		err := s.await(ctx, "what "+c.Name+" remembers of the log", func(ctx context.Context) error {
			err := c.Check(ctx, s.logs)
			if forOperator(err) {
				problems = append(problems, err)
				return nil
			}
			return err // an engine that is not there yet, such as the group's coordinator
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(problems...)
}

// forOperator tells of an error that no waiting mends: the store and the log do not fit.
func forOperator(err error) bool {
	var wrong *pipeline.WrongLogError
	return errors.As(err, &wrong) || errors.Is(err, stats.ErrEmptied)
}

// consumers are those that have a store of their own.
func (s *server) consumers() []*pipeline.Consumer {
	return append(slices.Clone(s.folds), s.gate.Consumer())
}

// wayOut tells an operator what to do where a consumer's store remembers another log.
func wayOut(name string) string {
	adopt := "if store and log belong together (see the URLs and NEXUS_TOPIC_PREFIX), stop all nodes and run nexus adopt " + name + " to go on from here"
	if name == "inbox" || name == "stats" {
		return adopt + " with what it has, or nexus rebuild " + name + " to fold it anew from this log"
	}
	return adopt
}

func (s *server) openEdge(ctx context.Context) error {
	s.counts = stats.Remember(s.stats)
	var err error
	c := s.c
	s.edge, err = edge.New(ctx, edge.Options{Kafka: s.kafka, Producer: s.producer, Log: s.logs, Inbox: s.inbox, Stats: s.counts,
		Logger: s.component("edge"), Metrics: s.registry, Verify: s.identify, NodeName: c.NodeName,
		Revoked: func(id edge.Identity) bool { return s.control.IsRevoked(id.User, id.TokenID, id.Issued) },
		Limits: presence.Limits{PerUser: c.MaxConnectionsPerUser, PerNamespace: c.MaxConnectionsPerNamespace,
			EvictOldest: c.ConnectionPolicy == evictOldest},
		RateLimit: c.RateLimitMessages, RateWindow: c.RateLimitWindow, Windows: s.windows, Watch: s.watch, ContentWindow: min(c.DedupContentWindow, s.window),
		PingInterval: c.PingInterval, PingTimeout: c.PingTimeout, ConnectTimeout: c.ConnectTimeout, StatsInterval: c.StatsInterval,
		PresenceGrace: c.PresenceGrace, CompressionThreshold: c.CompressionThreshold, MaxMessageBytes: c.MaxMessageBytes,
		MaxContentBytes: c.MaxContentBytes, MaxQueueBytes: c.MaxQueueBytes, HeartbeatInterval: 5 * time.Second, RepeatInterval: 2 * time.Minute})
	if err != nil {
		return err
	}
	if c.AllowedOrigins == nil {
		s.log.Info("ALLOWED_ORIGIN is not set: browsers may come from any origin")
	}
	if err := s.openPush(ctx, s.edge.Presence()); err != nil {
		return err
	}
	s.health = newHealth(s.healthParts())
	s.api = api.New(api.Options{Verify: s.verify, Producer: s.producer, Tail: s.edge.Tail(), Inbox: s.inbox, Messages: s.edge,
		Presence: s.edge.Presence(), Stats: s.counts, Logger: s.component("api"), Parts: s.health.names(), Problems: s.health.problems, Metrics: s.registry, Push: s.pusher.On(),
		Keys: s.control, AllowLookup: s.edge.AllowLookup, AllowPublish: s.edge.AllowPublish, MaxBody: int64(c.MaxMessageBytes),
		Origins: c.AllowedOrigins,
		Handlers: map[string]http.Handler{"/dashboard": s.edge.Raw(topics.Dashboard), "/ws": s.edge.Raw(topics.Messaging),
			"/socket.io/": s.edge.SocketIO(), "/metrics": promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{})}})
	return nil
}

// verify checks a token, also against the revocations; before all of those are read it admits nobody.
func (s *server) verify(token string) (api.Claims, error) {
	c, err := s.tokens.Verify(token)
	switch {
	case err != nil:
		return c, err
	case !s.controls.CaughtUp():
		return c, apierr.Unavailable()
	case s.control.IsRevoked(c.User, c.ID, c.Issued):
		return c, &apierr.Error{Code: apierr.CodeTokenRevoked, Message: "the token has been revoked"}
	}
	return c, nil
}

func (s *server) identify(token string) (edge.Identity, error) {
	c, err := s.verify(token)
	return edge.Identity{User: c.User, Expires: c.Expires, Issued: c.Issued, TokenID: c.ID, Channels: c.Channels}, err
}

// run works until ctx ends, then drains: no new connections, open ones told to come back elsewhere, what was accepted
// answered and flushed.
func (s *server) run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, work := errgroup.WithContext(work)
	g.Go(func() error { return s.inbox.Run(work) })
	g.Go(func() error { return s.watch.Run(work) })
	g.Go(func() error { return s.pusher.Run(work) })
	g.Go(func() error { return s.consume(work, g) })
	serving, stopServing := context.WithCancel(work)
	defer stopServing()
	served := make(chan struct{})
	g.Go(func() error {
		defer close(served)
		if err := s.api.Serve(serving, s.listener, s.c.ShutdownTimeout); err != nil && !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve HTTP: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		ending, end := context.WithCancel(work) // by a signal or by a part that failed
		defer end()
		defer context.AfterFunc(ctx, end)()
		if err := s.announce(ending); err != nil {
			return err
		}
		<-ending.Done()
		s.log.Info("shutting down")
		stopServing()
		grace := s.c.ShutdownTimeout
		if work.Err() != nil {
			grace = time.Second // nothing will be answered any more
		}
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		s.edge.Drain(drain)
		<-served // requests under way need the tail; Serve waits for them within the same time
		s.producer.Flush(drain)
		stop()
		return nil
	})
	err := g.Wait()
	if err == nil {
		s.log.Info("stopped")
	}
	return err
}

// warmFor bounds how long the windows are kept warm for consumers that have not taken their partitions over.
const warmFor = 30 * time.Second

// consume warms the dedup windows once for all consumers, and starts these. Revocations need no window: who they are read for
// is let in that much earlier.
func (s *server) consume(ctx context.Context, g *errgroup.Group) error {
	g.Go(func() error { return s.controls.Run(ctx) })
	all := append(s.consumers(), s.edge.Tail().Consumer())
	release, err := s.windows.Prepare(ctx, s.logs, all)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("the dedup windows could not be warmed beforehand; each consumer does it for itself", "err", err)
	}
	for _, c := range s.folds {
		if c != s.controls {
			g.Go(func() error { return c.Run(ctx) })
		}
	}
	g.Go(func() error { return s.gate.Run(ctx) })
	g.Go(func() error { return s.edge.Run(ctx) })
	defer release()
	for end := time.Now().Add(warmFor); time.Now().Before(end); {
		if !slices.ContainsFunc(all, func(c *pipeline.Consumer) bool { return !c.Assigned() }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// announce prints where the server is, once it admits sessions; while that takes long it logs what is waited for.
func (s *server) announce(ctx context.Context) error {
	told := time.Now()
	for {
		problems := s.health.problems(ctx, nil)
		if len(problems) == 0 {
			break
		}
		if time.Since(told) > 5*time.Second {
			told = time.Now()
			s.log.Info("not ready yet", "problems", problems)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
	_, port, err := net.SplitHostPort(s.listener.Addr().String())
	if err != nil {
		return err
	}
	base := "localhost:" + port
	fmt.Fprintf(s.stdout, "nexus is listening on http://%s\n", base)
	if s.embedded {
		fmt.Fprintf(s.stdout, "embedded Kafka is listening on %s\n", s.kafka.Brokers[0])
	}
	if s.c.Demo {
		return s.printDemo(base)
	}
	return nil
}

// demoTTL is how long the demo's tokens live.
const demoTTL = 24 * time.Hour

func (s *server) printDemo(base string) error {
	alice, err := s.tokens.Sign(api.Claims{User: "alice"}, demoTTL)
	if err != nil {
		return err
	}
	bob, err := s.tokens.Sign(api.Claims{User: "bob"}, demoTTL)
	if err != nil {
		return err
	}
	service, err := s.tokens.Sign(api.Claims{User: "demo-service", Scopes: []string{api.ScopePublish}}, demoTTL)
	if err != nil {
		return err
	}
	topic := s.kafka.Names.Name(topics.Notifications)
	fmt.Fprintf(s.stdout, `
Tokens, good for %s:
  alice    %s
  bob      %s
  service  %s

Open alice's dashboard and keep it open:
  wscat -c "ws://%[5]s/dashboard?userId=alice&token=%[2]s"
  > {"event": "subscribe", "data": {"channels": ["referrals", "events"]}}

Send her a notification, as a product service by REST, and straight into the topic:
  curl -s http://%[5]s/notifications -H 'Authorization: Bearer %[4]s' -H 'Content-Type: application/json' \
    -d '{"userId":"alice","title":"Hello","body":"from REST","type":"SYSTEM"}'
  echo 'user:alice|{"title":"Hello","body":"from Kafka","type":"SYSTEM"}' | kcat -P -b %[6]s -t %[7]s -K '|' -X partitioner=murmur2_random

Read her inbox:
  curl -s http://%[5]s/notifications -H 'Authorization: Bearer %[2]s'

Chat: bob listens, alice writes:
  wscat -c "ws://%[5]s/ws?userId=bob&token=%[3]s"
  wscat -c "ws://%[5]s/ws?userId=alice&token=%[2]s"
  > {"event": "sendMessage", "data": {"receiverId": "bob", "content": "Hello"}}

Stop with Ctrl-C; everything is kept in %[8]s.
`, strconv.Itoa(int(demoTTL.Hours()))+" hours", alice, bob, service, base, s.kafka.Brokers[0], topic, s.c.DataDir)
	return nil
}
