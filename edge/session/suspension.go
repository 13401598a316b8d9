package session

import (
	"sync"

	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// Suspension holds back what comes for a session while that is being given what it missed. It is safe for concurrent use.
type Suspension struct {
	s     *Session
	limit int // bytes

	mu    sync.Mutex
	held  []*wire.Frozen
	size  int
	ended bool
}

// Suspend has everything wait that is sent to the session from now on, until Release. More than limit bytes that wait end the
// session as too slow.
func (s *Session) Suspend(limit int) *Suspension {
	p := &Suspension{s: s, limit: limit}
	s.suspended.Store(p)
	return p
}

// hold keeps what is sent, unless the session goes on already.
func (p *Suspension) hold(f wire.Framer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	z := wire.Freeze(f, p.s.Style)
	p.size += z.Size()
	if p.size > p.limit {
		p.held = nil
		p.s.Out.Close(apierr.CloseTooSlow, "more came than can be held back; it may resume")
		return true
	}
	p.held = append(p.held, z)
	return true
}

// Release sends what was held back, but for events that the session has been given, and lets the session go on.
func (p *Suspension) Release(given func(*topics.Event) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, z := range p.held {
		if z.Of == nil || !given(z.Of) {
			p.s.Out.Deliver(z, p.s.Style)
		}
	}
	p.held, p.ended = nil, true
	p.s.suspended.Store(nil)
}
