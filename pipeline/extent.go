package pipeline

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/nexus/nexus/topics"
)

// Identity names the log that a topic's offsets count in: the topic's name, prefix included, and the id that Kafka gave it
// when it was made (KIP-516). A topic that is made anew under the same name is another one.
func (l *Log) Identity(ctx context.Context, t topics.Topic) (string, error) {
	id, _, err := l.describe(ctx, t)
	return id, err
}

// describe is a topic's identity and how many partitions it has.
func (l *Log) describe(ctx context.Context, t topics.Topic) (identity string, partitions int32, err error) {
	name := l.nameOf(t)
	ds, err := l.adm.ListTopics(ctx, name)
	if err == nil {
		err = ds[name].Err
	}
	if err != nil {
		return "", 0, fmt.Errorf("describe topic %s: %w", name, err)
	}
	return name + "@" + ds[name].ID.String(), int32(len(ds[name].Partitions)), nil
}

// TopicHash is four bytes of a hash of Identity: another topic of the same name, made anew, has others. Clients' offsets carry it.
func (l *Log) TopicHash(ctx context.Context, t topics.Topic) (h [4]byte, err error) {
	id, err := l.Identity(ctx, t)
	if err != nil {
		return h, err
	}
	sum := sha256.Sum256([]byte(id))
	return [4]byte(sum[:4]), nil
}

// extents tells what there is of the partitions of these positions. looking also finds the record before each, which costs
// a look into the log.
func (l *Log) extents(ctx context.Context, positions topics.Ends, looking bool) (map[topics.Partition]extent, error) {
	names := l.namesOf(positions)
	starts, err := l.listed(l.adm.ListStartOffsets(ctx, names...))
	if err != nil {
		return nil, err
	}
	ends, err := l.listed(l.adm.ListEndOffsets(ctx, names...))
	if err != nil {
		return nil, err
	}
	out, inside := make(map[topics.Partition]extent), make(topics.Ends)
	for of, next := range positions {
		end, known := ends[of]
		if !known {
			return nil, fmt.Errorf("partition %d of %s: %w", of.ID, l.nameOf(of.Topic), kerr.UnknownTopicOrPartition)
		}
		out[of] = extent{start: starts[of], end: end}
		if next > starts[of] && next <= end {
			inside[of] = next
		}
	}
	if !looking {
		return out, nil
	}
	before, err := l.before(ctx, inside, starts)
	for of, r := range before {
		x := out[of]
		x.before = r
		out[of] = x
	}
	return out, err
}

// namesOf lists what the topics of these partitions are called in Kafka.
func (l *Log) namesOf(positions topics.Ends) []string {
	set := make(map[string]bool)
	for of := range positions {
		set[l.nameOf(of.Topic)] = true
	}
	return sorted(set)
}

// Rewind returns, by partition, where to start reading so that everything within span before each position is seen: the first offset
// whose time is at least that of the record before the position, less span. Positions at a partition's start stay.
//
// The dedup window is warmed from there. To start too early costs time and changes nothing; to start too late would change what is a
// duplicate.
func (l *Log) Rewind(ctx context.Context, positions topics.Ends, span time.Duration) (topics.Ends, error) {
	all, err := l.extents(ctx, positions, true)
	if err != nil {
		return nil, err
	}
	return l.rewind(ctx, positions, all, span)
}

func (l *Log) rewind(ctx context.Context, positions topics.Ends, all map[topics.Partition]extent, span time.Duration) (topics.Ends, error) {
	out, from := maps.Clone(positions), make(map[topics.Partition]int64)
	for of, next := range positions {
		switch x := all[of]; {
		case x.before.found:
			from[of] = x.before.time - span.Milliseconds()
		case next > x.start: // nothing that anybody is given stands there
			out[of] = x.start
		}
	}
	at, err := l.firstAt(ctx, from)
	for of, offset := range at {
		out[of] = min(offset, positions[of])
	}
	return out, err
}

