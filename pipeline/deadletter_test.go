package pipeline

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// A dead letter that cannot be applied is not appended once more: that would be one more to be set aside.
func TestDeadLetterIsNotSetAside(t *testing.T) {
	p := &Producer{} // it appends nothing, or panics
	if err := p.SetAside(t.Context(), &topics.Event{Topic: topics.DeadLetters}, &kgo.Record{}, errors.New("no")); err != nil {
		t.Error(err)
	}
}
