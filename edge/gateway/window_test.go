package gateway

import (
	"math/rand/v2"
	"testing"
	"time"
)

// In no window are there more than the limit, and who has waited as told is let in.
func TestSlidingWindow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	const limit, window = 10, time.Minute
	w := NewSlidingWindow(limit, window)
	now := time.Unix(1_764_583_200, 0)
	var taken []time.Time
	for range 5000 {
		now = now.Add(time.Duration(r.Int64N(int64(8 * time.Second))))
		wait, ok := w.Allow(now)
		if !ok {
			if wait <= 0 || wait > window+2*time.Second {
				t.Fatalf("told to wait %s", wait)
			}
			if now = now.Add(wait); r.IntN(2) == 0 {
				if _, ok := w.Allow(now); !ok {
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
