package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// faults are what a consumer meets while it runs, or finds at its start.
var faults = map[string]func(*testing.T, *bench){
	"ends that no consumer is given are reached": testEnds,
	"removed records count as read":              testRemoved,
	"another log is told":                        testWrongLog,
	"another log is told while running":          testWrongLogRunning,
	"a store that is behind goes on":             testBehind,
	"a record that no repeat can mend":           testPermanent,
	"a store that takes nothing":                 testTakesNothing,
	"revoked while paused":                       testRevokedPaused,
	"a bomb is stepped over":                     testBomb,
	"points of this log, and of no other":        testPoints,
	"a fast look is the slow one":                testLooks,
	"looks at many partitions at once":           testLooksAtOnce,
	"a tail without memory looks":                testLooksOfTail,
}

// untilCaughtUp waits for a consumer that runs.
func untilCaughtUp(t *testing.T, m *memory, c *pipeline.Consumer) {
	t.Helper()
	m.until(t, "the consumer to have caught up", c.CaughtUp)
	if n := c.Behind(); n != 0 {
		t.Errorf("caught up, and %d behind", n)
	}
}

// transaction appends one event in a Kafka transaction.
func (b *bench) transaction(e *topics.Event, end kgo.TransactionEndTry) {
	b.t.Helper()
	cl, err := b.Kafka.Client(kgo.TransactionalID(b.Kafka.Names.Prefix+"tx"), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
	if err != nil {
		b.t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.BeginTransaction(); err != nil {
		b.t.Fatal(err)
	}
	r := &kgo.Record{Topic: b.Kafka.Names.Name(e.Topic), Key: e.Key, Value: e.Value}
	if err := cl.ProduceSync(b.t.Context(), r).FirstErr(); err != nil {
		b.t.Fatal(err)
	}
	if err := cl.EndTransaction(b.t.Context(), end); err != nil {
		b.t.Fatal(err)
	}
}

func testEnds(t *testing.T, b *bench) {
	for _, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		b.transaction(note("a", "", "1"), end)
		m := newMemory()
		c := &pipeline.Consumer{Sink: m, Topics: []topics.Topic{topics.Notifications, topics.Devices}}
		stop := b.consume(c)
		untilCaughtUp(t, m, c)
		m.until(t, "the sink at the end of every partition", func() bool {
			ends, err := b.Log.Ends(t.Context(), topics.Notifications)
			if err != nil {
				t.Fatal(err)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			for of, end := range ends {
				if m.positions[of].Next != end {
					return false
				}
			}
			return ends[topics.Notifications.Partition(topics.PartitionOf([]byte("user:a"), 3))] > 0
		})
		stop()
		again := &pipeline.Consumer{Sink: m} // from the position behind the marker
		stop = b.consume(again)
		untilCaughtUp(t, m, again)
		stop()
	}
}

func testRemoved(t *testing.T, b *bench) {
	for range 5 {
		b.append(&topics.Event{Topic: topics.Presence, Key: []byte("n"), Meta: topics.Meta{Type: topics.TypeNodeHeartbeat},
			Value: topics.Fields("node", "n", "name", "n")})
	}
	m := newMemory()
	c := &pipeline.Consumer{Sink: m, Topics: []topics.Topic{topics.Presence}}
	stop := b.consume(c)
	untilCaughtUp(t, m, c)
	stop()
	b.append(&topics.Event{Topic: topics.Presence, Key: []byte("n"), Meta: topics.Meta{Type: topics.TypeNodeHeartbeat},
		Value: topics.Fields("node", "n", "name", "n")})
	b.truncate(topics.Presence, 0, 6)
	c = &pipeline.Consumer{Sink: m, Topics: []topics.Topic{topics.Presence}}
	b.consume(c)
	untilCaughtUp(t, m, c)
	m.until(t, "the position at the end", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.positions[topics.Presence.Partition(0)].Next == 6
	})
}

func (b *bench) admin() *kadm.Client {
	b.t.Helper()
	cl, err := b.Kafka.Client()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

// truncate removes a partition's records below an offset.
func (b *bench) truncate(topic topics.Topic, partition int32, below int64) {
	b.t.Helper()
	var os kadm.Offsets
	os.Add(kadm.Offset{Topic: b.Kafka.Names.Name(topic), Partition: partition, At: below, LeaderEpoch: -1})
	rs, err := b.admin().DeleteRecords(b.t.Context(), os)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// remake deletes a topic and makes it again, empty.
func (b *bench) remake(topic topics.Topic) {
	b.t.Helper()
	b.remove(topic)
	b.makeAnew()
	b.Producer.Close(quiet) // it knows the former topic
	var err error
	if b.Producer, err = pipeline.NewProducer(b.Kafka); err != nil {
		b.t.Fatal(err)
	}
}

// eventIn is a valid event for a topic.
func eventIn(topic topics.Topic, n int) *topics.Event {
	switch topic {
	case topics.Devices:
		return &topics.Event{Topic: topic, Key: []byte("user:a"), Meta: topics.Meta{Type: topics.TypeDeviceRegistered},
			Value: topics.Fields("token", fmt.Sprint(n))}
	case topics.Signals:
		return &topics.Event{Topic: topic, Key: []byte("dm:a:b"), Meta: topics.Meta{Type: topics.TypeTypingStart},
			Value: topics.Fields("userId", "a", "isTyping", true)}
	}
	return note("a", "", fmt.Sprint(n))
}

func testWrongLog(t *testing.T, b *bench) {
	// Judged, not judged, and kept for a time only.
	for _, topic := range []topics.Topic{topics.Notifications, topics.Devices, topics.Signals} {
		e := eventIn(topic, 0)
		p := topics.PartitionOf(e.Key, 3)
		b.append(e, eventIn(topic, 1), eventIn(topic, 2))
		m := newMemory()
		stop := b.consume(&pipeline.Consumer{Sink: m, Topics: []topics.Topic{topic}})
		m.until(t, "three events", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.all) == 3 })
		stop()
		good := m.positions[topic.Partition(p)]
		if good.Next != 3 || good.Mark == 0 || !strings.HasPrefix(good.Log, b.Kafka.Names.Name(topic)+"@") {
			t.Fatalf("%s: the position is %+v", topic, good)
		}
		wrong := map[string]pipeline.Position{
			"the log ends at 3":                    {Next: 4, Log: good.Log, Mark: good.Mark},
			"made anew, or the store is another":   {Next: 3, Log: "other." + good.Log, Mark: good.Mark},
			"truncated or restored from a backup":  {Next: 3, Log: good.Log, Mark: good.Mark - 1},
			"the log has lost records":             {Next: 1 << 40},
			"the topic was made anew, or the stor": {Next: 0, Log: b.Kafka.Names.Name(topic) + "@AAAAAAAAAAAAAAAAAAAAAA"},
		}
		for why, position := range wrong {
			for _, group := range []string{"", b.Kafka.Names.Prefix + "g" + string(topic)} {
				m := newMemory()
				m.positions[topic.Partition(p)] = position
				c := &pipeline.Consumer{Sink: m, Topics: []topics.Topic{topic}, Group: group, Name: "store", WayOut: "way out"}
				c.Kafka, c.Log, c.Windows = b.Kafka, quiet, pipeline.NewWindows(b.window)
				if err := c.Check(t.Context(), b.Log); !strings.Contains(fmt.Sprint(err), why) {
					t.Errorf("%s: Check with %+v said %v, want %q", topic, position, err, why)
				}
				if topic != topics.Notifications && position.Mark == good.Mark-1 {
					continue // Run looks into the log where the dedup window needs it
				}
				err := c.Run(t.Context())
				var wrongLog *pipeline.WrongLogError
				if !errors.As(err, &wrongLog) || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "way out") {
					t.Errorf("%s: Run with %+v ended with %v, want %q", topic, position, err, why)
				}
				if c.CaughtUp() {
					t.Errorf("%s: a store of another log is caught up", topic)
				}
				if len(m.all) > 0 {
					t.Errorf("%s: %d events were applied to a store of another log", topic, len(m.all))
				}
			}
		}
		b.remake(topic)
		b.append(e, eventIn(topic, 1), eventIn(topic, 2), eventIn(topic, 3), eventIn(topic, 4)) // it has grown past the position
		c := &pipeline.Consumer{Sink: m, Topics: []topics.Topic{topic}, Kafka: b.Kafka, Log: quiet, Windows: pipeline.NewWindows(b.window)}
		if err := c.Run(t.Context()); !strings.Contains(fmt.Sprint(err), "made anew") {
			t.Errorf("%s: a topic that was made anew: %v", topic, err)
		}
	}
}

