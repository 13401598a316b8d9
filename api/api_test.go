package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/keys"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

// world is everything around an API, in memory: a log that keeps what is appended, and stores that answer what is set.
type world struct {
	mu       sync.Mutex
	appended []*topics.Event
	refuse   error // of appends
	hang     bool  // stores answer only when the asker gives up

	notifications []inbox.Notification
	messages      []inbox.Message
	conversations []inbox.Conversation
	devices       []inbox.Device
	keys          []keys.Device
	online        string
	tooOften      bool
	asked         []string // users and cursors that stores were asked for
	excluded      []string
	problems      map[string]string
	log           strings.Builder
}

func (w *world) put(e *topics.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse == nil {
		w.appended = append(w.appended, e)
	}
	return w.refuse
}

// wait is what every store does first.
func (w *world) wait(ctx context.Context, of string) error {
	w.mu.Lock()
	w.asked = append(w.asked, of)
	w.mu.Unlock()
	if w.hang {
		<-ctx.Done()
	}
	return ctx.Err()
}

type producer struct{ *world }

func (p producer) Append(_ context.Context, e *topics.Event) error { return p.put(e) }

type tail struct{ *world }

func (t tail) Append(_ context.Context, e *topics.Event) (bool, error) { return false, t.put(e) }
func (tail) Next(topics.Topic) topics.Ends                             { return topics.Ends{topics.Messages.Partition(0): 1} }
func (tail) NextOf(topics.Topic, string) topics.Ends {
	return topics.Ends{topics.Messages.Partition(0): 1}
}

type store struct{ *world }

func (s store) Notifications(ctx context.Context, user string, unread bool, limit int, cursor string) ([]inbox.Notification, string,
	error) {
	if cursor == "forged" {
		return nil, "", inbox.ErrCursor
	}
	return s.notifications, "more", s.wait(ctx, user)
}
func (s store) Unread(ctx context.Context, user string) (int, error) { return 3, s.wait(ctx, user) }
func (s store) Newest(ctx context.Context, user string) (int64, error) {
	return 1000, s.wait(ctx, user)
}
func (s store) HasNotification(ctx context.Context, user, id string) error {
	if id != "a/b c" && id != "n1" {
		return inbox.ErrNotFound
	}
	return s.wait(ctx, user)
}
func (s store) Messages(ctx context.Context, a, b string, p inbox.Page) ([]inbox.Message, string, string, error) {
	return s.messages, "", "new", s.wait(ctx, a)
}
func (s store) Conversations(ctx context.Context, user string, limit int, cursor string) ([]inbox.Conversation, string, error) {
	return s.conversations, "", s.wait(ctx, user)
}
func (s store) Devices(ctx context.Context, user string) ([]inbox.Device, error) {
	return s.devices, s.wait(ctx, user)
}
func (s store) Await(ctx context.Context, _ topics.Ends) error {
	return s.wait(ctx, "await")
}
func (s store) Counts(ctx context.Context, users []string) (map[string]stats.Counts, error) {
	return map[string]stats.Counts{users[0]: {Connections: 1, Messages: 2, Posts: 3}}, s.wait(ctx, users[0])
}
func (s store) Reached(ctx context.Context, _ topics.Ends) (bool, error) {
	err := s.wait(ctx, "reached")
	return err == nil, err
}

func (w *world) Send(_ context.Context, sender string, d topics.Draft) (topics.Receipt, error) {
	if d.Content == "" {
		return topics.Receipt{}, apierr.Invalid("a message has either content or encrypted")
	}
	return topics.Receipt{ID: sender + "-" + d.ReceiverID + ":" + d.ClientMessageID, Duplicate: d.ClientMessageID == "again"}, nil
}

func (w *world) Online(ns topics.Namespace, user string) bool {
	return ns == topics.Dashboard && user == w.online
}
func (w *world) OnlineUsers(topics.Namespace) int { return 1 }
func (w *world) Sessions(string) []presence.Session {
	return []presence.Session{{ID: "s", Node: "n", Namespace: topics.Dashboard, Channels: []string{"c"}}}
}

type directory struct{ *world }

func (d directory) Devices(context.Context, string) ([]keys.Device, error) { return d.keys, nil }
func (directory) Left(context.Context, string, string, int) ([]string, error) {
	return []string{"p"}, nil
}
func (directory) Outcome(context.Context, *topics.Event) (*keys.Handed, error) {
	return &keys.Handed{IdentityKey: "ik", Prekey: topics.Prekey{ID: "p", Key: "k"}}, nil
}

func (w *world) allow(string) error {
	if w.tooOften {
		return &apierr.Error{Code: apierr.CodeRateLimited, Message: "too often", RetryAfter: time.Second}
	}
	return nil
}

