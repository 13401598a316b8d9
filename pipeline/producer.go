package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// DeliveryTimeout is how long a record may wait for the broker's answer before its append fails (5 s), the default of Kafka.Delivery.
const DeliveryTimeout = 5 * time.Second

// ErrOverloaded reports that too many appends wait for the log (50,000 records or 64 MiB; of telemetry 5,000 or 4 MiB). Nothing was
// appended, and a repeat is harmless.
var ErrOverloaded = errors.New("pipeline: too many appends are waiting for the log")

// What may wait for the log. Beyond it an append is refused at once (ErrOverloaded).
const (
	maxWaiting      = 50_000
	maxWaitingBytes = 64 << 20
)

// What may wait of telemetry, topic deliveries. Nobody misses it, and it must not take the room of clients' events while
// the log is slow: what comes beyond is dropped and counted.
const (
	maxTelemetry      = 5_000
	maxTelemetryBytes = 4 << 20
)

// Producer appends events to the log with acks=all. After an error it is unknown whether the event was appended, but for ErrOverloaded
// and TooLarge, where it was not; appending it again with the same identity is harmless. It is safe for concurrent use.
//
// Callbacks run on the Kafka client's goroutine, one after the other: they must not block.
type Producer struct {
	cl        *kgo.Client
	names     topics.Names
	metrics   *Metrics
	telemetry room
	delivery  time.Duration // Kafka.Delivery, or its default

	mu      sync.Mutex
	failing time.Time // since when no append has succeeded; zero: the last one did
	err     error     // the latest failure
}

// Problem is an error where no append has succeeded for 10 s, with the latest reason; else nil. /readyz asks. Every node appends a
// heartbeat each 5 s, so it turns well again by itself.
func (p *Producer) Problem() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failing.IsZero() || time.Since(p.failing) < stuckAfter {
		return nil
	}
	return fmt.Errorf("nothing could be appended for %s: %w", time.Since(p.failing).Round(time.Second), p.err)
}

// outcome notes how an append ended. A record that is too large says nothing of the log.
func (p *Producer) outcome(err error) {
	if TooLarge(err) || errors.Is(err, ErrOverloaded) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		p.failing, p.err = time.Time{}, nil
	case p.failing.IsZero():
		p.failing, p.err = time.Now(), err
	default:
		p.err = err
	}
}

// partitioner puts a record into the partition that its key has by the contract, whatever number of partitions the topic has
// now: a record that stood elsewhere would be misrouted. Where the topic has fewer, the append fails.
func (k Kafka) partitioner(topic string) func(*kgo.Record, int) int {
	t, _ := k.Names.Topic(topic)
	agreed := k.Partitions[t]
	return func(r *kgo.Record, now int) int {
		if agreed > 0 {
			return int(topics.PartitionOf(r.Key, agreed))
		}
		return int(topics.PartitionOf(r.Key, int32(now)))
	}
}

// room counts what waits, in records and bytes. It is safe for concurrent use.
type room struct {
	mu             sync.Mutex
	records, bytes int
}

// reserve reports whether there was room for one more record of this size.
func (r *room) reserve(size int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.records >= maxTelemetry || r.bytes+size > maxTelemetryBytes {
		return false
	}
	r.records++
	r.bytes += size
	return true
}

func (r *room) release(size int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records--
	r.bytes -= size
}

// NewProducer opens a producer; Close flushes and releases it. It connects when something is appended. An error means that k is not a
// usable configuration.
func NewProducer(k Kafka) (*Producer, error) {
	cl, err := k.Client(append(k.Metrics.client("producer"),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.BasicConsistentPartitioner(k.partitioner)),
		kgo.RecordDeliveryTimeout(k.delivery()),
		kgo.ProduceRequestTimeout(k.delivery()),
		kgo.ProducerLinger(0),
		kgo.MaxBufferedRecords(maxWaiting),
		kgo.MaxBufferedBytes(maxWaitingBytes),
		kgo.ProducerBatchMaxBytes(topics.LeastMessageBytes), // no topic takes less: EnsureTopics sees to that
		// Not LZ4: its writers and readers each hold blocks of 4 MB, made anew whenever the pools were emptied, for batches that are mostly
		// small.
		kgo.ProducerBatchCompression(kgo.SnappyCompression(), kgo.NoCompression()),
		kgo.ProducerOnDataLossDetected(func(topic string, partition int32) {
			k.Log.Error("the log lost the producer's state; records may be missing or doubled", "topic", topic, "partition", partition)
		}),
	)...)
	if err != nil {
		return nil, err
	}
	return &Producer{cl: cl, names: k.Names, metrics: k.Metrics, delivery: k.delivery()}, nil
}

