package gateway

import (
	"sync"
	"time"
)

// SlidingWindow bounds events in a sliding window of time, counted in 60 buckets: never more than the limit within any window, at the
// price of up to a sixtieth of the window of extra waiting. It is safe for concurrent use.
type SlidingWindow struct {
	limit int
	width time.Duration

	mu    sync.Mutex
	first int64 // number of the oldest bucket in use
	count [buckets]int32
	total int
}

const buckets = 61 // the oldest is still partly inside the window

// NewSlidingWindow allows so many events within a window.
func NewSlidingWindow(limit int, window time.Duration) *SlidingWindow {
	return &SlidingWindow{limit: limit, width: max(window/(buckets-1), time.Millisecond)}
}

// Allow takes one event in, or says how long to wait.
func (w *SlidingWindow) Allow(now time.Time) (wait time.Duration, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := now.UnixNano() / int64(w.width)
	w.forget(at)
	if w.total < w.limit {
		w.count[at%buckets]++
		w.total++
		return 0, true
	}
	oldest := w.first
	for w.count[oldest%buckets] == 0 && oldest < at {
		oldest++
	}
	return time.Duration((oldest+buckets)*int64(w.width) - now.UnixNano()), false
}

// add takes an event in whose limit was another node's to judge.
func (w *SlidingWindow) add(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := now.UnixNano() / int64(w.width)
	w.forget(at)
	w.count[at%buckets]++
	w.total++
}

// forget empties the buckets that have left the window.
func (w *SlidingWindow) forget(at int64) {
	if at-w.first >= 2*buckets {
		w.count, w.total = [buckets]int32{}, 0
		w.first = at - buckets + 1
		return
	}
	for ; w.first <= at-buckets; w.first++ {
		i := w.first % buckets
		w.total -= int(w.count[i])
		w.count[i] = 0
	}
}

func (w *SlidingWindow) idle(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(now.UnixNano() / int64(w.width))
	return w.total == 0
}