func (w *world) options(t *testing.T) api.Options {
	t.Helper()
	origins, err := api.ParseOrigins([]string{"https://app.example.com", "https://*.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	return api.Options{
		Verify: func(token string) (api.Claims, error) {
			user, scopes, _ := strings.Cut(token, "+")
			if user == "bad" {
				return api.Claims{}, &apierr.Error{Code: apierr.CodeTokenExpired, Message: "the token has expired"}
			}
			return api.Claims{User: user, Scopes: strings.Fields(scopes)}, nil
		},
		Producer: producer{w}, Tail: tail{w}, Inbox: store{w}, Messages: w, Presence: w, Stats: stats.Remember(store{w}), Keys: directory{w},
		AllowLookup: w.allow, AllowPublish: w.allow, Logger: slog.New(slog.NewTextHandler(&w.log, nil)), Metrics: prometheus.NewRegistry(),
		MaxBody: 64 << 10,
		Origins: origins, Parts: []string{"log", "inbox", "stats"},
		Problems: func(_ context.Context, exclude []string) map[string]string {
			w.excluded = exclude
			return w.problems
		},
		Handlers: map[string]http.Handler{"/socket.io/": http.HandlerFunc(func(rw http.ResponseWriter,
			_ *http.Request) {
			rw.WriteHeader(http.StatusTeapot)
		})},
	}
}

// call makes a request: "METHOD path", the token, the body, and headers by name and value.
func (w *world) call(t *testing.T, line, token, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	method, path, _ := strings.Cut(line, " ")
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for n := 0; n+1 < len(header); n += 2 {
		r.Header.Add(header[n], header[n+1])
	}
	rec := httptest.NewRecorder()
	api.New(w.options(t)).ServeHTTP(rec, r)
	return rec
}

// shown are the values that the world's log has got, one a line.
func (w *world) shown() string {
	var lines []string
	for _, e := range w.appended {
		lines = append(lines, string(e.Topic)+" "+string(e.Key)+" "+e.Type+" "+string(e.Value))
	}
	return strings.Join(lines, "\n")
}

const (
	service = "svc+publish"
	admin   = "root+admin"
)

// Every route: what it answers, what it appends, and what it refuses.
func TestRoutes(t *testing.T) {
	full := func() *world {
		return &world{online: "bob",
			notifications: []inbox.Notification{{ID: "n1", Value: []byte(`{"id":"n1"}`), Read: true}, {ID: "a", Value: []byte(`{"id":"a"}`),
				Announcement: true}},
			messages:      []inbox.Message{{ID: "m", Value: []byte(`{"id":"m"}`)}},
			conversations: []inbox.Conversation{{Other: "bob", Unread: 1, Last: inbox.Message{Value: []byte(`{"id":"m"}`)}}},
			devices:       []inbox.Device{{Token: "known", Platform: "web"}},
			keys:          []keys.Device{{ID: "phone", IdentityKey: "ik", Prekeys: 1}}}
	}
	var answers golden
	for _, tc := range []struct {
		line, token, body string
		header            []string
		status            int
		says              string // in the answer
		appends           string // in what the log has got; empty: nothing
	}{
		{"GET /notifications", "alice", "", nil, 200, `{"notifications":[{"id":"n1","read":true},{"id":"a","type":"SYSTEM"`, ""},
		{"GET /api/notifications?unread=true&limit=1", "alice", "", nil, 200, `"next":"more"`, ""},
		{"GET /notifications?unread=maybe", "alice", "", nil, 400, "unread must be", ""},
		{"GET /notifications?limit=0", "alice", "", nil, 400, "limit must be", ""},
		{"GET /notifications?cursor=forged", "alice", "", nil, 400, "cursor", ""},
		{"GET /notifications", "", "", nil, 401, "Authorization: Bearer", ""},
		{"GET /notifications", "bad", "", nil, 401, "token_expired", ""},
		{"GET /notifications/unread-count", "alice", "", nil, 200, `{"count":3}`, ""},
		{"POST /notifications/n1/read", "alice", "", nil, 200, `{"id":"n1"}`, `notification.read {"notificationId":"n1"}`},
		{"POST /notifications/a%2Fb%20c/read", "alice", "", nil, 200, `{"id":"a/b c"}`, `{"notificationId":"a/b c"}`},
		{"DELETE /notifications/n1", "alice", "", nil, 200, `{"id":"n1"}`, "notification.deleted"},
		{"DELETE /notifications/n2", "alice", "", nil, 404, "there is no such notification of this user's", ""},
		{"POST /notifications/read-all", "alice", "", nil, 200, `{"count":3}`, `"upTo":"1970-01-01T00:00:01.000Z"`},
		{"GET /conversations", "alice", "", nil, 200, `{"conversations":[{"userId":"bob","unread":1,"lastMessage":{"id":"m","read":false}}]`, ""},
		{"GET /messages?with=bob", "alice", "", nil, 200, `"newer":"new"`, ""},
		{"GET /messages", "alice", "", nil, 400, "with:", ""},
		{"GET /messages?with=bob&cursor=a&after=b", "alice", "", nil, 400, "either cursor or after", ""},
		{"POST /messages", "alice", `{"receiverId":"bob","content":"x"}`, []string{"Idempotency-Key", "k"}, 202, `{"id":"alice-bob:k"}`, ""},
		{"POST /messages", "alice", `{"receiverId":"bob","content":"x","clientMessageId":"again"}`, nil, 202, `"duplicate":true`, ""},
		{"POST /messages", "alice", `{"receiverId":"bob"}`, nil, 400, "content", ""},

		{"POST /notifications/device-token", "alice", `{"token":"t"}`, nil, 200, "registered successfully",
			`devices user:alice device.registered {"token":"t"}`},
		{"POST /notifications/device-token", "alice", `{"token":1}`, nil, 400, "field token must be a string", ""},
		{"DELETE /notifications/device-token", "alice", "", nil, 200, "unregistered successfully", "device.unregistered {}"},
		{"DELETE /notifications/device-token", "alice", `{"token":"t"}`, nil, 200, "unregistered successfully", `{"token":"t"}`},
		{"DELETE /notifications/device-token", "alice", `{"token":null}`, nil, 400, "only an empty body", ""},
		{"DELETE /notifications/device-token", "alice", `{}`, nil, 400, "only an empty body", ""},
		{"DELETE /notifications/device-token", "alice", `null`, nil, 400, "only an empty body", ""},

		{"DELETE /notifications/device-token", "alice", `{"token":""}`, nil, 400, "only an empty body", ""},
		{"POST /notifications/device-token", "alice", `{"token":"t","platform":""}`, nil, 400, "platform", ""},
		{"POST /notifications/device-token", "alice", `{"token":""}`, nil, 400, "token", ""},
		{"GET /users/bob/keys?prekeys=no", "alice", "", nil, 400, "true or false", ""},

		{"PUT /keys", "alice", `{"deviceId":"phone","identityKey":"aWs=","prekeys":[]}`, nil, 202, `"id"`, "keys user:alice key.published"},
		{"GET /keys", "alice", "", nil, 200, `{"devices":[{"deviceId":"phone","prekeys":1}]}`, ""},
		{"DELETE /keys/phone%40home", "alice", "", nil, 202, `"id"`, `{"deviceId":"phone@home","removed":true}`},
		{"GET /users/bob/keys", "alice", "", nil, 200, `"prekey":{`, "key.taken"},
		{"GET /users/bob/keys?prekeys=false", "alice", "", nil, 200, `"prekey":null`, ""},
		{"HEAD /users/bob/keys", "alice", "", nil, 200, "", ""},

		{"GET /presence", "alice", "", nil, 200, `{"dashboard":1,"messaging":1,"online":1}`, ""},
		{"GET /presence/bob", "alice", "", nil, 200, `"online":true`, ""},
		{"GET /presence/b%6Fb", "alice", "", nil, 200, `"online":true`, ""},
		{"GET /presence/a%40b.co", "alice", "", nil, 200, `"userId":"a@b.co"`, ""},
		{"GET /presence/a%20b+c", "alice", "", nil, 200, `"userId":"a b+c"`, ""},
		{"GET /presence/a%2540", "alice", "", nil, 200, `"userId":"a%40"`, ""},
		{"GET /presence/a%ff", "alice", "", nil, 400, "escape is broken", ""},
		{"GET /presence/a%3Ab", "alice", "", nil, 400, "userId:", ""},
		{"GET /presence?userIds=bob,eve", "alice", "", nil, 200, `"eve":{"dashboard":false`, ""},
		{"GET /presence?userIds=a:b", "alice", "", nil, 400, "userIds:", ""},
		{"GET /stats", "alice", "", nil, 200, `{"connections":1,"messages":2,"posts":3}`, ""},

		{"POST /notifications", service, `{"userId":"alice","title":"T","body":"B","type":"SYSTEM"}`, nil, 202, `{"id":`,
			`notifications user:alice notification {"id":`},
		{"POST /notifications", service, `{"userId":"alice","title":"T","body":"B","type":"SYSTEM","timestamp":"2025-12-01T11:00:00+01:00"}`,
			nil, 202, `{"id":`, `"timestamp":"2025-12-01T11:00:00+01:00"`},
		{"POST /notifications", service, `{"userId":"alice","title":"T","body":"B","type":"SYSTEM","timestamp":"soon"}`, nil, 400,
			"timestamp", ""},
		{"POST /notifications", service, `{"userIds":["a","b","a"],"title":"T","body":"B","type":"SYSTEM"}`, nil, 202, `{"ids":{"a":`, "user:b"},
		{"POST /notifications", service, `{"userId":"a","channel":"c","title":"T","body":"B","type":"SYSTEM"}`, nil, 400, "only one of them", ""},
		{"POST /notifications", service, `{"title":"T","body":"B","type":"SYSTEM"}`, nil, 400, "name userId", ""},
		{"POST /notifications", "alice", `{}`, nil, 403, "scope publish", ""},
		{"POST /notifications", service, `nojson`, nil, 400, "the body is not JSON: it is wrong at byte 2", ""},
		{"POST /notifications", service, `{"userId":"a"`, nil, 400, "ends too early", ""},
		{"POST /notifications", service, ``, nil, 400, "the body is empty", ""},
		{"POST /notifications", service, `[]`, nil, 400, "the body must be an object", ""},
		{"POST /notifications", service, `{"userIds":"a"}`, nil, 400, "field userIds must be an array", ""},
		{"POST /notifications", service, `{"usrId":"a"}`, nil, 400, `unknown field \"usrId\"`, ""},
		{"POST /notifications", service, `{"userId":"a"} {}`, nil, 400, "more than one JSON value", ""},
		{"POST /notifications", service, `{"title":"` + strings.Repeat("x", 64<<10) + `"}`, nil, 413, "too_large", ""},
		{"POST /activities", service, `{"userId":"alice","type":"x","message":"m","timestamp":"2025-12-01T10:00:00Z"}`, nil, 202, `{"id":`,
			`"timestamp":"2025-12-01T10:00:00Z"`},
		{"POST /announcements", service, `{"title":"T","body":"B","timestamp":"2025-12-01T10:00:00Z"}`, nil, 202, `{"id":`,
			`broadcasts all announcement`},

		{"POST /activities", service, `{"userIds":["alice","bob"],"userId":"","type":"x","message":"m","data":{"a":1}}`, nil, 202, `{"ids":`,
			`activity {"id":`},
		{"POST /activities", service, `{"channel":"c","userId":"eve","type":"x","message":"m"}`, nil, 202, `{"id":`, `"userId":"eve"`},
		{"POST /activities", service, `{"channel":"c","type":"x","message":"m"}`, nil, 202, `{"id":`, `"userId":"svc"`},
		{"POST /activities", service, `{"userId":"a:b","type":"x","message":"m"}`, nil, 400, `userId:`, ""},
		{"POST /activities", service, `{"userId":"a","type":"","message":"m"}`, nil, 400, `field type`, ""},
		{"POST /notifications", service, `{"userId":"alice","title":"T","body":"B","type":"SYSTEM","priority":"high","data":{"x":"<b>"},"icon":"i","badge":"b"}`, nil, 202, `{"id":`, `"priority":"high","data":{"x":"<b>"},"icon":"i","badge":"b"}`},
		{"POST /notifications", service, `{"userId":"alice","title":"T","body":"B","type":"NEWS"}`, nil, 400, `must be one of`, ""},
		{"POST /notifications", service, `{"userId":"alice","title":"T","body":"B","type":"SYSTEM","data":[]}`, nil, 400, `field data`, ""},
		{"POST /notifications", service, `{"userId":"alice","title":1}`, nil, 400, `field title must be a string`, ""},
		{"POST /notifications", service, `{"userId":"alice","Title":"T","body":"B","type":"SYSTEM"}`, nil, 202, `{"id":`, `"title":"T"`},
		{"POST /notifications", service, `{"userId":"alice","title":"T","type":"SYSTEM"}`, nil, 202, `{"id":`, `"body":""`},
		{"POST /notifications", service, `{"userIds":["a"],"userId":"b","title":"T","body":"B","type":"SYSTEM"}`, nil, 400,
			`either userId or userIds`, ""},
		{"POST /notifications", service, `{"channel":"c d","title":"T","body":"B","type":"SYSTEM"}`, nil, 400, `channel:`, ""},
		{"POST /notifications", service, `{"channel":"c","title":"T","body":"B","type":"SYSTEM"}`, nil, 202, `{"id":`, `broadcasts channel:c`},
		{"POST /announcements", service, `{"title":"T","body":"B","userId":"a"}`, nil, 400, `unknown field`, ""},
		{"POST /announcements", service, `{"title":"","body":"B"}`, nil, 400, `field title`, ""},
		{"POST /announcements", service, `null`, nil, 400, `field title`, ""},

		{"POST /revocations", admin, `{"userId":"alice","tokenId":"t"}`, nil, 202, `"id"`, `control user:alice session.revoked {"tokenId":"t"}`},
		{"POST /revocations", admin, `{"userId":"alice","tokenId":""}`, nil, 400, "tokenId", ""},
		{"POST /revocations", admin, `{"userId":"a:b"}`, nil, 400, "userId:", ""},
		{"POST /revocations", service, `{"userId":"alice"}`, nil, 403, "scope admin", ""},
		{"GET /diagnostics/a%40b", admin, "", nil, 200, `"userId":"a@b"`, ""},
		{"GET /diagnostics/a", admin, "", nil, 200, `"allowedOrigins":["https://app.example.com","https://*.example.org"]`, ""},

		{"GET /healthz", "", "", nil, 200, "ok", ""},
		{"HEAD /healthz", "", "", nil, 200, "", ""},
		{"HEAD /readyz", "", "", nil, 200, "", ""},
		{"HEAD /notifications", "alice", "", nil, 200, "", ""},
		{"HEAD /notifications", "", "", nil, 401, "", ""},
		{"GET /readyz?exclude=nonsense", "", "", nil, 400, "there are log, inbox, stats", ""},
		{"GET /nowhere", "alice", "", nil, 404, "no route GET", ""},
		{"PATCH /stats", "alice", "", nil, 404, "no route PATCH", ""},
	} {
		w := full()
		a := w.call(t, tc.line, tc.token, tc.body, tc.header...)
		if a.Code != tc.status || !strings.Contains(a.Body.String(), tc.says) {
			t.Errorf("%s %s: %d %s, want %d and %s", tc.line, clip(tc.body), a.Code, a.Body, tc.status, tc.says)
		}
		answers.note(tc.line, tc.body, a)
		if got := w.shown(); tc.appends == "" && got != "" || !strings.Contains(got, tc.appends) {
			t.Errorf("%s %s: appended %q, want %q", tc.line, clip(tc.body), got, tc.appends)
		}
	}
	answers.compare(t, "answers.txt")
}

// golden is what clients see of answers, byte by byte.
type golden struct{ strings.Builder }

// minted are ids that differ each time.
var minted = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)

