package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/topics"
)

// pushing is settings with push to a fake FCM.
func pushing(f *testenv.FCM, more map[string]string) map[string]string {
	env := f.Env()
	maps.Copy(env, more)
	return env
}

func (i *instance) device(user, token string) {
	i.t.Helper()
	i.must(200, "POST", "/notifications/device-token", tokenFor(i.t, user), `{"token":"`+token+`"}`)
}

func (i *instance) notify(user, more string) string {
	i.t.Helper()
	return fmt.Sprint(i.must(202, "POST", "/notifications", tokenFor(i.t, "service", "publish"),
		`{"userId":"`+user+`","type":"SYSTEM"`+more+`}`)["id"])
}

// What is pushed to whom, and what it looks like on the wire.
func TestPush(t *testing.T) {
	f := testenv.NewFCM(t)
	engines2(t, pushing(f, map[string]string{"PRESENCE_GRACE": "1m"}), func(t *testing.T, i *instance, run string) {
		tok := func(s string) string { return s + "-" + run }
		i.device("away", tok("phone"))
		i.device("away", tok("tablet"))
		i.device("here", tok("here"))
		i.device("chatty", tok("chatty"))
		here := i.open("/dashboard", "here")
		id := i.notify("away", `,"title":"Hello","body":"World","icon":"/i.png","badge":"/b.png","data":{"n":7,"nested":{"a":[1]},"s":"text","link":"https://app.example.com/x","from":"reserved"}`)
		for _, device := range []string{tok("phone"), tok("tablet")} { // all devices of a user without a session
			testenv.Eventually(t, "the push to "+device, func() bool { return len(f.Accepted(device)) == 1 })
			m := f.Accepted(device)[0]
			want := map[string]string{"notification.title": "Hello", "notification.body": "World", "data.n": "7", "data.nested": `{"a":[1]}`,
				"data.s": "text", "data._from": "reserved",
				"data.id": id, "data.type": "SYSTEM", "android.priority": "normal", "android.collapse_key": id, "apns.headers.apns-collapse-id": id,
				"apns.headers.apns-priority": "5",
				"webpush.notification.icon":  "/i.png", "webpush.notification.badge": "/b.png", "webpush.notification.tag": id,
				"webpush.fcm_options.link": "https://app.example.com/x"}
			for path, w := range want {
				if got := fmt.Sprint(at(m, path)); got != w {
					t.Errorf("%s is %q, want %q", path, got, w)
				}
			}
		}
		i.notify("here", `,"title":"normal","body":""`) // the session has it: no push
		i.notify("here", `,"title":"urgent","body":"","priority":"high"`)
		here.expect("notification", map[string]any{"title": "urgent"})
		testenv.Eventually(t, "high priority is always pushed", func() bool { return len(f.Accepted(tok("here"))) == 1 })
		if m := f.Accepted(tok("here"))[0]; at(m, "notification.title") != "urgent" || at(m, "android.priority") != "high" ||
			at(m, "apns.headers.apns-priority") != "10" {
			t.Errorf("pushed to a user with a session: %v", m)
		}
		// A chat message: pushed where the receiver has no /ws session, cut; generic where encrypted.
		alice := tokenFor(t, "alice")
		i.must(202, "POST", "/messages", alice, `{"receiverId":"chatty","content":"`+strings.Repeat("long ", 100)+`"}`)
		i.must(202, "POST", "/messages", alice, `{"receiverId":"chatty","encrypted":{"c":"opaque-`+run+`"}}`)
		testenv.Eventually(t, "both messages are pushed", func() bool { return len(f.Accepted(tok("chatty"))) == 2 })
		bodies := ""
		for _, m := range f.Accepted(tok("chatty")) {
			if at(m, "notification.title") != "New message" || at(m, "data.senderId") != "alice" {
				t.Errorf("%v", m)
			}
			bodies += fmt.Sprint(at(m, "notification.body")) + "|"
		}
		if !strings.Contains(bodies, "…|") || !strings.Contains(bodies, "You have a new encrypted message|") || f.Contains("opaque-"+run) {
			t.Errorf("bodies %s", bodies)
		}
		chat := i.open("/ws", "chatty")
		i.must(202, "POST", "/messages", alice, `{"receiverId":"chatty","content":"by socket"}`)
		chat.expect("message:new", map[string]any{"content": "by socket"})
		// within FCM's 4096 bytes all the same
		i.notify("away", `,"title":"big","body":"`+strings.Repeat("é", 3000)+`","data":{"large":"`+strings.Repeat("x", 9000)+`"}`)
		testenv.Eventually(t, "the large one is pushed", func() bool { return len(f.Accepted(tok("phone"))) == 2 })
		i.must(200, "DELETE", "/notifications/device-token", tokenFor(t, "away"), `{"token":"`+tok("phone")+`"}`)
		i.notify("away", `,"title":"after","body":""`)
		testenv.Eventually(t, "the device that is left has it", func() bool { return len(f.Accepted(tok("tablet"))) == 3 })
		if n := len(f.Accepted(tok("phone"))); n != 2 {
			t.Errorf("an unregistered device got %d pushes, want 2", n)
		}
		if n := len(f.Accepted(tok("chatty"))); n != 2 {
			t.Errorf("a receiver with a session got %d pushes, want 2", n)
		}
		// Who has just left is still shown as online for a while, and has no session all the same: the phone is told.
		here.ws.Close()
		testenv.Eventually(t, "the session is gone", func() bool {
			return len(i.must(200, "GET", "/diagnostics/here", tokenFor(t, "op", "admin"), "")["sessions"].([]any)) == 0
		})
		if got := i.must(200, "GET", "/presence/here", tokenFor(t, "x"), ""); at(got, "online") != true {
			t.Errorf("not shown as online: %v", got)
		}
		i.notify("here", `,"title":"left","body":""`)
		testenv.Eventually(t, "who has left is pushed to", func() bool { return len(f.Accepted(tok("here"))) == 2 })
		noSecrets(t, i, tok("phone"), "by socket", "Hello")
	})
	if refused := f.Refused(); len(refused) > 0 {
		t.Errorf("FCM refused: %v", refused)
	}
}

