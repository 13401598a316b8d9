package edge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

// The life of sessions against a model: random clients, bare and Socket.IO, on the real edge, its handlers and transports
// included, over pipes, and two presence folds, one of which begins in the middle of the log. Time is the bubble's
// (testing/synctest). The log is a script: it is away, or takes nothing more, or says that it failed and has the record later all
// the same. The model is what the clients see: who was told that it is connected, and has not been told that it is no more.

// world is one run of the model.
type world struct {
	*node
	other *presence.Fold // another node's

	mu      sync.Mutex
	revoked map[string]bool // by token
	alive   map[place]int   // sessions as the clients see them
	pids    []string        // that clients were told
	clients sync.WaitGroup
	leaving chan struct{} // closed: those who stayed go
}

// place is where a user is.
type place struct {
	user string
	ns   topics.Namespace
}

const (
	modelLimit  = 3
	modelRepeat = 15 * time.Second
)

func newWorld(t *testing.T, rnd *rand.Rand) *world {
	w := &world{revoked: make(map[string]bool), alive: make(map[place]int), leaving: make(chan struct{})}
	var limits presence.Limits
	w.node = newNode(t, rnd, func(o *Options) {
		limits = presence.Limits{PerUser: modelLimit, PerNamespace: 100, EvictOldest: rnd.IntN(2) == 0}
		o.Limits, o.RepeatInterval, o.Logger = limits, modelRepeat, slog.New(slog.DiscardHandler)
		o.Verify = func(token string) (Identity, error) {
			user, kind, _ := strings.Cut(token, "-")
			id := Identity{User: user, TokenID: token, Expires: time.Now().Add(time.Hour)}
			switch kind {
			case "short":
				id.Expires = time.Now().Add(3 * time.Second)
			case "boom":
				panic("a fault of ours")
			}
			return id, nil
		}
		o.Revoked = func(id Identity) bool { return w.isRevoked(id.TokenID) }
	})
	w.other = presence.New(presence.Options{Limits: limits, Grace: 2 * time.Second, Changed: func([]presence.Change) {},
		Start: func(context.Context) (int64, bool, error) { return 0, false, nil }, End: theBeginning})
	if _, err := w.other.Position(t.Context(), presenceLog); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) isRevoked(token string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revoked[token]
}

// token is one of few, so that a revocation meets many.
func (w *world) token() (user, token string) {
	user = "u" + strconv.Itoa(w.l.upTo(2))
	return user, user + "-" + []string{"a", "b", "short"}[w.l.upTo(3)]
}

func (w *world) namespace() topics.Namespace { return topics.Namespaces()[w.l.upTo(2)] }

// view is what one client has been told of its sessions.
type view struct {
	w    *world
	user string
	in   map[topics.Namespace]bool
}

func (w *world) view(user string) *view {
	return &view{w: w, user: user, in: make(map[topics.Namespace]bool)}
}

func (v *view) is(ns topics.Namespace) bool {
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	return v.in[ns]
}

// set notes that the client is told that it is connected, or no more.
func (v *view) set(ns topics.Namespace, on bool) {
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	if v.in[ns] == on {
		return
	}
	if v.in[ns] = on; on {
		v.w.alive[place{v.user, ns}]++
	} else if v.w.alive[place{v.user, ns}]--; v.w.alive[place{v.user, ns}] == 0 {
		delete(v.w.alive, place{v.user, ns})
	}
}

func (v *view) end() {
	for _, ns := range topics.Namespaces() {
		v.set(ns, false)
	}
}

// take reads a packet of Socket.IO's: CONNECT, or its refusal. It tells the namespace where it is one of them.
func (v *view) take(packet string) (answered topics.Namespace) {
	for _, ns := range topics.Namespaces() {
		if strings.HasPrefix(packet, "40"+string(ns)+",") {
			v.set(ns, true)
			v.w.told(packet)
			return ns
		}
		if strings.HasPrefix(packet, "44"+string(ns)+",") {
			return ns
		}
	}
	return ""
}