func (g *golden) note(line, body string, a *httptest.ResponseRecorder) {
	fmt.Fprintf(g, "%s %s\n  %d %s\n  %q\n", line, clip(body), a.Code, a.Header().Get("Content-Type"),
		minted.ReplaceAllString(a.Body.String(), "ID"))
}

// compare holds the answers against a file of testdata; with -update it writes the file.
func (g *golden) compare(t *testing.T, file string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(path, []byte(g.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range strings.SplitAfter(g.String(), "\n") {
		if line, rest, _ := strings.Cut(string(want), "\n"); strings.TrimSuffix(got, "\n") != line {
			t.Fatalf("%s:%d: got %swant %s\n(go test ./api -update writes the file)", path, i+1, got, line)
		} else {
			want = []byte(rest)
		}
	}
}

var update = flag.Bool("update", false, "write the files of testdata that answers are held against")

func clip(s string) string { return s[:min(len(s), 100)] }

// Whatever a user appends that is kept for ever has a rate.
func TestRates(t *testing.T) {
	for _, line := range []string{"POST /notifications/device-token", "DELETE /notifications/device-token", "PUT /keys", "DELETE /keys/x",
		"GET /users/bob/keys"} {
		w := &world{tooOften: true}
		a := w.call(t, line, "alice", map[bool]string{true: `{"token":"t"}`}[strings.Contains(line,
			"token")]+map[bool]string{true: `{"deviceId":"d"}`}[line == "PUT /keys"])
		if a.Code != 429 || a.Header().Get("Retry-After") != "1" || w.shown() != "" {
			t.Errorf("%s: %d %s, appended %q", line, a.Code, a.Body, w.shown())
		}
	}
}

// While the statistics are away a user gets what was answered last, marked as stale (F13).
func TestStatsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{}
		handler := api.New(w.options(t))
		get := func() (int, string) {
			r := httptest.NewRequest(http.MethodGet, "/stats", nil)
			r.Header.Set("Authorization", "Bearer alice")
			a := httptest.NewRecorder()
			handler.ServeHTTP(a, r)
			return a.Code, strings.TrimSpace(a.Body.String())
		}
		if code, body := get(); code != 200 || strings.Contains(body, "stale") {
			t.Errorf("%d %s", code, body)
		}
		w.hang = true
		if code, body := get(); code != 200 || body != `{"connections":1,"messages":2,"posts":3,"stale":true}` {
			t.Errorf("while the store hangs: %d %s", code, body)
		}
	})
}

