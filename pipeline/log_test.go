package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/internal/testenv/logtest"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

func TestMain(m *testing.M) { testenv.Exit(m) }

var quiet = logtest.Quiet()

// TestLog runs one suite on both logs: what is built on the one holds on the other.
func TestLog(t *testing.T) { logtest.OnBoth(t, testLog) }

// bench is a log with topics of its own, of three partitions, and a dedup window.
type bench struct {
	*logtest.Fixture
	t      *testing.T
	window time.Duration
}

func newBench(t *testing.T, addr string) *bench {
	t.Helper()
	return &bench{Fixture: logtest.Open(t, addr, 3), t: t, window: time.Minute}
}

// session is that of members whose going a test waits for.
const session = 1500 * time.Millisecond

func note(user, key, text string) *topics.Event {
	return &topics.Event{Topic: topics.Notifications, Key: []byte(topics.UserKey(user)),
		Meta:  topics.Meta{Type: topics.TypeNotification, IdempotencyKey: key},
		Value: topics.Fields("title", text, "body", "b", "type", "SYSTEM")}
}

// titleOf is what note was given as its text; empty of an event that nobody has validated.
func titleOf(e *topics.Event) string { return topics.ReadNotification(e).Title }

func (b *bench) append(events ...*topics.Event) {
	b.t.Helper()
	for _, e := range events {
		if err := b.Producer.Append(b.t.Context(), e); err != nil {
			b.t.Fatal(err)
		}
	}
}

// raw appends a record as a foreign client would.
func (b *bench) raw(topic topics.Topic, partition int32, key, value string, headers ...kgo.RecordHeader) {
	b.t.Helper()
	cl, err := b.Kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	if err != nil {
		b.t.Fatal(err)
	}
	defer cl.Close()
	r := &kgo.Record{Topic: b.Kafka.Names.Name(topic), Partition: partition, Value: []byte(value), Headers: headers,
		Timestamp: time.UnixMilli(86400000)}
	if key != "" {
		r.Key = []byte(key)
	}
	if err := cl.ProduceSync(b.t.Context(), r).FirstErr(); err != nil {
		b.t.Fatal(err)
	}
}

// memory is a sink that keeps its positions beside what it was given.
type memory struct {
	mu        sync.Mutex
	positions map[topics.Partition]pipeline.Position
	seen      []string // titles of live events, in the order of arrival
	all       []*topics.Event
	told      map[string][]string // of dead letters: origin to reasons
	batches   int
	fail      func(b pipeline.Batch) error
}

func newMemory() *memory {
	return &memory{told: make(map[string][]string), positions: make(map[topics.Partition]pipeline.Position)}
}

func (m *memory) Position(_ context.Context, of topics.Partition) (pipeline.Position, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.positions[of], nil
}

func (m *memory) Apply(_ context.Context, b pipeline.Batch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.batches++
	if m.fail != nil {
		if err := m.fail(b); err != nil {
			return err
		}
	}
	if m.positions[b.Of()].Next != b.From {
		return pipeline.ErrMoved
	}
	m.positions[b.Of()] = b.After()
	m.all = append(m.all, b.Events...)
	for _, r := range b.Records {
		m.letter(r)
	}
	for e := range b.Live {
		m.seen = append(m.seen, titleOf(e))
	}
	return nil
}

func (m *memory) letter(r *kgo.Record) {
	var origin, reason string
	for _, h := range r.Headers {
		switch h.Key {
		case topics.HeaderOrigin:
			origin = string(h.Value)
		case topics.HeaderReason:
			reason = string(h.Value)
		}
	}
	if origin != "" {
		m.told[origin] = append(m.told[origin], reason)
	}
}

func (m *memory) titles() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.seen...)
}

// until waits for a condition that Apply brings about.
func (m *memory) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("applied so far: %q", m.titles())
		}
	}()
	testenv.Eventually(t, what, ok)
}

func (m *memory) untilSeen(t *testing.T, want ...string) {
	t.Helper()
	m.until(t, strings.Join(want, " "), func() bool { return len(m.titles()) >= len(want) })
	if got := m.titles(); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatalf("applied %q, want %q", got, want)
	}
}

