package pipeline

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// worker applies one partition's records in order.
type worker struct {
	c       *Consumer
	of      partition
	count   int32        // partitions of the topic
	next    int64        // owned by run
	window  *Window      // owned by run; nil where the topic is not judged
	entries atomic.Int64 // of the window
	cancel  context.CancelFunc
	ready   chan struct{}
	done    chan struct{}

	mu     sync.Mutex
	queue  []*kgo.Record
	paused bool
}

const (
	maxQueued = 8_000 // records of a partition beyond which its fetching pauses
	maxBatch  = 1_000
)

// offer queues records and reports whether fetching should pause until the worker has caught up.
func (w *worker) offer(rs []*kgo.Record) (pause bool) {
	w.mu.Lock()
	w.queue = append(w.queue, rs...)
	pause = len(w.queue) > maxQueued && !w.paused
	w.paused = w.paused || pause
	w.mu.Unlock()
	select {
	case w.ready <- struct{}{}:
	default:
	}
	return pause
}

func (w *worker) pull() []*kgo.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.queue), maxBatch)
	rs := w.queue[:n:n]
	w.queue = w.queue[n:]
	if len(w.queue) == 0 {
		w.queue = nil
		if w.paused {
			w.paused = false
			w.c.cl.ResumeFetchPartitions(map[string][]int32{w.c.Kafka.Names.Name(w.of.topic): {w.of.id}})
		}
	}
	return rs
}

func (w *worker) run(ctx context.Context) {
	defer close(w.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.ready:
		}
		for rs := w.pull(); len(rs) > 0; rs = w.pull() {
			if b, any := w.judge(rs); any && !w.apply(ctx, b) {
				return
			}
		}
	}
}

// judge turns records into a batch and gives each its verdict, once; records before the position only warm the window.
func (w *worker) judge(rs []*kgo.Record) (b Batch, any bool) {
	b = Batch{Topic: w.of.topic, Partition: w.of.id, From: w.next, Events: make([]*topics.Event, 0, len(rs))}
	for _, r := range rs {
		e := EventOf(w.of.topic, r)
		duplicate := false
		if w.window != nil {
			id, ok := e.Identity(e.Key)
			duplicate = w.window.Observe(e.Time, id, ok)
		}
		if r.Offset < w.next {
			continue
		}
		if e.Duplicate = duplicate; duplicate {
			w.c.Kafka.Metrics.duplicate(w.c, w.of.topic)
		}
		e.Stray = topics.Partition(e.Key, w.count) != w.of.id
		b.Events, b.Records = append(b.Events, e), append(b.Records, r)
		b.To = r.Offset + 1
	}
	if w.window != nil {
		w.entries.Store(int64(w.window.Len()))
	}
	return b, len(b.Events) > 0
}

// apply offers the batch until the sink has taken it. It reports false where the worker has to end.
func (w *worker) apply(ctx context.Context, b Batch) bool {
	for failures := 0; ; failures++ {
		err := w.try(ctx, b)
		switch {
		case err == nil:
			w.next = b.To
			w.c.progress(w.of, b.To)
			return true
		case ctx.Err() != nil:
			return false
		case errors.Is(err, ErrMoved):
			w.c.Log.Warn("somebody else moved the position, beginning anew from it", "topic", b.Topic, "partition", b.Partition, "from", b.From)
			w.c.reset(w.of)
			return false
		}
		w.c.Kafka.Metrics.failed(w.c, w.of.topic)
		w.c.Log.Warn("a batch could not be applied, trying again", "topic", b.Topic, "partition", b.Partition, "from", b.From, "to", b.To, "failures", failures+1, "err", err)
		if !sleep(ctx, backoff(failures)) {
			return false
		}
	}
}

var errPanic = errors.New("pipeline: the sink panicked")

func (w *worker) try(ctx context.Context, b Batch) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// The panic's value may quote contents; the stack does not.
			w.c.Log.Error("the sink panicked", "topic", b.Topic, "partition", b.Partition, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return w.c.Sink.Apply(ctx, b)
}

// EventOf reads a record of topic t. The event points into the record.
func EventOf(t topics.Topic, r *kgo.Record) *topics.Event {
	e := &topics.Event{Topic: t, Partition: r.Partition, Offset: r.Offset, Time: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		e.Set(h.Key, h.Value)
	}
	return e
}