// A store that hangs costs a reader five seconds, and is answered 503 with the route in the log.
func TestReadsAreBounded(t *testing.T) {
	for _, line := range []string{"GET /notifications", "GET /notifications/unread-count", "GET /conversations", "GET /messages?with=bob",
		"GET /stats",
		"GET /diagnostics/bob", "POST /notifications/n1/read", "POST /notifications/read-all", "POST /notifications/device-token"} {
		synctest.Test(t, func(t *testing.T) {
			w := &world{hang: true}
			body := ""
			if strings.HasSuffix(line, "token") {
				body = `{"token":"t"}`
			}
			within := 5 * time.Second
			if line == "GET /stats" { // two for the projection to come so far, two for its answer
				within = 4 * time.Second
			}
			begin := time.Now()
			a := w.call(t, line, admin, body)
			if took := time.Since(begin); a.Code != 503 || took != within || !strings.Contains(a.Body.String(), "unavailable") ||
				a.Header().Get("Retry-After") == "" {
				t.Errorf("%s: %d %s after %s", line, a.Code, a.Body, took)
			}
			if !strings.Contains(w.log.String(), "route=/") {
				t.Errorf("%s: the log does not name the route: %s", line, w.log.String())
			}
		})
	}
}

// A log that does not take an event is 503; one that refuses it for its size is the sender's to mend.
func TestRefusedAppend(t *testing.T) {
	w := &world{refuse: errors.New("away")}
	a := w.call(t, "POST /announcements", service, `{"title":"T","body":"B"}`)
	if a.Code != 503 || strings.Contains(a.Body.String(), "away") || !strings.Contains(w.log.String(), "away") {
		t.Errorf("%d %s; log %s", a.Code, a.Body, w.log.String())
	}
}