// consume runs a consumer until the test or the returned function ends it.
func (b *bench) consume(c *pipeline.Consumer) (stop func()) {
	b.t.Helper()
	c.Kafka, c.Log, c.Windows = b.Kafka, quiet, pipeline.NewWindows(b.window)
	if c.Topics == nil {
		c.Topics = []topics.Topic{topics.Notifications}
	}
	return b.run(c.Run)
}

func (b *bench) run(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				b.t.Errorf("Run: %v", err)
			}
		})
	}
	b.t.Cleanup(stop)
	return stop
}

func testLog(t *testing.T, addr string) {
	tests := maps.Clone(faults)
	maps.Copy(tests, map[string]func(*testing.T, *bench){
		"record time is broker time":         testBrokerTime,
		"a request has one time":             testOneTime,
		"order and partition":                testOrder,
		"duplicates, also after a restart":   testDuplicates,
		"the window closes":                  testWindowCloses,
		"a failing sink sees the same batch": testRetry,
		"a moved position":                   testMoved,
		"rewind is exact":                    testRewind,
		"two members of a group":             testGroup,
		"the gate":                           testGate,
		"the gate reads every topic":         testGateTopics,
		"the gate writes once":               testGateOnce,
		"the tail":                           testTail,
		"the dedup window is recorded":       testSettle,
		"wrong topic settings":               testTopicCheck,
		"transactions":                       testTransactions,
	})
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each has topics of its own, and most of its time it waits
			test(t, newBench(t, addr))
		})
	}
}

func testBrokerTime(t *testing.T, b *bench) {
	before := time.Now().Add(-time.Second)
	b.raw(topics.Notifications, topics.PartitionOf([]byte("user:a"), 3), "user:a", `{"title":"1","body":"b","type":"SYSTEM"}`)
	m := newMemory()
	b.consume(&pipeline.Consumer{Sink: m})
	m.untilSeen(t, "1")
	if got := time.UnixMilli(m.all[0].Time); got.Before(before) || got.After(time.Now().Add(time.Second)) {
		t.Errorf("record time is %s although it was appended now", got)
	}
}

// All records of a request have one time, the broker's, whatever theirs are and however they are compressed; to other clients
// too.
func testOneTime(t *testing.T, b *bench) {
	now := time.Now()
	for codec, c := range map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(),
		"snappy": kgo.SnappyCompression(),
		"lz4":    kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()} {
		cl, err := b.Kafka.Client(kgo.ProducerBatchCompression(c), kgo.ProducerLinger(100*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		var rs []*kgo.Record
		for i, ahead := range []time.Duration{0, time.Second, -time.Hour, 20 * time.Minute} {
			rs = append(rs, &kgo.Record{Topic: b.Kafka.Names.Name(topics.Broadcasts), Key: []byte("all"),
				Value:     fmt.Appendf(nil, `{"title":"%s-%d","body":"%s"}`, codec, i, strings.Repeat("b", 200)),
				Timestamp: now.Add(ahead)})
		}
		err = cl.ProduceSync(t.Context(), rs...).FirstErr()
		cl.Close()
		if err != nil {
			t.Fatal(codec, err)
		}
	}
	m := newMemory()
	b.consume(&pipeline.Consumer{Sink: m, Topics: []topics.Topic{topics.Broadcasts}})
	m.until(t, "all", func() bool { return len(m.titles()) == 20 })
	times := make(map[string]map[int64]bool)
	for _, e := range m.all {
		codec, _, _ := strings.Cut(titleOf(e), "-")
		if times[codec] == nil {
			times[codec] = make(map[int64]bool)
		}
		times[codec][e.Time] = true
		if at := time.UnixMilli(e.Time); at.Before(now.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
			t.Errorf("%s has time %s, appended at %s", titleOf(e), at, now)
		}
	}
	for codec, seen := range times {
		if len(seen) != 1 {
			t.Errorf("%s: the records of one request have times %v", codec, slices.Sorted(maps.Keys(seen)))
		}
	}
	kcat, err := exec.LookPath("kcat")
	if err != nil {
		return
	}
	out, err := exec.Command(kcat, "-C", "-b", b.Kafka.Brokers[0], "-t", b.Kafka.Names.Name(topics.Broadcasts), "-e", "-q", "-f",
		"%o %T\n").Output()
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, e := range m.all {
		fmt.Fprintf(&want, "%d %d\n", e.Offset, e.Time)
	}
	if string(out) != want.String() {
		t.Errorf("kcat reads\n%s\nwant\n%s", out, want.String())
	}
}

func testOrder(t *testing.T, b *bench) {
	var want []string
	for i := range 200 {
		b.Producer.TryAppend(note("alice", "", strconv.Itoa(i)), func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
		want = append(want, strconv.Itoa(i))
	}
	m := newMemory()
	b.consume(&pipeline.Consumer{Sink: m})
	m.untilSeen(t, want...)
	for _, e := range m.all {
		if e.Stray {
			t.Fatalf("an event of our own stands in partition %d", e.Partition)
		}
	}
}

func testDuplicates(t *testing.T, b *bench) {
	b.append(note("a", "k1", "1"), note("a", "k2", "2"), note("a", "k1", "1"))
	m := newMemory()
	stop := b.consume(&pipeline.Consumer{Sink: m})
	m.untilSeen(t, "1", "2")
	m.until(t, "all three", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.all) == 3 })
	stop()
	b.append(note("a", "k2", "2"), note("a", "k3", "3"), note("b", "k2", "other key"))
	b.consume(&pipeline.Consumer{Sink: m})
	m.until(t, "four live", func() bool { return len(m.titles()) >= 4 })
	m.until(t, "all six", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.all) == 6 })
	if n := len(m.titles()); n != 4 {
		t.Errorf("applied %q: a duplicate passed after the restart", m.titles())
	}
}

