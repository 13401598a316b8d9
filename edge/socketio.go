package edge

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/edge/socketio"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// SocketIO serves /socket.io/: Engine.IO protocol 4, over WebSocket, over long-polling, and from the one to the other.
func (e *Edge) SocketIO() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		transport, sid := q.Get("transport"), q.Get("sid")
		n := e.engine(sid)
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
			if e.precheck(w, r) {
				e.upgrade(w, r, func(c *conn) { e.serveWebSocket(c, n, q) }, func() {})
			}
		case n == nil:
			e.openPolling(w, r, q)
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

// engine is an Engine.IO session: up to one session in each namespace, over one transport at a time.
type engine struct {
	e   *Edge
	sid string
	q   url.Values // of the handshake

	// handling has packets handled one at a time, whichever transport brings them.
	handling    sync.Mutex
	partial     socketio.Packet // its attachments are still to come
	attachments [][]byte
	fault       bool // the client broke the protocol

	posting sync.Mutex  // held by the request that brings packets
	busy    atomic.Bool // packets that a request brought are being handled
	heart   heart

	mu        sync.Mutex // held while something is sent: the order stays over a change of transport
	out       transport
	upgrading bool
	heard     time.Time // when the client last sent something by polling
	sessions  map[topics.Namespace]*session
	idle      time.Time       // since when it has been in no namespace
	answerBy  time.Time       // by when a challenged client must have been heard; zero: it is not challenged
	life      context.Context // ends with the session, under mu: it ends admissions, and no namespace is entered after it
	endLife   context.CancelFunc
}

func (e *Edge) newEngine(q url.Values, out transport) *engine {
	now := time.Now()
	n := &engine{e: e, sid: randomID(), q: q, out: out, heart: newHeart(now, e.o.PingInterval),
		sessions: make(map[topics.Namespace]*session), idle: now, heard: now}
	n.life, n.endLife = context.WithCancel(context.Background())
	return n
}

// handshake is the open packet (Engine.IO protocol 4, "Handshake").
func (n *engine) handshake(upgrades ...string) []byte {
	o := n.e.o
	return socketio.Handshake{SID: n.sid, Upgrades: upgrades, PingInterval: o.PingInterval.Milliseconds(),
		PingTimeout: o.PingTimeout.Milliseconds(), MaxPayload: int64(o.MaxMessageBytes)}.Append(nil)
}

// serveWebSocket reads a WebSocket: a new session's, or one that is to take over from long-polling.
func (e *Edge) serveWebSocket(c *conn, n *engine, q url.Values) {
	if n != nil {
		n.serveUpgrade(c)
		return
	}
	n = e.newEngine(q, c)
	defer n.leaveAll()
	e.serve(c, n, n.check, func() { n.text(n.handshake()) }, n.handle)
}

// deliver, text, close and abort make an engine a transport: that which it has at the moment.
func (n *engine) deliver(f framer, s style) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out.deliver(f, s)
}

func (n *engine) text(b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out.text(b)
}

func (n *engine) close(code int, reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out.close(code, reason)
}

func (n *engine) abort() {
	if p := n.polling(); p != nil {
		p.abort()
		n.end()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out.abort()
}

func (n *engine) challenge(within time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.answerBy.IsZero() {
		n.answerBy = time.Now().Add(within)
	}
	n.out.challenge(within)
}

func (n *engine) kind() string   { return n.now().kind() }
func (n *engine) waiting() int   { return n.now().waiting() }
func (n *engine) reason() string { return n.now().reason() }

func (n *engine) now() transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.out
}

// check does what is due (schedule).
func (n *engine) check(now time.Time) (next time.Time) {
	if n.heart.due(now, n.e.o.PingInterval) {
		n.text([]byte{socketio.EnginePing})
	}
	for _, ns := range []topics.Namespace{topics.Dashboard, topics.Messaging} {
		if s := n.session(string(ns)); s != nil {
			n.e.expire(s, now)
		}
	}
	if since, idle := n.idleSince(); idle && now.Sub(since) > n.e.o.ConnectTimeout {
		n.close(websocket.CloseNormalClosure, "no namespace was joined")
	}
	next = n.heart.next
	p := n.polling()
	if p == nil {
		return next // the connection itself misses a silent client
	}
	if n.silent(now) || p.overdue(now) {
		n.abort()
	}
	if at := n.silentAt(); at.Before(next) {
		return at
	}
	return next
}

// broken closes a session that breaks the protocol.
func (n *engine) broken(what string) {
	n.fault = true
	n.close(websocket.CloseProtocolError, what)
}

// handle takes a WebSocket's message.
func (n *engine) handle(kind int, message []byte) {
	n.take(socketio.Frame{Binary: kind == websocket.BinaryMessage, Data: message})
}

// take handles one Engine.IO packet.
func (n *engine) take(f socketio.Frame) {
	n.handling.Lock()
	defer n.handling.Unlock()
	switch {
	case n.fault:
		return
	case f.Binary:
		n.attachment(f.Data)
		return
	case len(f.Data) == 0 || n.partial.Attachments > 0:
		n.broken("unexpected packet")
		return
	}
	switch message := f.Data; message[0] {
	case socketio.EngineMessage:
		p, err := socketio.Parse(message[1:])
		if err != nil {
			n.broken("malformed packet")
			return
		}
		n.packet(p)
	case socketio.EnginePong, socketio.EngineNoop:
	case socketio.EnginePing:
		n.text(append([]byte{socketio.EnginePong}, message[1:min(len(message), 64)]...))
	case socketio.EngineClose:
		n.goodbye()
	default:
		n.broken("unknown packet")
	}
}

