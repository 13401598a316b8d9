package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// offsets replaces Kafka's idea of the offsets by the sink's (kgo.AdjustFetchOffsetsFn).
func (c *Consumer) offsets(ctx context.Context, fetched map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	select {
	case <-c.started:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	out := make(map[string]map[int32]kgo.Offset)
	for name, ps := range fetched {
		t, ok := c.Kafka.Names.Topic(name)
		if !ok {
			continue
		}
		starts, err := c.takeOver(ctx, t, sorted(ps))
		if err != nil {
			return nil, err
		}
		out[name] = starts
	}
	return out, nil
}

// takeOver starts a worker for each partition and returns where to read from: far enough back to warm the dedup window.
// It does not give up while ctx lives, unless the sink's store remembers another log: then Run ends.
func (c *Consumer) takeOver(ctx context.Context, t topics.Topic, ids []int32) (map[int32]kgo.Offset, error) {
	for failures := 0; ; failures++ {
		starts, err := c.tryTakeOver(ctx, t, ids)
		var wrong *WrongLogError
		switch {
		case err == nil:
			return starts, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.As(err, &wrong):
			c.fail(err) // a group's callback cannot end Run
			return nil, err
		}
		c.Log.Warn("taking partitions over failed, trying again", "topic", t, "partitions", ids, "err", err)
		if !sleep(ctx, backoff(failures)) {
			return nil, ctx.Err()
		}
	}
}

func (c *Consumer) tryTakeOver(ctx context.Context, t topics.Topic, ids []int32) (map[int32]kgo.Offset, error) {
	positions, all, err := c.positions(ctx, t, ids)
	if err != nil {
		return nil, err
	}
	next := make(topics.Ends)
	for _, id := range ids {
		of := t.Partition(id)
		next[of] = positions[of].Next
		if expires(t) || positions[of] == (Position{}) { // what a new store can have of the log, or a late one of what is left
			next[of] = max(next[of], all[of].start)
		}
	}
	readers, err := c.attach(ctx, t, next, all)
	if err != nil {
		return nil, err
	}
	offsets, start := make(map[int32]kgo.Offset), maps.Clone(next)
	for _, id := range ids {
		of := t.Partition(id)
		if r := readers[of]; r != nil {
			start[of] = r.Start
		}
		w := newWorker(c, of, positions[of], start[of])
		w.reader = readers[of]
		last := all[of].before
		if w.mark == 0 {
			w.mark = last.time
		}
		if last.found && last.offset < start[of] && w.warmer != nil {
			w.warmer.Warm(of.At(last.offset), last.time)
		}
		if next[of] > w.next { // what was removed counts as read
			w.offer(item{from: w.next, next: next[of]})
		}
		c.replace(ctx, w)
		offsets[id] = kgo.NewOffset().At(start[of]).WithEpoch(-1)
	}
	return offsets, nil
}

// positions reads where the sink stands and makes sure that it remembers the log that is there. Which record stands before
// a position is looked up where the dedup window needs it; for all others Check has done so.
func (c *Consumer) positions(ctx context.Context, t topics.Topic, ids []int32) (map[topics.Partition]Position,
	map[topics.Partition]extent, error) {
	positions, next := make(map[topics.Partition]Position), make(topics.Ends)
	for _, id := range ids {
		of := t.Partition(id)
		at, err := c.Sink.Position(ctx, of)
		if err != nil {
			return nil, nil, fmt.Errorf("position of %s: %w", of, err)
		}
		positions[of], next[of] = at, at.Next
	}
	all, err := c.cluster.extents(ctx, next, t.Deduplicated())
	if err != nil {
		return nil, nil, err
	}
	for _, id := range ids {
		of := t.Partition(id)
		if why := positions[of].misfit(c.identities[t], all[of], expires(t)); why != "" {
			return nil, nil, c.wrongLog(of, why)
		}
	}
	return positions, all, nil
}

// attach gives each partition a reader of its dedup window; there are none where the topic is not deduplicated. The former workers
// close theirs only afterwards, so a window that they have warmed is kept.
func (c *Consumer) attach(ctx context.Context, t topics.Topic, next topics.Ends, all map[topics.Partition]extent) (
	map[topics.Partition]*Reader, error) {
	if !t.Deduplicated() {
		return nil, nil
	}
	return c.Windows.Attach(next, func(at topics.Ends) (topics.Ends, error) {
		return c.cluster.rewind(ctx, at, all, c.Windows.span)
	})
}

// Misfit is a partition in which a store remembers another log than the one that is there.
type Misfit struct {
	Of topics.Partition
	// Why is a sentence for the operator.
	Why string
	// To is where the store may go on if it takes this log on: at the beginning of a log that it has nothing of, at the end of one
	// that has lost records.
	To Position
	// End is the offset after the log's last record.
	End int64
}

// Misfits lists where the sink's store remembers another log, in the order of topics and partitions. Call it before Run. It asks about
// every partition, also those that other members of the group will have. An error means that the store or the log could not be asked.
func (c *Consumer) Misfits(ctx context.Context, l *Log) (list []Misfit, err error) {
	identities, stored, next := make(map[topics.Topic]string), make(map[topics.Partition]Position), make(topics.Ends)
	for _, t := range c.Topics {
		identity, n, err := l.describe(ctx, t)
		if err != nil {
			return nil, err
		}
		identities[t] = identity
		for p := range n {
			of := t.Partition(p)
			at, err := c.Sink.Position(ctx, of)
			if err != nil {
				return nil, fmt.Errorf("position of %s: %w", of, err)
			}
			stored[of], next[of] = at, at.Next
		}
	}
	all, err := l.extents(ctx, next, true)
	if err != nil {
		return nil, err
	}
	for of, at := range stored {
		if why := at.misfit(identities[of.Topic], all[of], expires(of.Topic)); why != "" {
			m := Misfit{Of: of, Why: why}
			if err := l.resumeAt(ctx, &m, at, all[of], identities[of.Topic]); err != nil {
				return nil, err
			}
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b Misfit) int {
		return cmp.Or(cmp.Compare(a.Of.Topic, b.Of.Topic), cmp.Compare(a.Of.ID, b.Of.ID))
	})
	return list, nil
}

// resumeAt finds where a store that does not fit may go on: Misfit.To and Misfit.End.
func (l *Log) resumeAt(ctx context.Context, m *Misfit, stored Position, x extent, identity string) error {
	ends, err := l.Ends(ctx, m.Of.Topic)
	if err != nil {
		return err
	}
	m.End = ends[m.Of]
	if stored.Log != "" && stored.Log != identity {
		m.To = Position{Next: x.start, Log: identity}
		return nil
	}
	all, err := l.extents(ctx, topics.Ends{m.Of: m.End}, true)
	m.To = Position{Next: m.End, Log: identity, Mark: all[m.Of].before.time}
	return err
}

// Check makes sure that the sink's store remembers the log that is there. Call it before Run. It returns a *WrongLogError for the first
// partition of each topic that does not fit, joined; or the error of Misfits.
func (c *Consumer) Check(ctx context.Context, l *Log) error {
	list, err := c.Misfits(ctx, l)
	if err != nil {
		return err
	}
	reported := make(map[topics.Topic]bool)
	var problems []error
	for _, m := range list {
		if !reported[m.Of.Topic] {
			reported[m.Of.Topic] = true
			problems = append(problems, c.wrongLog(m.Of, m.Why))
		}
	}
	return errors.Join(problems...)
}

// expires tells that a topic's records are removed in time: a consumer that comes late goes on with what is left.
func expires(t topics.Topic) bool {
	s, _ := topics.Of(t)
	return s.Retention != topics.Forever
}

// replace starts w in the place of the partition's former worker, whose pause is over with it.
func (c *Consumer) replace(ctx context.Context, w *worker) {
	c.stop(w.of)
	// Not ctx: with a group this is called from offsets, whose ctx ends when it returns. The worker lives until onRevoked or stopAll
	// stops it.
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.cancel = cancel
	c.mu.Lock()
	c.workers[w.of] = w
	c.mu.Unlock()
	c.setPaused(w.of, false)
	go w.run(run)
}

// setPaused pauses or resumes the fetching of a partition. The first call comes before there is a client.
func (c *Consumer) setPaused(of topics.Partition, on bool) {
	if c.cl == nil {
		return
	}
	which := map[string][]int32{c.Kafka.Names.Name(of.Topic): {of.ID}}
	if on {
		c.cl.PauseFetchPartitions(which)
	} else {
		c.cl.ResumeFetchPartitions(which)
	}
}

// onAssigned notes what the group has given this member, which may be nothing (kgo.OnPartitionsAssigned). The offsets are asked
// for afterwards.
func (c *Consumer) onAssigned(_ context.Context, _ *kgo.Client, given map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.assigned == nil {
		c.assigned = make(map[topics.Partition]bool)
	}
	for name, ids := range given {
		t, _ := c.Kafka.Names.Topic(name)
		for _, id := range ids {
			c.assigned[t.Partition(id)] = true
		}
	}
}

func (c *Consumer) onRevoked(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	for name, ids := range lost {
		t, _ := c.Kafka.Names.Topic(name)
		for _, id := range ids {
			c.mu.Lock()
			delete(c.assigned, t.Partition(id))
			c.mu.Unlock()
			c.stop(t.Partition(id))
		}
	}
}

func (c *Consumer) stop(of topics.Partition) {
	c.mu.Lock()
	w := c.workers[of]
	delete(c.workers, of)
	delete(c.resets, of)
	c.mu.Unlock()
	if w != nil {
		w.cancel()
		<-w.done
	}
}

func (c *Consumer) stopAll() {
	c.mu.Lock()
	all := make([]topics.Partition, 0, len(c.workers))
	for of := range c.workers {
		all = append(all, of)
	}
	c.mu.Unlock()
	for _, of := range all {
		c.stop(of)
	}
}
