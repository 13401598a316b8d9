package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// probed is a part that a node needs to be ready. probe says what is wrong with it; nil where all is well.
type probed struct {
	name  string
	probe func(ctx context.Context) error
}

// probeTime bounds how long a part may take to answer: readiness is told within a second, which is what a balancer's
// probe waits (Kubernetes, timeoutSeconds).
const probeTime = 800 * time.Millisecond

// health asks the parts of a node how they are, side by side, so that one that hangs is blamed alone. It is safe for
// concurrent use; a part is never asked twice at once, however many ask.
type health struct {
	parts []probed

	mu    sync.Mutex
	asked map[string]*question // under way, by part
}

// question is one probe under way; err may be read once done is closed.
type question struct {
	done chan struct{}
	err  error
}

func newHealth(parts []probed) *health {
	return &health{parts: parts, asked: make(map[string]*question)}
}

// names are the parts that can be excluded.
func (h *health) names() (list []string) {
	for _, p := range h.parts {
		list = append(list, p.name)
	}
	return list
}

// problems says, within probeTime, what is wrong with which part. Nothing is asked of those excluded.
func (h *health) problems(ctx context.Context, exclude []string) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	open := make(map[string]*question)
	for _, p := range h.parts {
		if !slices.Contains(exclude, p.name) {
			open[p.name] = h.ask(ctx, p)
		}
	}
	found := make(map[string]string)
	for name, q := range open {
		if err := q.await(ctx); err != nil {
			found[name] = err.Error()
		}
	}
	return found
}

// ask begins a probe, or joins the one that is under way. A probe goes on when whoever asked has gone: others may have
// joined it.
func (h *health) ask(ctx context.Context, p probed) *question {
	h.mu.Lock()
	defer h.mu.Unlock()
	if q := h.asked[p.name]; q != nil {
		return q
	}
	q := &question{done: make(chan struct{})}
	h.asked[p.name] = q
	go func() {
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTime)
		defer cancel()
		q.err = p.probe(own)
		h.mu.Lock()
		delete(h.asked, p.name)
		h.mu.Unlock()
		close(q.done)
	}()
	return q
}

var errNoAnswer = fmt.Errorf("does not answer within %s", probeTime)

func (q *question) await(ctx context.Context) error {
	select {
	case <-q.done:
		return q.err
	case <-ctx.Done():
	}
	select { // both may have happened
	case <-q.done:
		return q.err
	default:
		return errNoAnswer
	}
}

// probes are those of the parts that are open.
func (a *app) probes() (list []probed) {
	for _, p := range a.list {
		if o := a.parts[p.name]; o != nil && o.probe != nil {
			list = append(list, probed{p.name, o.probe})
		}
	}
	return list
}

// reached tells of an engine that cannot be reached, without the driver's words, which may hold addresses and users.
func reached(what string, err error) error {
	if err == nil {
		return nil
	}
	return errors.New(what + " cannot be reached")
}