func testWindowCloses(t *testing.T, b *bench) {
	b.window = 300 * time.Millisecond
	first := note("a", "k", "1")
	b.append(first)
	m := newMemory()
	b.consume(&pipeline.Consumer{Sink: m})
	m.untilSeen(t, "1")
	m.until(t, "the window to pass", func() bool { return time.Now().UnixMilli() > m.all[0].Time+400 })
	b.append(note("a", "k", "2"))
	m.untilSeen(t, "1", "2")
}

func testRetry(t *testing.T, b *bench) {
	b.append(note("a", "k", "1"), note("a", "k", "again"), note("a", "l", "2"))
	m := newMemory()
	var froms []string
	m.fail = func(batch pipeline.Batch) error {
		var verdicts []string
		for _, e := range batch.Events {
			verdicts = append(verdicts, fmt.Sprint(e.Offset, e.Duplicate))
		}
		froms = append(froms, strings.Join(verdicts, ","))
		switch len(froms) {
		case 1:
			return errors.New("the store is away")
		case 2:
			return errors.New("it is still away")
		}
		return nil
	}
	b.consume(&pipeline.Consumer{Sink: m})
	m.untilSeen(t, "1", "2")
	if froms[0] != froms[1] || froms[1] != froms[2] {
		t.Errorf("the batch changed between its attempts: %q", froms)
	}
}

func testMoved(t *testing.T, b *bench) {
	b.append(note("a", "1", "1"), note("a", "2", "2"))
	m := newMemory()
	b.consume(&pipeline.Consumer{Sink: m})
	m.untilSeen(t, "1", "2")
	p := topics.PartitionOf([]byte("user:a"), 3)
	// Another member has applied the next record already.
	m.mu.Lock()
	m.positions[topics.Notifications.Partition(p)] = pipeline.Position{Next: 3}
	m.mu.Unlock()
	b.append(note("a", "3", "3"), note("a", "4", "4"), note("a", "2", "again"))
	b.append(note("a", "5", "5"))
	m.untilSeen(t, "1", "2", "4", "5")
}

