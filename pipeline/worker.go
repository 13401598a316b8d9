package pipeline

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// worker applies one partition's records in order.
//
//	          offer                 pull, observe            Apply
//	fetched ─────────▶ queued ────────────────────▶ batch ─────────▶ applied: the position moves
//	                     │  queue is full: paused      │ transient: again, with growing pauses
//	                     └─ queue is empty: resumed    │ permanent: halved until the culprit stands alone, which is set aside
//	                                                   └ ErrMoved: the worker ends, the partition is taken over again
type worker struct {
	c        *Consumer
	of       topics.Partition
	count    int32   // partitions of the topic
	identity string  // of the topic
	reader   *Reader // of the dedup window; nil where the topic is not deduplicated
	warmer   Warmer  // the sink; nil where it is no Warmer
	cancel   context.CancelFunc
	ready    chan struct{}
	done     chan struct{}

	stored  int64 // owned by run: the sink's position
	next    int64 // owned by run: what is below it is known, and only warms the window
	mark    int64 // owned by run: record time of the last record below next
	setAway int   // owned by run: records set aside in succession

	mu     sync.Mutex
	queue  []item
	weight int64 // of the queue, bytes
	paused bool
	status Status
}

// item is what was fetched: a record, or offsets that hold none.
type item struct {
	record     *kgo.Record // nil: the offsets from "from" on and below next hold nothing
	from, next int64
	skipped    bool // there are records, too large to be read
}

func items(rs []*kgo.Record) []item {
	out := make([]item, len(rs))
	for i, r := range rs {
		out[i] = item{record: r, from: r.Offset, next: r.Offset + 1}
	}
	return out
}

func (i item) weight() int64 {
	if i.record == nil {
		return 0
	}
	n := recordBytes + len(i.record.Key) + len(i.record.Value)
	for _, h := range i.record.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return int64(n)
}

// What may wait for a worker before its partition's fetching pauses, what it applies at once, and what a consumer hands to its
// workers at once. Together they bound what a backlog costs: 1 MB for each consumer and partition is some 50 MB in all.
const (
	maxQueued      = 2_000
	maxQueuedBytes = 512 << 10
	maxBatch       = 1_000
	maxPolled      = 1_000
)

// newWorker makes the worker of a partition whose sink stands at stored, and whose reading begins at start.
func newWorker(c *Consumer, of topics.Partition, stored Position, start int64) *worker {
	w := &worker{c: c, of: of, count: c.partitions[of.Topic], identity: c.identities[of.Topic], stored: stored.Next, next: stored.Next,
		mark:  stored.Mark,
		ready: make(chan struct{}, 1), done: make(chan struct{}),
		status: Status{Of: of, Next: stored.Next, Seen: start, MovedAt: time.Now()}}
	w.warmer, _ = c.Sink.(Warmer)
	return w
}

// offer queues what was fetched, and pauses the fetching where too much waits.
func (w *worker) offer(list ...item) {
	w.mu.Lock()
	w.queue = append(w.queue, list...)
	for _, i := range list {
		w.weight += i.weight()
	}
	if !w.paused && (len(w.queue) > maxQueued || w.weight > maxQueuedBytes) {
		w.paused = true
		w.c.setPaused(w.of, true) // under the lock: pull resumes under it, so the last word is the latest state
	}
	w.mu.Unlock()
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

func (w *worker) pull() []item {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.queue), maxBatch)
	list := w.queue[:n:n]
	w.queue = w.queue[n:]
	for _, i := range list {
		w.weight -= i.weight()
	}
	if len(w.queue) == 0 {
		w.queue = nil
		if w.paused {
			w.paused = false
			w.c.setPaused(w.of, false)
		}
	}
	return list
}

func (w *worker) run(ctx context.Context) {
	defer close(w.done)
	defer w.close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.ready:
		}
		for list := w.pull(); len(list) > 0; list = w.pull() {
			b, err := w.observe(list)
			if err != nil { // the window does not reach back to here any more
				w.c.reset(w.of)
				return
			}
			if b.To > b.From && !w.apply(ctx, b) {
				return
			}
			w.markSeen(list[len(list)-1].next)
		}
	}
}

