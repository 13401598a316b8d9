package wire

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/olahol/melody"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/internal/apierr"
)

// ServerOptions are what a Server needs. Zero values are not replaced.
type ServerOptions struct {
	// Ready reports whether connections are taken; a request that comes while they are not is answered with 503.
	Ready  func() bool
	Logger *slog.Logger
	// PingInterval is how often a client is pinged, PingTimeout how long it may take to answer.
	PingInterval, PingTimeout time.Duration
	// ConnectTimeout is how long an Engine.IO session may be in no namespace.
	ConnectTimeout time.Duration
	// CompressionThreshold is above how many bytes a text is compressed, where the client takes that.
	CompressionThreshold int
	// MaxMessageBytes bounds a message from a client, after inflating.
	MaxMessageBytes int
	// MaxQueueBytes bounds what waits for a client; one that lets more wait is closed as too slow.
	MaxQueueBytes int
	// MaxEngines bounds the Engine.IO sessions that began with long-polling.
	MaxEngines int
}

// Server has this node's connections: it upgrades requests, pings, times out, and closes all of them when the node goes.
// It is safe for concurrent use.
type Server struct {
	o        ServerOptions
	melody   *melody.Melody
	schedule *schedule
	draining atomic.Bool
	serving  Tally // connections

	mu      sync.Mutex
	open    map[Transport]bool
	engines map[string]*Engine // Engine.IO sessions that began with long-polling, by sid
}

// NewServer makes a server; its handlers may be called as soon as Run runs.
func NewServer(o ServerOptions) *Server {
	srv := &Server{o: o, melody: melody.New(), schedule: newSchedule(), open: make(map[Transport]bool), engines: make(map[string]*Engine)}
	srv.melody.Config.MessageBufferSize = 1 // its queue is not used
	srv.melody.Upgrader = &websocket.Upgrader{ReadBufferSize: 512, WriteBufferSize: 512, WriteBufferPool: &sync.Pool{},
		EnableCompression: true, CheckOrigin: func(*http.Request) bool { return true }} // the API has judged the origin
	srv.melody.HandleConnect(func(s *melody.Session) { s.MustGet(keyServe).(func(*melody.Session))(s) })
	return srv
}

const keyServe = "serve"

// Run looks after connections until ctx ends: pings and time-outs.
func (srv *Server) Run(ctx context.Context) error { return srv.schedule.run(ctx) }

// Precheck answers a request that is no WebSocket handshake, or that comes while connections are not taken; it reports
// whether the handshake may go on.
func (srv *Server) Precheck(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case !websocket.IsWebSocketUpgrade(r) || r.Method != http.MethodGet || r.Header.Get("Sec-Websocket-Version") != "13":
		w.Header().Set("Upgrade", "websocket")
		(&apierr.Error{Code: apierr.CodeUpgrade, Message: "this is a WebSocket endpoint (RFC 6455, version 13)"}).WriteHTTP(w)
	case !srv.o.Ready():
		apierr.Unavailable().WriteHTTP(w)
	default:
		return true
	}
	return false
}

// Upgrade makes the request a WebSocket connection, which serve uses until it ends; then ended is called, also where there
// was no connection. It returns once the connection is there: served by a goroutine of its own it does without the
// buffers and the deep stack of the HTTP server, two thirds of what a session would hold.
func (srv *Server) Upgrade(w http.ResponseWriter, r *http.Request, serve func(*Conn), ended func()) {
	if !srv.serving.Begin() {
		apierr.Unavailable().WriteHTTP(w)
		ended()
		return
	}
	clear(w.Header()) // melody would send them with the 101
	wire := wirePlain
	if negotiateDeflate(r.Header) {
		wire = wireDeflate
	}
	upgraded := make(chan struct{})
	var answered sync.Once
	answer := func() { answered.Do(func() { close(upgraded) }) }
	go func() {
		defer srv.serving.End()
		defer ended()
		defer answer() // an error has been answered by the upgrader
		defer srv.survive()
		_ = srv.melody.HandleRequestWithKeys(w, r, map[string]any{keyServe: func(m *melody.Session) {
			m.Request = nil // nothing of the request is used from here on, nor kept
			answer()
			c := srv.newConn(m.WebsocketConnection(), wire)
			defer c.Abort()
			serve(c)
		}})
	}()
	<-upgraded
}

