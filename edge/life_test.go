package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/edge/socketio"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

// The life of sessions against a model: random clients, bare and Socket.IO, on the real edge, engine, hub, slots and two
// presence folds, one of which begins in the middle of the log. Time is the bubble's (testing/synctest). The log is a
// script: it is away, or takes nothing more, or says that it failed and has the record later all the same.

// faultyLog is the log of the model, one partition of presence.
type faultyLog struct {
	mu      sync.Mutex
	rnd     *rand.Rand
	mode    string // "", "away", "full"
	records []*topics.Event
	more    chan struct{} // closed when records grows
	pending tally
}

var errAway = errors.New("the log is away")

func (l *faultyLog) chance(n int) bool { return l.upTo(n) == 0 }

func (l *faultyLog) upTo(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rnd.IntN(n)
}

// pause waits for whole steps, a hundred at most, so that much happens at the same instant.
func (l *faultyLog) pause(most time.Duration) {
	step := max(most/100, 5*time.Millisecond)
	time.Sleep(time.Duration(l.upTo(1+int(most/step))) * step)
}

func (l *faultyLog) is() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mode
}

func (l *faultyLog) turn(mode string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mode = mode
}

// TryAppend takes a record, or not, within ten seconds.
func (l *faultyLog) TryAppend(ev *topics.Event, done func(error)) {
	l.pending.begin()
	go func() {
		defer l.pending.end()
		switch l.is() {
		case "full":
			done(pipeline.ErrOverloaded)
			return
		case "away":
			time.Sleep(pipeline.DeliveryTimeout)
			done(errAway)
			if l.chance(3) { // it was under way, and arrives
				for l.is() != "" {
					time.Sleep(time.Second)
				}
				l.pause(3 * time.Second)
				l.add(ev)
			}
			return
		}
		l.pause(20 * time.Millisecond)
		l.add(ev)
		l.pause(20 * time.Millisecond)
		done(nil)
	}()
}

func (l *faultyLog) add(ev *topics.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ev.Offset, ev.Time = int64(len(l.records)), time.Now().UnixMilli()
	l.records = append(l.records, ev)
	close(l.more)
	l.more = make(chan struct{})
}

// from are the records from an offset on, each reader's own, and what tells that there are more.
func (l *faultyLog) from(offset int64) (list []*topics.Event, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ev := range l.records[offset:] {
		list = append(list, &topics.Event{Topic: ev.Topic, Key: ev.Key, Meta: ev.Meta, Value: ev.Value, Offset: ev.Offset, Time: ev.Time})
	}
	return list, l.more
}

// feed has a fold read until ctx ends, always a little late.
func (l *faultyLog) feed(ctx context.Context, f *presence.Fold, next int64) {
	for {
		list, more := l.from(next)
		if len(list) > 0 {
			l.pause(30 * time.Millisecond)
			to := next + int64(len(list))
			_ = f.Apply(ctx, pipeline.Batch{Topic: topics.Presence, From: next, To: to, Events: list})
			next = to
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			return
		}
	}
}

// world is one run of the model.
type world struct {
	t       *testing.T
	l       *faultyLog
	e       *Edge
	other   *presence.Fold // another node's
	metrics *prometheus.Registry

	mu      sync.Mutex
	revoked map[string]bool // by token
	alive   map[*session]bool
	clients sync.WaitGroup
	leaving chan struct{} // closed: those who stayed go
}

// socket is a bare client's transport.
type socket struct {
	conn
	closed chan struct{}
	once   sync.Once
}

func newSocket() *socket {
	return &socket{conn: conn{writing: true, maxQueue: 1 << 20}, closed: make(chan struct{})}
}
func (s *socket) close(code int, reason string) {
	s.conn.close(code, reason)
	s.abort()
}
func (s *socket) abort()                  { s.once.Do(func() { close(s.closed) }) }
func (s *socket) challenge(time.Duration) {}

const (
	modelLimit  = 3
	modelRepeat = 15 * time.Second
)