// before finds the last record below each position that a consumer is given. Partitions without one are missing from the
// answer: they have nothing there but transaction markers, aborted records, or what was removed.
func (l *Log) before(ctx context.Context, positions, starts topics.Ends) (map[topics.Partition]record, error) {
	out, pending := make(map[topics.Partition]record), maps.Clone(positions)
	for back := int64(1); len(pending) > 0; back *= 16 {
		found, err := l.scan(ctx, pending, starts, back)
		if err != nil {
			return nil, err
		}
		for of, next := range pending {
			if r, ok := found[of]; ok {
				out[of] = r
				delete(pending, of)
			} else if next-back <= starts[of] {
				delete(pending, of)
			}
		}
	}
	return out, nil
}

// scanQuiet is how long a scan waits for something more once the brokers have answered that there is nothing: longer than a
// fetch waits for records (FetchMaxWait), or than what it brings takes to be read.
const scanQuiet = time.Second

// scan reads the back offsets before each position and finds the last record there that a consumer is given.
func (l *Log) scan(ctx context.Context, positions, starts topics.Ends, back int64) (map[topics.Partition]record, error) {
	from := make(map[string]map[int32]kgo.Offset)
	for of, next := range positions {
		name := l.nameOf(of.Topic)
		if from[name] == nil {
			from[name] = make(map[int32]kgo.Offset)
		}
		from[name][of.ID] = kgo.NewOffset().At(max(starts[of], next-back))
	}
	answers := &fetchAnswers{since: make(map[int32]int)}
	cl, err := l.kafka.Client(kgo.ConsumePartitions(from), kgo.KeepControlRecords(), kgo.WithHooks(answers))
	if err != nil {
		return nil, err
	}
	defer cl.CloseAllowingRebalance()
	found, done := make(map[topics.Partition]record), make(map[topics.Partition]bool)
	for came := time.Now(); len(done) < len(positions); {
		quiet, wait := l.answered(cl, answers, positions, done), scanQuiet/4
		if quiet {
			wait = scanQuiet
		}
		poll, cancel := context.WithTimeout(ctx, wait)
		fs := cl.PollRecords(poll, 1000)
		cancel()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err := fatalFetchError(fs); err != nil {
			return nil, err
		}
		switch progress := l.scanned(cl, fs, positions, found, done); {
		case progress:
			came = time.Now()
			answers.reset()
		case quiet:
			return found, nil // nobody is given anything more below the positions
		case time.Since(came) >= readStall:
			return nil, fmt.Errorf("look into the log: %w", errStalled)
		}
	}
	return found, nil
}

// fetchAnswers counts the fetches that each broker has answered since something came. Silence alone says nothing: the broker
// may be slow. It is safe for concurrent use.
type fetchAnswers struct {
	mu    sync.Mutex
	since map[int32]int // by broker
}

// enoughAnswers is how many fetches without anything show that nothing is there: the first one may have brought records that
// were aborted, behind which there are others.
const enoughAnswers = 2

// OnBrokerRead notes an answer (kgo.HookBrokerRead).
func (a *fetchAnswers) OnBrokerRead(b kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if key != int16(kmsg.Fetch) || err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.since[b.NodeID]++
}

// OnBrokerThrottle notes that a broker's answer may have left out what is there (kgo.HookBrokerThrottle, KIP-219).
func (a *fetchAnswers) OnBrokerThrottle(b kgo.BrokerMetadata, _ time.Duration, _ bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.since, b.NodeID)
}

func (a *fetchAnswers) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.since)
}

// answered tells whether the leaders of all partitions that are not read up to their positions have answered that there is
// nothing more.
func (l *Log) answered(cl *kgo.Client, a *fetchAnswers, positions topics.Ends, done map[topics.Partition]bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for of := range positions {
		if done[of] {
			continue
		}
		leader, _, err := cl.PartitionLeader(l.nameOf(of.Topic), of.ID)
		if err != nil || a.since[leader] < enoughAnswers {
			return false
		}
	}
	return true
}

// scanned takes in what a scan was given, and tells whether that was anything. done are the partitions that are read up to
// their positions; they are not read on.
func (l *Log) scanned(cl *kgo.Client, fs kgo.Fetches, positions topics.Ends, found map[topics.Partition]record,
	done map[topics.Partition]bool) (progress bool) {
	reached := func(of topics.Partition, next int64) {
		progress = true
		if next >= positions[of] && !done[of] {
			done[of] = true
			cl.PauseFetchPartitions(map[string][]int32{l.nameOf(of.Topic): {of.ID}})
		}
	}
	for of, next := range l.steppedOver(cl, fs) {
		reached(of, next)
	}
	fs.EachRecord(func(r *kgo.Record) {
		t, _ := l.kafka.Names.Topic(r.Topic)
		of := t.Partition(r.Partition)
		if r.Offset < positions[of] && !r.Attrs.IsControl() {
			found[of] = record{r.Offset, r.Timestamp.UnixMilli(), true}
		}
		reached(of, r.Offset+1)
	})
	return progress
}

