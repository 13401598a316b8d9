package pipeline

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/nexus/nexus/topics"
)

// What is red, and since when: by the status alone, no clock is waited for.
func TestProblems(t *testing.T) {
	long, short := time.Now().Add(-stuckAfter-time.Second), time.Now().Add(-stuckAfter/2)
	for name, tc := range map[string]struct {
		s    Status
		want string
	}{
		"well":                 {Status{Next: 5, Seen: 5, End: 5}, ""},
		"idle for long":        {Status{Next: 5, Seen: 5, End: 5, MovedAt: long}, ""},
		"failing for a moment": {Status{FailingSince: short, Err: errors.New("away")}, ""},
		"failing for long": {Status{Of: topics.Messages.Partition(3), FailingSince: long, Err: errors.New("disk full")},
			"messages/3: nothing was applied for 11s: disk full"},
		"behind for a moment": {Status{Next: 5, Seen: 5, End: 9, BehindSince: short}, ""},
		"behind and standing still": {Status{Of: topics.Devices.Partition(0), Next: 5, Seen: 5, End: 9, BehindSince: long},
			"devices/0: is 4 records behind"},
		"warming and standing still": {Status{Of: topics.Messages.Partition(0), Next: 9, Seen: 2, End: 9, BehindSince: long},
			"messages/0: is 7 records behind"},
	} {
		err := tc.s.problem()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// A partition that is behind counts from when it was first seen so, and anew whenever it moves.
func TestBehindSince(t *testing.T) {
	w := &worker{status: Status{Next: 5, Seen: 5}}
	w.lookAt(5)
	if !w.status.BehindSince.IsZero() {
		t.Error("behind at the end")
	}
	if quiet := w.lookAt(7); !quiet || w.status.BehindSince.IsZero() {
		t.Errorf("behind by two: quiet %v, since %v", quiet, w.status.BehindSince)
	}
	w.status.BehindSince = time.Now().Add(-time.Hour)
	w.lookAt(8) // the log grows: that is no move of ours
	if time.Since(w.status.BehindSince) < time.Minute {
		t.Error("a log that grows excuses who stands still")
	}
	w.applied(Batch{To: 6})
	if time.Since(w.status.BehindSince) > time.Minute {
		t.Error("a move does not count")
	}
	w.applied(Batch{To: 8})
	w.markSeen(8)
	w.lookAt(8)
	if !w.status.BehindSince.IsZero() {
		t.Error("behind at the end")
	}
}

// The log is red while no append succeeds, and green after the first that does; a record that is refused for itself says nothing.
func TestProducerProblem(t *testing.T) {
	p := &Producer{}
	for _, err := range []error{ErrOverloaded, kerr.MessageTooLarge} {
		if p.outcome(err); !p.failing.IsZero() {
			t.Errorf("%v counts as a failure of the log", err)
		}
	}
	p.outcome(kerr.UnknownServerError)
	if err := p.Problem(); err != nil {
		t.Errorf("red after one failure: %v", err)
	}
	p.failing = time.Now().Add(-stuckAfter)
	p.outcome(errors.New("no space left"))
	if err := p.Problem(); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("nothing could be appended for long: %v", err)
	}
	p.outcome(nil)
	if err := p.Problem(); err != nil {
		t.Errorf("red after a success: %v", err)
	}
}
