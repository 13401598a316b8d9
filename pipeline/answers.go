package pipeline

import "sync"

// Answers hands the answer of a projection to whoever appended an event and waits until the projection has applied it. The zero value is
// ready. It is safe for concurrent use.
type Answers[V any] struct {
	mu      sync.Mutex
	waiting map[string]chan V // by the event's id
}

// Expect returns the channel that the answer to the event of this id comes on. Call it before the event is appended, and Forget when the
// answer is there or nobody waits any more.
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

// Forget ends the wait for an event's answer. Without it what Expect made stays for ever.
func (a *Answers[V]) Forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.waiting, id)
}

// Give is called by the projection with its answer. Only the first one counts; one that nobody waits for is dropped. It never blocks.
func (a *Answers[V]) Give(id string, v V) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.waiting[id]; c != nil {
		c <- v
		delete(a.waiting, id)
	}
}
