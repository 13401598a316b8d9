package gateway

import (
	"testing"
	"time"

	"github.com/nexus/nexus/topics"
)

// A copy of a message without a clientMessageId is the same message within the span and another one beyond it, on whichever of two
// nodes it is sent; the dedup window goes by the identity.
func TestContentWindow(t *testing.T) {
	const window = 5 * time.Minute
	for name, tc := range map[string]struct {
		span, after time.Duration
		same        bool
	}{
		"the dedup window, at once":        {window, 0, true},
		"the dedup window, before its end": {window, window - 1, true},
		"shorter, within":                  {time.Minute, time.Minute - 1, true},
		"shorter, at its end":              {time.Minute, time.Minute, false},
		"none, at once":                    {0, 0, false},
		"none, later":                      {0, time.Second, false},
	} {
		here, there := newContentIDs(tc.span, window), newContentIDs(tc.span, window)
		begin := time.UnixMilli(1764583200000)
		draft := topics.Draft{ReceiverID: "bob", Content: "ok"}
		first := here.message("alice", draft, begin)
		for _, node := range []*contentIDs{here, there} {
			node.note(first, begin)
		}
		for _, node := range []*contentIDs{here, there} {
			again := node.message("alice", draft, begin.Add(tc.after))
			if same := again.NexusID == first.NexusID && again.IdempotencyKey == first.IdempotencyKey; same != tc.same {
				t.Errorf("%s: the same is %v: %s %s, then %s %s", name, same, first.NexusID, first.IdempotencyKey, again.NexusID, again.IdempotencyKey)
			}
			if err := topics.Valid(again); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// The span slides: each copy within it prolongs it. A sweep forgets what is over, and nothing else.
	ids, at := newContentIDs(time.Minute, window), time.UnixMilli(1764583200000)
	draft := topics.Draft{ReceiverID: "bob", Content: "ok"}
	first := ids.message("alice", draft, at)
	ids.note(first, at)
	for range 5 {
		at = at.Add(50 * time.Second)
		ids.sweep(at)
		again := ids.message("alice", draft, at)
		if again.IdempotencyKey != first.IdempotencyKey {
			t.Fatal("a copy within the span of the copy before it is another message")
		}
		ids.note(again, at)
	}
	ids.sweep(at.Add(time.Minute))
	if len(ids.all) != 0 {
		t.Errorf("%d are remembered beyond the span", len(ids.all))
	}
	// Two nodes get copies before either has seen the other's: one identity.
	one, two := newContentIDs(time.Minute, window), newContentIDs(time.Minute, window)
	if a, b := one.message("alice", draft, at), two.message("alice", draft, at); a.IdempotencyKey != b.IdempotencyKey {
		t.Errorf("copies on two nodes at once are %s and %s", a.IdempotencyKey, b.IdempotencyKey)
	}
}
