package gateway

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/edge/wire/socketio"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// SocketIO serves /socket.io/: Socket.IO protocol 5 over Engine.IO 4.
func (g *Gateway) SocketIO() http.Handler {
	return g.o.Server.EngineIO(func(n *wire.Engine, q url.Values) wire.Handler { return g.newSocket(n, topics.ReadHandshake(q)) })
}

// reasonLeft is why a session ended whose client left the namespace and kept its connection.
const reasonLeft = "left"

// socket is a Socket.IO client: up to one session in each namespace, over one Engine.IO session (Handler).
type socket struct {
	g    *Gateway
	n    *wire.Engine
	said topics.Handshake // in the query of its first request

	// Of a packet whose attachments are still to come; used by Message alone.
	partial     socketio.Packet
	attachments [][]byte

	mu       sync.Mutex
	sessions map[topics.Namespace]*client
	idle     time.Time       // since when it has been in no namespace
	life     context.Context // ends with the client, under mu: it ends admissions, and no namespace is entered after it
	endLife  context.CancelFunc
}

func (g *Gateway) newSocket(n *wire.Engine, said topics.Handshake) *socket {
	k := &socket{g: g, n: n, said: said, sessions: make(map[topics.Namespace]*client), idle: time.Now()}
	k.life, k.endLife = context.WithCancel(context.Background())
	return k
}

// Message takes a packet, or an attachment of the one before (Handler).
func (k *socket) Message(b []byte, binary bool) (more bool) {
	if binary {
		k.attachment(b)
	} else if p, err := socketio.Parse(b); err != nil {
		k.n.Broken("malformed packet")
	} else {
		k.packet(p)
	}
	return k.partial.Attachments > 0
}

// Look ends the sessions whose token has run out (Handler).
func (k *socket) Look(now time.Time) {
	for _, ns := range topics.Namespaces() {
		if s := k.session(ns); s != nil {
			k.g.o.Sessions.Expire(s.Session, now)
		}
	}
}

// Idle tells since when the client has been in no namespace (Handler).
func (k *socket) Idle() (since time.Time, idle bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.idle, len(k.sessions) == 0
}

// Ended ends the client's sessions: those that it has, and those whose admission is under way (Handler).
func (k *socket) Ended() {
	k.mu.Lock()
	k.endLife()
	k.mu.Unlock()
	for _, ns := range topics.Namespaces() {
		if s := k.session(ns); s != nil {
			k.leave(s, k.n.Reason())
		}
	}
}

// attachment takes the bytes of a binary packet that was announced.
func (k *socket) attachment(b []byte) {
	size := len(b)
	for _, a := range k.attachments {
		size += len(a)
	}
	switch {
	case k.partial.Attachments == 0:
		k.n.Broken("unexpected binary frame")
		return
	case size > k.g.o.MaxMessageBytes:
		k.n.TooLarge("attachments too large")
		return
	}
	k.attachments = append(k.attachments, bytes.Clone(b)) // a read buffer's
	if len(k.attachments) == k.partial.Attachments {
		k.attached()
	}
}

// attached handles a packet whose attachments have all come.
func (k *socket) attached() {
	p := k.partial
	err := p.Attach(k.attachments)
	k.partial, k.attachments = socketio.Packet{}, nil
	if err != nil {
		k.n.Broken("illegal attachments")
		return
	}
	p.Attachments = 0
	if p.Type == socketio.BinaryEvent {
		p.Type = socketio.Event
	} else {
		p.Type = socketio.Ack
	}
	k.packet(p)
}

func (k *socket) session(ns topics.Namespace) *client {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sessions[ns]
}

func (k *socket) packet(p socketio.Packet) {
	if p.Type == socketio.Connect {
		k.connect(p)
		return
	}
	s := k.session(topics.Namespace(p.Namespace))
	if s == nil {
		k.n.Broken("namespace not joined")
		return
	}
	switch p.Type {
	case socketio.Event:
		event, arg, err := p.Call()
		if err != nil {
			k.n.Broken("malformed event")
			return
		}
		k.g.handle(s, command{event: event, data: arg, ack: p.ID})
	case socketio.BinaryEvent, socketio.BinaryAck:
		p.Data = bytes.Clone(p.Data) // it has to outlive this message
		if k.partial = p; p.Attachments == 0 {
			k.attached()
		}
	case socketio.Disconnect:
		k.leave(s, reasonLeft)
	case socketio.Ack: // nothing of ours asks for one
	default:
		k.n.Broken("unexpected packet")
	}
}

// connect joins a namespace, with the credentials of the packet or else of the handshake's query.
func (k *socket) connect(p socketio.Packet) {
	ns := topics.Namespace(p.Namespace)
	if ns != topics.Dashboard && ns != topics.Messaging {
		k.refuse(p.Namespace, topics.Failure{Message: "Invalid namespace"}.ConnectError())
		return
	}
	if k.session(topics.Namespace(p.Namespace)) != nil {
		k.n.Broken("namespace joined already")
		return
	}
	said, err := k.said.Connect(p.Data)
	if err != nil {
		k.refuseWith(p.Namespace, apierr.Invalid("auth must have userId and token as strings"))
		return
	}
	id, refusal := k.g.identify(said)
	if refusal != nil {
		k.refuseWith(p.Namespace, refusal)
		return
	}
	back := k.g.o.Sessions.Recall(ns, id.User, said.PID, said.Offset)
	s, refusal := k.g.admit(k.life, ns, id, k.n, back)
	if refusal != nil {
		k.refuseWith(p.Namespace, refusal)
		return
	}
	s.Style = wire.Style{SocketIO: true, Offsets: true, Canonical: said.Canonical}
	if !k.enter(s) {
		k.g.o.Sessions.Dismiss(s.Session, k.n.Reason())
		return
	}
	k.g.o.Live.Greet(s.Session, back, func() {
		k.n.Text(socketio.Packet{Type: socketio.Connect, Namespace: p.Namespace,
			Data: topics.ConnectAnswer{SID: s.ID, PID: s.PID()}.Data()}.Append(nil))
	})
}

func (k *socket) refuseWith(ns string, err *apierr.Error) {
	k.g.metrics.refusal(err)
	k.refuse(ns, topics.Failure{Code: err.Code, Message: err.Message}.ConnectError())
}

func (k *socket) refuse(ns string, data []byte) {
	k.n.Text(socketio.Packet{Type: socketio.ConnectError, Namespace: ns, Data: data}.Append(nil))
}

// enter has a session end with the client; it reports false where that has ended already.
func (k *socket) enter(s *client) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.life.Err() != nil {
		return false
	}
	k.sessions[s.Namespace] = s
	return true
}

func (k *socket) leave(s *client, why string) {
	k.mu.Lock()
	delete(k.sessions, s.Namespace)
	k.idle = time.Now()
	k.mu.Unlock()
	k.g.o.Sessions.Dismiss(s.Session, why)
}
