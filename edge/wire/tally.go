package wire

import (
	"context"
	"sync"
)

// Tally counts what is under way, for Drain to wait for. The zero value is ready; it is safe for concurrent use.
type Tally struct {
	mu   sync.Mutex
	n    int
	shut bool
	none chan struct{} // closed once nothing is under way; nil: nobody waits
}

// Begin counts one in; it reports false after shutdown.
func (t *Tally) Begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut {
		return false
	}
	t.n++
	return true
}

// End counts one out.
func (t *Tally) End() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.none != nil {
		close(t.none)
		t.none = nil
	}
}

// Shutdown lets nothing begin any more.
func (t *Tally) Shutdown() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shut = true
}

// Wait returns once nothing is under way, or when ctx ends; it reports which.
func (t *Tally) Wait(ctx context.Context) bool {
	t.mu.Lock()
	if t.n == 0 {
		t.mu.Unlock()
		return true
	}
	if t.none == nil {
		t.none = make(chan struct{})
	}
	none := t.none
	t.mu.Unlock()
	select {
	case <-none:
		return true
	case <-ctx.Done():
		return false
	}
}

// Count is how many are under way.
func (t *Tally) Count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}
