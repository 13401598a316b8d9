package pipeline

import (
	"testing"
	"testing/synctest"

	"github.com/nexus/nexus/topics"
)

// TestPointAhead verifies a point that the tail has not come to yet, as a client brings it from a node that was a moment ahead.
func TestPointAhead(t *testing.T) {
	for name, arrives := range map[string]bool{"it comes": true, "it does not come": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				part := &tailPart{waiting: make(map[int64]func(bool)), duplicates: make(map[int64]bool)}
				tail := &Tail{route: func(Batch) {}, parts: map[topics.Topic][]*tailPart{topics.Messages: {part}}}
				verdict := make(chan bool, 1)
				go func() {
					good, err := tail.Verify(t.Context(), map[topics.Partition]Point{topics.Messages.Partition(0): PointAt(1, 42)})
					if err != nil {
						t.Error(err)
					}
					verdict <- good
				}()
				synctest.Wait()
				if arrives {
					_ = tail.Apply(t.Context(), Batch{Topic: topics.Messages, To: 1, Mark: 42, Events: []*topics.Event{{Time: 42}}})
				}
				if got := <-verdict; got != arrives {
					t.Errorf("the verdict is %v", got)
				}
			})
		})
	}
}