func TestReady(t *testing.T) {
	w := &world{problems: map[string]string{"log": "is away"}}
	if a := w.call(t, "GET /readyz?exclude=stats,+inbox", "", ""); a.Code != 503 || !strings.Contains(a.Body.String(),
		`"problems":{"log":"is away"}`) {
		t.Errorf("%d %s", a.Code, a.Body)
	}
	if strings.Join(w.excluded, " ") != "stats inbox" {
		t.Errorf("excluded %q", w.excluded)
	}
}

// CloudEvents in the three modes of the HTTP binding: what is taken, and by which rule the rest is refused.
func TestCloudEvents(t *testing.T) {
	const one = `{"specversion":"1.0","id":"1","source":"/s","type":"announcement","subject":"all","data":{"title":"T","body":"B"}}`
	with := func(more string) string { return strings.TrimSuffix(one, "}") + "," + more + "}" }
	without := func(part, by string) string { return strings.Replace(one, part, by, 1) }
	data := `{"title":"T","body":"B","type":"SYSTEM"}`
	ce := func(more ...string) []string {
		return append([]string{"ce-specversion", "1.0", "ce-id", "1", "ce-source", "/s", "ce-type", "notification", "Content-Type",
			"application/json"}, more...)
	}
	const kind, batch = "application/cloudevents+json", "application/cloudevents-batch+json"
	for name, tc := range map[string]struct {
		body   string
		header []string
		status int
		says   string // in the answer, or in what was appended
	}{
		"structured":             {one, []string{"Content-Type", kind}, 202, "broadcasts all announcement"},
		"media type in capitals": {one, []string{"Content-Type", "Application/CloudEvents+JSON; Charset=UTF-8"}, 202, "broadcasts"},
		"an extension": {with(`"partitionkey":"p","retries":3,"urgent":true,"gone":null`), []string{"Content-Type", kind}, 202,
			"broadcasts"},
		"an extension of an object": {with(`"trace":{}`), []string{"Content-Type", kind}, 400, "the attribute trace must be"},
		"an extension in capitals":  {with(`"partitionKey":"p"`), []string{"Content-Type", kind}, 400, "small letters and digits"},
		"extensions without end":    {with(`"x":"` + strings.Repeat("y", 3000) + `"`), []string{"Content-Type", kind}, 400, "2048"},
		"data_base64": {without(`"data":{"title":"T","body":"B"}`, `"data_base64":"eyJ0aXRsZSI6IlQiLCJib2R5IjoiQiJ9"`),
			[]string{"Content-Type", kind}, 202, `"title":"T"`},
		"data_base64 of no object": {without(`"data":{"title":"T","body":"B"}`, `"data_base64":"aGk="`), []string{"Content-Type", kind},
			400, "data must be a JSON object"},
		"data_base64 that is none": {without(`"data":{"title":"T","body":"B"}`, `"data_base64":"%%"`), []string{"Content-Type", kind}, 400,
			"data_base64"},
		"both":                     {with(`"data_base64":"e30="`), []string{"Content-Type", kind}, 400, "either data or data_base64"},
		"an attribute of a number": {without(`"id":"1"`, `"id":1`), []string{"Content-Type", kind}, 400, "the attribute id must be a string"},
		"no subject":               {without(`"subject":"all",`, ``), []string{"Content-Type", kind}, 400, "subject is missing"},
		"another version":          {without(`"1.0"`, `"0.3"`), []string{"Content-Type", kind}, 400, "specversion must be 1.0"},
		"another type":             {without(`"announcement"`, `"com.x"`), []string{"Content-Type", kind}, 400, "type must be"},
		"no data":                  {without(`,"data":{"title":"T","body":"B"}`, ``), []string{"Content-Type", kind}, 400, "data must be"},
		"data with an id":          {without(`"title"`, `"id":"x","title"`), []string{"Content-Type", kind}, 400, "must not have an id"},
		"no JSON":                  {"{", []string{"Content-Type", kind}, 400, "must be a JSON object"},
		"Avro":                     {"x", []string{"Content-Type", "application/cloudevents+avro"}, 400, "only JSON"},
		"no CloudEvent":            {"{}", []string{"Content-Type", "application/json"}, 400, "send a CloudEvent"},
		"batch":                    {"[" + one + "," + one + "]", []string{"Content-Type", batch}, 202, `{"ids":[`},
		"batch of none":            {"[]", []string{"Content-Type", batch}, 400, "1 to 1000"},
		"batch with a bad one":     {"[" + one + ",{}]", []string{"Content-Type", batch}, 400, "event 2 of the batch"},
		"batch with Idempotency-Key": {"[" + one + "," + one + "]", []string{"Content-Type", batch, "Idempotency-Key", "k"}, 400,
			"Idempotency-Key names one event"},
		"binary":                  {data, ce("ce-subject", "user:alice"), 202, "notifications user:alice notification"},
		"binary, escaped":         {data, ce("ce-subject", "user:zo%C3%AB"), 202, "user:zoë "},
		"binary, escaped once":    {data, ce("ce-subject", "user:a%2541"), 202, "user:a%41 "},
		"binary, quoted":          {data, ce("ce-subject", `"user:a\"b"`), 202, `user:a"b `},
		"binary, a broken escape": {data, ce("ce-subject", "user:a%4"), 400, "escape is broken"},
		"binary, not UTF-8":       {data, ce("ce-subject", "user:a%ff"), 400, "must be UTF-8"},
		"binary, escaped colon":   {data, ce("ce-subject", "user%3Aalice"), 202, "user:alice "},
		"binary, an extension":    {data, ce("ce-subject", "user:alice", "ce-partitionkey", "p"), 202, "user:alice"},
		"binary, twice":           {data, ce("ce-subject", "user:alice", "ce-subject", "user:bob"), 400, "stand once"},
	} {
		w := &world{}
		a := w.call(t, "POST /events", service, tc.body, tc.header...)
		if a.Code != tc.status || !strings.Contains(a.Body.String()+w.shown(), tc.says) {
			t.Errorf("%s: %d %s %s, want %d and %s", name, a.Code, a.Body, w.shown(), tc.status, tc.says)
		}
		if a.Code != 202 && w.shown() != "" {
			t.Errorf("%s: refused, and appended %s", name, w.shown())
		}
	}
}

