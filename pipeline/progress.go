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
	Of topics.Partition
	// Next is the offset of the next record to apply. It has stood there since MovedAt.
	Next    int64
	MovedAt time.Time
	// Seen is the offset after the last record that was read, at SeenAt. It is below Next while the dedup window is being warmed.
	Seen   int64
	SeenAt time.Time
	// End is the offset at which the log ended when it was asked last. BehindSince is the time since which the partition is below
	// End and has not moved; zero where it is not below.
	End         int64
	BehindSince time.Time
	Queued      int  // records that were fetched and wait
	Paused      bool // fetching is paused, since too much waits
	// FailingSince is when the batch under way failed the first time; zero: it has not. Err is its latest error.
	FailingSince time.Time
	Err          error
}

// Statuses lists how the consumer stands in the partitions that this member has, in no order: for metrics and nexus doctor.
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
func (c *Consumer) nextOf(of topics.Partition) int64 {
	c.mu.Lock()
	w := c.workers[of]
	c.mu.Unlock()
	if w == nil {
		return 0
	}
	return w.now().Next
}

// Assigned reports whether Run has taken over all partitions that this member has, which may be none.
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

// CaughtUp reports whether everything that stood in the log when Run began has been applied, in the partitions that this member has, and
// their dedup windows are warm. It can turn false again when the member is given further partitions.
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

// Behind is how many offsets that stood in the log when Run began are not applied yet, in the partitions that this member has.
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
func (c *Consumer) lag(ends topics.Ends) map[topics.Topic]int64 {
	out := make(map[topics.Topic]int64)
	for _, s := range c.Statuses() {
		out[s.Of.Topic] += max(0, ends[s.Of]-s.Next)
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
func (c *Consumer) ends() topics.Ends {
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

// Problem says what is wrong with the consumer, in a sentence for an operator; nil where nothing is. /readyz asks. It is answered out of
// memory, at once.
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
		return fmt.Errorf("%s: nothing was applied for %s: %w", s.Of, time.Since(s.FailingSince).Round(time.Second), s.Err)
	case !s.BehindSince.IsZero() && time.Since(s.BehindSince) >= stuckAfter:
		return fmt.Errorf("%s: is %d records behind and has not moved for %s", s.Of, s.End-min(s.Next, s.Seen),
			time.Since(s.BehindSince).Round(time.Second))
	}
	return nil
}
