package edge

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/olahol/melody"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// precheck refuses what is no WebSocket handshake.
func (e *Edge) precheck(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case !websocket.IsWebSocketUpgrade(r) || r.Method != http.MethodGet || r.Header.Get("Sec-Websocket-Version") != "13":
		w.Header().Set("Upgrade", "websocket")
		(&apierr.Error{Code: apierr.CodeUpgrade, Message: "this is a WebSocket endpoint (RFC 6455, version 13)"}).WriteHTTP(w)
	case !e.Ready():
		apierr.Unavailable().WriteHTTP(w)
	default:
		return true
	}
	return false
}

// identify checks a token and that it is userId's.
func (e *Edge) identify(userID, token string) (Identity, *apierr.Error) {
	id, err := e.o.Verify(token)
	if err != nil {
		var known *apierr.Error
		if !errors.As(err, &known) {
			known = &apierr.Error{Code: apierr.CodeTokenInvalid, Message: "the token is not valid"}
		}
		return id, known
	}
	if userID != id.User {
		return id, &apierr.Error{Code: apierr.CodeForbidden, Message: "userId is not the token's user"}
	}
	return id, nil
}

// Raw serves a namespace to bare WebSocket clients: text frames {"event":…,"data":…} both ways.
func (e *Edge) Raw(ns topics.Namespace) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !e.precheck(w, r) {
			return
		}
		q := r.URL.Query()
		offset := q.Get("offset")
		id, refusal := e.identify(q.Get("userId"), q.Get("token"))
		var s *session
		if refusal == nil {
			s, refusal = e.admit(r.Context(), ns, id, nil, comeback{offset: offset})
		}
		if refusal != nil {
			e.metrics.refusal(refusal)
			refusal.WriteHTTP(w)
			return
		}
		s.style = style{canonical: q.Get("events") == "canonical", offsets: q.Has("offset")}
		e.upgrade(w, r, func(c *conn) { e.serveRaw(c, s, offset) }, func() { e.dismiss(s, s.reason()) })
	})
}

// upgrade makes the request a WebSocket connection, which serve uses until it ends; then ended is called, also where there
// was no connection. It returns once the connection is there: served by a goroutine of its own it does without the
// buffers and the deep stack of the HTTP server, two thirds of what a session would hold.
func (e *Edge) upgrade(w http.ResponseWriter, r *http.Request, serve func(*conn), ended func()) {
	if !e.serving.begin() {
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
		defer e.serving.end()
		defer ended()
		defer answer() // an error has been answered by the upgrader
		defer e.survive()
		_ = e.melody.HandleRequestWithKeys(w, r, map[string]any{keyServe: func(m *melody.Session) {
			m.Request = nil // nothing of the request is used from here on, nor kept
			answer()
			c := e.newConn(m.WebsocketConnection(), wire)
			defer c.abort()
			serve(c)
		}})
	}()
	<-upgraded
}

// survive has a panic end a session and not the process. The panic's value may quote a message; the stack does not.
func (e *Edge) survive() {
	if p := recover(); p != nil {
		e.o.Logger.Error("serving a session panicked", "stack", string(debug.Stack()))
	}
}

func (e *Edge) newConn(ws *websocket.Conn, wire wire) *conn {
	c := &conn{heart: newHeart(time.Now(), e.o.PingInterval), ws: ws, net: ws.NetConn(), log: e.o.Logger, wire: wire, deflateAbove: e.o.CompressionThreshold,
		maxQueue: e.o.MaxQueueBytes, maxRead: int64(e.o.MaxMessageBytes), patience: e.patience()}
	return c
}

// patience is how long a client may be silent before it is gone.
func (e *Edge) patience() time.Duration { return e.o.PingInterval + e.o.PingTimeout }

// negotiateDeflate accepts an offer of permessage-deflate without a bound on our window (RFC 7692, section 7.1), and
// leaves just that offer for the upgrader, so that both agree on the outcome.
func negotiateDeflate(h http.Header) bool {
	offers := strings.Join(h.Values("Sec-Websocket-Extensions"), ",")
	h.Del("Sec-Websocket-Extensions")
	for offer := range strings.SplitSeq(offers, ",") {
		name, params, _ := strings.Cut(offer, ";")
		if strings.TrimSpace(name) == "permessage-deflate" && !strings.Contains(params, "server_max_window_bits") {
			h.Set("Sec-Websocket-Extensions", "permessage-deflate")
			return true
		}
	}
	return false
}

// serve has t looked after, runs begin, and reads the connection until it ends.
func (e *Edge) serve(c *conn, t transport, check func(time.Time) time.Time, begin func(), handle func(kind int, message []byte)) {
	e.watch(t, check)
	defer e.unwatch(t)
	begin()
	c.read(func(kind int, message []byte) {
		handle(kind, message)
		_ = c.alive() // handling may have taken longer than a challenge allows; a connection that fails is found by the next read
	})
}

// watch has a transport looked after, and Drain close it.
func (e *Edge) watch(t transport, check func(time.Time) time.Time) {
	e.mu.Lock()
	e.open[t] = true
	e.mu.Unlock()
	e.schedule.add(t, check)
	if e.draining.Load() { // the handshake was under way when Drain looked
		t.close(websocket.CloseGoingAway, goingAway)
	}
}

func (e *Edge) unwatch(t transport) {
	e.schedule.remove(t)
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.open, t)
}

const goingAway = "the server is going away"

// greet makes a session reachable: connected comes before anything else, and before that what before sends. One that has
// ended meanwhile stays as it is; one that must end is told why.
func (e *Edge) greet(s *session, message string, back comeback, before func()) {
	in := true
	welcome := func(recovered any, offset string) {
		before()
		m := e.plain(s.namespace, "connected", topics.Fields("userId", s.user, "timestamp", topics.FormatTime(time.Now().UnixMilli()),
			"message", message, "recovered", recovered))
		m.offset = offset
		s.out.deliver(m, s.style)
	}
	switch {
	case back.offset != "":
		in = e.rejoin(s, back, welcome)
	case back.claims:
		e.metrics.resumed.WithLabelValues("unknown_pid").Inc()
		in = e.hub.join(s, func() { welcome(false, e.offset(s.namespace, nil)) })
	default:
		in = e.hub.join(s, func() { welcome(nil, e.offset(s.namespace, nil)) })
	}
	if !in {
		return
	}
	e.metrics.opened.WithLabelValues(string(s.namespace)).Inc()
	e.o.Logger.Info("session opened", "session", s.id, "user", s.user, "namespace", s.namespace, "protocol", s.protocol(), "transport", s.out.kind())
	if s.namespace == topics.Dashboard {
		e.stats.show(s.user)
	}
	e.cutRevoked(s) // its token was verified before it could be found
	if d := e.hub.doomOf(s); d != nil {
		s.end(d)
	}
}

func greeting(ns topics.Namespace) string {
	if ns == topics.Dashboard {
		return "Dashboard connection established"
	}
	return "Messaging connection established"
}

// requestContext bounds what a client's event asks of others; it ends with Drain.
func (e *Edge) requestContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(e.working, 10*time.Second)
}
