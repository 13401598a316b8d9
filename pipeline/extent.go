package pipeline

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
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
func (l *Log) extents(ctx context.Context, positions map[partition]int64, looking bool) (map[partition]extent, error) {
	names := l.namesOf(positions)
	starts, err := l.listed(l.adm.ListStartOffsets(ctx, names...))
	if err != nil {
		return nil, err
	}
	ends, err := l.listed(l.adm.ListEndOffsets(ctx, names...))
	if err != nil {
		return nil, err
	}
	out, inside := make(map[partition]extent), make(map[partition]int64)
	for of, next := range positions {
		end, known := ends[of]
		if !known {
			return nil, fmt.Errorf("partition %d of %s: %w", of.id, l.nameOf(of.topic), kerr.UnknownTopicOrPartition)
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

// ofTopic makes keys of a topic's partitions.
func ofTopic(t topics.Topic, positions map[int32]int64) map[partition]int64 {
	out := make(map[partition]int64, len(positions))
	for p, next := range positions {
		out[partition{t, p}] = next
	}
	return out
}

// namesOf lists what the topics of these partitions are called in Kafka.
func (l *Log) namesOf(positions map[partition]int64) []string {
	set := make(map[string]bool)
	for of := range positions {
		set[l.nameOf(of.topic)] = true
	}
	return sorted(set)
}

// listed is the offsets of an answer, by partition.
func (l *Log) listed(list kadm.ListedOffsets, err error) (map[partition]int64, error) {
	if err == nil {
		err = list.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	out := make(map[partition]int64)
	list.Each(func(o kadm.ListedOffset) {
		t, _ := l.kafka.Names.Topic(o.Topic)
		out[partition{t, o.Partition}] = o.Offset
	})
	return out, nil
}

// Rewind returns, by partition, where to start reading so that everything within span before each position is seen: the first offset
// whose time is at least that of the record before the position, less span. Positions at a partition's start stay.
//
// The dedup window is warmed from there. To start too early costs time and changes nothing; to start too late would change what is a
// duplicate.
func (l *Log) Rewind(ctx context.Context, t topics.Topic, positions map[int32]int64, span time.Duration) (map[int32]int64, error) {
	all, err := l.extents(ctx, ofTopic(t, positions), true)
	if err != nil {
		return nil, err
	}
	return l.rewind(ctx, t, positions, all, span)
}

func (l *Log) rewind(ctx context.Context, t topics.Topic, positions map[int32]int64, all map[partition]extent,
	span time.Duration) (map[int32]int64, error) {
	out, from := maps.Clone(positions), make(map[int32]int64)
	for p, next := range positions {
		switch x := all[partition{t, p}]; {
		case x.before.found:
			from[p] = x.before.time - span.Milliseconds()
		case next > x.start: // nothing that anybody is given stands there
			out[p] = x.start
		}
	}
	at, err := l.firstAt(ctx, t, from)
	for p, offset := range at {
		out[p] = min(offset, positions[p])
	}
	return out, err
}

// before finds the last record below each position that a consumer is given. Partitions without one are missing from the
// answer: they have nothing there but transaction markers, aborted records, or what was removed.
func (l *Log) before(ctx context.Context, positions, starts map[partition]int64) (map[partition]record, error) {
	out, pending := make(map[partition]record), maps.Clone(positions)
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
func (l *Log) scan(ctx context.Context, positions, starts map[partition]int64, back int64) (map[partition]record, error) {
	from := make(map[string]map[int32]kgo.Offset)
	for of, next := range positions {
		name := l.nameOf(of.topic)
		if from[name] == nil {
			from[name] = make(map[int32]kgo.Offset)
		}
		from[name][of.id] = kgo.NewOffset().At(max(starts[of], next-back))
	}
	answers := &fetchAnswers{since: make(map[int32]int)}
	cl, err := l.kafka.Client(kgo.ConsumePartitions(from), kgo.KeepControlRecords(), kgo.WithHooks(answers))
	if err != nil {
		return nil, err
	}
	defer cl.CloseAllowingRebalance()
	found, done := make(map[partition]record), make(map[partition]bool)
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
func (l *Log) answered(cl *kgo.Client, a *fetchAnswers, positions map[partition]int64, done map[partition]bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for of := range positions {
		if done[of] {
			continue
		}
		leader, _, err := cl.PartitionLeader(l.nameOf(of.topic), of.id)
		if err != nil || a.since[leader] < enoughAnswers {
			return false
		}
	}
	return true
}

// scanned takes in what a scan was given, and tells whether that was anything. done are the partitions that are read up to
// their positions; they are not read on.
func (l *Log) scanned(cl *kgo.Client, fs kgo.Fetches, positions map[partition]int64, found map[partition]record,
	done map[partition]bool) (progress bool) {
	reached := func(of partition, next int64) {
		progress = true
		if next >= positions[of] && !done[of] {
			done[of] = true
			cl.PauseFetchPartitions(map[string][]int32{l.nameOf(of.topic): {of.id}})
		}
	}
	for of, next := range l.steppedOver(cl, fs) {
		reached(of, next)
	}
	fs.EachRecord(func(r *kgo.Record) {
		t, _ := l.kafka.Names.Topic(r.Topic)
		of := partition{t, r.Partition}
		if r.Offset < positions[of] && !r.Attrs.IsControl() {
			found[of] = record{r.Offset, r.Timestamp.UnixMilli(), true}
		}
		reached(of, r.Offset+1)
	})
	return progress
}

// steppedOver has a client that reads partitions go on behind batches that are too large to be decompressed, and tells where
// it goes on, by partition.
func (l *Log) steppedOver(cl *kgo.Client, fs kgo.Fetches) map[partition]int64 {
	next := make(map[partition]int64)
	for _, fe := range fs.Errors() {
		if large, ok := errors.AsType[*kgo.ErrDecompressTooLarge](fe.Err); ok {
			t, _ := l.kafka.Names.Topic(fe.Topic)
			next[partition{t, fe.Partition}] = large.NextOffset
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
func (l *Log) firstAt(ctx context.Context, t topics.Topic, from map[int32]int64) (map[int32]int64, error) {
	if len(from) == 0 {
		return nil, nil
	}
	ends, err := l.offsets(l.adm.ListEndOffsets(ctx, l.nameOf(t)))
	if err != nil {
		return nil, err
	}
	topic := kmsg.NewListOffsetsRequestTopic()
	topic.Topic = l.nameOf(t)
	for p, ms := range from {
		part := kmsg.NewListOffsetsRequestTopicPartition()
		part.Partition, part.Timestamp = p, max(0, ms) // below 0 are Kafka's own words
		topic.Partitions = append(topic.Partitions, part)
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID, req.IsolationLevel, req.Topics = -1, 1, append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, l.cl)
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	out := make(map[int32]int64)
	for _, topic := range resp.Topics {
		for _, part := range topic.Partitions {
			if err := kerr.ErrorForCode(part.ErrorCode); err != nil {
				return nil, fmt.Errorf("list offsets of %s/%d: %w", topic.Topic, part.Partition, err)
			}
			if out[part.Partition] = part.Offset; part.Offset < 0 { // no record is that late
				out[part.Partition] = ends[part.Partition]
			}
		}
	}
	return out, nil
}

// nothingIn tells that no consumer is given anything of a partition from one offset up to another: what stood there was
// aborted, compacted or removed.
func (l *Log) nothingIn(ctx context.Context, of partition, from, to int64) (bool, error) {
	all, err := l.extents(ctx, map[partition]int64{of: to}, true)
	if err != nil {
		return false, err
	}
	x := all[of]
	return to <= x.end && (!x.before.found || x.before.offset < from), nil
}