// The log goes away under a consumer that runs, and another stands in its place that is shorter.
func testWrongLogRunning(t *testing.T, b *bench) {
	for i := range 5 {
		b.append(eventIn(topics.Devices, i))
	}
	m := newMemory()
	p := topics.PartitionOf([]byte("user:a"), 3)
	stop := b.consume(&pipeline.Consumer{Sink: m, Topics: []topics.Topic{topics.Devices}})
	m.until(t, "five events", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.all) == 5 })
	stop()
	good := m.positions[topics.Devices.Partition(p)]
	// The position lies beyond the end, and so does what the consumer fetches: as if the log had lost its tail meanwhile.
	m.positions[topics.Devices.Partition(p)] = good
	c := &pipeline.Consumer{Sink: m, Topics: []topics.Topic{topics.Devices}, Kafka: b.Kafka, Log: quiet}
	done := make(chan error, 1)
	go func() { done <- c.Run(t.Context()) }()
	untilCaughtUp(t, m, c)
	m.mu.Lock()
	m.positions[topics.Devices.Partition(p)] = pipeline.Position{Next: 50, Log: good.Log}
	m.mu.Unlock()
	b.append(eventIn(topics.Devices, 6)) // ErrMoved: the position is read again
	if err := <-done; !strings.Contains(fmt.Sprint(err), "the log ends at 6") {
		t.Errorf("Run ended with %v", err)
	}
}