func newWorld(t *testing.T, rnd *rand.Rand) *world {
	w := &world{t: t, l: &faultyLog{rnd: rnd, more: make(chan struct{})}, revoked: make(map[string]bool), alive: make(map[*session]bool), leaving: make(chan struct{}),
		metrics: prometheus.NewRegistry()}
	limits := presence.Limits{PerUser: modelLimit, PerNamespace: 100, EvictOldest: w.l.chance(2)}
	w.e = newEdge(Options{NodeName: "A", Logger: slog.New(slog.DiscardHandler), Inbox: noInbox{}, Stats: stats.Remember(noStats{}), Metrics: w.metrics,
		Verify: func(token string) (Identity, error) {
			user, _, _ := strings.Cut(token, "-")
			id := Identity{User: user, TokenID: token, Expires: time.Now().Add(time.Hour)}
			if strings.HasSuffix(token, "short") {
				id.Expires = time.Now().Add(3 * time.Second)
			}
			return id, nil
		},
		Revoked: func(id Identity) bool { return w.isRevoked(id.TokenID) },
		Settings: Settings{Limits: limits, RateLimit: 1000, RateWindow: time.Minute, ContentWindow: time.Minute, PingInterval: time.Hour, PingTimeout: time.Hour, ConnectTimeout: time.Minute,
			PresenceGrace: 2 * time.Second, CompressionThreshold: 1024, MaxMessageBytes: 1 << 20, MaxQueueBytes: 1 << 20}}, w.l)
	w.e.tail, w.e.live = &pipeline.Tail{}, func() bool { return true }
	w.e.fold = w.e.newFold(func(context.Context) (int64, bool, error) { return 0, true, nil }, func(context.Context) (int64, error) { return 0, nil })
	if _, err := w.e.fold.Position(t.Context(), topics.Presence, 0); err != nil {
		t.Fatal(err)
	}
	w.other = presence.New(presence.Options{Limits: limits, Grace: 2 * time.Second, Changed: func([]presence.Change) {},
		Start: func(context.Context) (int64, bool, error) { return 0, false, nil }, End: func(context.Context) (int64, error) { return 0, nil }})
	if _, err := w.other.Position(t.Context(), topics.Presence, 0); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) isRevoked(token string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revoked[token]
}

func (w *world) lives(s *session, is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if delete(w.alive, s); is {
		w.alive[s] = true
	}
}

// token is one of few, so that a revocation meets many.
func (w *world) token() (user, token string) {
	user = "u" + strconv.Itoa(w.l.upTo(2))
	return user, user + "-" + []string{"a", "b", "short"}[w.l.upTo(3)]
}

func (w *world) namespace() topics.Namespace {
	return []topics.Namespace{topics.Dashboard, topics.Messaging}[w.l.upTo(2)]
}

// bare is a bare client: what Edge.Raw, upgrade and serveRaw do, without a network.
func (w *world) bare() {
	user, token := w.token()
	w.l.pause(10 * time.Second)
	id, _ := w.e.identify(user, token)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if w.l.chance(4) { // it gives up
		time.AfterFunc(time.Duration(w.l.upTo(100))*time.Millisecond, cancel)
	}
	back := comeback{}
	if w.l.chance(4) {
		back.offset = "x"
	}
	s, refusal := w.e.admit(ctx, w.namespace(), id, nil, back)
	if refusal != nil {
		return
	}
	defer w.lives(s, false)
	if w.l.pause([]time.Duration{50 * time.Millisecond, 5 * time.Second}[w.l.upTo(2)]); !w.e.serving.begin() {
		w.e.dismiss(s, s.reason())
		return
	}
	defer w.e.serving.end()
	endsItself := true
	defer func() {
		if endsItself {
			w.e.dismiss(s, s.reason())
		}
	}()
	defer func() { _ = recover() }()
	if w.l.chance(8) {
		return // the upgrade fails
	}
	out := newSocket()
	s.out = out
	w.e.watch(out, func(now time.Time) time.Time {
		w.e.expire(s, now)
		return now.Add(time.Second)
	})
	defer w.e.unwatch(out)
	if w.l.chance(8) { // its connection ends while it joins
		endsItself = false
		if w.l.chance(2) {
			w.e.dismiss(s, reasonLost)
		} else {
			w.clients.Go(func() { w.e.dismiss(s, reasonLost) })
		}
	} else {
		w.lives(s, true)
	}
	w.e.greet(s, "", comeback{}, func() {})
	for endsItself && w.l.chance(2) {
		if w.l.pause(time.Second); w.l.chance(10) {
			panic("a fault of ours")
		}
		w.command(s, user)
	}
	if endsItself {
		w.until(out.closed)
	}
}

