package fcm

import (
	"encoding/json"
	"errors"
	"maps"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"firebase.google.com/go/v4/messaging"

	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

// object is a producer's data.
func object(pairs ...any) json.RawMessage { return topics.Fields(pairs...) }

// Golden: a message on the wire.
func TestMessage(t *testing.T) {
	_, n, _ := push.NoteOf(topicstest.Event(t, topics.Notifications, "user:a", "",
		`{"title":"T","body":"B","type":"MESSAGE","priority":"high","data":{"k":{"n":1},"google.x":"y","url":"https://e.example/p"}}`))
	got, err := json.Marshal(message(n, "tok", time.UnixMilli(n.RecordTime).Add(time.Minute), time.Hour-time.Minute))
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

// size is that of the request as the Firebase SDK sends it.
func size(t testing.TB, m *messaging.Message) int {
	t.Helper()
	b, err := json.Marshal(map[string]any{"message": m})
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}

// However large the event, the message is within what FCM takes, its texts are whole characters, and what a user misses most
// is still there.
func TestFit(t *testing.T) {
	token, at := strings.Repeat("t", 180), time.UnixMilli(1764583200000)
	link := "https://e.example/" + strings.Repeat("p", 500)
	for name, tc := range map[string]struct {
		n    push.Note
		kept func(*messaging.Message) bool
	}{
		"small": {push.Note{Title: "t", Body: "b", Icon: "i", Data: object("a", "1")},
			func(m *messaging.Message) bool { return m.Data["a"] == "1" && m.Webpush.Notification.Icon == "i" }},
		"a long title": {push.Note{Title: strings.Repeat("é", 4211), Body: "b"},
			func(m *messaging.Message) bool { return len(m.Notification.Title) > 1000 && m.Notification.Body == "b" }},
		"a long body": {push.Note{Title: "t", Body: strings.Repeat("<", 9000)},
			func(m *messaging.Message) bool { return len(m.Notification.Body) > 100 && m.Notification.Title == "t" }},
		"long pictures": {push.Note{Title: "t", Body: "b", Icon: "https://e/" + strings.Repeat("i", 5000), Badge: strings.Repeat("b", 5000)},
			func(m *messaging.Message) bool {
				return m.Webpush.Notification.Icon == "" && m.Notification.Body == "b"
			}},
		"much data": {push.Note{Title: "t", Body: "b", Data: object("a", strings.Repeat("x", 9000), "b", "kept")},
			func(m *messaging.Message) bool { return m.Data["b"] == "kept" && m.Data["a"] == "" }},
		"a link and much else": {push.Note{Title: strings.Repeat("T", 9000), Body: strings.Repeat("B", 9000), Icon: strings.Repeat("i", 9000),
			Link: link, Data: object("url", link, "a", strings.Repeat("x", 9000))},
			func(m *messaging.Message) bool { return m.Webpush.FCMOptions.Link == link && m.Data["url"] == link }},
		"a link that is too long": {push.Note{Title: "t", Body: "b", Link: "https://" + strings.Repeat("l", 5000),
			Data: object("link", "https://"+strings.Repeat("l", 5000))},
			func(m *messaging.Message) bool { return m.Webpush.FCMOptions == nil && m.Notification.Body == "b" }},
	} {
		t.Run(name, func(t *testing.T) {
			tc.n.ID, tc.n.Type, tc.n.Event, tc.n.RecordTime = topics.NewID(), "SYSTEM", topics.TypeNotification, at.UnixMilli()
			for what, n := range map[string]push.Note{"as it is": tc.n, "as a job has it": fit(tc.n)} {
				m := message(n, token, at.Add(time.Minute), time.Hour)
				if got := size(t, m); got > 4096 || !tc.kept(m) || m.Data["id"] != n.ID || !utf8.ValidString(m.Notification.Title+m.Notification.Body) {
					t.Errorf("%s: %d bytes, title of %d, body of %d, data %d", what, got, len(m.Notification.Title), len(m.Notification.Body), len(m.Data))
				}
			}
		})
	}
}

// A producer's names are his: ours stand beside them.
func TestDataNames(t *testing.T) {
	_, n, _ := push.NoteOf(topicstest.Event(t, topics.Notifications, "user:a", "",
		`{"title":"T","body":"B","type":"MESSAGE","data":{"id":"order-7","type":"order","from":"x","_from":"y","nexus_id":"forged","event":null}}`))
	got := message(n, "tok", time.UnixMilli(n.RecordTime), time.Hour).Data
	want := map[string]string{"id": "order-7", "type": "order", "event": "null", "__from": "x", "_from": "y", "_nexus_id": "forged",
		"nexus_id": "n0-7", "nexus_type": "MESSAGE", "nexus_event": "notification", "timestamp": "2025-12-01T10:00:00.000Z"}
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// Whatever a valid notification holds, the message made of it is within what FCM takes.
func FuzzMessage(f *testing.F) {
	f.Add("t", "b", "i", "b", `{"url":"https://e.example/p"}`, 1)
	f.Add("\x01<>&", "é\u2028😀", "", "", `{"link":"https://e.example/<>","a":{"b":[1]}}`, 3000)
	f.Add("", "", "https://i", "b", `{"id":"1","from":"\u0001"}`, 70000)
	f.Fuzz(func(t *testing.T, title, body, icon, badge, data string, times int) {
		n := func(s string) string { return strings.Repeat(s, 1+max(0, times)%(1+60_000/(1+len(s)))) }
		for _, v := range [][]any{{title, n(body), icon, badge}, {n(title), body, icon, badge}, {title, body, n(icon), badge},
			{n(title), n(body), icon, n(badge)}} {
			value := topics.Fields("title", v[0], "body", v[1], "type", "SYSTEM", "icon", v[2], "badge", v[3], "data", json.RawMessage(data))
			e := &topics.Event{Topic: topics.Notifications, Key: []byte("user:a"), Value: value, Offset: math.MaxInt64, Partition: math.MaxInt32}
			if topics.Valid(e) != nil {
				continue
			}
			_, note, _ := push.NoteOf(e)
			m := message(fit(note), strings.Repeat("t", 512), time.UnixMilli(0), time.Hour)
			if got := size(t, m); got > 4096 {
				t.Fatalf("%d bytes", got)
			}
			if len(note.Link) > 0 && len(note.Link) < 300 && (m.Webpush.FCMOptions == nil || m.Webpush.FCMOptions.Link != note.Link) &&
				jsonSize(note.Link) < 500 {
				t.Fatalf("link %q was lost", note.Link)
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for v, want := range map[string]time.Duration{"": 0, "30": 30 * time.Second, "180": 3 * time.Minute,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute,
		"Fri, 02 Jan 2026 03:00:00 GMT": 0, "-1": 0, "soon": 0} {
		if got := retryAfter(http.Header{"Retry-After": {v}}, now); got != want {
			t.Errorf("%q: %s, want %s", v, got, want)
		}
	}
	if v := answerOf(errors.New("the SDK finds the message malformed"), now); v.kind != invalid ||
		strings.Contains(v.err.Error(), "malformed") {
		t.Errorf("%+v", v)
	}
}
