package wire

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/edge/wire/socketio"
	"github.com/nexus/nexus/topics"
)

// Handler is who uses an Engine.IO session. Its methods are called while the session lives, and Ended last.
type Handler interface {
	// Message takes a message of the client's, which it must not keep; a binary one is an attachment. There is one at a time. more
	// tells that attachments are to come next: any other packet breaks the protocol.
	Message(b []byte, binary bool) (more bool)
	// Look is called once a second at least, for what falls due.
	Look(now time.Time)
	// Idle tells since when the session has been good for nothing, if it is: such ones have to make room for others.
	Idle() (since time.Time, idle bool)
	// Ended is called once, when nothing is sent any more.
	Ended()
}

// Engine is an Engine.IO session. It is a transport: that which it has at the moment, of which there is one at a time.
//
//	          GET               2probe                5
//	     ───────────▶ polling ──────────▶ probing ─────────▶ WebSocket ──▶ gone
//	                     ▲ └─────────────────┼──────────────────────────────▶
//	                     └───────────────────┘ the WebSocket was lost
//	     upgrade
//	     ───────────▶ WebSocket ──▶ gone
//
//	polling    packets wait until a GET fetches them (polling.go)
//	probing    a WebSocket is about to take over: no GET waits any more (serveUpgrade)
//	WebSocket  what waited has gone to it, in order (changeTo); the session ends with it
//	gone       Handler.Ended has been called, and the sid is unknown (end, serveWebSocket)
type Engine struct {
	srv     *Server
	sid     string
	handler Handler

	// handling has packets handled one at a time, whichever transport brings them.
	handling sync.Mutex
	fault    bool // the client broke the protocol
	partial  bool // attachments are to come next

	posting sync.Mutex  // held by the request that brings packets
	busy    atomic.Bool // packets that a request brought are being handled
	heart   heart

	mu        sync.Mutex // held while something is sent: the order stays over a change of transport
	out       Transport
	upgrading bool
	heard     time.Time // when the client last sent something by polling
	answerBy  time.Time // by when a challenged client must have been heard; zero: it is not challenged
}

// Open makes the handler of a new Engine.IO session; q is the query of the handshake.
type Open func(n *Engine, q url.Values) Handler

// EngineIO serves Engine.IO protocol 4, over WebSocket, over long-polling, and from the one to the other.
func (srv *Server) EngineIO(open Open) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		transport, sid := q.Get("transport"), q.Get("sid")
		n := srv.engine(sid)
		switch {
		case transport != "polling" && transport != "websocket":
			refuseEngine(w, transportUnknown)
		case q.Get("EIO") != "4":
			refuseEngine(w, unsupportedProtocol)
		case sid != "" && n == nil:
			refuseEngine(w, sidUnknown)
		case transport == "websocket" && !websocket.IsWebSocketUpgrade(r):
			refuseEngine(w, badRequest)
		case transport == "websocket":
			if srv.Precheck(w, r) {
				srv.Upgrade(w, r, func(c *Conn) { srv.serveWebSocket(c, n, q, open) }, func() {})
			}
		case n == nil:
			srv.openPolling(w, r, q, open)
		default:
			n.servePolling(w, r)
		}
	})
}

// The refusals of an Engine.IO server, by their numbers.
const (
	transportUnknown = iota
	sidUnknown
	badHandshakeMethod
	badRequest
	_
	unsupportedProtocol
)

// refuseEngine answers as Engine.IO servers do, so that clients show the reason.
func refuseEngine(w http.ResponseWriter, code int) {
	message := [...]string{"Transport unknown", "Session ID unknown", "Bad handshake method", "Bad request", "Forbidden",
		"Unsupported protocol version: this server speaks Engine.IO 4 (socket.io-client 3 or later)"}[code]
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = w.Write(topics.Fields("code", code, "message", message))
}

func (srv *Server) newEngine(q url.Values, out Transport, open Open) *Engine {
	now := time.Now()
	n := &Engine{srv: srv, sid: rand.Text(), out: out, heart: newHeart(now, srv.o.PingInterval), heard: now}
	n.handler = open(n, q)
	return n
}

// handshake is the open packet (Engine.IO protocol 4, "Handshake").
func (n *Engine) handshake(upgrades ...string) []byte {
	o := n.srv.o
	return socketio.Handshake{SID: n.sid, Upgrades: upgrades, PingInterval: o.PingInterval.Milliseconds(),
		PingTimeout: o.PingTimeout.Milliseconds(), MaxPayload: int64(o.MaxMessageBytes)}.Append(nil)
}

// serveWebSocket reads a WebSocket: a new session's, or one that is to take over from long-polling.
func (srv *Server) serveWebSocket(c *Conn, n *Engine, q url.Values, open Open) {
	if n != nil {
		n.serveUpgrade(c)
		return
	}
	n = srv.newEngine(q, c, open)
	defer n.handler.Ended()
	srv.serve(c, n, n.check, func() { n.Text(n.handshake()) }, n.handle)
}

// Deliver implements Transport, as all up to Reason.
func (n *Engine) Deliver(f Framer, s Style) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out.Deliver(f, s)
}

// Text sends a packet.
func (n *Engine) Text(b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out.Text(b)
}

// Close sends what waits and ends the session.
func (n *Engine) Close(code int, reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out.Close(code, reason)
}

