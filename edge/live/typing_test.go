package live

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nexus/nexus/edge/session/sessiontest"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// routed hands a typing event on as the tail does.
func routed(v *Live, pair typingPair, on bool) {
	ev := topics.Typing{UserID: pair.from, IsTyping: on}.Event(pair.to)
	v.Route(pipeline.Batch{Topic: topics.Signals, Events: []*topics.Event{ev}})
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
				v := New(Options{Sessions: sessiontest.New(), Seen: func(*topics.Event) {}, Logger: slog.New(slog.DiscardHandler)})
				defer v.Shutdown()
				bob, out := sessiontest.Join(v.o.Sessions, "bob", topics.Messaging)
				bob.Style.Canonical = true
				began := time.Now()
				for _, at := range tc.starts {
					time.Sleep(at - time.Since(began))
					routed(v, alice, true)
				}
				if tc.stop > 0 {
					time.Sleep(tc.stop - time.Since(began))
					routed(v, alice, false)
				}
				time.Sleep(tc.want - time.Since(began) - time.Nanosecond)
				synctest.Wait()
				if shown := out.Texts(); tc.stop == 0 && (len(shown) != len(tc.starts) || strings.Contains(shown[len(shown)-1], "stop")) {
					t.Errorf("too early: %q", shown)
				}
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				shown := out.Texts()
				if len(shown) != len(tc.starts)+1 || !strings.HasPrefix(shown[len(shown)-1],
					`{"event":"typing:stop","data":{"userId":"alice","isTyping":false,"timestamp":"`) {
					t.Errorf("not at %s: %q", tc.want, shown)
				}
				time.Sleep(time.Minute)
				if later := out.Texts(); len(later) != len(shown) {
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
		start, _ := topics.Typing{IsTyping: true}.Frame(0)
		stop, _ := topics.Typing{}.Frame(0)
		shown := make(map[string]bool) // by receiver
		ty := newTyping(func(to string, f *topics.Frame, _ []byte) { shown[to] = f == start })
		last := make(map[string]time.Time) // by receiver: the last start that no stop followed
		for step := range 5000 {
			pair := typingPair{"a", fmt.Sprint(random.IntN(3))}
			ty.mu.Lock()
			stale := ty.ends[pair]
			ty.mu.Unlock()
			if on := random.IntN(3) > 0; on {
				ty.shown(pair, true, start, nil)
				last[pair.to] = time.Now()
			} else {
				ty.shown(pair, false, stop, nil)
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
