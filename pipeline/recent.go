package pipeline

import (
	"cmp"
	"slices"
	"sync"

	"github.com/nexus/nexus/topics"
)

// What a tail keeps of each partition. It is what a client needs that comes back soon, also while the projections are
// behind: after the end of a node its partitions stand still for 10 to 20 seconds.
const (
	recentEvents = 4096
	recentBytes  = 1 << 20 // of keys and values
)

// recent are the last events of a partition, without duplicates and misrouted ones. It is safe for concurrent use.
type recent struct {
	mu     sync.Mutex
	low    int64 // it has everything from here on
	events []*topics.Event
	bytes  int
}

func size(e *topics.Event) int { return len(e.Key) + len(e.Value) }

func (r *recent) add(events []*topics.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		if !e.Duplicate && !e.Stray {
			r.events = append(r.events, e)
			r.bytes += size(e)
		}
	}
	drop := 0
	for ; len(r.events)-drop > recentEvents || r.bytes > recentBytes; drop++ {
		e := r.events[drop]
		r.events[drop], r.bytes, r.low = nil, r.bytes-size(e), e.Offset+1
	}
	r.events = r.events[drop:]
}

// between lists the valid events from an offset on and below another for which want returns true. What it has begins at low.
func (r *recent) between(from, to int64, want func(*topics.Event) bool) (list []*topics.Event, low int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	low = max(from, r.low)
	i, _ := slices.BinarySearchFunc(r.events, low, func(e *topics.Event, at int64) int { return cmp.Compare(e.Offset, at) })
	for ; i < len(r.events) && r.events[i].Offset < to; i++ {
		if e := r.events[i]; want(e) && topics.Valid(e) == nil {
			list = append(list, e)
		}
	}
	return list, low
}
