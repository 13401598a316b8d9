package topicstest_test

import (
	"encoding/json"
	"testing"

	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

// Every field of every type is there at its largest, and one byte more is refused where the schema has a bound of its own.
func TestLargest(t *testing.T) {
	list, err := topicstest.Largest(1)
	if err != nil {
		t.Fatal(err)
	}
	longest, full := make(map[string]int), 0
	for _, e := range list {
		if err := topics.Valid(e); err != nil {
			t.Errorf("%s: %v", e.Type, err)
		}
		if len(e.Value) > topics.MaxValue-4 {
			full++
		}
		var v map[string]json.RawMessage
		if err := json.Unmarshal(e.Value, &v); err != nil {
			t.Fatal(err)
		}
		for name, raw := range v {
			var s string
			_ = json.Unmarshal(raw, &s)
			longest[e.Type+"."+name] = max(longest[e.Type+"."+name], len(s), 1)
		}
	}
	for _, s := range topics.Kinds() {
		for _, f := range s.Fields {
			if longest[s.Type+"."+f.Name] == 0 {
				t.Errorf("no event has field %s of a %s", f.Name, s.Type)
			}
		}
	}
	for name, want := range map[string]int{"device.registered.token": topics.MaxToken, "message.read.messageId": topics.MaxID,
		"message.clientMessageId": 4 * 256, "notification.read.notificationId": topics.MaxID, "message.senderId": topics.MaxID} {
		if longest[name] != want {
			t.Errorf("%s has %d bytes at most, want %d", name, longest[name], want)
		}
	}
	if n := longest["message.content"]; n < topics.MaxValue-2000 {
		t.Errorf("the content has %d bytes at most", n)
	}
	if full == 0 {
		t.Error("no value is as large as it may be")
	}
	t.Logf("%d events, %d with a value as large as it may be", len(list), full)
}
