package push

import (
	"testing"

	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

func event(t *testing.T, topic topics.Topic, key, typ, value string) *topics.Event {
	t.Helper()
	e := &topics.Event{Topic: topic, Offset: 7, Time: 1764583200000, Key: []byte(key), Meta: topics.Meta{Type: typ}, Value: []byte(value)}
	if err := topics.Valid(topicstest.Sign(e)); err != nil {
		t.Fatal(err)
	}
	return e
}

// The matrix: what is pushed at all, to whom, how urgently.
func TestNoteOf(t *testing.T) {
	for name, tc := range map[string]struct {
		e    *topics.Event
		user string // empty: not pushed
		body string
		high bool
	}{
		"notification": {event(t, topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM"}`), "a", "b", false},
		"high": {event(t, topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","priority":"high"}`), "a",
			"b", true},
		"low": {event(t, topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","priority":"low"}`), "a", "b",
			false},
		"message": {event(t, topics.Messages, "dm:a:b", "message", `{"senderId":"b","receiverId":"a","content":"c"}`), "a", "c", true},
		"encrypted message": {event(t, topics.Messages, "dm:a:b", "message", `{"senderId":"b","receiverId":"a","encrypted":{"x":1}}`), "a",
			"You have a new encrypted message", true},
		"to oneself":   {event(t, topics.Messages, "dm:a:a", "message", `{"senderId":"a","receiverId":"a","content":"c"}`), "", "", false},
		"receipt":      {event(t, topics.Messages, "dm:a:b", "message.read", `{"messageId":"1","userId":"a"}`), "", "", false},
		"activity":     {event(t, topics.Notifications, "user:a", "activity", `{"type":"x","userId":"b","message":"m"}`), "", "", false},
		"announcement": {event(t, topics.Broadcasts, "all", "", `{"title":"t","body":"b"}`), "", "", false},
		"channel":      {event(t, topics.Broadcasts, "channel:c", "", `{"title":"t","body":"b","type":"SYSTEM"}`), "", "", false},
	} {
		user, n, ok := NoteOf(tc.e)
		if ok != (tc.user != "") || ok && (user != tc.user || n.Body != tc.body || n.High != tc.high) {
			t.Errorf("%s: %q %v %+v", name, user, ok, n)
		}
	}
}
