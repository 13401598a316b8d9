package pipeline

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nexus/nexus/topics"
)

// Tail reads everything that is appended from its start on, hands it to Route, and tells those who append through it
// when it has read and judged their event. Safe for concurrent use once made.
type Tail struct {
	consumer Consumer
	producer *Producer
	cluster  *Log
	route    func(Batch)
	// looking bounds how many clients' points are looked up in the log at once, and verifying how many of them the slow way.
	looking, verifying chan struct{}

	parts map[topics.Topic][]*tailPart // fixed by NewTail
}

type tailPart struct {
	low  atomic.Uint64 // a packed Point: everything below has been routed
	high atomic.Int64  // nothing from here on has, not even in part: beyond next while a batch is being routed

	history history
	recent  *recent // nil where nobody comes back to it

	mu         sync.Mutex
	waiting    map[int64]func(duplicate bool) // by offset
	duplicates map[int64]bool
	order      []int64 // of duplicates, oldest first
}

// retainedDuplicates bounds how many verdicts a partition remembers for appends whose answer comes after the tail has read
// them: the two race by milliseconds.
const retainedDuplicates = 4096

// TailOptions are what a tail needs.
type TailOptions struct {
	Kafka    Kafka
	Producer *Producer
	Log      *Log
	Topics   []topics.Topic
	Windows  *Windows
	Watch    *Watch
	Logger   *slog.Logger
	// Keep are those of Topics whose last events Recent has.
	Keep []topics.Topic
	// Route gets every batch, of one partition in order, of several at once.
	Route func(Batch)
}

// NewTail asks the log for its partitions and notes their ends: Run reads from there.
func NewTail(ctx context.Context, o TailOptions) (*Tail, error) {
	t := &Tail{producer: o.Producer, cluster: o.Log, route: o.Route, looking: make(chan struct{}, 32), verifying: make(chan struct{}, 4),
		parts: make(map[topics.Topic][]*tailPart)}
	for _, topic := range o.Topics {
		ends, err := o.Log.Ends(ctx, topic)
		if err != nil {
			return nil, err
		}
		all, err := o.Log.extents(ctx, ofTopic(topic, ends), true)
		if err != nil {
			return nil, err
		}
		t.parts[topic] = make([]*tailPart, len(ends))
		for p, end := range ends {
			last := all[partition{topic, p}].before
			part := &tailPart{waiting: make(map[int64]func(bool)), duplicates: make(map[int64]bool)}
			part.low.Store(PointAt(end, last.time).pack())
			part.high.Store(end)
			if slices.Contains(o.Keep, topic) {
				part.recent = &recent{low: end}
			}
			t.parts[topic][p] = part
		}
	}
	t.consumer = Consumer{Name: "edge", Kafka: o.Kafka, Log: o.Logger, Topics: o.Topics, Sink: t, Windows: o.Windows, Watch: o.Watch}
	return t, nil
}

// Run reads until ctx ends.
func (t *Tail) Run(ctx context.Context) error { return t.consumer.Run(ctx) }

// Consumer is what reads for the tail.
func (t *Tail) Consumer() *Consumer { return &t.consumer }

// Live reports whether the tail is reading.
func (t *Tail) Live() bool { return t.consumer.CaughtUp() }

// Position is where the tail stands (Sink).
func (t *Tail) Position(_ context.Context, topic topics.Topic, p int32) (Position, error) {
	return Position{Next: t.parts[topic][p].lowWatermark()}, nil
}

// Apply routes a batch and answers those who wait for its events (Sink). The position moves once the batch is routed.
func (t *Tail) Apply(_ context.Context, b Batch) error {
	part := t.parts[b.Topic][b.Partition]
	for _, e := range b.Events {
		part.history.add(e.Offset, e.Time)
	}
	part.high.Store(b.To)
	if part.recent != nil {
		part.recent.add(b.Events)
	}
	t.route(b)
	part.routed(b)
	return nil
}

// Warm takes in a record before the position (Warmer).
func (t *Tail) Warm(topic topics.Topic, p int32, offset, time int64) {
	t.parts[topic][p].history.add(offset, time)
}

// lowWatermark is the offset below which everything has been routed.
func (p *tailPart) lowWatermark() int64 { return unpack(p.low.Load()).Next }

