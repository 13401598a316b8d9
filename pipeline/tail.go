package pipeline

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nexus/nexus/topics"
)

// Tail reads everything that is appended after its start. It hands each batch to TailOptions.Route, and it tells those who append
// through it when it has read their event and knows whether that is a duplicate. The edge has one. It is safe for concurrent use.
//
// Each partition has two watermarks. They are apart only while a batch is being routed:
//
//	routed: everybody who is here was shown it  │ being routed │ not read: nobody was shown it
//	────────────────────────────────────────────┼──────────────┼──────────────────────────────▶ offsets
//	                                        low watermark  high watermark
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
	low  atomic.Uint64 // the low watermark, a packed Point: every event below it has been routed
	high atomic.Int64  // the high watermark: no event from here on has been shown to anybody. Above low while a batch is being routed

	history history
	recent  *recent // nil where TailOptions.Keep does not name the topic

	mu         sync.Mutex
	waiting    map[int64]func(duplicate bool) // by offset
	duplicates map[int64]bool
	order      []int64       // of duplicates, oldest first
	moved      chan struct{} // closed when low moves; nil: nobody waits for that
}

// retainedDuplicates is how many offsets of duplicates a partition remembers. They are for appends whose answer from the log comes
// after the tail has read the record: the two race by milliseconds.
const retainedDuplicates = 4096

// TailOptions are what a tail needs. All fields but Keep and Watch are required.
type TailOptions struct {
	Kafka    Kafka     // how the log is reached
	Producer *Producer // what Append and TryAppend append with
	Log      *Log      // asked for ends at the start, and by Verify
	Topics   []topics.Topic
	Windows  *Windows     // those of this process
	Watch    *Watch       // as in Consumer; may be nil
	Logger   *slog.Logger // of its consumer
	// Keep names those of Topics whose last events Recent remembers, at most 4,096 events and 1 MB a partition. Default: none.
	Keep []topics.Topic
	// Route is called with every batch: for one partition in order, for several at the same time. It must not keep the batch.
	Route func(Batch)
}

// NewTail makes a tail. It asks the log where the partitions of o.Topics end: Run reads from there on. An error means that the log
// could not be asked.
func NewTail(ctx context.Context, o TailOptions) (*Tail, error) {
	t := &Tail{producer: o.Producer, cluster: o.Log, route: o.Route, looking: make(chan struct{}, 32), verifying: make(chan struct{}, 4),
		parts: make(map[topics.Topic][]*tailPart)}
	for _, topic := range o.Topics {
		ends, err := o.Log.Ends(ctx, topic)
		if err != nil {
			return nil, err
		}
		all, err := o.Log.extents(ctx, ends, true)
		if err != nil {
			return nil, err
		}
		t.parts[topic] = make([]*tailPart, len(ends))
		for of, end := range ends {
			last := all[of].before
			part := &tailPart{waiting: make(map[int64]func(bool)), duplicates: make(map[int64]bool)}
			part.low.Store(PointAt(end, last.time).pack())
			part.high.Store(end)
			if slices.Contains(o.Keep, topic) {
				part.recent = &recent{low: end}
			}
			t.parts[topic][of.ID] = part
		}
	}
	t.consumer = Consumer{Name: "edge", Kafka: o.Kafka, Log: o.Logger, Topics: o.Topics, Sink: t, Windows: o.Windows, Watch: o.Watch}
	return t, nil
}

// Run reads until ctx ends; then it returns nil. Its errors are those of Consumer.Run.
func (t *Tail) Run(ctx context.Context) error { return t.consumer.Run(ctx) }

// Consumer is what reads for the tail: for readiness and metrics.
func (t *Tail) Consumer() *Consumer { return &t.consumer }

// Live reports whether the tail has read up to where the log ended when Run began.
func (t *Tail) Live() bool { return t.consumer.CaughtUp() }

// Position is where the tail stands (Sink).
func (t *Tail) Position(_ context.Context, of topics.Partition) (Position, error) {
	return Position{Next: t.part(of).lowWatermark()}, nil
}

