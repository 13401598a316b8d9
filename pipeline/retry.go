package pipeline

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff is how long to wait after the given number of failures: 100 ms doubling to 10 s, with half of it random, so
// that many who fail together do not come back together.
func backoff(failures int) time.Duration {
	d := 100 * time.Millisecond << min(failures, 7)
	d = min(d, 10*time.Second)
	return d/2 + rand.N(d/2)
}

// sleep waits for d or until ctx ends, and reports whether it slept in full.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