// command is what a client may say that concerns its life.
func (w *world) command(s *session, user string) {
	data, event := `{"token":"`+user+`-b"}`, "authenticate"
	if w.l.chance(2) {
		event = []string{"subscribe", "unsubscribe"}[w.l.upTo(2)]
		data = fmt.Sprintf(`{"channels":["c%d","c%d"]}`, w.l.upTo(3), w.l.upTo(3))
	}
	w.e.handle(s, command{event: event, data: []byte(data)})
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

// poller is a Socket.IO client by long-polling, which may change to a WebSocket: the real engine and its real transports.
func (w *world) poller() {
	w.l.pause(10 * time.Second)
	e, p := w.e, newPolling(1<<20)
	n := e.newEngine(url.Values{}, p)
	if !e.enter(n) {
		return
	}
	e.watch(n, n.check)
	ended := make(chan struct{})
	go func() { // the GETs
		defer close(ended)
		for {
			if _, last, err := p.fetch(context.Background()); err != nil || last {
				if w.engineIsOn(p, n) {
					return
				}
				n.abort()
				return
			}
		}
	}()
	w.clients.Add(1)
	go func() { // the POSTs
		defer w.clients.Done()
		user, token := w.token()
		for range 1 + w.l.upTo(3) {
			ns := w.namespace()
			if !n.takeAll([]byte(fmt.Sprintf(`40%s,{"userId":"%s","token":"%s"%s}`, ns, user, token, w.claim()))) {
				n.abort()
				return
			}
			w.l.pause(100 * time.Millisecond)
			if s := n.session(string(ns)); s != nil && w.l.chance(2) {
				n.take(frameOf(fmt.Sprintf(`42%s,["subscribe",{"channels":["c%d"]}]`, ns, w.l.upTo(3))))
			}
			if s := n.session(string(ns)); s != nil && w.l.chance(4) {
				n.take(frameOf("41" + string(ns)))
			}
		}
	}()
	if w.l.pause(100 * time.Millisecond); w.l.chance(3) {
		w.upgrade(n, p)
		return
	}
	if w.l.chance(2) { // it goes away while its CONNECT may wait
		n.abort()
	}
	w.until(ended)
	n.abort()
	<-ended
}

// claim is what a client that comes back adds to CONNECT: the pid of some session, which may be another's.
func (w *world) claim() (claim string) {
	list := w.e.hub.sessions()
	if len(list) == 0 || w.l.chance(2) {
		return ""
	}
	w.e.hub.state(list[w.l.upTo(len(list))], func(_, pid string, _ []string) { claim = fmt.Sprintf(`,"pid":"%s","offset":"x"`, pid) })
	return claim
}

// engineIsOn tells that a WebSocket has taken over.
func (w *world) engineIsOn(p *polling, n *engine) bool { return n.polling() != p }

func (w *world) upgrade(n *engine, p *polling) {
	if n.beginUpgrade() == nil || !w.e.serving.begin() {
		n.abort()
		return
	}
	defer w.e.serving.end()
	here, there := net.Pipe()
	defer there.Close()
	c := &conn{net: here, maxQueue: 1 << 20, log: w.e.o.Logger}
	closed, clientEnds := make(chan struct{}), make(chan struct{})
	drain := func(nc net.Conn, done chan<- struct{}) { // until it is closed, or the deadline that a close frame sets has passed
		defer close(done)
		b := make([]byte, 4096)
		for {
			if _, err := nc.Read(b); err != nil {
				return
			}
		}
	}
	go drain(here, closed)
	go drain(there, clientEnds)
	w.l.pause(50 * time.Millisecond)
	n.changeTo(c, p)
	w.l.pause(200 * time.Millisecond)
	if w.l.chance(2) {
		w.until(closed)
	}
	c.abort()
	n.end()
	<-closed
	<-clientEnds
}

// run lets everything happen and compares with the model.
func (w *world) run() {
	t, e, l := w.t, w.e, w.l
	ctx, stop := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	start := func(fn func()) {
		parts.Add(1)
		go func() { defer parts.Done(); fn() }()
	}
	start(func() { l.feed(ctx, e.fold, 0) })
	start(func() { _ = e.fold.Run(ctx) })
	start(func() { _ = w.other.Run(ctx) })
	start(func() { _ = e.slots.run(ctx) })
	start(func() { _ = every(ctx, modelRepeat, e.slots.sayAll) })
	start(func() { _ = e.schedule.run(ctx) })
	start(func() { _ = every(ctx, time.Second, e.sweep) })
	start(func() { _ = every(ctx, 5*time.Second, e.heartbeat) })
	start(func() { _ = every(ctx, 5*time.Second, func() { l.add(beat("B")) }) }) // it outlives the outages
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
		w.clients.Add(1)
		go func() {
			defer w.clients.Done()
			if l.chance(2) {
				w.bare()
			} else {
				w.poller()
			}
		}()
	}
	for range l.upTo(3) {
		w.clients.Add(1)
		go func() {
			defer w.clients.Done()
			l.pause(12 * time.Second)
			user, token := w.token()
			w.mu.Lock()
			w.revoked[token] = true
			w.mu.Unlock()
			e.Revoke(user)
		}()
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
	l.pending.wait(context.Background())
	time.Sleep(20 * time.Second)
	w.compare("after the end")
	if n := len(e.hub.sessions()); n != 0 {
		t.Errorf("%d sessions in the hub after all have gone", n)
	}
	if !drains {
		within, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		e.Drain(within)
		cancel()
	}
	stop()
	parts.Wait()
	l.pending.wait(context.Background())
}

func (l *faultyLog) all() []*topics.Event {
	list, _ := l.from(0)
	return list
}

func beat(node string) *topics.Event {
	return topics.New(topics.Presence, node, topics.Meta{Type: topics.TypeNodeHeartbeat, Source: "/nodes/" + node, ID: topics.NewID()}, topics.Fields("node", node, "name", node))
}

// settled tells that no repeat is under way and that nobody who has just gone is still shown.
func (w *world) settled() bool {
	_, unsettled := w.e.slots.counts()
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
	users := make(map[userIn]int)
	for _, s := range e.hub.sessions() {
		reached[key{s.id, fmt.Sprint(e.hub.channelsOf(s))}] = true
		users[userIn{s.namespace, s.user}]++
		if s.expired(time.Now()) || e.o.Revoked(*s.identity.Load()) {
			t.Errorf("%s: a session lives on though its token is not good any more (%s, expired %v, %v)", when, s.identity.Load().TokenID, s.expired(time.Now()), s.doomed)
		}
	}
	// The sessions of bare clients that think they are connected are the hub's, and the engines' as well.
	w.mu.Lock()
	for s := range w.alive {
		if e.hub.find(s.id) == nil {
			t.Errorf("%s: a client is connected, and its session is not in the hub", when)
		}
	}
	known := maps.Clone(w.alive)
	w.mu.Unlock()
	e.mu.Lock()
	engines := slices.Collect(maps.Values(e.engines))
	watched := len(e.open)
	rooms := len(e.rooms)
	e.mu.Unlock()
	served := 0
	for _, n := range engines {
		for _, ns := range []topics.Namespace{topics.Dashboard, topics.Messaging} {
			if s := n.session(string(ns)); s != nil {
				known[s] = true
			}
		}
	}
	for _, s := range e.hub.sessions() {
		if !known[s] {
			t.Errorf("%s: a session in the hub is of no connection", when)
		}
		if _, bare := s.out.(*socket); bare {
			served++
		}
	}
	if all, unsettled := e.slots.counts(); all != len(reached) || unsettled != 0 {
		t.Errorf("%s: %d slots, %d unsettled; want %d, 0", when, all, unsettled, len(reached))
	}
	for name, f := range map[string]*presence.Fold{"its own fold": e.fold, "the other's": w.other} {
		held := make(map[key]bool)
		for _, user := range []string{"u0", "u1"} {
			for _, x := range f.Sessions(user) {
				held[key{x.ID, fmt.Sprint(x.Channels)}] = true
			}
			for _, ns := range []topics.Namespace{topics.Dashboard, topics.Messaging} {
				if is, want := f.Online(ns, user), users[userIn{ns, user}] > 0; is != want {
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
	if rooms != 0 || e.unacked.count() != 0 || len(e.hub.coming) != 0 {
		t.Errorf("%s: %d wait for room, %d appends unanswered, %d about to join", when, rooms, e.unacked.count(), len(e.hub.coming))
	}
	if e.serving.count() != served+len(engines) && when == "after the end" || watched > e.serving.count() {
		t.Errorf("%s: %d connections served, %d watched; %d bare clients and %d engines", when, e.serving.count(), watched, served, len(engines))
	}
}

func frameOf(text string) socketio.Frame { return socketio.Frame{Data: []byte(text)} }

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
