package wire

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

const (
	// lookEvery is how often a connection is looked at where nothing is due: for what has no clock of its own, like a
	// token that was replaced, a namespace that was left, or a close packet that nobody fetches.
	lookEvery = time.Second
	// lookTick is how late a look may be: what falls due within it is done in one go, so that ten thousand connections
	// do not wake the process ten thousand times a second.
	lookTick = 5 * time.Millisecond
)

// schedule looks at every connection when its next ping or time-out is due. One goroutine and one timer serve all: a
// connection costs an entry of a heap. It is safe for concurrent use.
type schedule struct {
	earlier chan struct{} // something is due before what run waits for

	mu    sync.Mutex
	looks map[Transport]*look
	due   dueLooks
}

// look is a connection's place in the schedule.
type look struct {
	at time.Time
	// check does what is due and tells when to look again. It is called by one goroutine at a time.
	check func(now time.Time) (next time.Time)
	place int // in the heap; outside it while check runs
	gone  bool
}

// outside is the place of a look that is not in the heap.
const outside = -1

func newSchedule() *schedule {
	return &schedule{earlier: make(chan struct{}, 1), looks: make(map[Transport]*look)}
}

// add has a connection looked at, first at once.
func (s *schedule) add(t Transport, check func(now time.Time) (next time.Time)) {
	now := time.Now()
	l := &look{check: check, place: outside}
	s.mu.Lock()
	s.looks[t] = l
	s.mu.Unlock()
	s.put(l, now, check(now))
}

// remove ends that; a look that is under way is the last one.
func (s *schedule) remove(t Transport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.looks[t]
	if l == nil {
		return
	}
	delete(s.looks, t)
	l.gone = true
	if l.place != outside {
		heap.Remove(&s.due, l.place)
	}
}

// put has a look wait until next: at least a tick, and at most lookEvery.
func (s *schedule) put(l *look, now, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.gone {
		return
	}
	l.at = now.Add(min(max(next.Sub(now), lookTick), lookEvery))
	if heap.Push(&s.due, l); l.place == 0 {
		select {
		case s.earlier <- struct{}{}:
		default:
		}
	}
}

// run looks at connections until ctx ends.
func (s *schedule) run(ctx context.Context) error {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.earlier:
		case <-t.C:
			for l := s.pop(time.Now()); l != nil; l = s.pop(time.Now()) {
				now := time.Now()
				s.put(l, now, l.check(now))
			}
		}
		t.Reset(s.wait(time.Now()))
	}
}

// pop takes a look out that is due, or returns nil.
func (s *schedule) pop(now time.Time) *look {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.due) == 0 || s.due[0].at.After(now) {
		return nil
	}
	return heap.Pop(&s.due).(*look)
}

// wait is how long nothing has to be done: at least a tick.
func (s *schedule) wait(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.due) == 0 {
		return lookEvery
	}
	return max(s.due[0].at.Sub(now), lookTick)
}

// dueLooks is a heap (container/heap), the earliest look first.
type dueLooks []*look

func (d dueLooks) Len() int           { return len(d) }
func (d dueLooks) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d dueLooks) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

// Push implements heap.Interface.
func (d *dueLooks) Push(x any) {
	l := x.(*look)
	l.place = len(*d)
	*d = append(*d, l)
}

// Pop implements heap.Interface.
func (d *dueLooks) Pop() any {
	last := len(*d) - 1
	l := (*d)[last]
	(*d)[last], l.place = nil, outside
	*d = (*d)[:last]
	return l
}

// heart says when a connection's next ping is due.
type heart struct{ next time.Time }

func newHeart(now time.Time, interval time.Duration) heart { return heart{now.Add(interval)} }

// due is true once in an interval.
func (h *heart) due(now time.Time, interval time.Duration) bool {
	if now.Before(h.next) {
		return false
	}
	if h.next = h.next.Add(interval); !h.next.After(now) { // the process was paused
		h.next = now.Add(interval)
	}
	return true
}
