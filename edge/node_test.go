package edge

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/internal/testenv/pipe"
	"github.com/nexus/nexus/internal/testenv/witness"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

// node is a real edge on a log in memory, all of it in a bubble (testing/synctest): time is virtual, so a test that waits for half
// a minute takes a millisecond. Only the log and what is folded from it by others are the test's.
type node struct {
	t       *testing.T
	l       *faultyLog // topic presence
	log     *memoryLog // all other topics
	e       *Edge
	metrics *prometheus.Registry

	// What serve adds.
	*witness.Witness
	net    *pipe.Listener
	logged *testenv.Buffer
	faulty bool // the test has something panic
}

const testSecret = "test-secret-0123456789abcdef0123456789abcdef"

// newNode makes a node; the random numbers are those by which its log takes its time. set changes the options, which are those of the
// model where it does not.
func newNode(t *testing.T, rnd *rand.Rand, set func(*Options)) *node {
	n := &node{t: t, l: &faultyLog{rnd: rnd, more: make(chan struct{})}, log: newMemoryLog(), metrics: prometheus.NewRegistry(),
		logged: &testenv.Buffer{}}
	n.log.route = func(b pipeline.Batch) { n.e.live.Route(b) }
	o := Options{NodeName: "A", Logger: slog.New(slog.NewTextHandler(n.logged, nil)), Inbox: memoryInbox{n.log},
		Stats: stats.Remember(noStats{}), Metrics: n.metrics, Verify: verify, Revoked: func(Identity) bool { return false },
		HeartbeatInterval: 5 * time.Second, RepeatInterval: time.Minute,
		Settings: Settings{Limits: presence.Limits{PerUser: 5, PerNamespace: 100}, RateLimit: 1000, RateWindow: time.Minute,
			ContentWindow: time.Minute, PingInterval: time.Hour, PingTimeout: time.Hour, ConnectTimeout: time.Minute,
			StatsInterval: time.Hour, PresenceGrace: 2 * time.Second, CompressionThreshold: 1024, MaxMessageBytes: 1 << 20,
			MaxContentBytes: 1 << 15, MaxQueueBytes: 1 << 20}}
	set(&o)
	ids := make(map[topics.Topic][4]byte)
	for k, topic := range fed() {
		ids[topic] = [4]byte{byte(k)}
	}
	n.e = wired(o, log{Log: byTopic{n.l, n.log}, tail: n.log, reading: func() bool { return true }, topicIDs: ids,
		post:  func(ev *topics.Event) { n.log.add(ev) },
		start: func(context.Context) (int64, bool, error) { return 0, true, nil }, end: theBeginning})
	if _, err := n.e.fold.Position(t.Context(), presenceLog); err != nil {
		t.Fatal(err)
	}
	return n
}

func theBeginning(context.Context) (int64, error) { return 0, nil }

// verify checks a token as the API does, by the bubble's time.
func verify(token string) (Identity, error) {
	c, err := api.Tokens{Secrets: [][]byte{[]byte(testSecret)}}.Verify(token)
	return Identity{User: c.User, Expires: c.Expires, Issued: c.Issued, TokenID: c.ID, Channels: c.Channels}, err
}