// goodbye ends the session as the client wants it.
func (n *engine) goodbye() {
	if p := n.polling(); p != nil {
		p.end(socketio.EngineNoop, reasonClient)
		n.end()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if c, ok := n.out.(*conn); ok {
		c.because(reasonClient)
	}
	n.out.close(websocket.CloseNormalClosure, "")
}

// attachment takes the bytes of a binary packet that was announced.
func (n *engine) attachment(b []byte) {
	size := len(b)
	for _, a := range n.attachments {
		size += len(a)
	}
	switch {
	case n.partial.Attachments == 0:
		n.broken("unexpected binary frame")
		return
	case size > n.e.o.MaxMessageBytes:
		n.fault = true
		n.close(websocket.CloseMessageTooBig, "attachments too large")
		return
	}
	n.attachments = append(n.attachments, bytes.Clone(b)) // a read buffer's
	if len(n.attachments) == n.partial.Attachments {
		n.attached()
	}
}

// attached handles a packet whose attachments have all come.
func (n *engine) attached() {
	p := n.partial
	err := p.Attach(n.attachments)
	n.partial, n.attachments = socketio.Packet{}, nil
	if err != nil {
		n.broken("illegal attachments")
		return
	}
	p.Attachments = 0
	if p.Type == socketio.BinaryEvent {
		p.Type = socketio.Event
	} else {
		p.Type = socketio.Ack
	}
	n.packet(p)
}

func (n *engine) session(ns string) *session {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sessions[topics.Namespace(ns)]
}

func (n *engine) packet(p socketio.Packet) {
	if p.Type == socketio.Connect {
		n.connect(p)
		return
	}
	s := n.session(p.Namespace)
	if s == nil {
		n.broken("namespace not joined")
		return
	}
	switch p.Type {
	case socketio.Event:
		event, arg, err := p.Call()
		if err != nil {
			n.broken("malformed event")
			return
		}
		n.e.handle(s, command{event: event, data: arg, ack: p.ID})
	case socketio.BinaryEvent, socketio.BinaryAck:
		p.Data = bytes.Clone(p.Data) // it has to outlive this message
		if n.partial = p; p.Attachments == 0 {
			n.attached()
		}
	case socketio.Disconnect:
		n.leave(s, reasonLeft)
	case socketio.Ack: // nothing of ours asks for one
	default:
		n.broken("unexpected packet")
	}
}

// connect joins a namespace, with the credentials of the packet or else of the handshake's query.
func (n *engine) connect(p socketio.Packet) {
	ns := topics.Namespace(p.Namespace)
	if ns != topics.Dashboard && ns != topics.Messaging {
		n.refuse(p.Namespace, topics.Fields("message", "Invalid namespace"))
		return
	}
	if n.session(p.Namespace) != nil {
		n.broken("namespace joined already")
		return
	}
	var auth struct {
		UserID *string `json:"userId"`
		Token  *string `json:"token"`
		PID    string  `json:"pid"`
		Offset string  `json:"offset"`
	}
	if len(p.Data) > 0 && json.Unmarshal(p.Data, &auth) != nil {
		n.refuseWith(p.Namespace, apierr.Invalid("auth must have userId and token as strings"))
		return
	}
	user, token := n.q.Get("userId"), n.q.Get("token")
	if auth.UserID != nil {
		user = *auth.UserID
	}
	if auth.Token != nil {
		token = *auth.Token
	}
	id, refusal := n.e.identify(user, token)
	if refusal != nil {
		n.refuseWith(p.Namespace, refusal)
		return
	}
	back := n.e.recall(ns, id.User, auth.PID, auth.Offset)
	s, refusal := n.e.admit(n.life, ns, id, n, back)
	if refusal != nil {
		n.refuseWith(p.Namespace, refusal)
		return
	}
	s.style = style{socketIO: true, offsets: true, canonical: n.q.Get("events") == "canonical"}
	if !n.enter(s) {
		n.e.dismiss(s, n.reason())
		return
	}
	n.e.greet(s, greeting(ns), back, func() {
		n.text(socketio.Packet{Type: socketio.Connect, Namespace: p.Namespace,
			Data: topics.Fields("sid", s.id, "pid", s.pid)}.Append(nil))
	})
}

func (n *engine) refuseWith(ns string, err *apierr.Error) {
	n.e.metrics.refusal(err)
	n.refuse(ns, topics.Fields("message", err.Message, "data", json.RawMessage(topics.Fields("code", err.Code))))
}

func (n *engine) refuse(ns string, data []byte) {
	n.text(socketio.Packet{Type: socketio.ConnectError, Namespace: ns, Data: data}.Append(nil))
}

// enter has a session end with the engine; it reports false where that has ended already.
func (n *engine) enter(s *session) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.life.Err() != nil {
		return false
	}
	n.sessions[s.namespace] = s
	return true
}

func (n *engine) leave(s *session, why string) {
	n.mu.Lock()
	delete(n.sessions, s.namespace)
	n.idle = time.Now()
	n.mu.Unlock()
	n.e.dismiss(s, why)
}

// leaveAll ends the engine's sessions: those that it has, and those whose admission is under way.
func (n *engine) leaveAll() {
	n.mu.Lock()
	n.endLife()
	n.mu.Unlock()
	for _, ns := range []topics.Namespace{topics.Dashboard, topics.Messaging} {
		if s := n.session(string(ns)); s != nil {
			n.leave(s, n.reason())
		}
	}
}
