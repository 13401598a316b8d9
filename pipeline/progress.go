package pipeline

import (
	"context"
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
	Queued int // records that wait
	Paused bool
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
	return c.goal != nil && c.tookOver()
}

// tookOver tells that there is a worker for each partition of this member. c.mu is held.
func (c *Consumer) tookOver() bool {
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
	ready := goal != nil && c.tookOver() && c.failure == nil
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

// probeEvery is how often partitions that stand still below their goal are looked at.
const probeEvery = time.Second

// probe looks, until the consumer has caught up, whether what is left of a quiet partition is nothing that anybody is given:
// offsets of compacted or removed records. They count as read.
func (c *Consumer) probe(ctx context.Context) {
	for sleep(ctx, probeEvery) && !c.CaughtUp() {
		for _, w := range c.all() {
			c.probeOne(ctx, w)
		}
	}
}

func (c *Consumer) probeOne(ctx context.Context, w *worker) {
	s, end := w.now(), c.goal[w.of]
	if s.Seen >= end || s.Queued > 0 || s.Paused || time.Since(s.SeenAt) < probeEvery || !s.FailingSince.IsZero() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	empty, err := c.log.nothingIn(ctx, w.of, s.Seen, end)
	if err == nil && empty {
		w.offer(item{from: s.Seen, next: end})
	}
}