// Pages of origins that are named may send credentials and headers of their own, to REST and to long-polling.
func TestCORS(t *testing.T) {
	for _, path := range []string{"/notifications", "/socket.io/"} {
		w := &world{}
		a := w.call(t, "OPTIONS "+path, "", "", "Origin", "https://app.example.com", "Access-Control-Request-Method", "POST",
			"Access-Control-Request-Headers", "X-Trace, authorization, x-forwarded-for, cookie, bad header")
		h := a.Header()
		if a.Code != 204 || h.Get("Access-Control-Allow-Origin") != "https://app.example.com" ||
			h.Get("Access-Control-Allow-Credentials") != "true" ||
			h.Get("Access-Control-Allow-Headers") != "authorization, content-type, idempotency-key, x-trace" {
			t.Errorf("preflight of %s: %d %v", path, a.Code, h)
		}
		if a := w.call(t, "GET "+path, "alice", "", "Origin", "https://a.b.example.org"); a.Code == 403 ||
			a.Header().Get("Access-Control-Allow-Credentials") != "true" {
			t.Errorf("GET %s: %d %v", path, a.Code, a.Header())
		}
		if a := w.call(t, "GET "+path, "alice", "", "Origin", "https://evil.example"); a.Code != 403 ||
			a.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("a foreign origin at %s: %d %v", path, a.Code, a.Header())
		}
	}
	o := (&world{}).options(t)
	o.Origins = nil
	r := httptest.NewRequest(http.MethodGet, "/stats", nil)
	r.Header.Set("Origin", "https://anything.example")
	rec := httptest.NewRecorder()
	api.New(o).ServeHTTP(rec, r)
	if h := rec.Header(); h.Get("Access-Control-Allow-Origin") == "" || h.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("any origin: %v; credentials are never for whoever comes along", h)
	}
}

