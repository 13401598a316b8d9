package edge

import (
	"math/rand/v2"
	"testing"
	"time"
)

// In no window are there more than the limit, and who has waited as told is let in.
func TestBucketWindow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	const limit, window = 10, time.Minute
	w := newBucketWindow(limit, window)
	now := time.Unix(1_764_583_200, 0)
	var taken []time.Time
	for range 5000 {
		now = now.Add(time.Duration(r.Int64N(int64(8 * time.Second))))
		wait, ok := w.allow(now)
		if !ok {
			if wait <= 0 || wait > window+2*time.Second {
				t.Fatalf("told to wait %s", wait)
			}
			if now = now.Add(wait); r.IntN(2) == 0 {
				if _, ok := w.allow(now); !ok {
					t.Fatal("refused after having waited as told")
				}
				taken = append(taken, now)
			}
			continue
		}
		taken = append(taken, now)
		inside := 0
		for _, at := range taken {
			if now.Sub(at) < window {
				inside++
			}
		}
		if inside > limit {
			t.Fatalf("%d within a window", inside)
		}
	}
}

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
