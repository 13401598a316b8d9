package edge

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/edge/socketio"
	"github.com/nexus/nexus/internal/apierr"
)

// upgradeTimeout bounds how long a WebSocket may take to take over.
const upgradeTimeout = 10 * time.Second

// maxEngines bounds the sessions by long-polling: those that may join both namespaces, and as many that have not yet.
func (e *Edge) maxEngines() int { return 4 * e.o.Limits.PerNamespace }

// engine finds a session that began with long-polling.
func (e *Edge) engine(sid string) *engine {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.engines[sid]
}

// openPolling begins a session; the answer carries its open packet.
func (e *Edge) openPolling(w http.ResponseWriter, r *http.Request, q url.Values) {
	if r.Method != http.MethodGet {
		refuseEngine(w, badHandshakeMethod)
		return
	}
	n := e.newEngine(q, newPolling(e.o.MaxQueueBytes))
	e.makeRoom()
	if !e.Ready() || !e.enter(n) {
		apierr.Unavailable().WriteHTTP(w)
		return
	}
	e.watch(n, n.check)
	e.answer(w, r, n.handshake("websocket"))
}

// makeRoom ends the session that has been in no namespace for the longest, where there are as many as are allowed:
// whoever opens sessions and joins nothing must not keep others out.
func (e *Edge) makeRoom() {
	e.mu.Lock()
	var idlest *engine
	if len(e.engines) >= e.maxEngines() {
		var since time.Time
		for _, n := range e.engines {
			if at, idle := n.idleSince(); idle && (idlest == nil || at.Before(since)) {
				idlest, since = n, at
			}
		}
	}
	e.mu.Unlock()
	if idlest != nil {
		idlest.abort()
	}
}

// idleSince tells since when the session has been in no namespace, if it is in none.
func (n *engine) idleSince() (time.Time, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.idle, len(n.sessions) == 0
}

// enter counts a long-polling session in, unless there are too many or the edge is draining; end counts it out.
func (e *Edge) enter(n *engine) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.engines) >= e.maxEngines() || !e.serving.begin() {
		return false
	}
	e.engines[n.sid] = n
	return true
}

// end ends a session that began with long-polling; only the first call counts.
func (n *engine) end() {
	n.e.mu.Lock()
	_, first := n.e.engines[n.sid]
	delete(n.e.engines, n.sid)
	n.e.mu.Unlock()
	if !first {
		return
	}
	n.e.unwatch(n)
	n.leaveAll()
	n.e.serving.end()
}

// polling is the session's transport while that is long-polling, else nil.
func (n *engine) polling() *polling {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, _ := n.out.(*polling)
	return p
}

// hear notes that the client lives.
func (n *engine) hear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.heard, n.answerBy = time.Now(), time.Time{}
}

// silentAt is when the client will have been silent for too long. While its packets are being handled it is not: it may
// send no others until these are answered.
func (n *engine) silentAt() time.Time {
	if n.busy.Load() {
		return time.Now().Add(lookEvery)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	at := n.heard.Add(n.e.patience())
	if !n.answerBy.IsZero() && n.answerBy.Before(at) {
		at = n.answerBy
	}
	return at
}

func (n *engine) silent(now time.Time) bool { return !now.Before(n.silentAt()) }

func (n *engine) servePolling(w http.ResponseWriter, r *http.Request) {
	p := n.polling()
	if p != nil && n.silent(time.Now()) {
		n.abort()
		p = nil
	}
	switch {
	case p == nil: // over, or a WebSocket has taken over
		refuseEngine(w, badRequest)
	case r.Method == http.MethodGet:
		n.get(w, r, p)
	case r.Method == http.MethodPost:
		n.post(w, r)
	default:
		refuseEngine(w, badRequest)
	}
}

// get waits for packets. A second one at the same time, or one that is given up, ends the session: what was sent to it
// would be lost.
func (n *engine) get(w http.ResponseWriter, r *http.Request, p *polling) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // it may wait longer than a request may take to come
	payload, last, err := p.fetch(r.Context())
	if err != nil {
		n.abort()
		refuseEngine(w, badRequest)
		return
	}
	n.e.answer(w, r, payload)
	if last || r.Context().Err() != nil {
		n.abort()
	}
}

// post takes packets.
func (n *engine) post(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			n.close(websocket.CloseInternalServerErr, "internal error")
			n.abort()
			panic(p) // whoever serves HTTP answers and logs
		}
	}()
	n.hear()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(n.e.o.MaxMessageBytes)))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		n.abort()
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	case err != nil:
		n.abort()
		refuseEngine(w, badRequest)
		return
	}
	if !n.takeAll(body) {
		n.abort()
		refuseEngine(w, badRequest)
		return
	}
	w.Header().Set("Content-Type", "text/html")
	_, _ = io.WriteString(w, "ok")
}

// takeAll handles a payload; it reports false where the client broke the protocol, or sent two at once.
func (n *engine) takeAll(body []byte) bool {
	if !n.posting.TryLock() {
		return false
	}
	defer n.posting.Unlock()
	n.busy.Store(true)
	defer n.busy.Store(false)
	defer n.hear() // handling may have taken longer than a challenge allows
	for f, err := range socketio.Payload(body) {
		if err != nil {
			return false
		}
		n.take(f)
		if n.broke() {
			return false
		}
	}
	return true
}

func (n *engine) broke() bool {
	n.handling.Lock()
	defer n.handling.Unlock()
	return n.fault
}

// serveUpgrade reads a WebSocket that is to take over: 2probe is answered by 3probe, and with 5 it is the transport
// (Engine.IO protocol 4, "Upgrade").
func (n *engine) serveUpgrade(c *conn) {
	p := n.beginUpgrade()
	if p == nil {
		c.close(websocket.CloseProtocolError, "the session has its WebSocket already")
		c.read(func(int, []byte) {})
		return
	}
	took := false
	late := time.AfterFunc(upgradeTimeout, c.abort)
	defer late.Stop()
	n.e.serve(c, c, nothingDue, func() {}, func(kind int, message []byte) {
		switch {
		case took:
			n.handle(kind, message)
		case kind == websocket.TextMessage && string(message) == "2probe":
			n.hear()
			c.text([]byte("3probe"))
			p.probe(true)
		case kind == websocket.TextMessage && string(message) == "5" && late.Stop():
			took = true
			n.changeTo(c, p)
		default:
			c.close(websocket.CloseProtocolError, "unexpected packet")
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

// nothingDue is the look at a WebSocket that is about to take over: its session has one of its own.
func nothingDue(now time.Time) time.Time { return now.Add(lookEvery) }

func (n *engine) beginUpgrade() *polling {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, _ := n.out.(*polling)
	if p == nil || n.upgrading {
		return nil
	}
	n.upgrading = true
	return p
}

func (n *engine) changeTo(c *conn, p *polling) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p.takeOver(c)
	n.out = c
}

// answer writes a payload, compressed above the threshold where the client takes that.
func (e *Edge) answer(w http.ResponseWriter, r *http.Request, payload []byte) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerWait))
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=UTF-8")
	h.Set("Cache-Control", "no-store")
	if len(payload) > e.o.CompressionThreshold && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is valid
		_, _ = z.Write(payload)
		_ = z.Close()
		return
	}
	_, _ = w.Write(payload)
}

// answerWait bounds how long a client may take to receive an answer.
const answerWait = 30 * time.Second
