package testenv

import (
	"context"
	"testing"
	"time"
)

// Patience is how long Eventually waits. It is long, because the machine may be busy: a test that passes never waits for it.
const Patience = time.Minute

// Eventually waits until a condition holds and ends the test where it does not within Patience; what completes the
// sentence "never: …".
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Within(t, Patience, what, ok)
}

// Within is Eventually with another patience, for what is known to take long.
func Within(t testing.TB, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(look) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// look is the pause between two looks at a condition: short, because a test often waits for several things one after the other.
const look = 10 * time.Millisecond

// succeed is Eventually for what fails for a while: a server accepts connections before it accepts work.
func succeed(t testing.TB, try func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(look):
		}
	}
}