// Apply routes a batch and answers those who wait for its events (Sink). The position moves once the batch is routed.
func (t *Tail) Apply(_ context.Context, b Batch) error {
	part := t.part(b.Of())
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
func (t *Tail) Warm(at topics.Place, time int64) { t.part(at.Partition).history.add(at.Offset, time) }

// part is what the tail knows of a partition. There must be one of that number.
func (t *Tail) part(of topics.Partition) *tailPart { return t.parts[of.Topic][of.ID] }

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
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
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

// TryAppend appends an event without blocking. It calls done once, within AnswerTimeout, on another goroutine: when the tail has read
// the event, with whether it is a duplicate; or with an error of Producer.TryAppend, after which it is unknown whether the log has it.
func (t *Tail) TryAppend(e *topics.Event, done func(duplicate bool, err error)) {
	t.produceEvent(e, t.producer.bounded(done))
}

// Append appends an event and returns when the tail has read it, with whether it is a duplicate. Its errors are those of
// Producer.Append.
func (t *Tail) Append(ctx context.Context, e *topics.Event) (duplicate bool, err error) {
	done := make(chan error, 1)
	var isDuplicate bool
	t.produceEvent(e, func(d bool, err error) {
		isDuplicate = d
		done <- err
	})
	if err := t.producer.await(ctx, done); err != nil {
		return false, err
	}
	return isDuplicate, nil
}

func (t *Tail) produceEvent(e *topics.Event, done func(duplicate bool, err error)) {
	t.producer.produceEvent(e, func(err error) {
		if err != nil {
			done(false, err)
			return
		}
		t.part(e.At().Partition).await(e.Offset, func(duplicate bool) { done(duplicate, nil) })
	})
}

// Next returns the high watermark of every partition of a topic. A projection that stands there knows every event that
// this tail has shown to anybody: who reads from it afterwards sees at least what was seen on a socket.
func (t *Tail) Next(topic topics.Topic) topics.Ends {
	out := make(topics.Ends)
	for p, part := range t.parts[topic] {
		out[topic.Partition(int32(p))] = part.high.Load()
	}
	return out
}

// NextOf returns the high watermark of the partition that a key belongs to.
func (t *Tail) NextOf(topic topics.Topic, key string) topics.Ends {
	of := topic.Partition(topics.PartitionOf([]byte(key), int32(len(t.parts[topic]))))
	return topics.Ends{of: t.part(of).high.Load()}
}

// Begun appends the high watermarks of a topic's partitions to v, in the order of partitions. No event from there on has been routed,
// not even in part.
func (t *Tail) Begun(v []int64, topic topics.Topic) []int64 {
	for _, part := range t.parts[topic] {
		v = append(v, part.high.Load())
	}
	return v
}

// Await returns once the low watermarks of a topic's partitions have reached v, which has one offset for each partition, in order:
// everything below has been routed. It returns ctx's error where that ends first.
func (t *Tail) Await(ctx context.Context, topic topics.Topic, v []int64) error {
	for p, part := range t.parts[topic] {
		if err := part.awaitLow(ctx, v[p]); err != nil {
			return err
		}
	}
	return nil
}

// awaitLow returns once the low watermark has reached an offset, or when ctx ends.
func (p *tailPart) awaitLow(ctx context.Context, offset int64) error {
	for {
		p.mu.Lock()
		if p.lowWatermark() >= offset {
			p.mu.Unlock()
			return nil
		}
		if p.moved == nil {
			p.moved = make(chan struct{})
		}
		moved := p.moved
		p.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Recent lists events of a partition from the offset from on and below to, out of memory: those for which want returns true. They are
// valid, no duplicates, and not misrouted. to must not be above the low watermark. Memory goes back to low only: where low is above
// from, the events between the two must be taken from the inbox's feed.
func (t *Tail) Recent(of topics.Partition, from, to int64, want func(*topics.Event) bool) (list []*topics.Event, low int64) {
	return t.part(of).recent.between(from, to, want)
}

// Vector appends the low watermarks of a topic's partitions to v, in the order of partitions: everything below has been routed.
func (t *Tail) Vector(v []Point, topic topics.Topic) []Point {
	for _, part := range t.parts[topic] {
		v = append(v, unpack(part.low.Load()))
	}
	return v
}

// Partitions is how many partitions a topic has.
func (t *Tail) Partitions(topic topics.Topic) int { return len(t.parts[topic]) }