func testRewind(t *testing.T, b *bench) {
	of := topics.Notifications.Partition(topics.PartitionOf([]byte("user:a"), 3))
	var events []*topics.Event
	m := newMemory()
	b.consume(&pipeline.Consumer{Sink: m})
	for i := range 5 {
		e := note("a", strconv.Itoa(i), strconv.Itoa(i))
		b.append(e)
		m.until(t, "the clock to move on", func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return len(m.all) == i+1 && time.Now().UnixMilli() > m.all[i].Time+30
		})
		events = append(events, m.all[i])
	}
	for i := 1; i < 5; i++ {
		for back := range i {
			span := time.Duration(events[i-1].Time-events[back].Time) * time.Millisecond
			got, err := b.Log.Rewind(t.Context(), topics.Ends{of: int64(i)}, span)
			if err != nil {
				t.Fatal(err)
			}
			if got[of] != int64(back) {
				t.Errorf("Rewind(%d, back to the time of %d) = %d", i, back, got[of])
			}
		}
	}
	if got, err := b.Log.Rewind(t.Context(), topics.Ends{of: 0}, time.Hour); err != nil || got[of] != 0 {
		t.Errorf("Rewind at the start = %v, %v", got, err)
	}
}

func testGroup(t *testing.T, b *bench) {
	b.Kafka.Session = session
	m := newMemory()
	stop := b.consume(&pipeline.Consumer{Sink: m, Group: b.Kafka.Names.Prefix + "g", Instance: "one"})
	b.consume(&pipeline.Consumer{Sink: m, Group: b.Kafka.Names.Prefix + "g", Instance: "two"})
	want := 0
	for i := range 40 {
		b.append(note("u"+strconv.Itoa(i), "k", strconv.Itoa(i)))
		want++
	}
	m.until(t, "all 40", func() bool { return len(m.titles()) >= want })
	stop() // a static member's partitions move once its session has timed out
	for i := range 40 {
		b.append(note("u"+strconv.Itoa(i), "k", "again"), note("u"+strconv.Itoa(i), "l", strconv.Itoa(i)))
		want++
	}
	m.until(t, "all 80", func() bool { return len(m.titles()) >= want })
	if n := len(m.titles()); n != want {
		t.Errorf("applied %d events, want %d: %q", n, want, m.titles())
	}
}

func testGate(t *testing.T, b *bench) {
	home := topics.PartitionOf([]byte("user:a"), 3)
	astray := (home + 1) % 3
	b.raw(topics.Notifications, home, "user:a", "garbage", kgo.RecordHeader{Key: "x", Value: []byte("y")})
	b.raw(topics.Notifications, astray, "user:a", `{"title":"stray","body":"b","type":"SYSTEM"}`)
	b.raw(topics.Notifications, astray, "user:a", `{"title":"named","body":"b","type":"SYSTEM"}`,
		kgo.RecordHeader{Key: "ce_id", Value: []byte("7")})
	b.raw(topics.Notifications, home, "", `{"title":"no key","body":"b","type":"SYSTEM"}`)
	b.raw(topics.Broadcasts, 0, "all", strings.Repeat("x", 100<<10))
	m, dead := newMemory(), newMemory()
	b.consume(&pipeline.Consumer{Sink: m})
	b.consume(&pipeline.Consumer{Sink: dead, Topics: []topics.Topic{topics.DeadLetters}})
	stop := b.run(b.gate().Run)
	m.until(t, "both strays at home", func() bool { return len(m.titles()) >= 2 })
	letters := func() int { dead.mu.Lock(); defer dead.mu.Unlock(); return len(dead.all) }
	dead.until(t, "three dead letters", func() bool { return letters() >= 3 })
	stop()
	b.run(b.gate().Run) // it goes on where it was: nothing is written twice
	b.append(note("a", "last", "last"))
	m.until(t, "the last", func() bool { return len(m.titles()) >= 3 })
	b.raw(topics.Notifications, home, "user:a", "more garbage")
	dead.until(t, "the fourth dead letter", func() bool { return letters() >= 4 })
	if n := len(m.titles()); n != 3 {
		t.Errorf("applied %q", m.titles())
	}
	if n := letters(); n != 4 {
		t.Errorf("%d dead letters, want 4", n)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.all { // appended again after a crash, a stray must be the same event
		if want := fmt.Sprintf("notifications/%d/0", astray); topics.Valid(e) == nil && titleOf(e) == "stray" && !e.Stray &&
			e.IdempotencyKey != want {
			t.Errorf("a stray without identity was carried over with key %q, want %q", e.IdempotencyKey, want)
		}
	}
	for _, e := range dead.all {
		if len(e.Value) > 64<<10 {
			t.Errorf("a dead letter keeps %d bytes", len(e.Value))
		}
	}
}

func testTail(t *testing.T, b *bench) {
	b.append(note("a", "before", "before"))
	m := newMemory()
	tail, err := pipeline.NewTail(t.Context(), pipeline.TailOptions{Kafka: b.Kafka, Producer: b.Producer, Log: b.Log, Logger: quiet,
		Windows: pipeline.NewWindows(b.window),
		Topics:  []topics.Topic{topics.Notifications}, Route: func(batch pipeline.Batch) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.all = append(m.all, batch.Events...)
		}})
	if err != nil {
		t.Fatal(err)
	}
	b.run(tail.Run)
	for _, step := range []struct {
		key       string
		duplicate bool
	}{{"k", false}, {"k", true}, {"before", true}, {"l", false}} {
		e := note("a", step.key, "x")
		duplicate, err := tail.Append(t.Context(), e)
		if err != nil || duplicate != step.duplicate {
			t.Errorf("Append(%s) = %v, %v; want %v", step.key, duplicate, err, step.duplicate)
		}
		if next := tail.NextOf(topics.Notifications, "user:a")[e.At().Partition]; next <= e.Offset {
			t.Errorf("answered although the tail is at %d and the event at %d", next, e.Offset)
		}
	}
	if len(m.all) != 4 {
		t.Errorf("routed %d events, want the 4 since the start", len(m.all))
	}
}