// tokenFor signs a token that is good for a time; channels nil: for all.
func tokenFor(t testing.TB, user string, d time.Duration, channels ...string) string {
	t.Helper()
	token, err := api.Tokens{Secrets: [][]byte{[]byte(testSecret)}}.Sign(api.Claims{User: user, Channels: channels}, d)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func signed(t *testing.T, method jwt.SigningMethod, key any, claims jwt.MapClaims) string {
	t.Helper()
	s, err := jwt.NewWithClaims(method, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// start has everything run that a node does by itself, until ctx ends.
func (n *node) start(ctx context.Context, parts *sync.WaitGroup) {
	parts.Go(func() { n.l.feed(ctx, n.e.fold, 0) })
	parts.Go(func() { n.log.run(ctx) })
	for _, run := range []func(context.Context) error{n.e.fold.Run, n.e.sessions.Run, n.e.server.Run, n.e.gateway.Run, n.e.live.Run} {
		parts.Go(func() { _ = run(ctx) })
	}
}

// serving runs a test in a bubble, on a node whose handlers are behind the real HTTP server, over pipes. In the end nothing of it is
// left, its event log has no secret, and its clients were sent nothing that breaks the contract.
func serving(t *testing.T, set func(*Options), test func(t *testing.T, n *node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, rand.New(rand.NewPCG(1, 1)), set)
		n.Witness, n.net = witness.New(t), pipe.Listen()
		handlers := map[string]http.Handler{"/socket.io/": n.e.SocketIO()}
		for _, ns := range topics.Namespaces() {
			handlers[string(ns)] = n.e.Raw(ns)
		}
		server := api.New(api.Options{Logger: slog.New(slog.DiscardHandler), Metrics: n.metrics, Handlers: handlers, Origins: origins(t)})
		ctx, stop := context.WithCancel(context.Background())
		var parts sync.WaitGroup
		n.start(ctx, &parts)
		parts.Go(func() {
			if err := server.Serve(ctx, n.net, time.Second); err != nil {
				t.Error(err)
			}
		})
		<-n.e.fold.Ready()
		t.Cleanup(func() {
			n.drain(10 * time.Second)
			stop()
			parts.Wait()
			n.l.pending.Wait(context.Background())
			n.Tell(t)
			n.left()
		})
		test(t, n)
	})
}

func asIs(*Options) {}

// origin is whose pages may open connections, beside the server's own.
const origin = "https://app.example.com"

func origins(t *testing.T) api.Origins {
	t.Helper()
	list, err := api.ParseOrigins([]string{origin})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (n *node) drain(within time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	n.e.Drain(ctx)
}

// left checks what a node leaves behind.
func (n *node) left() {
	n.t.Helper()
	if c := n.e.sessions.Counts(); c.Joined+c.Coming+c.Slots != 0 {
		n.t.Errorf("sessions are left: %+v", c)
	}
	if c := n.e.server.Counts(); c != (wire.Counts{}) {
		n.t.Errorf("connections are left: %+v", c)
	}
	text := n.logged.String()
	if strings.Contains(text, "panicked") && !n.faulty {
		n.t.Errorf("something panicked:\n%s", text)
	}
	if strings.Contains(text, testSecret) || strings.Contains(text, "eyJ") { // what a token begins with
		n.t.Errorf("the event log has a secret, or a token:\n%s", text)
	}
}

// eventually waits until something holds, for a minute of the bubble's time.
func (n *node) eventually(what string, holds func() bool) {
	n.t.Helper()
	for range 6000 {
		if synctest.Wait(); holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	n.t.Fatalf("not within a minute: %s", what)
}

// byTopic is the log as a node says things into it.
type byTopic struct {
	presence *faultyLog
	rest     *memoryLog
}

// TryAppend implements session.Log.
func (l byTopic) TryAppend(ev *topics.Event, done func(error)) {
	if ev.Topic == topics.Presence {
		l.presence.TryAppend(ev, done)
		return
	}
	l.rest.TryAppend(ev, func(_ bool, err error) { done(err) })
}

// memoryLog is the log of all topics but presence, one partition each, and the tail that reads it (pipeline.Tail).
type memoryLog struct {
	route func(pipeline.Batch)

	mu      sync.Mutex
	records map[topics.Topic][]*topics.Event
	windows map[topics.Topic]*pipeline.Window
	begun   map[topics.Topic]int64 // the high watermark
	low     map[topics.Topic]int64 // the low watermark
	moved   chan struct{}          // closed when low moves
	unread  []appended
	more    chan struct{}
}

// appended is a record that has yet to be read back.
type appended struct {
	ev   *topics.Event
	done func(duplicate bool, err error)
}

func newMemoryLog() *memoryLog {
	return &memoryLog{records: make(map[topics.Topic][]*topics.Event), windows: make(map[topics.Topic]*pipeline.Window),
		begun: make(map[topics.Topic]int64), low: make(map[topics.Topic]int64), moved: make(chan struct{}), more: make(chan struct{}, 1)}
}

// TryAppend implements gateway.Tail.
func (l *memoryLog) TryAppend(ev *topics.Event, done func(duplicate bool, err error)) {
	l.mu.Lock()
	l.appendLocked(ev, done)
	l.mu.Unlock()
	l.wake()
}

func (l *memoryLog) appendLocked(ev *topics.Event, done func(bool, error)) {
	ev.Offset, ev.Time = int64(len(l.records[ev.Topic])), time.Now().UnixMilli()
	read := copyOf(ev) // each reader's own
	if l.windows[ev.Topic] == nil {
		l.windows[ev.Topic] = pipeline.NewWindow(time.Hour)
	}
	id, identified := read.Identity(read.Key)
	read.Duplicate = l.windows[ev.Topic].Observe(read.Time, id, identified)
	l.records[ev.Topic] = append(l.records[ev.Topic], read)
	l.unread = append(l.unread, appended{copyOf(read), done})
}

func (l *memoryLog) wake() {
	select {
	case l.more <- struct{}{}:
	default:
	}
}

func copyOf(ev *topics.Event) *topics.Event {
	return &topics.Event{Topic: ev.Topic, Key: ev.Key, Meta: ev.Meta, Value: ev.Value, Offset: ev.Offset, Time: ev.Time,
		Duplicate: ev.Duplicate}
}

// add appends what somebody else appends: a product service, another node.
func (l *memoryLog) add(ev *topics.Event) { l.TryAppend(ev, func(bool, error) {}) }

// run reads what is appended until ctx ends.
func (l *memoryLog) run(ctx context.Context) {
	for {
		for l.readNext() {
		}
		select {
		case <-l.more:
		case <-ctx.Done():
			return
		}
	}
}

func (l *memoryLog) readNext() bool {
	l.mu.Lock()
	if len(l.unread) == 0 {
		l.mu.Unlock()
		return false
	}
	a := l.unread[0]
	l.unread = l.unread[1:]
	to := a.ev.Offset + 1
	l.begun[a.ev.Topic] = to
	l.mu.Unlock()
	l.route(pipeline.Batch{Topic: a.ev.Topic, From: a.ev.Offset, To: to, Mark: a.ev.Time, Events: []*topics.Event{a.ev}})
	l.mu.Lock()
	l.low[a.ev.Topic] = to
	close(l.moved)
	l.moved = make(chan struct{})
	l.mu.Unlock()
	a.done(a.ev.Duplicate, nil)
	return true
}

// announce appends an announcement, as a product service does.
func (l *memoryLog) announce(title, body string) {
	l.add(topics.New(topics.Broadcasts, topics.EveryoneKey, topics.Meta{Type: topics.TypeAnnouncement},
		topics.Fields("title", title, "body", body)))
}

// restore has the log be that of a backup: the last records of a topic are lost.
func (l *memoryLog) restore(t topics.Topic, lost int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records[t] = l.records[t][:len(l.records[t])-lost]
	l.begun[t], l.low[t] = int64(len(l.records[t])), int64(len(l.records[t]))
}

// Next implements gateway.Tail.
func (l *memoryLog) Next(t topics.Topic) topics.Ends {
	return topics.Ends{t.Partition(0): l.Begun(nil, t)[0]}
}

// Begun implements live.Tail, as all that follow.
func (l *memoryLog) Begun(v []int64, t topics.Topic) []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append(v, l.begun[t])
}

// Vector has a topic's low watermark.
func (l *memoryLog) Vector(v []pipeline.Point, t topics.Topic) []pipeline.Point {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append(v, l.pointLocked(t, l.low[t]))
}

func (l *memoryLog) pointLocked(t topics.Topic, next int64) pipeline.Point {
	if next == 0 {
		return pipeline.PointAt(0, 0)
	}
	return pipeline.PointAt(next, l.records[t][next-1].Time)
}

// Partitions tells that there is one.
func (*memoryLog) Partitions(topics.Topic) int { return 1 }

// Await waits for the low watermark.
func (l *memoryLog) Await(ctx context.Context, t topics.Topic, v []int64) error {
	for {
		l.mu.Lock()
		low, moved := l.low[t], l.moved
		l.mu.Unlock()
		if low >= v[0] {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Recent has all there ever was.
func (l *memoryLog) Recent(of topics.Partition, from, to int64, want func(*topics.Event) bool) (list []*topics.Event, low int64) {
	for _, ev := range l.between(of.Topic, from, to) {
		if !ev.Duplicate && topics.Valid(ev) == nil && want(ev) {
			list = append(list, ev)
		}
	}
	return list, from
}

// between are copies of a topic's records.
func (l *memoryLog) between(t topics.Topic, from, to int64) (list []*topics.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ev := range l.records[t][from:to] {
		list = append(list, copyOf(ev))
	}
	return list
}

// all are copies of a topic's valid records, without repeats.
func (l *memoryLog) all(t topics.Topic) []*topics.Event {
	l.mu.Lock()
	end := int64(len(l.records[t]))
	l.mu.Unlock()
	list, _ := l.Recent(t.Partition(0), 0, end, func(*topics.Event) bool { return true })
	return list
}

// Verify compares a point with the record below it. It takes its time, as one that must ask the log: meanwhile more is appended.
func (l *memoryLog) Verify(_ context.Context, points map[topics.Partition]pipeline.Point) (bool, error) {
	time.Sleep(5 * time.Millisecond)
	l.mu.Lock()
	defer l.mu.Unlock()
	for of, at := range points {
		if at.Next > int64(len(l.records[of.Topic])) || at != l.pointLocked(of.Topic, at.Next) {
			return false, nil
		}
	}
	return true, nil
}

// noStats has counted nothing.
type noStats struct{}

// Counts implements stats.Counter, as what follows.
func (noStats) Counts(context.Context, []string) (map[string]stats.Counts, error) { return nil, nil }

// Reached tells that all is counted.
func (noStats) Reached(context.Context, topics.Ends) (bool, error) { return true, nil }

// memoryInbox finds messages in the log. It has no feed: the log remembers everything.
type memoryInbox struct{ log *memoryLog }

// Message implements gateway.Inbox.
func (i memoryInbox) Message(_ context.Context, user, id string) (inbox.Message, error) {
	for _, ev := range i.log.all(topics.Messages) {
		if ev.Type != topics.TypeMessage || ev.EventID() != id {
			continue
		}
		if m := topics.ReadMessage(ev); m.SenderID == user || m.ReceiverID == user {
			return inbox.Message{ID: id, Sender: m.SenderID, Receiver: m.ReceiverID, Value: ev.Value}, nil
		}
	}
	return inbox.Message{}, inbox.ErrNotFound
}

// Await implements Inbox.
func (memoryInbox) Await(context.Context, topics.Ends) error { return nil }

// Feed implements live.Inbox.
func (memoryInbox) Feed(context.Context, inbox.Span, int, int) ([]inbox.Entry, error) {
	return nil, nil
}

// faultyLog is topic presence, in one partition. It may be away, or take nothing more, or say that it failed and have the record
// later all the same.
type faultyLog struct {
	mu      sync.Mutex
	rnd     *rand.Rand
	mode    string // "", "away", "full"
	records []*topics.Event
	more    chan struct{} // closed when records grows
	pending wire.Tally
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
	l.pending.Begin()
	go func() {
		defer l.pending.End()
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

func (l *faultyLog) all() []*topics.Event {
	list, _ := l.from(0)
	return list
}