// told notes the pid of a session.
func (w *world) told(connect string) {
	_, pid, _ := strings.Cut(connect, `"pid":"`)
	pid, _, _ = strings.Cut(pid, `"`)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pids = append(w.pids, pid)
}

// wires is the answer to a WebSocket handshake over a pipe: it takes its time, and may fail.
type wires struct {
	*httptest.ResponseRecorder
	w     *world
	conn  net.Conn
	taken bool
}

func (h *wires) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	h.w.l.pause([]time.Duration{50 * time.Millisecond, 5 * time.Second}[h.w.l.upTo(2)])
	if h.w.l.chance(8) {
		return nil, nil, errors.New("the connection is broken")
	}
	h.taken = true
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// dial makes a WebSocket to a handler; nil: it was refused, or given up.
func (w *world) dial(handler http.Handler, query string, giveUp bool) *websocket.Conn {
	ours, theirs := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	if giveUp {
		time.AfterFunc(time.Duration(w.l.upTo(100))*time.Millisecond, cancel)
	}
	w.clients.Go(func() {
		defer cancel()
		r, err := http.ReadRequest(bufio.NewReader(ours))
		if err != nil {
			return
		}
		h := &wires{ResponseRecorder: httptest.NewRecorder(), w: w, conn: ours}
		if handler.ServeHTTP(h, r.WithContext(ctx)); !h.taken {
			ours.Close()
		}
	})
	dialer := websocket.Dialer{NetDial: func(string, string) (net.Conn, error) { return theirs, nil }}
	ws, _, err := dialer.Dial("ws://pipe/?"+query, nil)
	if err != nil {
		theirs.Close()
		return nil
	}
	return ws
}

// reading hands what comes to take, until the connection ends.
func (w *world) reading(ws *websocket.Conn, take func(string)) (ended <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			_, b, err := ws.ReadMessage()
			if err != nil {
				ws.Close() // a close frame has been answered
				return
			}
			take(string(b))
		}
	}()
	return done
}

// bare is a bare client.
func (w *world) bare() {
	user, token := w.token()
	w.l.pause(10 * time.Second)
	ns, query := w.namespace(), "userId="+user+"&token="+token
	if w.l.chance(4) {
		query += "&offset=x"
	}
	ws := w.dial(w.e.Raw(ns), query, w.l.chance(4))
	if ws == nil {
		return
	}
	v := w.view(user)
	ended := w.reading(ws, func(text string) {
		if strings.HasPrefix(text, `{"event":"connected"`) {
			v.set(ns, true)
		}
	})
	defer v.end()
	if w.l.chance(8) { // its connection ends while it joins
		ws.Close()
	}
	for w.l.chance(2) {
		w.l.pause(time.Second)
		_ = ws.WriteMessage(websocket.TextMessage, []byte(w.command(user)))
	}
	w.until(ended)
	ws.Close()
	<-ended
}

// command is what a bare client may say that concerns its life; at times it meets a fault of ours.
func (w *world) command(user string) string {
	data, event := `{"token":"`+user+[]string{"-b", "-b", "-boom"}[w.l.upTo(3)]+`"}`, "authenticate"
	if w.l.chance(2) {
		event = []string{"subscribe", "unsubscribe"}[w.l.upTo(2)]
		data = fmt.Sprintf(`{"channels":["c%d","c%d"]}`, w.l.upTo(3), w.l.upTo(3))
	}
	return `{"event":"` + event + `","data":` + data + `}`
}

// until waits until the client's connection is closed, or it goes of its own accord; some stay to the end.
func (w *world) until(closed <-chan struct{}) {
	stay := time.Duration(w.l.upTo(20)) * time.Second
	if w.l.chance(3) {
		stay = time.Hour
	}
	select {
	case <-closed:
	case <-w.leaving:
	case <-time.After(stay):
	}
}

// poller is a Socket.IO client by long-polling.
type poller struct {
	w       *world
	handler http.Handler
	sid     string
	v       *view
	// life ends the GETs; ended is closed when there are none any more, answers tells which CONNECT was answered.
	life    context.Context
	goAway  context.CancelFunc
	ended   chan struct{}
	answers chan topics.Namespace

	mu        sync.Mutex
	upgrading bool // a noop ends the GETs
}