func TestOrigins(t *testing.T) {
	for _, text := range []string{"https://*", "https://*.com", "https://a*.example.com", "https://*.*.example.com", "*", "example.com",
		"https://x/p", "ftp://x", "https://u@x", "https://*.10.0.0.1"} {
		if _, err := api.ParseOrigins([]string{text}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, tc := range []struct {
		allowed, origin string
		in              bool
	}{
		{"https://*.example.com", "https://a.example.com", true}, {"https://*.example.com", "https://a.b.example.com", true},
		{"https://*.example.com", "https://A.EXAMPLE.com", true},
		{"https://*.example.com", "https://example.com", false}, {"https://*.example.com", "https://evil-example.com", false},
		{"https://*.example.com", "https://evilexample.com", false}, {"https://*.example.com", "https://a.example.com.evil.org", false},
		{"https://*.example.com", "http://a.example.com", false}, {"https://*.example.com", "https://a.example.com:8443", false},
		{"https://*.example.com:8443", "https://a.example.com:8443", true}, {"https://*.example.com", "https://*.example.com", false},
		{"https://app.example.com:443", "https://app.example.com", true}, {"https://app.example.com", "https://app.example.com.", false},
		{"https://app.example.com", "null", false}, {"https://app.example.com", "https://app.example.com/x", false}, {"http://localhost:3001",
			"http://localhost:3001", true},
	} {
		o := (&world{}).options(t)
		var err error
		if o.Origins, err = api.ParseOrigins([]string{tc.allowed}); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodGet, "/stats", nil)
		r.Host = "nexus.test"
		r.Header.Set("Authorization", "Bearer alice")
		r.Header.Set("Origin", tc.origin)
		rec := httptest.NewRecorder()
		api.New(o).ServeHTTP(rec, r)
		if (rec.Code == 200) != tc.in {
			t.Errorf("%s allows %s: %d", tc.allowed, tc.origin, rec.Code)
		}
	}
}

// A stop ends well though a request is open past the grace: it is cut off.
func TestStopWithOpenRequest(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{}
	o := w.options(t)
	entered, left := make(chan struct{}), make(chan struct{})
	o.Handlers = map[string]http.Handler{"/open": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(left)
	})}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- api.New(o).Serve(ctx, ln, 10*time.Millisecond) }()
	answered := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + ln.Addr().String() + "/open")
		if err == nil {
			resp.Body.Close()
		}
		answered <- err
	}()
	<-entered
	stop()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := <-answered; err == nil {
		t.Error("the open request got an answer")
	}
	<-left
}

