package testenv

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// Exit runs a package's tests, stops the services that they started, looks for goroutines that they left behind and ends
// the process: the body of TestMain.
func Exit(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	code := m.Run()
	mu.Lock()
	defer mu.Unlock()
	for _, stop := range slices.Backward(stops) {
		stop()
	}
	if code != 0 {
		return code // a test that failed may have left anything
	}
	if left := leaks(grace); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "%d goroutines were left behind:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
		return 1
	}
	return 0
}

// grace is how long goroutines may take to end once the tests have ended: closing a connection ends its goroutines a
// moment later.
const grace = 5 * time.Second

// kept are the functions in which a goroutine may wait for the life of a process: the standard library's own, which no
// test can end, and idle connections of http.DefaultClient.
var kept = []string{"os/signal.signal_recv", "os/signal.loop", "runtime.ReadTrace", "net/http.(*persistConn).readLoop",
	"net/http.(*persistConn).writeLoop"}

// leaks are the stacks of the goroutines, but for the caller's and those of kept, that have not ended after the grace.
func leaks(grace time.Duration) []string {
	for end := time.Now().Add(grace); ; time.Sleep(20 * time.Millisecond) {
		left := slices.DeleteFunc(stacks()[1:], func(stack string) bool { return slices.Contains(kept, top(stack)) })
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// stacks are the stacks of all goroutines, the caller's first.
func stacks() []string {
	b := make([]byte, 1<<20)
	for {
		if n := runtime.Stack(b, true); n < len(b) {
			return strings.Split(strings.TrimSpace(string(b[:n])), "\n\n")
		}
		b = make([]byte, 2*len(b))
	}
}

// top is the function that a goroutine is in: the first of its stack, without the arguments.
func top(stack string) string {
	_, rest, _ := strings.Cut(stack, "\n")
	line, _, _ := strings.Cut(rest, "\n")
	return line[:max(0, strings.LastIndexByte(line, '('))]
}
