package pipeline

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/nexus/nexus/topics"
)

// Whoever waits for the tail goes on when the last partition has come far enough, not before, and no later than his context ends.
func TestTailAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tail := &Tail{parts: map[topics.Topic][]*tailPart{topics.Messages: {{}, {}}}}
		await := func(ctx context.Context, v ...int64) <-chan error {
			done := make(chan error, 1)
			go func() { done <- tail.Await(ctx, topics.Messages, v) }()
			synctest.Wait()
			return done
		}
		ctx, cancel := context.WithCancel(t.Context())
		two, given := await(t.Context(), 5, 7), await(ctx, 1, 100)
		for _, step := range []struct {
			p, to int
			over  bool
		}{{0, 4, false}, {1, 7, false}, {0, 5, true}} {
			tail.parts[topics.Messages][step.p].routed(Batch{To: int64(step.to)})
			synctest.Wait()
			if over := len(two) > 0; over != step.over {
				t.Errorf("partition %d at %d: over %v, want %v", step.p, step.to, over, step.over)
			}
		}
		if err := <-two; err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-given; !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want that the context has ended", err)
		}
		if err := <-await(t.Context(), 5, 7); err != nil {
			t.Error(err)
		}
	})
}
