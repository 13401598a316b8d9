package sqldb

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// Waiters are all who wait for a projection to come so far. They share one question: however many wait, the database is asked once at a
// time, and not at all while nobody waits. It is safe for concurrent use.
type Waiters struct {
	ask func(context.Context) (map[topics.Partition]pipeline.Position, error)

	mu      sync.Mutex
	waiting map[*waiter]bool
	asking  bool          // watch runs
	joined  chan struct{} // somebody has come since watch asked last
}

// waiter is one who waits until ends are reached.
type waiter struct {
	ends topics.Ends
	done chan error // has room for the one answer
	lack string     // what was not reached at the last look; guarded by Waiters.mu
}

// NewWaiters makes one without waiters. ask reads where the projection stands (Positions.All). It must end by itself.
func NewWaiters(ask func(context.Context) (map[topics.Partition]pipeline.Position, error)) *Waiters {
	return &Waiters{ask: ask, waiting: make(map[*waiter]bool), joined: make(chan struct{}, 1)}
}

// awaitStep is the pause between two questions while somebody waits. One who comes ends it: most find that nothing is left to wait for.
const awaitStep = 5 * time.Millisecond

// Await returns once the projection has reached every one of these offsets: who then reads sees what stood below them. Its error is the
// database's; where ctx ends first, it is ctx's and says which partition is short.
func (w *Waiters) Await(ctx context.Context, ends topics.Ends) error {
	me := &waiter{ends: ends, done: make(chan error, 1), lack: "the database has not answered"}
	w.join(ctx, me)
	select {
	case err := <-me.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", w.leave(me), ctx.Err())
	}
}

func (w *Waiters) join(ctx context.Context, me *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[me] = true
	if !w.asking {
		w.asking = true
		go w.watch(context.WithoutCancel(ctx)) // for others, too, who may wait longer
		return
	}
	select {
	case w.joined <- struct{}{}:
	default:
	}
}

// leave ends a wait, and returns what was lacking.
func (w *Waiters) leave(me *waiter) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting, me)
	return me.lack
}

// watch asks and answers until nobody waits any more.
func (w *Waiters) watch(ctx context.Context) {
	for {
		at, err := w.ask(ctx)
		if !w.answer(at, err) {
			return
		}
		select {
		case <-w.joined:
		case <-time.After(awaitStep):
		}
	}
}

// answer ends the waits of those whose offsets are reached, or all where the database has failed. It reports whether somebody waits still.
func (w *Waiters) answer(at map[topics.Partition]pipeline.Position, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for x := range w.waiting {
		if x.lack = x.lacks(at); err != nil || x.lack == "" {
			x.done <- err
			delete(w.waiting, x)
		}
	}
	w.asking = len(w.waiting) > 0
	return w.asking
}

// lacks says which partition is short of its offset; empty where none is.
func (x *waiter) lacks(at map[topics.Partition]pipeline.Position) string {
	for of, end := range x.ends {
		if next := at[of].Next; next < end {
			return fmt.Sprintf("%s is folded up to offset %d, not yet to %d", of, next, end)
		}
	}
	return ""
}