// AnswerTimeout is how long a caller waits for the answer to an append at most: Kafka.Delivery and 3 s, so 8 s by default. A record that
// is under way to a broker that has gone cannot be recalled: the answer is then ErrUnanswered, and the record may appear in the log later.
const AnswerTimeout = DeliveryTimeout + beyondDelivery

// beyondDelivery is what AnswerTimeout has beyond the delivery's.
const beyondDelivery = 3 * time.Second

// ErrUnanswered reports that the log did not answer within AnswerTimeout: it is unknown whether it has the event.
var ErrUnanswered = errors.New("pipeline: the log did not answer in time")

// Append appends the event and returns once the log has it, with its partition, offset and time filled in. It waits for AnswerTimeout
// at most. Errors: ErrOverloaded, ErrUnanswered, ctx's, one for which TooLarge is true, or Kafka's.
func (p *Producer) Append(ctx context.Context, e *topics.Event) error {
	done := make(chan error, 1)
	p.produceEvent(e, func(err error) { done <- err })
	return p.await(ctx, done)
}

// await waits for the answer to an append, no longer than AnswerTimeout.
func (p *Producer) await(ctx context.Context, done <-chan error) error {
	t := time.NewTimer(p.delivery + beyondDelivery)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return ErrUnanswered
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TryAppend appends the event and never blocks. done is called once, within AnswerTimeout, on another goroutine, with nil or with an
// error as of Append.
func (p *Producer) TryAppend(e *topics.Event, done func(error)) {
	answer := p.bounded(func(_ bool, err error) { done(err) })
	p.produceEvent(e, func(err error) { answer(false, err) })
}

// Post appends an event that nobody waits for, and never blocks. failed is called where the log does not take it. Events of topic
// deliveries, which are telemetry, have little room, so that they never take that of clients' events: where too many of them wait,
// the event is dropped, counted, and failed gets ErrOverloaded.
func (p *Producer) Post(e *topics.Event, failed func(error)) {
	done := func(err error) {
		if err != nil {
			failed(err)
		}
	}
	if e.Topic != topics.Deliveries {
		p.produceEvent(e, done)
		return
	}
	n := size(e)
	if !p.telemetry.reserve(n) {
		p.metrics.telemetryDropped()
		done(ErrOverloaded)
		return
	}
	p.produceEvent(e, func(err error) {
		p.telemetry.release(n)
		done(err)
	})
}

// bounded makes sure that done is called once, at the latest after AnswerTimeout.
func (p *Producer) bounded(done func(duplicate bool, err error)) func(bool, error) {
	var once sync.Once
	late := time.AfterFunc(p.delivery+beyondDelivery, func() { once.Do(func() { done(false, ErrUnanswered) }) })
	return func(duplicate bool, err error) {
		late.Stop()
		once.Do(func() { done(duplicate, err) })
	}
}

// produceEvent appends the event; its partition, offset and time are filled in before done is called.
func (p *Producer) produceEvent(e *topics.Event, done func(error)) {
	r := &kgo.Record{Topic: p.names.Name(e.Topic), Key: e.Key, Value: e.Value}
	for _, h := range e.Headers() {
		r.Headers = append(r.Headers, kgo.RecordHeader(h))
	}
	p.produceRecordAsync(r, func(r *kgo.Record, err error) {
		if err == nil {
			e.Partition, e.Offset, e.Time = r.Partition, r.Offset, r.Timestamp.UnixMilli()
		}
		done(err)
	})
}

func (p *Producer) produceRecordAsync(r *kgo.Record, done func(*kgo.Record, error)) {
	p.cl.TryProduce(context.Background(), r, func(r *kgo.Record, err error) {
		if errors.Is(err, kgo.ErrMaxBuffered) {
			err = ErrOverloaded
		}
		if err != nil {
			err = fmt.Errorf("append to %s: %w", r.Topic, err)
		}
		p.outcome(err)
		done(r, err)
	})
}

// produceRecord appends a raw record and waits. The intake uses it: a record keeps all its headers.
func (p *Producer) produceRecord(ctx context.Context, r *kgo.Record) error {
	done := make(chan error, 1)
	p.produceRecordAsync(r, func(_ *kgo.Record, err error) { done <- err })
	return p.await(ctx, done)
}

// Flush waits until everything appended so far has its answer, or ctx ends. Drain calls it.
func (p *Producer) Flush(ctx context.Context) { _ = p.cl.Flush(ctx) }

// Close waits for the answers to what was appended, for Kafka.Delivery at most, and releases the connections. What has none by then is
// told in log.
func (p *Producer) Close(log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), p.delivery)
	defer cancel()
	if err := p.cl.Flush(ctx); err != nil {
		log.Error("appends were still unanswered at the end", "err", err)
	}
	p.cl.Close()
}

// TooLarge reports whether an append failed because the record is larger than the topic's max.message.bytes: no repeat can help.
func TooLarge(err error) bool { return errors.Is(err, kerr.MessageTooLarge) }