// steppedOver has a client that reads partitions go on behind batches that are too large to be decompressed, and tells where
// it goes on, by partition.
func (l *Log) steppedOver(cl *kgo.Client, fs kgo.Fetches) topics.Ends {
	next := make(topics.Ends)
	for _, fe := range fs.Errors() {
		if large, ok := errors.AsType[*kgo.ErrDecompressTooLarge](fe.Err); ok {
			t, _ := l.kafka.Names.Topic(fe.Topic)
			next[t.Partition(fe.Partition)] = large.NextOffset
			cl.SetOffsets(map[string]map[int32]kgo.EpochOffset{fe.Topic: {fe.Partition: {Epoch: large.Epoch, Offset: large.NextOffset}}})
		}
	}
	return next
}

// fatalFetchError is the first error of a poll that reading on will not mend.
func fatalFetchError(fs kgo.Fetches) error {
	for _, fe := range fs.Errors() {
		var large *kgo.ErrDecompressTooLarge
		if errors.As(fe.Err, &large) || errors.Is(fe.Err, errFetchFull) || errors.Is(fe.Err, context.DeadlineExceeded) ||
			errors.Is(fe.Err, context.Canceled) {
			continue
		}
		return fmt.Errorf("read %s/%d: %w", fe.Topic, fe.Partition, fe.Err)
	}
	return nil
}

// firstAt is, for each partition, the first offset whose record time is at least that given, in Unix milliseconds, or the
// end (Kafka: ListOffsets by timestamp).
func (l *Log) firstAt(ctx context.Context, from map[topics.Partition]int64) (topics.Ends, error) {
	if len(from) == 0 {
		return nil, nil
	}
	ends, err := l.listed(l.adm.ListEndOffsets(ctx, l.namesOf(from)...))
	if err != nil {
		return nil, err
	}
	resp, err := l.offsetsAt(from).RequestWith(ctx, l.cl)
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	out := make(topics.Ends)
	for _, topic := range resp.Topics {
		t, _ := l.kafka.Names.Topic(topic.Topic)
		for _, part := range topic.Partitions {
			if err := kerr.ErrorForCode(part.ErrorCode); err != nil {
				return nil, fmt.Errorf("list offsets of %s/%d: %w", topic.Topic, part.Partition, err)
			}
			of := t.Partition(part.Partition)
			if out[of] = part.Offset; part.Offset < 0 { // no record is that late
				out[of] = ends[of]
			}
		}
	}
	return out, nil
}

// offsetsAt asks for the offsets at these times.
func (l *Log) offsetsAt(from map[topics.Partition]int64) *kmsg.ListOffsetsRequest {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID, req.IsolationLevel = -1, 1
	asked := make(map[topics.Topic][]kmsg.ListOffsetsRequestTopicPartition)
	for of, ms := range from {
		part := kmsg.NewListOffsetsRequestTopicPartition()
		part.Partition, part.Timestamp = of.ID, max(0, ms) // below 0 are Kafka's own words
		asked[of.Topic] = append(asked[of.Topic], part)
	}
	for t, parts := range asked {
		topic := kmsg.NewListOffsetsRequestTopic()
		topic.Topic, topic.Partitions = l.nameOf(t), parts
		req.Topics = append(req.Topics, topic)
	}
	return req
}

// nothingIn tells that no consumer is given anything of a partition from one offset up to another: what stood there was
// aborted, compacted or removed.
func (l *Log) nothingIn(ctx context.Context, of topics.Partition, from, to int64) (bool, error) {
	all, err := l.extents(ctx, topics.Ends{of: to}, true)
	if err != nil {
		return false, err
	}
	x := all[of]
	return to <= x.end && (!x.before.found || x.before.offset < from), nil
}
