package pipeline

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// merge gives the records of a topic's partitions as nexus repartition copies them, always in the same order: that of
// record time, and within a partition that of the log. So each key keeps its order: all its records stand in one partition,
// or, where partitions were added under its producers, the later ones have later times. It is owned by one goroutine.
type merge struct {
	topic   topics.Topic
	plan    *plan
	reader  *reader
	heads   []*kgo.Record // the next record of each partition; nil: its end
	windows []*Window     // of each partition, as it was deduplicated in the old log
	preface *kgo.Record   // what goes before all
	dropped Dropped
}

// plan is what a copy goes by.
type plan struct {
	began    time.Time
	names    []string    // of the old log's topics: an earlier version knew fewer
	from, to Contract    // of the old log, and of the new one
	starts   topics.Ends // of the old log
	ends     topics.Ends // of the old log, when the copy began
	intake   topics.Ends // below it the intake has re-routed what was misrouted; topics that no intake reads are missing

	largest   map[topics.Topic]int32  // of a batch in the new log
	retention map[topics.Topic]string // in the new log, once it is finished
}

// Dropped counts what a copy leaves out.
type Dropped struct {
	Strays    int64 // misrouted records: the intake's copy stands where they belong, or they never had an effect
	Contracts int64 // the new log begins with its own
	Contents  int64 // values that are too large to be valid are copied empty, which is no more valid
}

// copied is a record as it is to stand in the new log.
type copied struct {
	record       *kgo.Record // with its new partition, without a topic
	source       *kgo.Record // nil: it is not of the old log
	deduplicated bool        // the topic was deduplicated in the old log
	duplicate    bool        // in the old log
}

// newMerge begins the merge of a topic; close releases it.
func newMerge(ctx context.Context, l *Log, t topics.Topic, p *plan) (*merge, error) {
	m := &merge{topic: t, plan: p}
	spans := make(map[int32]Span)
	for of, end := range p.ends {
		if of.Topic == t {
			spans[of.ID] = Span{From: p.starts[of], To: end}
			m.windows = append(m.windows, NewWindow(p.from.Window))
		}
	}
	m.heads = make([]*kgo.Record, len(spans))
	var err error
	if m.reader, err = l.read(t, spans); err != nil {
		return nil, err
	}
	for i := range m.heads {
		if err := m.advance(ctx, i); err != nil {
			m.close()
			return nil, err
		}
	}
	if t == topics.Control {
		m.preface = m.contract()
	}
	return m, nil
}

func (m *merge) close() { m.reader.close() }

func (m *merge) advance(ctx context.Context, i int) (err error) {
	m.heads[i], err = m.reader.record(ctx, int32(i))
	return err
}

// next is the next record to be copied; nil at the end.
func (m *merge) next(ctx context.Context) (*copied, error) {
	if r := m.preface; r != nil {
		m.preface = nil
		return &copied{record: r}, nil
	}
	for {
		first := -1
		for i, r := range m.heads {
			if r != nil && (first < 0 || r.Timestamp.Before(m.heads[first].Timestamp)) {
				first = i
			}
		}
		if first < 0 {
			return nil, nil
		}
		c := m.copyOf(m.heads[first], m.windows[first])
		if err := m.advance(ctx, first); err != nil {
			return nil, err
		}
		if c != nil {
			return c, nil
		}
	}
}

// contract is the record with which the new topic control begins, as old as what follows it.
func (m *merge) contract() *kgo.Record {
	at := m.plan.began
	for _, r := range m.heads {
		if r != nil {
			at = r.Timestamp
		}
	}
	e := m.plan.to.event()
	r := &kgo.Record{Key: e.Key, Value: e.Value, Timestamp: at}
	for _, h := range e.Headers() {
		r.Headers = append(r.Headers, kgo.RecordHeader(h))
	}
	return r
}

// copyOf is a record as it is to stand in the new log, nil where it is left out.
func (m *merge) copyOf(r *kgo.Record, w *Window) *copied {
	e := EventOf(m.topic, r)
	c := &copied{source: r, deduplicated: m.topic.Deduplicated()}
	if c.deduplicated {
		id, ok := e.Identity(e.Key)
		c.duplicate = w.Observe(e.Time, id, ok)
	}
	if m.topic == topics.Control && (e.Type == topics.TypeLogContract || e.Type == topics.TypeDedupWindow) {
		m.dropped.Contracts++
		return nil
	}
	c.record = &kgo.Record{Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp}
	if topics.PartitionOf(r.Key, m.plan.from.Partitions[m.topic]) != r.Partition {
		if read, known := m.plan.intake[m.topic.Partition(r.Partition)]; !known || r.Offset < read {
			m.dropped.Strays++
			return nil
		}
		c.deduplicated = false // it counts in the new log only
		c.record.Headers = reroute(e, r).Headers
	}
	c.record.Partition = topics.PartitionOf(r.Key, m.plan.to.Partitions[m.topic])
	c.record.Headers = keepID(c.record.Headers, e)
	if len(r.Value) > topics.MaxValue {
		m.dropped.Contents++
		c.record.Value = nil
	}
	return c
}

// keepID has a record whose id is its place keep that id. A header of that name that was not believed is taken away: from
// here on it would be.
func keepID(headers []kgo.RecordHeader, e *topics.Event) []kgo.RecordHeader {
	if e.Place != "" {
		return headers
	}
	isPlace := func(h kgo.RecordHeader) bool { return h.Key == topics.HeaderPlace }
	if slices.ContainsFunc(headers, isPlace) {
		headers = slices.DeleteFunc(slices.Clone(headers), isPlace)
	}
	elsewhere := *e
	elsewhere.Offset++
	if elsewhere.EventID() == e.EventID() {
		return headers
	}
	return append(slices.Clone(headers), kgo.RecordHeader{Key: topics.HeaderPlace, Value: []byte(e.EventID())})
}

// same tells whether what stands in the new log is what was to be copied.
func (c *copied) same(r *kgo.Record) bool {
	return r != nil && bytes.Equal(r.Key, c.record.Key) && bytes.Equal(r.Value, c.record.Value) &&
		r.Timestamp.UnixMilli() == c.record.Timestamp.UnixMilli() &&
		slices.EqualFunc(r.Headers, c.record.Headers, func(a, b kgo.RecordHeader) bool { return a.Key == b.Key && bytes.Equal(a.Value, b.Value) })
}
