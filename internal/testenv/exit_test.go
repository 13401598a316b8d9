package testenv

import (
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Exit(m) }

// A goroutine that does not end is found with its stack, one that ends within the grace is not.
func TestLeaks(t *testing.T) {
	running, release := make(chan struct{}), make(chan struct{})
	go waitFor(running, release)
	<-running
	// The test runner's own goroutine waits for this test; after the last test there is none.
	ours := func(stacks []string) (n int) {
		for _, s := range stacks {
			if strings.Contains(s, "testenv.waitFor") {
				n++
			}
		}
		return n
	}
	if left := leaks(0); ours(left) != 1 {
		t.Errorf("a goroutine that waits was found %d times in %q", ours(left), left)
	}
	close(release)
	Eventually(t, "the goroutine has ended", func() bool { return ours(leaks(0)) == 0 })
}

func waitFor(running chan<- struct{}, release <-chan struct{}) {
	close(running)
	<-release
}

func TestTop(t *testing.T) {
	for stack, want := range map[string]string{
		"goroutine 7 [select]:\nnet/http.(*persistConn).writeLoop(0xc0001b4000)\n\t/x/transport.go:2 +0x1": "net/http.(*persistConn).writeLoop",
		"goroutine 8 [IO wait, 2 minutes]:\nmain.main.func1()\n\t/x/main.go:3":                             "main.main.func1",
		"": "",
	} {
		if got := top(stack); got != want {
			t.Errorf("top(%q) is %q, want %q", stack, got, want)
		}
	}
}
