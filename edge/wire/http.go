package wire

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/edge/wire/socketio"
	"github.com/nexus/nexus/internal/apierr"
)

// engine finds a session that began with long-polling.
func (srv *Server) engine(sid string) *Engine {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return srv.engines[sid]
}

// openPolling begins a session; the answer carries its open packet.
func (srv *Server) openPolling(w http.ResponseWriter, r *http.Request, q url.Values, open Open) {
	if r.Method != http.MethodGet {
		refuseEngine(w, badHandshakeMethod)
		return
	}
	n := srv.newEngine(q, newPolling(srv.o.MaxQueueBytes), open)
	srv.makeRoom()
	if !srv.o.Ready() || !srv.enter(n) {
		apierr.Unavailable().WriteHTTP(w)
		return
	}
	srv.watch(n, n.check)
	srv.answer(w, r, n.handshake("websocket"))
}

// makeRoom ends the session that has been in no namespace for the longest, where there are as many as are allowed:
// whoever opens sessions and joins nothing must not keep others out.
func (srv *Server) makeRoom() {
	srv.mu.Lock()
	var idlest *Engine
	if len(srv.engines) >= srv.o.MaxEngines {
		var since time.Time
		for _, n := range srv.engines {
			if at, idle := n.handler.Idle(); idle && (idlest == nil || at.Before(since)) {
				idlest, since = n, at
			}
		}
	}
	srv.mu.Unlock()
	if idlest != nil {
		idlest.Abort()
	}
}

// enter counts a long-polling session in, unless there are too many or the server is draining; end counts it out.
func (srv *Server) enter(n *Engine) bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if len(srv.engines) >= srv.o.MaxEngines || !srv.serving.Begin() {
		return false
	}
	srv.engines[n.sid] = n
	return true
}

// end ends a session that began with long-polling; only the first call counts.
func (n *Engine) end() {
	n.srv.mu.Lock()
	_, first := n.srv.engines[n.sid]
	delete(n.srv.engines, n.sid)
	n.srv.mu.Unlock()
	if !first {
		return
	}
	n.srv.unwatch(n)
	n.handler.Ended()
	if c, is := n.now().(*Conn); is { // it took over as the session was ended
		c.Abort()
	}
	n.srv.serving.End()
}

// polling is the session's transport while that is long-polling, else nil.
func (n *Engine) polling() *polling {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, _ := n.out.(*polling)
	return p
}

// hear notes that the client lives.
func (n *Engine) hear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.heard, n.answerBy = time.Now(), time.Time{}
}

// silentAt is when the client will have been silent for too long. While its packets are being handled it is not: it may
// send no others until these are answered.
func (n *Engine) silentAt() time.Time {
	if n.busy.Load() {
		return time.Now().Add(lookEvery)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	at := n.heard.Add(n.srv.patience())
	if !n.answerBy.IsZero() && n.answerBy.Before(at) {
		at = n.answerBy
	}
	return at
}

func (n *Engine) silent(now time.Time) bool { return !now.Before(n.silentAt()) }

func (n *Engine) servePolling(w http.ResponseWriter, r *http.Request) {
	p := n.polling()
	if p != nil && n.silent(time.Now()) {
		n.Abort()
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
func (n *Engine) get(w http.ResponseWriter, r *http.Request, p *polling) {
	payload, last, err := p.fetch(r.Context())
	if err != nil {
		n.Abort()
		refuseEngine(w, badRequest)
		return
	}
	n.srv.answer(w, r, payload)
	if last || r.Context().Err() != nil {
		n.Abort()
	}
}

// post takes packets.
func (n *Engine) post(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			n.Close(websocket.CloseInternalServerErr, "internal error")
			n.Abort()
			panic(p) // whoever serves HTTP answers and logs
		}
	}()
	n.hear()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(n.srv.o.MaxMessageBytes)))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		n.Abort()
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	case err != nil:
		n.Abort()
		refuseEngine(w, badRequest)
		return
	}
	if !n.takeAll(body) {
		n.Abort()
		refuseEngine(w, badRequest)
		return
	}
	w.Header().Set("Content-Type", "text/html")
	_, _ = io.WriteString(w, "ok")
}

// takeAll handles a payload; it reports false where the client broke the protocol, or sent two at once.
func (n *Engine) takeAll(body []byte) bool {
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

func (n *Engine) broke() bool {
	n.handling.Lock()
	defer n.handling.Unlock()
	return n.fault
}

// answer writes a payload, compressed above the threshold where the client takes that.
func (srv *Server) answer(w http.ResponseWriter, r *http.Request, payload []byte) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerWait))
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=UTF-8")
	h.Set("Cache-Control", "no-store")
	if len(payload) > srv.o.CompressionThreshold && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
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
