package edge

import (
	"encoding/json"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/edge/socketio"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

// SocketIO serves /socket.io/: Engine.IO protocol 4 over WebSocket.
func (e *Edge) SocketIO() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Get("EIO") != "4" || q.Get("transport") != "websocket" {
			refuseEngine(w, q)
			return
		}
		if e.precheck(w, r) {
			e.upgrade(w, r, func(c *conn) { e.serveSocketIO(c, q) })
		}
	})
}

// refuseEngine answers as Engine.IO servers do, so that clients show the reason.
func refuseEngine(w http.ResponseWriter, q url.Values) {
	code, message := 5, "Unsupported protocol version: Engine.IO 4 is spoken here (socket.io-client 3 or later)"
	if q.Get("EIO") == "4" {
		code, message = 0, "Transport unknown: connect with transports: ['websocket']"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = w.Write(topics.Fields("code", code, "message", message))
}

// engine is an Engine.IO session: up to one session in each namespace.
type engine struct {
	e *Edge
	c *conn
	q url.Values

	pending int             // binary frames still to come; owned by the read loop
	waiting socketio.Packet // the packet they belong to

	mu       sync.Mutex
	sessions map[presence.Namespace]*session
	idle     time.Time // since when it has been in no namespace
}

func (e *Edge) serveSocketIO(c *conn, q url.Values) {
	n := &engine{e: e, c: c, q: q, sessions: make(map[presence.Namespace]*session), idle: c.opened}
	defer n.leaveAll()
	n.write(socketio.Handshake{SID: randomID(), PingInterval: e.o.PingInterval.Milliseconds(),
		PingTimeout: e.o.PingTimeout.Milliseconds(), MaxPayload: int64(e.o.MaxMessageBytes)}.Append(nil))
	e.serve(c, n.check, n.handle)
}

func (n *engine) write(text []byte) {
	n.c.send(appendText(nil, text, n.c.deflated, n.c.deflateAbove))
}

// check is what the sweep does with the connection.
func (n *engine) check(now time.Time) {
	if n.e.pingDue(n.c, now) {
		n.write([]byte{socketio.EnginePing})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.sessions {
		n.e.expire(s, now)
	}
	if len(n.sessions) == 0 && now.Sub(n.idle) > n.e.o.ConnectTimeout {
		n.c.close(websocket.CloseNormalClosure, "no namespace was joined")
	}
}

// broken closes a session that breaks the protocol.
func (n *engine) broken(what string) { n.c.close(websocket.CloseProtocolError, what) }

func (n *engine) handle(kind int, message []byte) {
	if kind == websocket.BinaryMessage {
		n.attachment()
		return
	}
	if len(message) == 0 || n.pending > 0 {
		n.broken("unexpected packet")
		return
	}
	switch message[0] {
	case socketio.EngineMessage:
		p, err := socketio.Parse(message[1:])
		if err != nil {
			n.broken("malformed packet")
			return
		}
		n.packet(p)
	case socketio.EnginePong, socketio.EngineNoop:
	case socketio.EnginePing:
		message[0] = socketio.EnginePong
		n.write(message[:min(len(message), 64)])
	case socketio.EngineClose:
		n.c.close(websocket.CloseNormalClosure, "")
	default:
		n.broken("unknown packet")
	}
}

// attachment takes one binary frame. No event of ours takes binary data: the frames are dropped, the event is refused.
func (n *engine) attachment() {
	if n.pending == 0 {
		n.broken("unexpected binary frame")
		return
	}
	if n.pending--; n.pending == 0 {
		n.binaryEvent(n.waiting)
	}
}

func (n *engine) binaryEvent(p socketio.Packet) {
	if s := n.session(p.Namespace); s != nil && p.Type == socketio.BinaryEvent {
		s.refuse(command{ack: p.ID}, topics.Invalid("binary data is not taken; send JSON"))
	}
}

func (n *engine) session(ns string) *session {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sessions[presence.Namespace(ns)]
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
		if n.pending, n.waiting = p.Attachments, p; n.pending == 0 {
			n.binaryEvent(p)
		}
	case socketio.Disconnect:
		n.leave(s)
	case socketio.Ack: // nothing of ours asks for one
	default:
		n.broken("unexpected packet")
	}
}

// connect joins a namespace, with the credentials of the packet or else of the handshake's query.
func (n *engine) connect(p socketio.Packet) {
	ns := presence.Namespace(p.Namespace)
	if ns != presence.Dashboard && ns != presence.Messaging {
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
	}
	if len(p.Data) > 0 && json.Unmarshal(p.Data, &auth) != nil {
		n.refuseWith(p.Namespace, topics.Invalid("auth must have userId and token as strings"))
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
	ctx, cancel := n.e.requestContext()
	defer cancel()
	s, refusal := n.e.admit(ctx, ns, id)
	if refusal != nil {
		n.refuseWith(p.Namespace, refusal)
		return
	}
	s.conn = n.c
	s.style = style{socketIO: true, deflate: n.c.deflated, offsets: true, canonical: n.q.Get("events") == "canonical"}
	n.mu.Lock()
	n.sessions[ns] = s
	n.mu.Unlock()
	n.e.greet(s, greeting(ns), auth.PID != "", func() {
		n.write(socketio.Packet{Type: socketio.Connect, Namespace: p.Namespace,
			Data: topics.Fields("sid", s.id, "pid", randomID())}.Append(nil))
	})
}

func (n *engine) refuseWith(ns string, err *topics.Error) {
	n.refuse(ns, topics.Fields("message", err.Message, "data", json.RawMessage(topics.Fields("code", err.Code))))
}

func (n *engine) refuse(ns string, data []byte) {
	n.write(socketio.Packet{Type: socketio.ConnectError, Namespace: ns, Data: data}.Append(nil))
}

func (n *engine) leave(s *session) {
	n.mu.Lock()
	delete(n.sessions, s.namespace)
	n.idle = time.Now()
	n.mu.Unlock()
	n.e.dismiss(s)
}

func (n *engine) leaveAll() {
	for _, ns := range []presence.Namespace{presence.Dashboard, presence.Messaging} {
		if s := n.session(string(ns)); s != nil {
			n.leave(s)
		}
	}
}
