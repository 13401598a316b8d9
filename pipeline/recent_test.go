package pipeline

import (
	"fmt"
	"testing"

	"github.com/nexus/nexus/topics"
)

// The last events are kept, within bounds, and it is told from where on.
func TestRecent(t *testing.T) {
	all := func(*topics.Event) bool { return true }
	r := &recent{low: 10}
	add := func(offset int64, value int, duplicate bool) {
		e := topics.New(topics.Notifications, "user:a", topics.Meta{Type: topics.TypeNotification},
			topics.Fields("title", fmt.Sprintf("%0*d", value, 1), "body", "", "type", "SYSTEM"))
		e.Offset, e.Duplicate = offset, duplicate
		r.add([]*topics.Event{e})
	}
	for k := range int64(5) {
		add(10+k, 10, k == 2)
	}
	check := func(from, to int64, low int64, want ...int64) {
		t.Helper()
		list, at := r.between(from, to, all)
		if at != low || len(list) != len(want) {
			t.Fatalf("%d events from %d, want %d from %d", len(list), at, len(want), low)
		}
		for i, e := range list {
			if e.Offset != want[i] {
				t.Errorf("offset %d, want %d", e.Offset, want[i])
			}
		}
	}
	check(0, 15, 10, 10, 11, 13, 14)
	check(11, 14, 11, 11, 13)
	check(12, 13, 12)
	check(20, 30, 20)
	for k := range int64(recentEvents) {
		add(15+k, 10, false)
	}
	list, low := r.between(0, 1e9, all)
	if len(list) != recentEvents || low != 15 {
		t.Errorf("%d events from %d", len(list), low)
	}
	for k := range int64(30) {
		add(5000+k, 100_000, false)
	}
	if list, _ := r.between(0, 1e9, all); len(list) != 10 || r.bytes > recentBytes {
		t.Errorf("%d events, %d bytes", len(list), r.bytes)
	}
}