func (w *world) newPoller() *poller {
	p := &poller{w: w, handler: w.e.SocketIO(), ended: make(chan struct{}), answers: make(chan topics.Namespace, 10)}
	p.life, p.goAway = context.WithCancel(context.Background())
	return p
}

func (p *poller) do(ctx context.Context, method, body string) (int, string) {
	query := "/?EIO=4&transport=polling"
	if p.sid != "" {
		query += "&sid=" + p.sid
	}
	r := httptest.NewRecorder()
	p.handler.ServeHTTP(r, httptest.NewRequestWithContext(ctx, method, query, strings.NewReader(body)))
	return r.Code, r.Body.String()
}

// open begins the session.
func (p *poller) open() bool {
	status, body := p.do(context.Background(), "GET", "")
	p.sid, _, _ = strings.Cut(strings.TrimPrefix(body, `0{"sid":"`), `"`)
	return status == 200
}

func (p *poller) post(packet string) bool {
	status, _ := p.do(context.Background(), "POST", packet)
	return status == 200
}

// poll is the GETs, until the session ends or a WebSocket takes over.
func (p *poller) poll() {
	defer close(p.ended)
	for {
		status, body := p.do(p.life, "GET", "")
		if status != 200 {
			return
		}
		for packet := range strings.SplitSeq(body, "\x1e") {
			p.mu.Lock()
			over := packet == "1" || packet == "6" && p.upgrading
			p.mu.Unlock()
			if over {
				return
			}
			p.took(packet)
		}
	}
}

func (p *poller) took(packet string) {
	if ns := p.v.take(packet); ns != "" {
		p.answers <- ns
	}
}

// talk is the POSTs: the client joins, subscribes, leaves.
func (p *poller) talk(user, token string, over <-chan struct{}) {
	w := p.w
	for range 1 + w.l.upTo(3) {
		ns := w.namespace()
		if p.v.is(ns) {
			continue
		}
		if !p.post(fmt.Sprintf(`40%s,{"userId":"%s","token":"%s"%s}`, ns, user, token, w.claim())) {
			return
		}
		select {
		case <-p.answers:
		case <-over:
			return
		}
		w.l.pause(100 * time.Millisecond)
		if p.v.is(ns) && w.l.chance(2) {
			p.post(fmt.Sprintf(`42%s,["subscribe",{"channels":["c%d"]}]`, ns, w.l.upTo(3)))
		}
		if p.v.is(ns) && w.l.chance(4) && p.post("41"+string(ns)) {
			p.v.set(ns, false)
		}
	}
}

// poller is a client by long-polling, which may change to a WebSocket, or go away while its CONNECT waits.
func (w *world) poller() {
	w.l.pause(10 * time.Second)
	p := w.newPoller()
	defer p.goAway()
	if !p.open() {
		return
	}
	user, token := w.token()
	p.v = w.view(user)
	defer p.v.end()
	over := make(chan struct{})
	go p.poll()
	w.clients.Go(func() { // the POSTs
		p.talk(user, token, over)
	})
	defer close(over)
	if w.l.pause(100 * time.Millisecond); w.l.chance(3) {
		w.upgrade(p)
		return
	}
	if w.l.chance(2) { // it goes away while its CONNECT may wait
		p.goAway()
	}
	w.until(p.ended)
	if w.l.chance(2) {
		p.post("1")
	}
	p.goAway()
	<-p.ended
	p.v.end()
}