func FuzzCloudEvents(f *testing.F) {
	f.Add("application/cloudevents+json", `{"specversion":"1.0","id":"1","source":"/s","type":"announcement","subject":"all","data":{"title":"T","body":"B"}}`, "1.0", "all")
	f.Add("application/cloudevents-batch+json", `[{"data_base64":"e30="}]`, "", "")
	f.Add("application/json", `{"title":"T","body":"B"}`, "1.0", `"a\%41`)
	f.Fuzz(func(t *testing.T, kind, body, version, subject string) {
		w := &world{}
		a := w.call(t, "POST /events", service, body, "Content-Type", kind, "ce-specversion", version, "ce-id", "1", "ce-source", "s",
			"ce-type", "announcement", "ce-subject", subject)
		if a.Code != 202 && a.Code != 400 && a.Code != 413 || !json.Valid(a.Body.Bytes()) {
			t.Fatalf("%d %s", a.Code, a.Body)
		}
		for _, e := range w.appended {
			if err := topics.Valid(e); err != nil {
				t.Fatalf("appended what is not valid: %v", err)
			}
		}
	})
}

// The contract is served to whoever asks, without a token, and nothing else of the tree is.
func TestDocuments(t *testing.T) {
	for _, tc := range []struct {
		path, media, begins string
		status              int
	}{
		{"/openapi.yaml", "application/yaml", "# Made by", 200},
		{"/asyncapi.yaml", "application/yaml", "# Made by", 200},
		{"/docs", "text/html; charset=utf-8", "<!DOCTYPE html>", 200},
		{"/schemas/record.message.json", "application/schema+json", "{\n  \"$schema\"", 200},
		{"/schemas/nothing.json", "application/json", `{"error":{"code":"not_found"`, 404},
		{"/schemas/..%2Fopenapi.yaml", "application/json", `{"error":{"code":"not_found"`, 404},
		{"/schemas/%2E%2E", "application/json", `{"error":{"code":"not_found"`, 404},
		{"/api/docs", "application/json", `{"error":{"code":"not_found"`, 404},
	} {
		a := (&world{}).call(t, "GET "+tc.path, "", "")
		if a.Code != tc.status || a.Header().Get("Content-Type") != tc.media || !strings.HasPrefix(a.Body.String(), tc.begins) {
			t.Errorf("%s: %d %s %s", tc.path, a.Code, a.Header().Get("Content-Type"), clip(a.Body.String()))
		}
	}
	if a := (&world{}).call(t, "GET /docs", "", ""); !strings.Contains(a.Header().Get("Content-Security-Policy"), "default-src 'none'") ||
		strings.Contains(a.Body.String(), "<script") || strings.Contains(a.Body.String(), "http://") || strings.Contains(a.Body.String(),
		"https://") {
		t.Error("the page asks for something from elsewhere, or for a script")
	}
}
