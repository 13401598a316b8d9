package push

import (
	"testing"

	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

// The matrix: what is pushed at all, to whom, how urgently.
func TestNoteOf(t *testing.T) {
	for name, tc := range map[string]struct {
		e    *topics.Event
		user string // empty: not pushed
		body string
		high bool
	}{
		"notification": {topicstest.Event(t, topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM"}`), "a", "b", false},
		"high": {topicstest.Event(t, topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","priority":"high"}`), "a",
			"b", true},
		"low": {topicstest.Event(t, topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","priority":"low"}`), "a", "b",
			false},
		"message": {topicstest.Event(t, topics.Messages, "dm:a:b", "message", `{"senderId":"b","receiverId":"a","content":"c"}`), "a", "c", true},
		"encrypted message": {topicstest.Event(t, topics.Messages, "dm:a:b", "message", `{"senderId":"b","receiverId":"a","encrypted":{"x":1}}`),
			"a",
			"You have a new encrypted message", true},
		"to oneself": {topicstest.Event(t, topics.Messages, "dm:a:a", "message", `{"senderId":"a","receiverId":"a","content":"c"}`), "", "",
			false},
		"receipt": {topicstest.Event(t, topics.Messages, "dm:a:b", "message.read", `{"messageId":"1","userId":"a"}`), "", "", false},
		"activity": {topicstest.Event(t, topics.Notifications, "user:a", "activity", `{"type":"x","userId":"b","message":"m"}`), "", "",
			false},
		"announcement": {topicstest.Event(t, topics.Broadcasts, "all", "", `{"title":"t","body":"b"}`), "", "", false},
		"channel":      {topicstest.Event(t, topics.Broadcasts, "channel:c", "", `{"title":"t","body":"b","type":"SYSTEM"}`), "", "", false},
	} {
		user, n, ok := NoteOf(tc.e)
		if ok != (tc.user != "") || ok && (user != tc.user || n.Body != tc.body || n.High != tc.high) {
			t.Errorf("%s: %q %v %+v", name, user, ok, n)
		}
	}
}