func testBehind(t *testing.T, b *bench) {
	b.append(note("a", "", "1"), note("a", "", "2"))
	m := newMemory()
	stop := b.consume(&pipeline.Consumer{Sink: m})
	m.untilSeen(t, "1", "2")
	stop()
	backup := m.positions[topics.Notifications.Partition(topics.PartitionOf([]byte("user:a"), 3))]
	b.append(note("a", "", "3"))
	stop = b.consume(&pipeline.Consumer{Sink: m})
	m.untilSeen(t, "1", "2", "3")
	stop()
	m.positions[topics.Notifications.Partition(topics.PartitionOf([]byte("user:a"), 3))] = backup // a store restored from it
	b.append(note("a", "", "4"))
	b.consume(&pipeline.Consumer{Sink: m})
	m.untilSeen(t, "1", "2", "3", "3", "4")
}

// aside keeps what is set aside.
type aside struct {
	mu   sync.Mutex
	list []string
}

func (a *aside) keep(_ context.Context, e *topics.Event, r *kgo.Record, reason error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, fmt.Sprintf("%s@%d %d: %v", e.Topic, e.Offset, r.Offset, reason))
	return nil
}

func (a *aside) kept() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.list...)
}

func testPermanent(t *testing.T, b *bench) {
	for name, refuse := range map[string]func() error{
		"an error": func() error { return fmt.Errorf("insert: %w", pipeline.Permanent(errors.New("too long"))) },
		"a panic":  func() error { panic("secret") },
	} {
		m, a := newMemory(), &aside{}
		m.fail = func(b pipeline.Batch) error {
			for _, e := range b.Events {
				if strings.HasPrefix(titleOf(e), "bad") || topics.Valid(e) == nil && strings.HasPrefix(titleOf(e), "bad") {
					return refuse()
				}
			}
			return nil
		}
		user := strings.ReplaceAll(name, " ", "")
		for _, title := range []string{"1", "bad", "2", "3", "bad2", "4"} {
			b.append(note(user, "", title))
		}
		var mine []string
		stop := b.consume(&pipeline.Consumer{Sink: m, SetAside: a.keep, Name: "store"})
		m.until(t, "the good ones", func() bool {
			mine = nil
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, e := range m.all {
				if string(e.Key) == "user:"+user {
					mine = append(mine, titleOf(e))
				}
			}
			return len(mine) == 4
		})
		stop()
		if got := strings.Join(mine, " "); got != "1 2 3 4" {
			t.Errorf("%s: applied %q", name, got)
		}
		kept := a.kept()
		if len(kept) < 2 || !strings.Contains(kept[0], "store: ") || strings.Contains(strings.Join(kept, " "), "secret") {
			t.Errorf("%s: set aside %q", name, kept)
		}
	}
}

