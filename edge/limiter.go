package edge

import (
	"sync"
	"time"
)

// bucketWindow counts events in a sliding window, in 60 buckets: never more than the limit within any window, at the
// price of up to a sixtieth of the window of extra waiting. It is safe for concurrent use.
type bucketWindow struct {
	limit int
	width time.Duration

	mu    sync.Mutex
	first int64 // number of the oldest bucket in use
	count [buckets]int32
	total int
}

const buckets = 61 // the oldest is still partly inside the window

func newBucketWindow(limit int, window time.Duration) *bucketWindow {
	return &bucketWindow{limit: limit, width: max(window/(buckets-1), time.Millisecond)}
}

// allow takes one event in, or says how long to wait.
func (w *bucketWindow) allow(now time.Time) (wait time.Duration, ok bool) {
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

// forget empties the buckets that have left the window.
func (w *bucketWindow) forget(at int64) {
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

func (w *bucketWindow) idle(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(now.UnixNano() / int64(w.width))
	return w.total == 0
}

// limiter has a window for each user.
type limiter struct {
	limit  int
	window time.Duration

	mu    sync.Mutex
	users map[string]*bucketWindow
}

func newLimiter(limit int, window time.Duration) *limiter {
	return &limiter{limit: limit, window: window, users: make(map[string]*bucketWindow)}
}

func (l *limiter) allow(user string, now time.Time) (time.Duration, bool) {
	l.mu.Lock()
	w := l.users[user]
	if w == nil {
		w = newBucketWindow(l.limit, l.window)
		l.users[user] = w
	}
	l.mu.Unlock()
	return w.allow(now)
}

// sweep forgets users who have been quiet for a window.
func (l *limiter) sweep(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for user, w := range l.users {
		if w.idle(now) {
			delete(l.users, user)
		}
	}
}
