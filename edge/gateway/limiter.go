package gateway

import (
	"sync"
	"time"
)

// limiter has a window for each user. A node's own events count when they are allowed; those of other nodes when the
// log shows them.
type limiter struct {
	limit  int
	window time.Duration

	mu    sync.Mutex
	users map[string]*SlidingWindow
	sent  map[string]sending // by event id: this node's own appends that the log has not shown yet
}

type sending struct {
	times int
	at    time.Time
}

func newLimiter(limit int, window time.Duration) *limiter {
	return &limiter{limit: limit, window: window, users: make(map[string]*SlidingWindow), sent: make(map[string]sending)}
}

func (l *limiter) allow(user string, now time.Time) (time.Duration, bool) {
	return l.of(user).Allow(now)
}

func (l *limiter) of(user string) *SlidingWindow {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.users[user]
	if w == nil {
		w = NewSlidingWindow(l.limit, l.window)
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