// A store that takes nothing at all is no poison: the consumer stops setting records aside and waits.
func testTakesNothing(t *testing.T, b *bench) {
	const n = 1_100
	var wait sync.WaitGroup
	for i := range n {
		wait.Add(1)
		b.Producer.TryAppend(note("a", "", fmt.Sprint(i)), func(err error) {
			if err != nil {
				t.Error(err)
			}
			wait.Done()
		})
	}
	wait.Wait()
	m, a := newMemory(), &aside{}
	m.fail = func(b pipeline.Batch) error {
		if len(b.Events) > 0 {
			return pipeline.Permanent(errors.New("nothing goes"))
		}
		return nil
	}
	c := &pipeline.Consumer{Sink: m, SetAside: a.keep}
	b.consume(c)
	m.until(t, "a thousand set aside, and a failure", func() bool {
		for _, s := range c.Statuses() {
			if !s.FailingSince.IsZero() {
				return true
			}
		}
		return false
	})
	if got := len(a.kept()); got != 1_000 {
		t.Errorf("%d records were set aside", got)
	}
}

func testRevokedPaused(t *testing.T, b *bench) {
	const perUser, users = 2_500, 6 // more than waits for a worker (maxQueued), in every partition
	var wait sync.WaitGroup
	for i := range perUser * users {
		wait.Add(1)
		b.Producer.TryAppend(note(fmt.Sprint("u", i%users), "", "x"), func(err error) {
			if err != nil {
				t.Error(err)
			}
			wait.Done()
		})
	}
	wait.Wait()
	m := newMemory()
	blocked := true
	m.fail = func(pipeline.Batch) error {
		if blocked {
			return errors.New("the store is away")
		}
		return nil
	}
	group := b.Kafka.Names.Prefix + "paused"
	b.Kafka.Session = session
	c := &pipeline.Consumer{Sink: m, Group: group}
	b.consume(c)
	paused := func() (n int) {
		for _, s := range c.Statuses() {
			if s.Paused {
				n++
			}
		}
		return n
	}
	m.until(t, "a pause", func() bool { return paused() > 0 })
	other := &pipeline.Consumer{Sink: m, Group: group}
	stop := b.consume(other) // takes partitions, and gives them back
	m.until(t, "a rebalance", func() bool { return len(other.Statuses()) > 0 })
	stop()
	m.until(t, "all partitions back", func() bool { return len(c.Statuses()) == 3 })
	m.mu.Lock()
	blocked = false
	m.mu.Unlock()
	m.until(t, "everything", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.all) >= perUser*users })
}

