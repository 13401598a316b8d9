package edge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// routed hands a typing event to an edge as the tail does.
func routed(e *Edge, pair typingPair, on bool) {
	ev := typingEvent(pair, on)
	e.route(pipeline.Batch{Topic: topics.Signals, Events: []*topics.Event{ev}})
}

// What a user types is shown for exactly six seconds after the last typing.start, and then ends by itself.
func TestTypingEnds(t *testing.T) {
	alice := typingPair{"alice", "bob"}
	for name, tc := range map[string]struct {
		starts []time.Duration // since the beginning
		stop   time.Duration   // 0: none
		want   time.Duration   // when it ends
	}{
		"by itself":          {[]time.Duration{0}, 0, 6 * time.Second},
		"after the last one": {[]time.Duration{0, 2 * time.Second, 4 * time.Second}, 0, 10 * time.Second},
		"when told":          {[]time.Duration{0}, 3 * time.Second, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &Edge{hub: newHub(newMetrics(nil, nil).sent), ids: newContentIDs(0)}
				e.typing = newTyping(nil, e.sendTyping)
				bob, began := member("bob", topics.Messaging), time.Now()
				bob.style.canonical = true
				e.hub.join(bob, func() {})
				for _, at := range tc.starts {
					time.Sleep(at - time.Since(began))
					routed(e, alice, true)
				}
				if tc.stop > 0 {
					time.Sleep(tc.stop - time.Since(began))
					routed(e, alice, false)
				}
				time.Sleep(tc.want - time.Since(began) - time.Nanosecond)
				synctest.Wait()
				if shown := got(t, bob); tc.stop == 0 && (len(shown) != len(tc.starts) || strings.Contains(shown[len(shown)-1], "stop")) {
					t.Errorf("too early: %q", shown)
				}
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				shown := got(t, bob)
				if len(shown) != len(tc.starts)+1 || !strings.HasPrefix(shown[len(shown)-1], `{"event":"typing:stop","data":{"userId":"alice","isTyping":false,"timestamp":"`) {
					t.Errorf("not at %s: %q", tc.want, shown)
				}
				time.Sleep(time.Minute)
				if later := got(t, bob); len(later) != len(shown) {
					t.Errorf("and then: %q", later[len(shown):])
				}
			})
		})
	}
}

// Starts and stops at random times, at those of the timers too: what the receiver is shown last is what holds by the
// log, a timer that fired as a new start came included.
func TestTypingAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed, 0))
		shown := make(map[string]bool) // by receiver
		ty := newTyping(nil, func(to string, start bool, _ []byte) { shown[to] = start })
		last := make(map[string]time.Time) // by receiver: the last start that no stop followed
		for step := range 5000 {
			pair := typingPair{"a", fmt.Sprint(random.IntN(3))}
			ty.mu.Lock()
			stale := ty.ends[pair]
			ty.mu.Unlock()
			if on := random.IntN(3) > 0; on {
				ty.shown(pair, true, nil)
				last[pair.to] = time.Now()
			} else {
				ty.shown(pair, false, nil)
				delete(last, pair.to)
			}
			if stale != nil && random.IntN(2) == 0 {
				ty.ended(pair, stale) // its timer had fired already
			}
			time.Sleep([]time.Duration{0, time.Second, 2 * time.Second, typingFor, typingFor + time.Second}[random.IntN(5)])
			synctest.Wait()
			ty.mu.Lock()
			for to := range shown {
				at, typed := last[to]
				if want := typed && time.Since(at) < typingFor; shown[to] != want {
					t.Fatalf("step %d: %s is shown typing %v, want %v", step, to, shown[to], want)
				}
			}
			ty.mu.Unlock()
		}
		ty.close()
		if len(ty.ends) != 0 {
			t.Errorf("%d timers are left", len(ty.ends))
		}
	})
}

// A typing is acknowledged once the log has it; one that leans on an earlier append shares its fate.
func TestTypingAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log []func(error) // appends that wait for the log
		ty := newTyping(func(_ *topics.Event, done func(error)) { log = append(log, done) }, nil)
		pair, away := typingPair{"a", "b"}, errors.New("away")
		var answers []string
		tell := func(on bool) {
			ty.tell(pair, on, func(id string, err error) {
				if err != nil {
					id = err.Error()
				}
				answers = append(answers, id)
			})
		}
		want := func(what string, appends int, n int, same ...int) {
			t.Helper()
			if len(log) != appends || len(answers) != n {
				t.Fatalf("%s: %d appends and answers %q, want %d and %d", what, len(log), answers, appends, n)
			}
			for _, k := range same {
				if answers[k] != answers[same[0]] || answers[k] == "" {
					t.Errorf("%s: answers %q", what, answers)
				}
			}
		}
		tell(true)
		tell(true)
		want("before the log has it", 1, 0)
		log[0](away)
		want("the log has not taken it", 1, 2)
		if slices.ContainsFunc(answers, func(a string) bool { return a != "away" }) {
			t.Errorf("answers %q, want the error", answers)
		}
		tell(true)
		tell(true)
		want("a failed one is no ground to lean on", 2, 2)
		log[1](nil)
		want("the log has it", 2, 4, 2, 3)
		tell(true)
		want("and had it a moment ago", 2, 5, 2, 4)
		tell(false)
		tell(true)
		want("a stop is appended, and the next start", 4, 5)
		log[3](nil)
		log[2](away)
		want("each has its own answer", 4, 7)
		if answers[6] != "away" || answers[5] == "away" {
			t.Errorf("answers %q", answers)
		}
		time.Sleep(typingEvery)
		tell(true)
		want("later it is appended again", 5, 7)
		log[4](nil)
		time.Sleep(typingEvery)
		if ty.sweep(time.Now()); len(ty.starts) != 0 {
			t.Errorf("%d starts are remembered", len(ty.starts))
		}
	})
}