func testSettle(t *testing.T, b *bench) {
	settle := func(d time.Duration, set bool) (time.Duration, error) {
		c, err := pipeline.AgreeContract(t.Context(), b.Log, d, set)
		return c.Window, err
	}
	if d, err := settle(5*time.Minute, false); err != nil || d != 5*time.Minute {
		t.Fatal(d, err)
	}
	if d, err := settle(time.Minute, false); err != nil || d != 5*time.Minute {
		t.Errorf("unset: got %s, %v; want what is recorded", d, err)
	}
	if _, err := settle(time.Minute, true); err == nil || !strings.Contains(err.Error(), "DEDUP_WINDOW=5m0s") {
		t.Errorf("another window: got %v, want an error that names the way out", err)
	}
}

func testTopicCheck(t *testing.T, b *bench) {
	if err := b.Log.EnsureTopics(t.Context(), pipeline.TopicOptions{Partitions: 9}); err != nil {
		t.Errorf("topics of other partition counts must stand: %v", err)
	}
	cl, err := b.Kafka.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	rs, err := kadm.NewClient(cl).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms",
		Value: new("1000")}},
		b.Kafka.Names.Name(topics.Messages))
	if err != nil || rs[0].Err != nil {
		t.Fatal(err, rs)
	}
	// Kafka tells a changed setting a moment later.
	testenv.Eventually(t, "an error that says how to mend retention.ms", func() bool {
		err := b.Log.EnsureTopics(t.Context(), pipeline.TopicOptions{})
		return err != nil && strings.Contains(err.Error(), "retention.ms=-1")
	})
}

// Product services may use transactions: what is aborted is not seen, and control records stop nobody.
func testTransactions(t *testing.T, b *bench) {
	cl, err := b.Kafka.Client(kgo.TransactionalID(b.Kafka.Names.Prefix + "tx"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	send := func(title string, end kgo.TransactionEndTry) {
		t.Helper()
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		e := note("a", title, title)
		r := &kgo.Record{Topic: b.Kafka.Names.Name(e.Topic), Key: e.Key, Value: e.Value,
			Headers: []kgo.RecordHeader{{Key: "idempotency-key", Value: []byte("k" + title)}}}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	send("1", kgo.TryCommit)
	send("aborted", kgo.TryAbort)
	m := newMemory()
	stop := b.consume(&pipeline.Consumer{Sink: m})
	m.untilSeen(t, "1")
	stop()
	send("2", kgo.TryCommit)
	send("1", kgo.TryCommit) // a duplicate, across a restart and control records
	b.consume(&pipeline.Consumer{Sink: m})
	b.append(note("a", "3", "3"))
	m.untilSeen(t, "1", "2", "3")
}