func (w *worker) close() {
	if w.reader != nil {
		w.reader.Close()
	}
}

// deduplicate tells which of what was fetched are duplicates.
func (w *worker) deduplicate(list []item) ([]bool, error) {
	if w.reader == nil {
		return make([]bool, len(list)), nil
	}
	records := make([]*kgo.Record, len(list))
	for n, i := range list {
		records[n] = i.record
	}
	return w.reader.Judge(records)
}

// observe turns what was fetched into a batch and marks, once, which records are duplicates or misrouted. What stands before the position
// only warms the window.
func (w *worker) observe(list []item) (Batch, error) {
	duplicates, err := w.deduplicate(list)
	if err != nil {
		return Batch{}, err
	}
	b := Batch{Topic: w.of.Topic, Partition: w.of.ID, From: w.stored, To: w.stored, Log: w.identity, Mark: w.mark,
		Events: make([]*topics.Event, 0, len(list))}
	for n, i := range list {
		if i.record == nil || i.record.Attrs.IsControl() {
			w.skip(&b, i)
			continue
		}
		if i.from < w.next {
			if w.warmer != nil {
				w.warmer.Warm(w.of.At(i.from), i.record.Timestamp.UnixMilli())
			}
			continue
		}
		e := EventOf(w.of.Topic, i.record)
		if e.Duplicate = duplicates[n]; e.Duplicate {
			w.c.Kafka.Metrics.duplicate(w.c, w.of.Topic)
		}
		e.Stray = topics.PartitionOf(e.Key, w.count) != w.of.ID
		b.Events, b.Records = append(b.Events, e), append(b.Records, i.record)
		b.To, b.Mark = i.next, e.Time
	}
	w.next, w.mark = max(w.next, b.To), b.Mark
	return b, nil
}

// skip moves a batch over offsets that hold nothing to apply.
func (w *worker) skip(b *Batch, i item) {
	if i.next <= w.next {
		return
	}
	if i.skipped {
		b.Skipped = append(b.Skipped, Span{From: i.from, To: i.next})
	}
	b.To = i.next
}

// apply offers the batch until the sink has taken it. It reports false where the worker has to end.
func (w *worker) apply(ctx context.Context, b Batch) bool {
	for failures := 0; ; failures++ {
		err := w.applyOnce(ctx, b)
		switch {
		case err == nil:
			w.applied(b)
			return true
		case ctx.Err() != nil:
			return false
		case errors.Is(err, ErrMoved):
			w.c.Log.Warn("somebody else moved the position, beginning anew from it", "topic", b.Topic, "partition", b.Partition, "from", b.From)
			w.c.reset(w.of)
			return false
		case IsPermanent(err) && w.mayIsolate(b):
			return w.isolate(ctx, b, err)
		}
		w.failed(err)
		w.c.Kafka.Metrics.failed(w.c, w.of.Topic)
		w.c.Log.Warn("a batch could not be applied, trying again", "topic", b.Topic, "partition", b.Partition, "from", b.From, "to", b.To,
			"failures", failures+1, "err", err)
		if !sleep(ctx, backoff(failures)) {
			return false
		}
	}
}

// maxSetAside is how many records may be set aside in succession. More is no poison but a store, or a build, that takes
// nothing: the worker then waits for an operator as with any other error.
const maxSetAside = 1_000

func (w *worker) mayIsolate(b Batch) bool { return len(b.Events) > 0 && w.setAway < maxSetAside }

