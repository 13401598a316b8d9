package gateway

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nexus/nexus/topics"
)

// A typing is acknowledged once the log has it; one that leans on an earlier append shares its fate.
func TestTypingAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log []func(error) // appends that wait for the log
		ty := newTyping(func(_ *topics.Event, done func(error)) { log = append(log, done) })
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
