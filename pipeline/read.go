package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// reader gives the records of a topic's partitions from one offset up to another, those of each partition in order and only
// once. It is for what has an end; a Consumer follows what has none. It is owned by one goroutine.
type reader struct {
	cluster *Log
	cl      *kgo.Client
	topic   string
	parts   map[int32]*part
}

// part is a partition that a reader reads.
type part struct {
	next, end int64 // offsets; next moves over those that hold no record as well
	queue     []*kgo.Record
	bytes     int // of the queue's keys and values
	paused    bool
}

// What waits of one partition while another one is asked for, before its fetching pauses.
const (
	readAhead      = 1_000
	readAheadBytes = 1 << 20
)

// readStall is how long a reader waits for more of what the log has said it has.
const readStall = 30 * time.Second

// errStalled reports a log that does not give what it has.
var errStalled = errors.New("the log gives nothing more")

// read makes a reader of these spans; close releases it.
func (l *Log) read(t topics.Topic, spans map[int32]Span) (*reader, error) {
	r := &reader{cluster: l, topic: l.nameOf(t), parts: make(map[int32]*part)}
	from := make(map[int32]kgo.Offset)
	for p, s := range spans {
		r.parts[p] = &part{next: s.From, end: s.To}
		if s.From < s.To {
			from[p] = kgo.NewOffset().At(s.From)
		}
	}
	var err error
	r.cl, err = l.kafka.Client(kgo.KeepControlRecords(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{r.topic: from}))
	return r, err
}

func (r *reader) close() { r.cl.CloseAllowingRebalance() }

// record is the next record of a partition, or nil at its end. Transaction markers, aborted records, and batches that are
// too large to be decompressed are passed over, as consumers pass over them.
func (r *reader) record(ctx context.Context, id int32) (*kgo.Record, error) {
	p := r.parts[id]
	for {
		for len(p.queue) > 0 {
			rec := p.pop()
			if rec.Offset >= p.end {
				p.next = p.end
				return nil, nil
			}
			p.next = rec.Offset + 1
			if !rec.Attrs.IsControl() {
				return rec, nil
			}
		}
		if p.next >= p.end {
			return nil, nil
		}
		if p.paused {
			p.paused = false
			r.cl.ResumeFetchPartitions(map[string][]int32{r.topic: {id}})
		}
		if err := r.fill(ctx, id); err != nil {
			return nil, err
		}
	}
}

func (p *part) pop() *kgo.Record {
	rec := p.queue[0]
	p.queue[0], p.queue = nil, p.queue[1:]
	p.bytes -= len(rec.Key) + len(rec.Value)
	return rec
}

// fill polls until there is more of a partition.
func (r *reader) fill(ctx context.Context, id int32) error {
	ctx, cancel := context.WithTimeout(ctx, readStall)
	defer cancel()
	for p := r.parts[id]; len(p.queue) == 0 && p.next < p.end; {
		fs := r.cl.PollRecords(ctx, maxBatch)
		if ctx.Err() != nil {
			return fmt.Errorf("read %s/%d from offset %d up to %d: %w", r.topic, id, p.next, p.end, errors.Join(errStalled, ctx.Err()))
		}
		if err := fatalFetchError(fs); err != nil {
			return err
		}
		for of, next := range r.cluster.steppedOver(r.cl, fs) {
			r.parts[of.ID].next = max(r.parts[of.ID].next, next)
		}
		fs.EachRecord(r.push)
	}
	return nil
}

func (r *reader) push(rec *kgo.Record) {
	p := r.parts[rec.Partition]
	p.queue = append(p.queue, rec)
	p.bytes += len(rec.Key) + len(rec.Value)
	if !p.paused && (len(p.queue) > readAhead || p.bytes > readAheadBytes || rec.Offset >= p.end-1) {
		p.paused = true
		r.cl.PauseFetchPartitions(map[string][]int32{r.topic: {rec.Partition}})
	}
}

// left is how many offsets are not read yet.
func (r *reader) left() (n int64) {
	for _, p := range r.parts {
		n += max(0, p.end-p.next)
	}
	return n
}