// engines2 runs a scenario on embedded and on distributed engines, with more settings.
func engines2(t *testing.T, more map[string]string, scenario func(*testing.T, *instance, string)) {
	t.Run("embedded", func(t *testing.T) { scenario(t, start(t, more), "e") })
	t.Run("distributed", func(t *testing.T) {
		env := map[string]string{"KAFKA_BROKERS": testenv.Kafka(t), "DATABASE_URL": testenv.Postgres(t), "CLICKHOUSE_URL": testenv.ClickHouse(t),
			"NEXUS_TOPIC_PREFIX": testenv.Name("t") + "."}
		maps.Copy(env, more)
		scenario(t, start(t, env), "d")
	})
}

// at finds a member by its path.
func at(v any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return v
}

// kill -9 between sending and marking (row F08): at most one repeat, under the same collapse id, none missing.
func TestPushKill(t *testing.T) {
	f := testenv.NewFCM(t)
	sent, killed := make(chan bool), make(chan bool)
	f.Answer = func(token string, n int) (int, string, http.Header) {
		if token == "slow" && n == 1 {
			close(sent)
			<-killed // FCM has it; the answer comes too late
		}
		return 0, "", nil
	}
	env := pushing(f, map[string]string{"PORT": "0", "HOST": "127.0.0.1", "DATA_DIR": t.TempDir(), "EMBEDDED_KAFKA_PORT": "0",
		"JWT_SECRET": testSecret, "PUSH_LEASE": "2s"})
	n := launch(t, env)
	n.device("alice", "slow")
	n.device("bob", "quick")
	n.notify("alice", `,"title":"t","body":"b"`)
	select {
	case <-sent:
	case <-time.After(patience):
		close(killed)
		t.Fatal("nothing was sent")
	}
	n.kill()
	close(killed)
	n.start()
	n.notify("bob", `,"title":"t","body":"b"`)
	testenv.Eventually(t, "nothing is missing", func() bool { return len(f.Accepted("slow")) >= 1 && len(f.Accepted("quick")) == 1 })
	testenv.Eventually(t, "the job is done again, its lease having run out", func() bool { return len(f.Accepted("slow")) == 2 })
	both := f.Accepted("slow")
	if a, b := at(both[0], "android.collapse_key"), at(both[1], "android.collapse_key"); a != b || a == nil {
		t.Errorf("collapse keys %v and %v", a, b)
	}
}

// Malformed credentials are told at the start, by the names that were typed; half of them as well.
func TestFirebaseSettings(t *testing.T) {
	for name, tc := range map[string]struct {
		env  map[string]string
		says []string
	}{
		"half": {map[string]string{"FIREBASE_PROJECT_ID": "my-app-1234"}, []string{"FIREBASE_PRIVATE_KEY:", "FIREBASE_CLIENT_EMAIL:"}},
		"malformed": {map[string]string{"FIREBASE_PROJECT_ID": "My App", "FIREBASE_PRIVATE_KEY": "hunter2", "FIREBASE_CLIENT_EMAIL": "x",
			"FIREBASE_ENDPOINT": "fcm"}, []string{"FIREBASE_PROJECT_ID:", "FIREBASE_PRIVATE_KEY:", "FIREBASE_CLIENT_EMAIL:", "FIREBASE_ENDPOINT:"}},
	} {
		code, _, problem := command(t, tc.env, "serve")
		if code != 2 {
			t.Errorf("%s: exit code %d", name, code)
		}
		for _, want := range tc.says {
			if !strings.Contains(problem, want) {
				t.Errorf("%s: no word of %s in %s", name, want, problem)
			}
		}
		if strings.Contains(problem, "hunter2") {
			t.Errorf("%s: the key is printed", name)
		}
	}
}

