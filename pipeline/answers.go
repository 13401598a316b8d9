package pipeline

import "sync"

// Answers hands what a fold says to an event to whoever appended it and waits. The zero value is ready; it is safe for
// concurrent use.
type Answers[V any] struct {
	mu      sync.Mutex
	waiting map[string]chan V // by the event's id
}

// Expect begins to wait for the answer to an event; call it before the event is appended, and Forget afterwards.
func (a *Answers[V]) Expect(id string) <-chan V {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting == nil {
		a.waiting = make(map[string]chan V)
	}
	c := make(chan V, 1)
	a.waiting[id] = c
	return c
}

// Forget ends the wait.
func (a *Answers[V]) Forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.waiting, id)
}

// Give answers; only the first answer counts, and one that nobody waits for is dropped.
func (a *Answers[V]) Give(id string, v V) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.waiting[id]; c != nil {
		c <- v
		delete(a.waiting, id)
	}
}