// Abort ends the session at once.
func (n *Engine) Abort() {
	if p := n.polling(); p != nil {
		p.Abort()
		n.end()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out.Abort()
}

// Challenge asks the client for a sign of life.
func (n *Engine) Challenge(within time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.answerBy.IsZero() {
		n.answerBy = time.Now().Add(within)
	}
	n.out.Challenge(within)
}

// Kind is the name of the transport that the session has now.
func (n *Engine) Kind() string { return n.now().Kind() }

// Waiting is how many bytes wait for the client.
func (n *Engine) Waiting() int { return n.now().Waiting() }

// Reason is why the session ended, or would if it ended now.
func (n *Engine) Reason() string { return n.now().Reason() }

func (n *Engine) now() Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.out
}

// check does what is due (schedule).
func (n *Engine) check(now time.Time) (next time.Time) {
	if n.heart.due(now, n.srv.o.PingInterval) {
		n.Text([]byte{socketio.EnginePing})
	}
	n.handler.Look(now)
	if since, idle := n.handler.Idle(); idle && now.Sub(since) > n.srv.o.ConnectTimeout {
		n.Close(websocket.CloseNormalClosure, "no namespace was joined")
	}
	next = n.heart.next
	p := n.polling()
	if p == nil {
		return next // the connection itself misses a silent client
	}
	if n.silent(now) || p.overdue(now) {
		n.Abort()
	}
	if at := n.silentAt(); at.Before(next) {
		return at
	}
	return next
}

// Broken closes a session that breaks the protocol; nothing that follows is handled. Message alone may call it.
func (n *Engine) Broken(what string) { n.fail(websocket.CloseProtocolError, what) }

// TooLarge closes a session whose client sends more at once than is taken. Message alone may call it.
func (n *Engine) TooLarge(what string) { n.fail(websocket.CloseMessageTooBig, what) }

func (n *Engine) fail(code int, what string) {
	n.fault = true
	n.Close(code, what)
}

// handle takes a WebSocket's message.
func (n *Engine) handle(kind int, message []byte) {
	n.take(socketio.Frame{Binary: kind == websocket.BinaryMessage, Data: message})
}

// take handles one Engine.IO packet.
func (n *Engine) take(f socketio.Frame) {
	n.handling.Lock()
	defer n.handling.Unlock()
	switch {
	case n.fault:
		return
	case f.Binary:
		n.partial = n.handler.Message(f.Data, true)
		return
	case len(f.Data) == 0 || n.partial:
		n.Broken("unexpected packet")
		return
	}
	switch packet := f.Data; packet[0] {
	case socketio.EngineMessage:
		n.partial = n.handler.Message(packet[1:], false)
	case socketio.EnginePong, socketio.EngineNoop:
	case socketio.EnginePing:
		n.Text(append([]byte{socketio.EnginePong}, packet[1:min(len(packet), 64)]...))
	case socketio.EngineClose:
		n.goodbye()
	default:
		n.Broken("unknown packet")
	}
}

// goodbye ends the session as the client wants it.
func (n *Engine) goodbye() {
	if p := n.polling(); p != nil {
		p.end(socketio.EngineNoop, ReasonClient)
		n.end()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if c, ok := n.out.(*Conn); ok {
		c.because(ReasonClient)
	}
	n.out.Close(websocket.CloseNormalClosure, "")
}

// serveUpgrade reads a WebSocket that is to take over: 2probe is answered by 3probe, and with 5 it is the transport
// (Engine.IO protocol 4, "Upgrade").
func (n *Engine) serveUpgrade(c *Conn) {
	p := n.beginUpgrade()
	if p == nil {
		c.Close(websocket.CloseProtocolError, "the session has its WebSocket already")
		c.read(func(int, []byte) {})
		return
	}
	took := false
	late := time.AfterFunc(upgradeTimeout, c.Abort)
	defer late.Stop()
	n.srv.serve(c, c, nothingDue, func() {}, func(kind int, message []byte) {
		switch {
		case took:
			n.handle(kind, message)
		case kind == websocket.TextMessage && string(message) == "2probe":
			n.hear()
			c.Text([]byte("3probe"))
			p.probe(true)
		case kind == websocket.TextMessage && string(message) == "5" && late.Stop():
			if took = n.changeTo(c, p); !took {
				c.Close(websocket.CloseGoingAway, "the session has ended")
			}
		default:
			c.Close(websocket.CloseProtocolError, "unexpected packet")
		}
	})
	if took {
		n.end()
		return
	}
	p.probe(false)
	n.mu.Lock()
	n.upgrading = false
	n.mu.Unlock()
}

// upgradeTimeout bounds how long a WebSocket may take to take over.
const upgradeTimeout = 10 * time.Second

// nothingDue is the look at a WebSocket that is about to take over: its session has one of its own.
func nothingDue(now time.Time) time.Time { return now.Add(lookEvery) }

func (n *Engine) beginUpgrade() *polling {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, _ := n.out.(*polling)
	if p == nil || n.upgrading {
		return nil
	}
	n.upgrading = true
	return p
}

// changeTo has the WebSocket be the transport; it reports false where the session has ended.
func (n *Engine) changeTo(c *Conn, p *polling) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !p.takeOver(c) {
		return false
	}
	n.out = c
	return true
}
