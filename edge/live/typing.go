package live

import (
	"sync"
	"time"

	"github.com/nexus/nexus/topics"
)

// typingFor is how long a user types after the last typing.start, if no typing.stop comes.
const typingFor = 6 * time.Second

// typingPair is who types to whom.
type typingPair struct{ from, to string }

// typing is what this node shows of users who type. It is safe for concurrent use.
type typing struct {
	// show sends the receiver an event; it never blocks.
	show func(to string, f *topics.Frame, data []byte)

	mu      sync.Mutex
	stopped bool
	ends    map[typingPair]*typingEnd // of those who are shown as typing
}

// typingEnd ends what is shown when no typing.stop comes.
type typingEnd struct{ timer *time.Timer }

func newTyping(show func(string, *topics.Frame, []byte)) *typing {
	return &typing{show: show, ends: make(map[typingPair]*typingEnd)}
}

// shown shows a receiver what the log says; what begins ends by itself after typingFor.
func (t *typing) shown(pair typingPair, on bool, f *topics.Frame, data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if end := t.ends[pair]; end != nil {
		end.timer.Stop()
		delete(t.ends, pair)
	}
	if on && !t.stopped {
		end := &typingEnd{}
		end.timer = time.AfterFunc(typingFor, func() { t.ended(pair, end) })
		t.ends[pair] = end
	}
	t.show(pair.to, f, data)
}

// ended shows that a user types no more, unless the log has said something newer: the timer fired as that came.
func (t *typing) ended(pair typingPair, end *typingEnd) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ends[pair] != end {
		return
	}
	delete(t.ends, pair)
	f, data := topics.Typing{UserID: pair.from}.Frame(time.Now().UnixMilli())
	t.show(pair.to, f, data)
}

// close ends all timers; from now on nothing ends by itself.
func (t *typing) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	for pair, end := range t.ends {
		end.timer.Stop()
		delete(t.ends, pair)
	}
}
