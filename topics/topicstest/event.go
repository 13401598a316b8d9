package topicstest

import (
	"testing"

	"github.com/nexus/nexus/topics"
)

// Event is a valid event at offset 7 of partition 0, of 2025-12-01T10:00:00Z, signed by whom its type demands. An empty type is left
// out.
func Event(t testing.TB, topic topics.Topic, key, typ, value string) *topics.Event {
	t.Helper()
	e := &topics.Event{Topic: topic, Offset: 7, Time: 1764583200000, Key: []byte(key), Meta: topics.Meta{Type: typ}, Value: []byte(value)}
	if err := topics.Valid(Sign(e)); err != nil {
		t.Fatal(err)
	}
	return e
}
