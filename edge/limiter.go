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

// add takes an event in whose limit was another node's to judge.
func (w *bucketWindow) add(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := now.UnixNano() / int64(w.width)
	w.forget(at)
	w.count[at%buckets]++
	w.total++
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

// limiter has a window for each user. A node's own events count when they are allowed; those of other nodes when the
// log shows them.
type limiter struct {
	limit  int
	window time.Duration

	mu    sync.Mutex
	users map[string]*bucketWindow
	sent  map[string]sending // by event id: this node's own appends that the log has not shown yet
}

type sending struct {
	times int
	at    time.Time
}

func newLimiter(limit int, window time.Duration) *limiter {
	return &limiter{limit: limit, window: window, users: make(map[string]*bucketWindow), sent: make(map[string]sending)}
}

func (l *limiter) allow(user string, now time.Time) (time.Duration, bool) {
	return l.of(user).allow(now)
}

func (l *limiter) of(user string) *bucketWindow {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.users[user]
	if w == nil {
		w = newBucketWindow(l.limit, l.window)
		l.users[user] = w
	}
	return w
}

// own notes an event that was allowed here and is about to be appended.
func (l *limiter) own(id string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent[id] = sending{l.sent[id].times + 1, now}
}

// shown takes in an event of user that the log shows.
func (l *limiter) shown(user, id string, now time.Time) {
	if !l.mine(id) {
		l.of(user).add(now)
	}
}

func (l *limiter) mine(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.sent[id]
	if s.times > 1 {
		l.sent[id] = sending{s.times - 1, s.at}
	} else {
		delete(l.sent, id)
	}
	return ok
}

// sweep forgets users who have been quiet for a window, and appends that the log never showed.
func (l *limiter) sweep(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for user, w := range l.users {
		if w.idle(now) {
			delete(l.users, user)
		}
	}
	for id, s := range l.sent {
		if now.Sub(s.at) > l.window {
			delete(l.sent, id)
		}
	}
}