// survive has a panic end a session and not the process. The panic's value may quote a message; the stack does not.
func (srv *Server) survive() {
	if p := recover(); p != nil {
		srv.o.Logger.Error("serving a session panicked", "stack", string(debug.Stack()))
	}
}

func (srv *Server) newConn(ws *websocket.Conn, wire wire) *Conn {
	return &Conn{heart: newHeart(time.Now(), srv.o.PingInterval), ws: ws, net: ws.NetConn(), log: srv.o.Logger, wire: wire,
		deflateAbove: srv.o.CompressionThreshold, maxQueue: srv.o.MaxQueueBytes, maxRead: int64(srv.o.MaxMessageBytes), patience: srv.patience()}
}

// patience is how long a client may be silent before it is gone.
func (srv *Server) patience() time.Duration { return srv.o.PingInterval + srv.o.PingTimeout }

// Serve runs begin and then reads a bare WebSocket connection until it ends, handing its messages to handle. Meanwhile the
// client is pinged, and look is called once a second at least.
func (srv *Server) Serve(c *Conn, look func(now time.Time), begin func(), handle func(kind int, message []byte)) {
	srv.serve(c, c, func(now time.Time) time.Time {
		if c.heart.due(now, srv.o.PingInterval) {
			c.send(appendFrame(nil, bitFinal|opPing, nil))
		}
		look(now)
		return c.heart.next
	}, begin, handle)
}

// serve has t looked after, runs begin, and reads the connection until it ends.
func (srv *Server) serve(c *Conn, t Transport, check func(time.Time) time.Time, begin func(), handle func(kind int, message []byte)) {
	srv.watch(t, check)
	defer srv.unwatch(t)
	begin()
	c.read(func(kind int, message []byte) {
		handle(kind, message)
		_ = c.alive() // handling may have taken longer than a challenge allows; a connection that fails is found by the next read
	})
}

// watch has a transport looked after, and Drain close it.
func (srv *Server) watch(t Transport, check func(time.Time) time.Time) {
	srv.mu.Lock()
	srv.open[t] = true
	srv.mu.Unlock()
	srv.schedule.add(t, check)
	if srv.draining.Load() { // the handshake was under way when Drain looked
		t.Close(websocket.CloseGoingAway, goingAway)
	}
}

func (srv *Server) unwatch(t Transport) {
	srv.schedule.remove(t)
	srv.mu.Lock()
	defer srv.mu.Unlock()
	delete(srv.open, t)
}

const goingAway = "the server is going away"

// transports are the open ones.
func (srv *Server) transports() []Transport {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return slices.Collect(maps.Keys(srv.open))
}

// Shutdown takes no connection any more; those there are go on until Drain.
func (srv *Server) Shutdown() {
	srv.draining.Store(true)
	srv.serving.Shutdown()
}

// Drain closes every connection as going away and waits for their ends; those that have not ended when ctx ends are cut.
func (srv *Server) Drain(ctx context.Context) {
	for _, t := range srv.transports() {
		t.Close(websocket.CloseGoingAway, goingAway)
	}
	if !srv.serving.Wait(ctx) {
		for _, t := range srv.transports() {
			t.Abort()
		}
	}
}

// Counts are how many connections are served, how many of them are looked after, and how many Engine.IO sessions began
// with long-polling and go on.
type Counts struct{ Serving, Watched, Engines int }

// Counts tells what the server has.
func (srv *Server) Counts() Counts {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return Counts{Serving: srv.serving.Count(), Watched: len(srv.open), Engines: len(srv.engines)}
}

var queueDesc = prometheus.NewDesc("nexus_queue_bytes", "Bytes that wait for clients of this node.", nil, nil)

// Describe implements prometheus.Collector.
func (srv *Server) Describe(out chan<- *prometheus.Desc) { out <- queueDesc }

// Collect implements prometheus.Collector.
func (srv *Server) Collect(out chan<- prometheus.Metric) {
	queued := 0
	for _, t := range srv.transports() {
		queued += t.Waiting()
	}
	out <- prometheus.MustNewConstMetric(queueDesc, prometheus.GaugeValue, float64(queued))
}
