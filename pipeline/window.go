package pipeline

import (
	"container/heap"
	"time"

	"github.com/nexus/nexus/topics"
)

// Window is the dedup window of one partition. A record is a duplicate of an earlier one of the same identity as long
// as no record since, itself included, has a time beyond the earlier's time plus the span (equal is inside). So an entry
// dies at the first record that is later by more than the span and never returns; steps back in time change nothing,
// and no wall clock is read: the verdicts are a function of the log alone. A Window is owned by one goroutine.
type Window struct {
	span   int64
	alive  map[topics.Identity]int64 // identity → the greatest time among its live records
	expiry expiries
}

// NewWindow makes an empty window.
func NewWindow(span time.Duration) *Window {
	return &Window{span: span.Milliseconds(), alive: make(map[topics.Identity]int64)}
}

// Observe takes the next record in, in log order, and says whether it is a duplicate. Records without an identity move
// time on and are never duplicates.
func (w *Window) Observe(ms int64, id topics.Identity, identified bool) bool {
	for len(w.expiry) > 0 && w.expiry[0].ms+w.span < ms {
		e := heap.Pop(&w.expiry).(expiry)
		if w.alive[e.id] == e.ms {
			delete(w.alive, e.id)
		}
	}
	if !identified {
		return false
	}
	last, duplicate := w.alive[id]
	if !duplicate || ms > last {
		w.alive[id] = ms
		heap.Push(&w.expiry, expiry{ms, id})
	}
	return duplicate
}

// Len is the number of live entries.
func (w *Window) Len() int { return len(w.alive) }

type expiry struct {
	ms int64
	id topics.Identity
}

// expiries is a heap, earliest first. An entry whose time is no longer that of its identity is stale.
type expiries []expiry

func (h expiries) Len() int           { return len(h) }
func (h expiries) Less(i, j int) bool { return h[i].ms < h[j].ms }
func (h expiries) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *expiries) Push(x any)        { *h = append(*h, x.(expiry)) }
func (h *expiries) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