// upgrade has a WebSocket take over, as clients do: the probe, the end of the GETs, the change.
func (w *world) upgrade(p *poller) {
	defer p.goAway()
	ws := w.dial(p.handler, "EIO=4&transport=websocket&sid="+p.sid, false)
	if ws == nil {
		p.goAway()
		<-p.ended
		return
	}
	probed := make(chan struct{})
	once := sync.OnceFunc(func() { close(probed) })
	ended := w.reading(ws, func(text string) {
		if text == "3probe" {
			once()
			return
		}
		p.took(text)
	})
	p.mu.Lock()
	p.upgrading = true
	p.mu.Unlock()
	_ = ws.WriteMessage(websocket.TextMessage, []byte("2probe"))
	select {
	case <-probed:
	case <-ended:
		p.goAway()
	}
	<-p.ended
	w.l.pause(50 * time.Millisecond)
	_ = ws.WriteMessage(websocket.TextMessage, []byte("5"))
	w.l.pause(200 * time.Millisecond)
	if w.l.chance(2) {
		w.until(ended)
	}
	ws.Close()
	<-ended
}

// claim is what a client that comes back adds to CONNECT: the pid of some session, which may be another's.
func (w *world) claim() string {
	w.mu.Lock()
	pids := w.pids
	w.mu.Unlock()
	if len(pids) == 0 || w.l.chance(2) {
		return ""
	}
	return fmt.Sprintf(`,"pid":"%s","offset":"x"`, pids[w.l.upTo(len(pids))])
}

// run lets everything happen and compares with the model.
func (w *world) run() {
	t, e, l := w.t, w.e, w.l
	ctx, stop := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	start := func(fn func()) { parts.Go(fn) }
	w.start(ctx, &parts)
	start(func() { _ = w.other.Run(ctx) })
	start(func() { // it outlives the outages
		for ctx.Err() == nil {
			l.add(topics.Heartbeat{Node: "B", Name: "B"}.Event())
			select {
			case <-time.After(5 * time.Second):
			case <-ctx.Done():
			}
		}
	})
	start(func() {
		l.pause(15 * time.Second)
		next := int64(0)
		if l.chance(2) {
			next = int64(l.upTo(1 + len(l.all())))
		}
		l.feed(ctx, w.other, next)
	})
	troubles := make(chan struct{})
	go func() { // the log's
		defer close(troubles)
		for range l.upTo(3) {
			l.pause(5 * time.Second)
			l.turn([]string{"away", "full"}[l.upTo(2)])
			l.pause(25 * time.Second)
			l.turn("")
		}
	}()
	for range 4 + l.upTo(8) {
		w.clients.Go(func() {
			if l.chance(2) {
				w.bare()
			} else {
				w.poller()
			}
		})
	}
	for range l.upTo(3) {
		w.clients.Go(func() {
			l.pause(12 * time.Second)
			user, token := w.token()
			w.mu.Lock()
			w.revoked[token] = true
			w.mu.Unlock()
			e.Revoke(user)
		})
	}
	drains := l.chance(3)
	if drains {
		l.pause(15 * time.Second)
		within, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		began := time.Now()
		e.Drain(within)
		cancel()
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("drain took %s", took)
		}
	}
	<-troubles
	time.Sleep(modelRepeat + 20*time.Second) // what came last is said again, those who stay stay
	w.compare("while some stay")
	close(w.leaving)
	w.clients.Wait()
	l.pending.Wait(context.Background())
	time.Sleep(20 * time.Second)
	w.compare("after the end")
	if n := len(e.sessions.Sessions()); n != 0 {
		t.Errorf("%d sessions in the hub after all have gone", n)
	}
	if !drains {
		within, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		e.Drain(within)
		cancel()
	}
	stop()
	parts.Wait()
	l.pending.Wait(context.Background())
}

// settled tells that no repeat is under way and that nobody who has just gone is still shown.
func (w *world) settled() bool {
	unsettled := w.e.sessions.Counts().Unsettled
	for _, f := range []*presence.Fold{w.e.fold, w.other} {
		for _, user := range []string{"u0", "u1"} {
			for _, ns := range []topics.Namespace{topics.Dashboard, topics.Messaging} {
				if f.Online(ns, user) != f.Connected(ns, user) {
					return false
				}
			}
		}
	}
	return unsettled == 0
}

