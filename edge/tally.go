package edge

import (
	"context"
	"sync"
)

// tally counts what is under way, for Drain to wait for. The zero value is ready; it is safe for concurrent use.
type tally struct {
	mu   sync.Mutex
	n    int
	shut bool
	none chan struct{} // closed once nothing is under way; nil: nobody waits
}

// begin counts one in; it reports false after shutdown.
func (t *tally) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut {
		return false
	}
	t.n++
	return true
}

// end counts one out.
func (t *tally) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.none != nil {
		close(t.none)
		t.none = nil
	}
}

// shutdown lets nothing begin any more.
func (t *tally) shutdown() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shut = true
}

// wait returns once nothing is under way, or when ctx ends; it reports which.
func (t *tally) wait(ctx context.Context) bool {
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

func (t *tally) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}
