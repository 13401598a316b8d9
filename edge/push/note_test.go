package push

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

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
		"notification":      {event(t, topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM"}`), "a", "b", false},
		"high":              {event(t, topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","priority":"high"}`), "a", "b", true},
		"low":               {event(t, topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","priority":"low"}`), "a", "b", false},
		"message":           {event(t, topics.Messages, "dm:a:b", "message", `{"senderId":"b","receiverId":"a","content":"c"}`), "a", "c", true},
		"encrypted message": {event(t, topics.Messages, "dm:a:b", "message", `{"senderId":"b","receiverId":"a","encrypted":{"x":1}}`), "a", "You have a new encrypted message", true},
		"to oneself":        {event(t, topics.Messages, "dm:a:a", "message", `{"senderId":"a","receiverId":"a","content":"c"}`), "", "", false},
		"receipt":           {event(t, topics.Messages, "dm:a:b", "message.read", `{"messageId":"1","userId":"a"}`), "", "", false},
		"activity":          {event(t, topics.Notifications, "user:a", "activity", `{"type":"x","userId":"b","message":"m"}`), "", "", false},
		"announcement":      {event(t, topics.Broadcasts, "all", "", `{"title":"t","body":"b"}`), "", "", false},
		"channel":           {event(t, topics.Broadcasts, "channel:c", "", `{"title":"t","body":"b","type":"SYSTEM"}`), "", "", false},
	} {
		user, n, ok := noteOf(tc.e)
		if ok != (tc.user != "") || ok && (user != tc.user || n.Body != tc.body || n.High != tc.high) {
			t.Errorf("%s: %q %v %+v", name, user, ok, n)
		}
	}
}

// Golden: a message on the wire.
func TestMessage(t *testing.T) {
	_, n, _ := noteOf(event(t, topics.Notifications, "user:a", "", `{"title":"T","body":"B","type":"MESSAGE","priority":"high","data":{"k":{"n":1},"google.x":"y","url":"https://e.example/p"}}`))
	got, err := json.Marshal(n.message("tok", time.UnixMilli(n.RecordTime).Add(time.Minute), time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"data":{"_google.x":"y","event":"notification","id":"n0-7","k":"{\"n\":1}","timestamp":"2025-12-01T10:00:00.000Z","type":"MESSAGE","url":"https://e.example/p"},` +
		`"notification":{"title":"T","body":"B"},"android":{"ttl":"3540s","collapse_key":"n0-7","priority":"high","notification":{"tag":"n0-7"}},` +
		`"webpush":{"headers":{"TTL":"3540","Urgency":"high"},"notification":{"body":"B","tag":"n0-7","title":"T"},"fcm_options":{"link":"https://e.example/p"}},` +
		`"apns":{"headers":{"apns-collapse-id":"n0-7","apns-expiration":"1764586800","apns-priority":"10"}},"token":"tok"}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// However large the event, the message is within what FCM takes, and its text is whole characters.
func TestFit(t *testing.T) {
	for _, tc := range []struct{ body, data int }{{10, 10}, {3000, 0}, {0, 9000}, {3000, 9000}, {5000, 3}} {
		data := map[string]string{"id": strings.Repeat("i", 36), "type": "SYSTEM", "event": "notification", "timestamp": "t", "a": strings.Repeat("x", tc.data), "b": "kept"}
		body := fit("title", strings.Repeat("é", tc.body), data)
		size := 2 * (len("title") + len(body))
		for k, v := range data {
			size += len(k) + len(v)
		}
		if size > maxPayload+8 || !utf8.ValidString(body) || data["id"] == "" {
			t.Errorf("%+v: %d bytes, body of %d, data %d", tc, size, len(body), len(data))
		}
		if tc.body < 100 && data["b"] == "" {
			t.Errorf("%+v: more was removed than had to be", tc)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for v, want := range map[string]time.Duration{"": 0, "30": 30 * time.Second, "180": 3 * time.Minute, "Fri, 02 Jan 2026 03:05:05 GMT": time.Minute,
		"Fri, 02 Jan 2026 03:00:00 GMT": 0, "-1": 0, "soon": 0} {
		if got := retryAfter(http.Header{"Retry-After": {v}}, now); got != want {
			t.Errorf("%q: %s, want %s", v, got, want)
		}
	}
	for attempt := 1; attempt < 20; attempt++ {
		if d := wait(0, attempt); d < 500*time.Millisecond || d > time.Minute {
			t.Errorf("attempt %d waits %s", attempt, d)
		}
	}
	if d := wait(30*time.Second, 9); d < 30*time.Second {
		t.Errorf("asked for 30 s, waits %s", d)
	}
	if v := verdictOf(errors.New("the SDK finds the message malformed"), now); v.Kind != Invalid || strings.Contains(v.Err.Error(), "malformed") {
		t.Errorf("%+v", v)
	}
}
