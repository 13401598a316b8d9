package gateway

import (
	"testing"
	"time"
)

func TestLimiterForgetsTheQuiet(t *testing.T) {
	l, now := newLimiter(1, time.Second), time.Now()
	if _, ok := l.allow("a", now); !ok {
		t.Fatal("the first is refused")
	}
	if _, ok := l.allow("a", now); ok {
		t.Error("the second is let in")
	}
	if _, ok := l.allow("b", now); !ok {
		t.Error("another user pays")
	}
	l.sweep(now.Add(time.Minute))
	if len(l.users) != 0 {
		t.Errorf("%d users are remembered", len(l.users))
	}
}

// Own messages count once, when they are sent; those of other nodes when the log shows them.
func TestLimiterCountsOverNodes(t *testing.T) {
	l, now := newLimiter(3, time.Minute), time.Now()
	if _, ok := l.allow("a", now); !ok {
		t.Fatal("the first is refused")
	}
	l.own("1", now)
	l.shown("a", "1", now) // this node's
	l.shown("a", "1", now) // the same id by another node
	if _, ok := l.allow("a", now); !ok {
		t.Error("two are counted as three")
	}
	if _, ok := l.allow("a", now); ok {
		t.Error("another node's message is not counted")
	}
	l.own("lost", now)
	if l.sweep(now.Add(2 * time.Minute)); len(l.sent) != 0 {
		t.Errorf("%d appends are remembered", len(l.sent))
	}
}
