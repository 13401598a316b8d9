package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/stats"
)

// hangs is a probe that answers only when it is given up; with deaf not even then, until the channel closes.
func hangs(deaf <-chan struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		if deaf != nil {
			<-deaf
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

func well(context.Context) error { return nil }

// A part that hangs is blamed alone and within 800 ms; what is excluded is not asked, and costs no time.
func TestHealthBlamesWhatHangs(t *testing.T) {
	for name, tc := range map[string]struct {
		exclude []string
		want    []string
		within  time.Duration
	}{
		"all":                          {nil, []string{"deaf", "inbox", "log"}, probeTime},
		"without those that hang":      {[]string{"inbox", "deaf"}, []string{"log"}, 0},
		"without one that is well":     {[]string{"stats"}, []string{"deaf", "inbox", "log"}, probeTime},
		"without anything that is bad": {[]string{"inbox", "deaf", "log"}, nil, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			deaf := make(chan struct{})
			defer close(deaf)
			var asked sync.Map
			noting := func(name string, probe func(context.Context) error) probed {
				return probed{name, func(ctx context.Context) error {
					asked.Store(name, true)
					return probe(ctx)
				}}
			}
			h := newHealth([]probed{noting("log", func(context.Context) error { return errors.New("is away") }), noting("inbox", hangs(nil)),
				noting("stats", well), noting("deaf", hangs(deaf))})
			begin := time.Now()
			found := h.problems(t.Context(), tc.exclude)
			if took := time.Since(begin); took != tc.within {
				t.Errorf("%s: took %s, want %s", name, took, tc.within)
			}
			if len(found) != len(tc.want) {
				t.Errorf("%s: %v, want %v", name, found, tc.want)
			}
			for _, part := range tc.want {
				if found[part] == "" {
					t.Errorf("%s: %s is not blamed: %v", name, part, found)
				}
			}
			for _, part := range tc.exclude {
				if _, was := asked.Load(part); was {
					t.Errorf("%s: %s was asked though it is excluded", name, part)
				}
			}
		})
	}
}

// However many ask, a part is asked once at a time: a part that is deaf to its deadline holds one goroutine, not one for
// each probe of a balancer, and is asked again once it has answered.
func TestHealthAsksOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deaf := make(chan struct{})
		var asked atomic.Int32
		h := newHealth([]probed{{"inbox", func(context.Context) error {
			asked.Add(1)
			<-deaf
			return nil
		}}})
		var askers sync.WaitGroup
		for range 50 {
			askers.Go(func() {
				for range 3 {
					if h.problems(t.Context(), nil)["inbox"] != errNoAnswer.Error() {
						t.Error("a part that does not answer is not blamed")
					}
				}
			})
		}
		askers.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		close(deaf)
		synctest.Wait()
		if found := h.problems(t.Context(), nil); len(found) > 0 || asked.Load() != 2 {
			t.Errorf("green again by itself: %v after %d", found, asked.Load())
		}
	})
}

// Who has gone takes no probe with him that others wait for.
func TestHealthOutlivesWhoAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		h := newHealth([]probed{{"log", func(ctx context.Context) error {
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return fmt.Errorf("cut off: %w", ctx.Err())
			}
		}}})
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan map[string]string, 1), make(chan map[string]string, 1)
		go func() { first <- h.problems(ctx, nil) }()
		synctest.Wait()
		go func() { second <- h.problems(t.Context(), nil) }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(gate)
		if found := <-second; len(found) > 0 {
			t.Errorf("%v", found)
		}
		if found := <-first; !maps.Equal(found, map[string]string{"log": errNoAnswer.Error()}) {
			t.Errorf("%v", found)
		}
	})
}

// What only an operator can mend is told at once, not after STARTUP_TIMEOUT as an engine that cannot be reached.
func TestForOperator(t *testing.T) {
	for err, want := range map[error]bool{
		fmt.Errorf("position of messages/0: %w", stats.ErrEmptied):                      true,
		errors.Join(&pipeline.WrongLogError{Consumer: "inbox"}, errors.New("and more")): true,
		context.DeadlineExceeded: false,
	} {
		if got := forOperator(err); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}
