package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nexus/nexus/topics"
)

// Status is how a consumer stands in one partition.
type Status struct {
	Topic     topics.Topic
	Partition int32
	// Next is the offset of the next record to apply, since MovedAt.
	Next    int64
	MovedAt time.Time
	// Seen is how far the partition was read: below Next while the dedup window is being warmed.
	Seen   int64
	SeenAt time.Time
	// End is where the log ended when it was asked last. BehindSince is since when the partition is below it and has not
	// moved; zero where it is not.
	End         int64
	BehindSince time.Time
	Queued      int // records that wait
	Paused      bool
	// FailingSince is when the first of the attempts to apply the batch under way failed; zero: none has. Err is the latest
	// failure.
	FailingSince time.Time
	Err          error
}

// Statuses tells how the consumer stands in the partitions that this member has.
func (c *Consumer) Statuses() (list []Status) {
	for _, w := range c.all() {
		list = append(list, w.now())
	}
	return list
}

func (c *Consumer) all() (list []*worker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.workers {
		list = append(list, w)
	}
	return list
}

// nextOf is the next offset that a partition's worker applies.
func (c *Consumer) nextOf(of partition) int64 {
	c.mu.Lock()
	w := c.workers[of]
	c.mu.Unlock()
	if w == nil {
		return 0
	}
	return w.now().Next
}

// Assigned reports whether Run has taken over the partitions that this member has.
func (c *Consumer) Assigned() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.goal != nil && c.hasTakenOver()
}

// hasTakenOver tells that there is a worker for each partition of this member. c.mu is held.
func (c *Consumer) hasTakenOver() bool {
	if c.Group == "" {
		return len(c.workers) == len(c.goal)
	}
	return c.assigned != nil && len(c.workers) == len(c.assigned)
}

// CaughtUp reports whether everything that stood in the log when Run began, in the partitions this member has, has been
// applied, and the dedup windows are warm.
func (c *Consumer) CaughtUp() bool {
	list := c.all()
	c.mu.Lock()
	goal := c.goal // never changed once it is there
	ready := goal != nil && c.hasTakenOver() && c.failure == nil
	c.mu.Unlock()
	if !ready {
		return false
	}
	for _, w := range list {
		if w.behind(goal[w.of]) > 0 {
			return false
		}
	}
	return true
}

// behind is how many offsets below end are not seen yet.
func (w *worker) behind(end int64) int64 { return max(0, end-w.now().Seen) }

// Behind is how many records that stood in the log when Run began are not applied yet, in the partitions this member has.
func (c *Consumer) Behind() (n int64) {
	c.mu.Lock()
	goal := c.goal
	c.mu.Unlock()
	for _, w := range c.all() {
		n += w.behind(goal[w.of])
	}
	return n
}

// lag is how many records below ends are not applied yet, by topic, in the partitions this member has.
func (c *Consumer) lag(ends map[partition]int64) map[topics.Topic]int64 {
	out := make(map[topics.Topic]int64)
	for _, s := range c.Statuses() {
		out[s.Topic] += max(0, ends[partition{s.Topic, s.Partition}]-s.Next)
	}
	return out
}

// What is too long for a partition to stand still, and how often that is looked at.
const (
	probeEvery = time.Second
	// stuckAfter is how long a batch may fail, or a partition be behind without moving, before readiness is red: longer than a
	// rebalance, shorter than anybody waits for an inbox.
	stuckAfter = 10 * time.Second
)

// probe looks after the partitions until ctx ends: which are behind the log's end, and whether what is left of a quiet one is
// nothing that anybody is given (offsets of compacted or removed records). Such offsets count as read.
func (c *Consumer) probe(ctx context.Context) {
	for sleep(ctx, probeEvery) {
		ends := c.ends()
		for _, w := range c.all() {
			if w.lookAt(max(ends[w.of], c.goal[w.of])) {
				c.probeOne(ctx, w)
			}
		}
	}
}

// ends are the log's ends as they were asked for last.
func (c *Consumer) ends() map[partition]int64 {
	if c.Watch == nil {
		return nil
	}
	return c.Watch.all()
}

// lookAt notes whether the worker is behind an end, and since when it has not moved. It is true where the partition is quiet
// all the same.
func (w *worker) lookAt(end int64) (quiet bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.status
	s.End = max(s.End, end)
	reached := min(s.Next, s.Seen)
	switch {
	case reached >= s.End:
		s.BehindSince = time.Time{}
	case s.BehindSince.IsZero():
		s.BehindSince = time.Now()
	}
	return reached < s.End && len(w.queue) == 0 && s.FailingSince.IsZero() && time.Since(s.SeenAt) >= probeEvery
}

func (c *Consumer) probeOne(ctx context.Context, w *worker) {
	s := w.now()
	from := min(s.Next, s.Seen)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	empty, err := c.cluster.nothingIn(ctx, w.of, from, s.End)
	if err == nil && empty {
		w.offer(item{from: from, next: s.End})
	}
}

// Problem says what is wrong with the consumer; nil where nothing is. It asks nobody: it is answered at once.
func (c *Consumer) Problem() error {
	c.mu.Lock()
	ready, failure := c.goal != nil && c.hasTakenOver(), c.failure
	c.mu.Unlock()
	switch {
	case failure != nil:
		return failure
	case !ready:
		return errors.New("is taking its partitions over")
	}
	for _, s := range c.Statuses() {
		if err := s.problem(); err != nil {
			return err
		}
	}
	if n := c.Behind(); n > 0 {
		return fmt.Errorf("has %d records to go of what stood in the log at the start", n)
	}
	return nil
}

// problem says what is wrong in the partition.
func (s Status) problem() error {
	switch {
	case !s.FailingSince.IsZero() && time.Since(s.FailingSince) >= stuckAfter:
		return fmt.Errorf("%s/%d: nothing was applied for %s: %w", s.Topic, s.Partition, time.Since(s.FailingSince).Round(time.Second), s.Err)
	case !s.BehindSince.IsZero() && time.Since(s.BehindSince) >= stuckAfter:
		return fmt.Errorf("%s/%d: is %d records behind and has not moved for %s", s.Topic, s.Partition, s.End-min(s.Next, s.Seen),
			time.Since(s.BehindSince).Round(time.Second))
	}
	return nil
}
