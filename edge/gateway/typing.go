package gateway

import (
	"sync"
	"time"

	"github.com/nexus/nexus/topics"
)

// typingEvery is how often typing.start is appended for a user who goes on typing: well within the time for which others are
// shown that he does.
const typingEvery = 2 * time.Second

// typingPair is who types to whom.
type typingPair struct{ from, to string }

// typing is what this node appends of users who type. It is safe for concurrent use.
type typing struct {
	// try appends an event and calls done once, on any goroutine (pipeline.Producer.TryAppend).
	try func(ev *topics.Event, done func(error))

	mu     sync.Mutex
	starts map[typingPair]*typingStart // appended less than typingEvery ago
}

// typingStart is a typing.start that this node has appended, or is about to.
type typingStart struct {
	id   string
	at   time.Time
	done bool // the log has it
	// waiting are answered as soon as the log has it, or has not.
	waiting []func(id string, err error)
}

func newTyping(try func(*topics.Event, func(error))) *typing {
	return &typing{try: try, starts: make(map[typingPair]*typingStart)}
}

// tell appends that a user types, or types no more, unless the same has been appended a moment ago; answer is called
// once, when the log has what tells it, or with the error.
func (t *typing) tell(pair typingPair, on bool, answer func(id string, err error)) {
	if !on {
		t.stop(pair, answer)
		return
	}
	now := time.Now()
	t.mu.Lock()
	if s := t.starts[pair]; s != nil && now.Sub(s.at) < typingEvery {
		if !s.done {
			s.waiting = append(s.waiting, answer)
			t.mu.Unlock()
			return
		}
		t.mu.Unlock()
		answer(s.id, nil)
		return
	}
	ev := typingEvent(pair, true)
	s := &typingStart{id: ev.ID, at: now, waiting: []func(string, error){answer}}
	t.starts[pair] = s
	t.mu.Unlock()
	t.try(ev, func(err error) { t.appended(pair, s, err) })
}

// stop appends that a user types no more: a stop is rare, and must not be lost.
func (t *typing) stop(pair typingPair, answer func(id string, err error)) {
	t.mu.Lock()
	delete(t.starts, pair) // the next start is appended at once
	t.mu.Unlock()
	ev := typingEvent(pair, false)
	t.try(ev, func(err error) { answer(ev.ID, err) })
}

// appended answers all who wait for a start. One that failed is forgotten: the next is appended.
func (t *typing) appended(pair typingPair, s *typingStart, err error) {
	t.mu.Lock()
	waiting := s.waiting
	s.waiting, s.done = nil, true
	if err != nil && t.starts[pair] == s {
		delete(t.starts, pair)
	}
	t.mu.Unlock()
	for _, answer := range waiting {
		answer(s.id, err)
	}
}

func typingEvent(pair typingPair, on bool) *topics.Event {
	return topics.Typing{UserID: pair.from, IsTyping: on}.Event(pair.to)
}

// sweep forgets starts that are too old to lean on, once the log has answered them.
func (t *typing) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for pair, s := range t.starts {
		if s.done && now.Sub(s.at) >= typingEvery {
			delete(t.starts, pair)
		}
	}
}