func (p *tailPart) routed(b Batch) {
	type answer struct {
		done      func(bool)
		duplicate bool
	}
	var answers []answer
	p.mu.Lock()
	for _, e := range b.Events {
		if e.Duplicate {
			p.remember(e.Offset)
		}
		if done, ok := p.waiting[e.Offset]; ok {
			delete(p.waiting, e.Offset)
			answers = append(answers, answer{done, e.Duplicate})
		}
	}
	p.low.Store(PointAt(b.To, b.Mark).pack())
	p.mu.Unlock()
	for _, a := range answers {
		a.done(a.duplicate)
	}
}

func (p *tailPart) remember(offset int64) {
	p.duplicates[offset] = true
	p.order = append(p.order, offset)
	if len(p.order) > retainedDuplicates {
		delete(p.duplicates, p.order[0])
		p.order = p.order[1:]
	}
}

// await calls done once the tail has passed offset.
func (p *tailPart) await(offset int64, done func(duplicate bool)) {
	p.mu.Lock()
	if offset >= p.lowWatermark() {
		p.waiting[offset] = done
		p.mu.Unlock()
		return
	}
	duplicate := p.duplicates[offset]
	p.mu.Unlock()
	done(duplicate)
}

// TryAppend appends an event without blocking and calls done once, within AnswerTimeout, on another goroutine: with an
// error (it is unknown whether the log has the event), or when the tail has read the event, with its verdict.
func (t *Tail) TryAppend(e *topics.Event, done func(duplicate bool, err error)) {
	t.produceEvent(e, bounded(done))
}

// Append appends an event and returns when the tail has read it, with its verdict.
func (t *Tail) Append(ctx context.Context, e *topics.Event) (duplicate bool, err error) {
	done := make(chan error, 1)
	var verdict bool
	t.produceEvent(e, func(d bool, err error) {
		verdict = d
		done <- err
	})
	if err := await(ctx, done); err != nil {
		return false, err
	}
	return verdict, nil
}

func (t *Tail) produceEvent(e *topics.Event, done func(duplicate bool, err error)) {
	t.producer.produceEvent(e, func(err error) {
		if err != nil {
			done(false, err)
			return
		}
		t.parts[e.Topic][e.Partition].await(e.Offset, func(duplicate bool) { done(duplicate, nil) })
	})
}

// Next is, for every partition of a topic, what a projection must have reached to know all that the tail has shown to
// anybody.
func (t *Tail) Next(topic topics.Topic) map[int32]int64 {
	out := make(map[int32]int64)
	for p, part := range t.parts[topic] {
		out[int32(p)] = part.high.Load()
	}
	return out
}

// NextOf is Next in the partition of a key.
func (t *Tail) NextOf(topic topics.Topic, key string) map[int32]int64 {
	p := topics.Partition([]byte(key), int32(len(t.parts[topic])))
	return map[int32]int64{p: t.parts[topic][p].high.Load()}
}

// Begun appends, for every partition of a topic, the position from which on nothing has been routed, not even in part.
func (t *Tail) Begun(v []int64, topic topics.Topic) []int64 {
	for _, part := range t.parts[topic] {
		v = append(v, part.high.Load())
	}
	return v
}

// Passed tells whether everything below these positions of a topic's partitions has been routed.
func (t *Tail) Passed(topic topics.Topic, v []int64) bool {
	for p, part := range t.parts[topic] {
		if part.lowWatermark() < v[p] {
			return false
		}
	}
	return true
}

// Recent lists what the tail still has of a partition's events from an offset up to another that it has passed: those that
// want wants, valid, without duplicates. It has them from low on.
func (t *Tail) Recent(topic topics.Topic, p int32, from, to int64, want func(*topics.Event) bool) (list []*topics.Event, low int64) {
	return t.parts[topic][p].recent.between(from, to, want)
}

// Vector appends the points of a topic's partitions to v, in order: everything below has been routed.
func (t *Tail) Vector(v []Point, topic topics.Topic) []Point {
	for _, part := range t.parts[topic] {
		v = append(v, unpack(part.low.Load()))
	}
	return v
}

// Partitions is how many partitions a topic has.
func (t *Tail) Partitions(topic topics.Topic) int { return len(t.parts[topic]) }