// compare checks that hub, slots, both folds, presence and counts tell the same.
func (w *world) compare(when string) {
	t, e := w.t, w.e
	time.Sleep(503 * time.Millisecond) // between the ticks
	for n := 0; n < 30 && !w.settled(); n++ {
		time.Sleep(time.Second)
	}
	synctest.Wait() // whatever happens at this instant has happened
	type key struct {
		session  string
		channels string
	}
	reached := make(map[key]bool)
	users := make(map[place]int)
	for _, s := range e.sessions.Sessions() {
		reached[key{s.ID, fmt.Sprint(e.sessions.ChannelsOf(s))}] = true
		users[place{s.User, s.Namespace}]++
		if s.Expired(time.Now()) || w.isRevoked(s.Identity().TokenID) {
			t.Errorf("%s: a session lives on though its token is not good any more (%s)", when, s.Identity().TokenID)
		}
	}
	w.mu.Lock()
	alive := maps.Clone(w.alive)
	w.mu.Unlock()
	if !maps.Equal(alive, users) {
		t.Errorf("%s: the clients see %v, the hub has %v", when, alive, users)
	}
	counts := e.sessions.Counts()
	if counts.Slots != len(reached) || counts.Unsettled != 0 {
		t.Errorf("%s: %d slots, %d unsettled; want %d, 0", when, counts.Slots, counts.Unsettled, len(reached))
	}
	for name, f := range map[string]*presence.Fold{"its own fold": e.fold, "the other's": w.other} {
		held := make(map[key]bool)
		for _, user := range []string{"u0", "u1"} {
			for _, x := range f.Sessions(user) {
				held[key{x.ID, fmt.Sprint(x.Channels)}] = true
			}
			for _, ns := range []topics.Namespace{topics.Dashboard, topics.Messaging} {
				if is, want := f.Online(ns, user), users[place{user, ns}] > 0; is != want {
					t.Errorf("%s: %s shows %s online %v in %s, want %v", when, name, user, is, ns, want)
				}
			}
		}
		if !maps.Equal(held, reached) {
			t.Errorf("%s: %s holds %v, the hub has %v", when, name, held, reached)
		}
		total, online := 0, 0
		for _, ns := range []topics.Namespace{topics.Dashboard, topics.Messaging} {
			total += f.Connections(ns)
			online += f.OnlineUsers(ns)
		}
		if total != len(reached) || online != len(users) {
			t.Errorf("%s: %s counts %d sessions of %d users, want %d of %d", when, name, total, online, len(reached), len(users))
		}
	}
	if opened, closed := w.sum("nexus_sessions_opened_total"), w.sum("nexus_sessions_closed_total"); opened-closed != len(reached) {
		t.Errorf("%s: %d opened, %d closed, %d in the hub", when, opened, closed, len(reached))
	}
	if counts.Waiting != 0 || e.gateway.Unanswered() != 0 || counts.Coming != 0 {
		t.Errorf("%s: %d wait for room, %d appends unanswered, %d about to join", when, counts.Waiting, e.gateway.Unanswered(), counts.Coming)
	}
	if c := e.server.Counts(); c.Watched != c.Serving || when == "after the end" && c != (wire.Counts{}) {
		t.Errorf("%s: %+v", when, c)
	}
}

// sum adds a counter's values over all labels.
func (w *world) sum(name string) (n int) {
	families, _ := w.metrics.Gather()
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				n += int(m.GetCounter().GetValue())
			}
		}
	}
	return n
}

// TestLife runs random interleavings of what may befall sessions, as many as there is time for. SEED repeats one run.
func TestLife(t *testing.T) {
	seed, runs, end := rand.Uint64(), 3000, time.Now().Add(8*time.Second)
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed, runs = s, 1
	}
	k := 0
	for ; k < runs && time.Now().Before(end); k++ {
		one := seed + uint64(k)
		synctest.Test(t, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("run %d; this one alone: SEED=%d", k+1, one)
				}
			}()
			newWorld(t, rand.New(rand.NewPCG(one, 0))).run()
		})
	}
	t.Logf("%d runs, from SEED=%d on", k, seed)
}
