package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// reader gives the records of one partition from one offset up to another, in order and only once. It is for what has an
// end; a Consumer follows what has none. It is owned by one goroutine.
type reader struct {
	cl        *kgo.Client
	topic     string
	partition int32
	next, end int64 // offsets; next moves over those that hold no record as well
	queue     []*kgo.Record
}

// readStall is how long a reader waits for more of what the log has said it has.
const readStall = 30 * time.Second

// errStalled reports a log that does not give what it has.
var errStalled = errors.New("the log gives nothing more")

// read makes a reader; close releases it.
func (l *Log) read(t topics.Topic, p int32, from, end int64) (*reader, error) {
	name := l.nameOf(t)
	cl, err := l.kafka.Client(kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: {p: kgo.NewOffset().At(from)}}))
	if err != nil {
		return nil, err
	}
	return &reader{cl: cl, topic: name, partition: p, next: from, end: end}, nil
}

func (r *reader) close() { r.cl.CloseAllowingRebalance() }

// record is the next record, or nil at the end. Transaction markers, aborted records, and batches that are too large to be
// decompressed are passed over, as consumers pass over them.
func (r *reader) record(ctx context.Context) (*kgo.Record, error) {
	for {
		for len(r.queue) > 0 {
			rec := r.queue[0]
			r.queue[0], r.queue = nil, r.queue[1:]
			if rec.Offset >= r.end {
				r.next = r.end
				return nil, nil
			}
			r.next = rec.Offset + 1
			if !rec.Attrs.IsControl() {
				return rec, nil
			}
		}
		if r.next >= r.end {
			return nil, nil
		}
		if err := r.poll(ctx); err != nil {
			return nil, err
		}
	}
}

func (r *reader) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readStall)
	defer cancel()
	for {
		fs := r.cl.PollRecords(ctx, maxBatch)
		if ctx.Err() != nil {
			return fmt.Errorf("read %s/%d from offset %d up to %d: %w", r.topic, r.partition, r.next, r.end, errors.Join(errStalled, ctx.Err()))
		}
		if err := lasting(fs); err != nil {
			return err
		}
		moved := false
		for _, next := range steppedOver(r.cl, fs) {
			r.next, moved = max(r.next, next), true
		}
		if r.queue = fs.Records(); len(r.queue) > 0 || moved {
			return nil
		}
	}
}