// With the guide's placeholders push is off, and the log says so.
func TestPushIsOff(t *testing.T) {
	c, err := settle(t, "FIREBASE_PROJECT_ID=your-project-id\nFIREBASE_PRIVATE_KEY=your-private-key\n"+
		"FIREBASE_CLIENT_EMAIL=your-client-email", nil)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	channels, err := newApp(c, slog.New(slog.NewTextHandler(&log, nil)), io.Discard).openChannels(t.Context())
	if err != nil || len(channels) == 0 {
		t.Fatal(channels, err)
	}
	for _, ch := range channels {
		if ch.On() {
			t.Errorf("%s is on", ch.Name())
		}
	}
	if !strings.Contains(log.String(), "mobile push is off") {
		t.Errorf("not said that push is off: %s", log.String())
	}
}

// A thousand notifications to users on sockets, on devices, on both and on neither: the funnel is the log's own numbers.
func TestFunnel(t *testing.T) {
	t.Parallel()
	f := testenv.NewFCM(t)
	env := cluster(t)("n1", "RATE_LIMIT_MESSAGES", "100000", "PUSH_RATE", "1000", "RATE_LIMIT_MESSAGES", "100000")
	n := launch(t, pushing(f, env))
	const each = 250
	var users []string
	for k := range 10 {
		for _, group := range []string{"socket", "device", "both", "neither"} {
			user := fmt.Sprintf("%s%d", group, k)
			users = append(users, user)
			if group == "socket" || group == "both" {
				n.open("/dashboard", user)
			}
			if group == "device" || group == "both" {
				n.device(user, "token-of-"+user)
			}
		}
	}
	// High priority: pushed also to those who have a session.
	for range each / 10 {
		list, err := json.Marshal(users)
		if err != nil {
			t.Fatal(err)
		}
		n.must(202, "POST", "/notifications", tokenFor(t, "service", "publish"),
			`{"userIds":`+string(list)+`,"title":"t","body":"b","type":"SYSTEM","priority":"high"}`)
	}
	ch, err := clickhouse.Open(&clickhouse.Options{Addr: []string{strings.Split(strings.TrimPrefix(env["CLICKHOUSE_URL"], "clickhouse://"),
		"/")[0]},
		Auth: clickhouse.Auth{Database: env["CLICKHOUSE_URL"][strings.LastIndexByte(env["CLICKHOUSE_URL"], '/')+1:]}})
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	var appended, websocket, push, reached uint64
	testenv.Eventually(t, "all are counted", func() bool {
		err := ch.QueryRow(t.Context(), "SELECT appended, websocket, push, reached FROM nexus_delivery_funnel WHERE event='notification'").
			Scan(&appended, &websocket, &push, &reached)
		return err == nil && appended == 4*each && push == 2*each && websocket == 2*each
	})
	if reached != 3*each {
		t.Errorf("reached %d, want %d", reached, 3*each)
	}
	events, _ := foldLog(t, env["KAFKA_BROKERS"], env["NEXUS_TOPIC_PREFIX"])
	inLog, sockets, devices := 0, make(map[string]bool), make(map[string]bool)
	for p, e := range events {
		switch p.typ {
		case topics.TypeNotification:
			inLog++
		case topics.TypeDeliveryWebSocket:
			d := topics.ReadDelivery(e)
			sockets[d.At.String()] = true
		case topics.TypeDeliveryPush:
			if d := topics.ReadDelivery(e); d.Outcome == "accepted" {
				devices[d.At.String()] = true
			}
		}
	}
	atFCM := 0
	for _, u := range users {
		atFCM += len(f.Accepted("token-of-" + u))
	}
	t.Logf("appended %d, websocket %d, push %d, reached %d, waiting in the inbox alone %d", appended, websocket, push, reached,
		appended-reached)
	t.Logf("the log's own: appended %d, websocket %d, push %d; accepted by FCM %d", inLog, len(sockets), len(devices), atFCM)
	if inLog != int(appended) || len(sockets) != int(websocket) || len(devices) != int(push) || atFCM != int(push) {
		t.Error("the funnel and the log differ")
	}
	for _, group := range []string{"socket", "device", "both", "neither"} { // whoever it reached by whatever way has it in the inbox
		if got := n.must(200, "GET", "/notifications/unread-count", tokenFor(t, group+"0"), "")["count"]; got != each/10.0 {
			t.Errorf("%s has %v in the inbox, want %d", group, got, each/10)
		}
	}
}
