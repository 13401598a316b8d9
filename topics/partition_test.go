package topics_test

import (
	"testing"

	"github.com/nexus/nexus/topics"
)

func TestEndsAdd(t *testing.T) {
	a, b := topics.Messages.Partition(0), topics.Devices.Partition(0)
	e := make(topics.Ends)
	for _, step := range []struct {
		of        topics.Partition
		end, want int64
	}{{a, 5, 5}, {a, 3, 5}, {b, 1, 1}, {a, 7, 7}, {b, 0, 1}} {
		if e.Add(step.of, step.end); e[step.of] != step.want || len(e) > 2 {
			t.Errorf("after Add(%s, %d): %v, want %d", step.of, step.end, e, step.want)
		}
	}
}

func TestPlaceOfEvent(t *testing.T) {
	e := &topics.Event{Topic: topics.DeadLetters, Partition: 12, Offset: 1 << 40}
	if got := e.At(); got != topics.DeadLetters.Partition(12).At(1<<40) || got.String() != "dead-letters/12/1099511627776" {
		t.Errorf("%+v, %s", got, got)
	}
}
