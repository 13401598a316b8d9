package main

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Bounds of the log of an outage.
const (
	// repeatEvery is how often a line of one kind is written.
	repeatEvery = time.Second
	// maxKinds bounds the kinds that are told apart at once; beyond them all are one.
	maxKinds = 1000
)

// kind is what makes two lines the same to an operator; what differs in their attributes is detail.
type kind struct {
	component, message string
	level              slog.Level
}

// calm passes on one line a second of each kind of WARN and ERROR, and says in the next one how many it left out
// (suppressed=N): an outage fails thousands of requests. INFO and DEBUG pass as they are. Close it after the last line.
type calm struct {
	next      slog.Handler
	component string
	lines     *lines
}

// lines are what was left out in the second that runs, shared by all handlers made of one.
type lines struct {
	mu     sync.Mutex
	kinds  map[kind]*held
	closed bool
}

// held is the last line of a kind that was left out, and how many before it.
type held struct {
	timer *time.Timer
	count int
	last  slog.Record
	next  slog.Handler
}

func newCalm(next slog.Handler) *calm {
	return &calm{next: next, lines: &lines{kinds: make(map[kind]*held)}}
}

// Enabled is slog.Handler's.
func (c *calm) Enabled(ctx context.Context, level slog.Level) bool { return c.next.Enabled(ctx, level) }

// WithAttrs is slog.Handler's; it notes the component.
func (c *calm) WithAttrs(attrs []slog.Attr) slog.Handler {
	component := c.component
	for _, a := range attrs {
		if a.Key == "component" {
			component = a.Value.String()
		}
	}
	return &calm{next: c.next.WithAttrs(attrs), component: component, lines: c.lines}
}

// WithGroup is slog.Handler's.
func (c *calm) WithGroup(name string) slog.Handler {
	return &calm{next: c.next.WithGroup(name), component: c.component, lines: c.lines}
}

// Handle is slog.Handler's.
func (c *calm) Handle(ctx context.Context, r slog.Record) error {
	k := kind{c.component, r.Message, r.Level}
	if r.Level < slog.LevelWarn || !c.lines.leaveOut(k, r, c.next) { // a line told later has no caller
		return c.next.Handle(ctx, r)
	}
	return nil
}

// leaveOut tells whether a line is one too many in its second, and keeps it.
func (l *lines) leaveOut(k kind, r slog.Record, next slog.Handler) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if l.kinds[k] == nil && len(l.kinds) >= maxKinds {
		k = kind{}
	}
	h := l.kinds[k]
	if h == nil {
		l.kinds[k] = &held{timer: time.AfterFunc(repeatEvery, func() { l.tell(k) })}
		return false
	}
	h.count++
	h.last, h.next = r.Clone(), next
	return true
}

// tell writes what was left out of a kind in the second that has passed.
func (l *lines) tell(k kind) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.kinds[k]
	switch {
	case h == nil: // closed meanwhile
	case h.count == 0:
		delete(l.kinds, k)
	default:
		h.write()
		h.timer.Reset(repeatEvery)
	}
}

// write writes the last line that was left out, with the number of the others.
func (h *held) write() {
	if h.count > 1 {
		h.last.Add("suppressed", h.count-1)
	}
	_ = h.next.Handle(context.Background(), h.last) // a log that cannot be written has nowhere to say so
	h.count, h.last, h.next = 0, slog.Record{}, nil
}

// Close writes what is left out still; later lines pass as they are.
func (c *calm) Close() {
	l := c.lines
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for k, h := range l.kinds {
		h.timer.Stop()
		if h.count > 0 {
			h.write()
		}
		delete(l.kinds, k)
	}
}