func testBomb(t *testing.T, b *bench) {
	p := topics.PartitionOf([]byte("user:a"), 3)
	b.append(note("a", "k", "1"))
	cl, err := b.Kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.ZstdCompression()),
		kgo.ProducerBatchMaxBytes(96<<20), kgo.MaxBufferedRecords(400_000), kgo.ManualFlushing())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	topic := b.Kafka.Names.Name(topics.Notifications)
	zeros := &kgo.Record{Topic: topic, Partition: p, Key: []byte("user:a"), Value: make([]byte, 64<<20)}
	oneBatch := func(rs ...*kgo.Record) { // however slow this machine is: a linger would cut it
		t.Helper()
		answers := kgo.AbortingFirstErrPromise(cl)
		for _, r := range rs {
			cl.Produce(t.Context(), r, answers.Promise())
		}
		if err := errors.Join(cl.Flush(t.Context()), answers.Err()); err != nil {
			t.Fatal(err)
		}
	}
	oneBatch(zeros)
	var many []*kgo.Record
	for range 200_000 { // a batch that weighs little but its number
		many = append(many, &kgo.Record{Topic: topic, Partition: p})
	}
	oneBatch(many...)
	b.append(note("a", "k", "again"), note("a", "", "2"))
	m := newMemory()
	var skipped []pipeline.Span
	m.fail = func(b pipeline.Batch) error {
		skipped = append(skipped, b.Skipped...)
		return nil
	}
	live := func() []string {
		var list []string
		for _, title := range m.titles() {
			if title != "" {
				list = append(list, title)
			}
		}
		return list
	}
	c := &pipeline.Consumer{Sink: m}
	stop := b.consume(c)
	m.until(t, "both", func() bool { return len(live()) == 2 })
	untilCaughtUp(t, m, c)
	stop()
	if got := strings.Join(live(), " "); got != "1 2" {
		t.Errorf("applied %q", got)
	}
	if len(skipped) < 2 || skipped[0] != (pipeline.Span{From: 1, To: 2}) || len(m.all) > 3 {
		t.Errorf("stepped over %v, and %d events were applied", skipped, len(m.all))
	}
	b.append(note("a", "k", "again"), note("a", "", "3")) // after a restart the window is warmed across the bomb
	c = &pipeline.Consumer{Sink: m}
	b.consume(c)
	m.until(t, "the third", func() bool { return len(live()) == 3 })
	if got := strings.Join(live(), " "); got != "1 2 3" {
		t.Errorf("applied %q", got)
	}
}

// A point is good where the log has below it what stood there when the point was made, and nowhere else.
func testPoints(t *testing.T, b *bench) {
	p := topics.PartitionOf([]byte("user:a"), 3)
	newTail := func() *pipeline.Tail {
		tail, err := pipeline.NewTail(t.Context(), pipeline.TailOptions{Kafka: b.Kafka, Producer: b.Producer, Log: b.Log, Logger: quiet,
			Windows: pipeline.NewWindows(b.window),
			Topics:  []topics.Topic{topics.Notifications}, Route: func(pipeline.Batch) {}})
		if err != nil {
			t.Fatal(err)
		}
		b.run(tail.Run)
		return tail
	}
	verify := func(tail *pipeline.Tail, point pipeline.Point) bool {
		t.Helper()
		good, err := tail.Verify(t.Context(), map[topics.Partition]pipeline.Point{topics.Notifications.Partition(p): point})
		if err != nil {
			t.Fatal(err)
		}
		return good
	}
	b.transaction(note("a", "", "aborted"), kgo.TryAbort) // so a point may have offsets below it, and no record
	first := newTail()
	points := []pipeline.Point{first.Vector(nil, topics.Notifications)[p]}
	for i := range 6 {
		if i == 3 {
			b.transaction(note("a", "", "tx"), kgo.TryCommit)
		}
		if _, err := first.Append(t.Context(), note("a", "k", fmt.Sprint(i))); err != nil { // all but the first are duplicates
			t.Fatal(err)
		}
		points = append(points, first.Vector(nil, topics.Notifications)[p])
	}
	end := points[len(points)-1]
	second := newTail()
	if got := second.Vector(nil, topics.Notifications)[p]; got != end {
		t.Errorf("the log ends at %v for a new tail, and at %v for the old one", got, end)
	}
	if _, err := second.Append(t.Context(), note("a", "", "last")); err != nil {
		t.Fatal(err)
	}
	later := second.Vector(nil, topics.Notifications)[p]
	for name, tail := range map[string]*pipeline.Tail{"in memory": first, "after a restart": second, "from the log alone": newTail()} {
		for _, point := range append(points, later) {
			if !verify(tail, point) { // the first tail may not have come to the last one yet
				t.Errorf("%s: %v is refused", name, point)
			}
			if verify(tail, pipeline.Point{Next: point.Next, Check: point.Check + 1}) {
				t.Errorf("%s: %v is taken with another check", name, point)
			}
		}
		if verify(tail, pipeline.Point{Next: later.Next + 1, Check: later.Check}) {
			t.Errorf("%s: a point beyond the end is taken", name)
		}
	}
}