// isolate applies the batch in halves. A record that stands alone and cannot be applied is set aside: the position moves
// past it without it.
func (w *worker) isolate(ctx context.Context, b Batch, reason error) bool {
	if len(b.Events) > 1 {
		first, second := b.split()
		return w.apply(ctx, first) && w.apply(ctx, second)
	}
	e := b.Events[0]
	if !w.setAside(ctx, e, b.Records[0], reason) {
		return false
	}
	b.Events, b.Records = nil, nil
	if !w.apply(ctx, b) {
		return false
	}
	w.setAway++
	return true
}

// setAside keeps the record where an operator finds it. It reports false where the worker has to end.
func (w *worker) setAside(ctx context.Context, e *topics.Event, r *kgo.Record, reason error) bool {
	w.c.Log.Error("a record was set aside: no repeat can mend it", "consumer", w.c.Name, "topic", e.Topic, "partition", e.Partition, "offset",
		e.Offset, "reason", reason)
	w.c.Kafka.Metrics.wasSetAside(w.c, w.of.Topic)
	if w.c.SetAside == nil {
		return true
	}
	for failures := 0; ; failures++ {
		err := w.c.SetAside(ctx, e, r, fmt.Errorf("%s: %w", w.c.Name, reason))
		if err == nil {
			return true
		}
		w.failed(err)
		w.c.Log.Warn("a record could not be set aside, trying again", "topic", e.Topic, "partition", e.Partition, "offset", e.Offset, "err", err)
		if !sleep(ctx, backoff(failures)) {
			return false
		}
	}
}

// split halves a batch of several events.
func (b Batch) split() (first, second Batch) {
	n := len(b.Events) / 2
	first, second = b, b
	first.Events, first.Records = b.Events[:n:n], b.Records[:n:n]
	second.Events, second.Records = b.Events[n:], b.Records[n:]
	first.To = b.Events[n].Offset
	first.Mark = first.markBelow(first.To)
	second.From = first.To
	first.Skipped, second.Skipped = nil, nil
	for _, s := range b.Skipped {
		if s.From < first.To {
			first.Skipped = append(first.Skipped, s)
		} else {
			second.Skipped = append(second.Skipped, s)
		}
	}
	return first, second
}

// applyOnce offers the batch once. A panic counts as permanent: the same batch would panic again.
func (w *worker) applyOnce(ctx context.Context, b Batch) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// The panic's value may quote contents; the stack does not.
			w.c.Log.Error("the sink panicked", "topic", b.Topic, "partition", b.Partition, "stack", string(debug.Stack()))
			err = Permanent(errPanic)
		}
	}()
	return w.c.Sink.Apply(ctx, b)
}

var errPanic = errors.New("the sink panicked")

func (w *worker) applied(b Batch) {
	w.stored = b.To
	if len(b.Events) > 0 {
		w.setAway = 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Next, w.status.MovedAt = b.To, time.Now()
	w.status.FailingSince, w.status.Err = time.Time{}, nil
	w.moved()
}

func (w *worker) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status.FailingSince.IsZero() {
		w.status.FailingSince = time.Now()
	}
	w.status.Err = err
}

// markSeen notes that everything below next was observed, and applied or known before.
func (w *worker) markSeen(next int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Seen, w.status.SeenAt = max(w.status.Seen, next), time.Now()
	w.moved()
}

// moved notes that a partition that is behind goes on. w.mu is held.
func (w *worker) moved() {
	if !w.status.BehindSince.IsZero() {
		w.status.BehindSince = time.Now()
	}
}

func (w *worker) now() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Queued, s.Paused = len(w.queue), w.paused
	return s
}

// EventOf reads a record of topic t. The event points into the record's key and value. It is not validated.
func EventOf(t topics.Topic, r *kgo.Record) *topics.Event {
	e := &topics.Event{Topic: t, Partition: r.Partition, Offset: r.Offset, Time: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		e.Set(h.Key, h.Value)
	}
	if r.Attrs.TimestampType() == logAppendTime { // stamped by the broker: only what nexus repartition copies is not
		e.Place = ""
	}
	return e
}

// logAppendTime is the timestamp type of a record whose time is the broker's (kgo.RecordAttrs).
const logAppendTime = 1
