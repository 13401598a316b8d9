package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/projections/sqldb"
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
	engines2(t, pushing(f, nil), func(t *testing.T, i *instance, run string) {
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

// A user who has just left is still shown as online for a while, and has no session all the same: the phone is told.
func TestPushAfterLeaving(t *testing.T) {
	f := testenv.NewFCM(t)
	i := start(t, pushing(f, map[string]string{"PRESENCE_GRACE": "1m"}))
	i.device("alice", "phone")
	bob, s := i.open("/dashboard", "bob"), i.open("/dashboard", "alice")
	bob.expect("user_status", map[string]any{"userId": "alice", "status": "online"})
	s.ws.Close()
	testenv.Eventually(t, "the session is gone", func() bool {
		return len(i.must(200, "GET", "/diagnostics/alice", tokenFor(t, "op", "admin"), "")["sessions"].([]any)) == 0
	})
	if got := i.must(200, "GET", "/presence/alice", tokenFor(t, "bob"), ""); at(got, "online") != true {
		t.Errorf("not shown as online: %v", got)
	}
	i.notify("alice", `,"title":"t","body":"b"`)
	testenv.Eventually(t, "it is pushed", func() bool { return len(f.Accepted("phone")) == 1 })
}

// What FCM may answer (rows F25-F27): quota, faults, dead tokens, tokens of others, bad payloads. One never fails others.
func TestPushAnswers(t *testing.T) {
	f := testenv.NewFCM(t)
	var mu sync.Mutex
	quotaAt := time.Time{}
	f.Answer = func(token string, n int) (int, string, http.Header) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case token == "flaky" && n < 6: // each SDK call tries a 503 five times by itself
			return []int{500, 503, 500, 503, 503}[n-1], "INTERNAL", nil
		case token == "dead":
			return 404, "UNREGISTERED", nil
		case token == "foreign":
			return 403, "SENDER_ID_MISMATCH", nil
		case token == "bad-token":
			return 400, "INVALID_ARGUMENT", nil
		case token == "bad-payload" && n == 1:
			return 400, "INVALID_ARGUMENT", nil
		case token == "quota" && n == 1:
			quotaAt = time.Now()
			return 429, "QUOTA_EXCEEDED", http.Header{"Retry-After": {"3"}}
		}
		return 0, "", nil
	}
	i := start(t, pushing(f, nil))
	for _, token := range []string{"flaky", "dead", "foreign", "bad-token", "bad-payload", "fine"} {
		i.device("u-"+token, token)
		i.notify("u-"+token, `,"title":"t","body":"b"`)
	}
	devices := func(user string) int {
		return len(i.must(200, "GET", "/diagnostics/"+user, tokenFor(t, "op", "admin"), "")["devices"].([]any))
	}
	testenv.Eventually(t, "what is fine is pushed", func() bool { return len(f.Accepted("fine")) == 1 })
	testenv.Eventually(t, "what failed for a while is pushed in the end, once", func() bool { return len(f.Accepted("flaky")) == 1 })
	for _, token := range []string{"dead", "bad-token"} {
		testenv.Eventually(t, token+" is removed", func() bool { return devices("u-"+token) == 0 })
	}
	for _, outcome := range []string{"accepted", "unregistered", "sender_mismatch", "invalid_token", "invalid_payload"} {
		testenv.Eventually(t, outcome+" is counted", func() bool {
			return strings.Contains(i.scrape(),
				`nexus_pushes_total{channel="fcm",outcome="`+outcome+`"}`)
		})
	}
	for _, token := range []string{"foreign", "bad-payload"} {
		if devices("u-"+token) != 1 {
			t.Errorf("%s was removed", token)
		}
	}
	i.notify("u-foreign", `,"title":"again","body":""`) // set aside: nothing is sent
	i.notify("u-bad-payload", `,"title":"again","body":""`)
	testenv.Eventually(t, "a token whose payload was bad is still used", func() bool { return len(f.Accepted("bad-payload")) == 1 })

	i.device("u-quota", "quota")
	i.device("u-other", "other")
	i.notify("u-quota", `,"title":"t","body":"b"`)
	testenv.Eventually(t, "the quota is used up", func() bool { mu.Lock(); defer mu.Unlock(); return !quotaAt.IsZero() })
	i.notify("u-other", `,"title":"t","body":"b"`)
	testenv.Eventually(t, "all is pushed afterwards, once", func() bool {
		return len(f.Accepted("quota")) == 1 &&
			len(f.Accepted("other")) == 1
	})
	mu.Lock()
	defer mu.Unlock()
	for _, at := range f.Attempts() {
		if at.After(quotaAt.Add(100*time.Millisecond)) && at.Before(quotaAt.Add(3*time.Second)) {
			t.Errorf("something was sent %s after FCM had asked for 3 s of rest", at.Sub(quotaAt))
		}
	}
	noSecrets(t, i, "bad-token", "flaky")
}

// FCM fails three of ten attempts for a while (row F26), in every way there is, at 500 devices: the log's positions go on,
// few attempts are under way at once, and after the cure everything is accepted, once. Then one device of 500 is bad, in
// each way a device can be (row F27): the others have theirs.
func TestPushFaults(t *testing.T) {
	t.Parallel()
	const users, each = 25, 20
	f := testenv.NewFCM(t)
	var mu sync.Mutex
	faults, attempts, cured := make(map[int]int), 0, false
	worst, status, code, tries := "", 0, "", 0 // the one bad device, and what is said to it
	f.Answer = func(token string, n int) (int, string, http.Header) {
		mu.Lock()
		defer mu.Unlock()
		if attempts++; !cured && attempts%10 < 3 {
			fault := []int{500, 503, testenv.Reset, testenv.Hang}[(attempts/10*3+attempts%10)%4]
			faults[fault]++
			return fault, "UNAVAILABLE", nil
		}
		if token != worst {
			return 0, "", nil
		}
		if tries++; code == "payload" && tries > 1 { // a plain message is fine
			return 0, "", nil
		}
		return status, map[int]string{400: "INVALID_ARGUMENT", 403: "SENDER_ID_MISMATCH", 404: "UNREGISTERED"}[status], nil
	}
	env := cluster(t)("n1", "PUSH_RATE", "1000", "RATE_LIMIT_MESSAGES", "100000")
	n := launch(t, pushing(f, env))
	db, err := sqldb.OpenPostgres(env["DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	row := func(query string) (k int) {
		t.Helper()
		if err := db.Write.QueryRow(query).Scan(&k); err != nil {
			t.Fatal(err)
		}
		return k
	}
	var list, tokens []string
	for u := range users {
		list = append(list, fmt.Sprintf(`"u%d"`, u))
		for d := range each {
			tokens = append(tokens, fmt.Sprintf("d-%d-%d", u, d))
			n.device(fmt.Sprintf("u%d", u), tokens[len(tokens)-1])
		}
	}
	notify := func() {
		t.Helper()
		n.must(202, "POST", "/notifications", tokenFor(t, "service", "publish"),
			`{"userIds":[`+strings.Join(list, ",")+`],"title":"t","body":"b","type":"SYSTEM"}`)
	}
	accepted := func() (all, most int) {
		for _, token := range tokens {
			k := len(f.Accepted(token))
			all, most = all+k, max(most, k)
		}
		return all, most
	}
	notify()
	testenv.Eventually(t, "the log's positions go on while pushes fail", func() bool {
		return row("SELECT coalesce(sum(next),0) FROM positions WHERE projection='push' AND topic='notifications'") == users
	})
	if row("SELECT count(*) FROM push_jobs") == 0 {
		t.Error("nothing was left to do when the positions had gone on")
	}
	testenv.Within(t, 5*time.Minute, "every way of failing was seen often", func() bool {
		mu.Lock()
		defer mu.Unlock()
		cured = min(faults[500], faults[503], faults[testenv.Reset], faults[testenv.Hang]) >= 25
		return cured
	})
	cure := time.Now()
	testenv.Within(t, 5*time.Minute, "all are accepted after the cure", func() bool { all, _ := accepted(); return all == users*each })
	mu.Lock()
	t.Logf("faults %v (-1: reset, -2: no answer); all accepted %s after the cure; at most %d attempts at once", faults,
		time.Since(cure).Round(time.Second), f.AtOnce())
	mu.Unlock()
	if f.AtOnce() > 2*16 { // of the node's 16 workers; FCM may notice later than they do that they gave up
		t.Errorf("%d attempts at once", f.AtOnce())
	}
	live, total := users*each, users*each
	for k, tc := range []struct {
		status        int
		code, outcome string
		left, used    int // devices the user has after that, and those of them that are still used
	}{
		{404, "", "unregistered", each - 1, each - 1},
		{403, "", "sender_mismatch", each, each - 1},
		{400, "token", "invalid_token", each - 1, each - 1},
		{400, "payload", "invalid_payload", each, each},
	} {
		mu.Lock()
		worst, status, code, tries = fmt.Sprintf("d-%d-0", k), tc.status, tc.code, 0
		mu.Unlock()
		notify()
		total += live - 1
		testenv.Eventually(t, tc.outcome+": all others have theirs", func() bool { all, _ := accepted(); return all == total })
		testenv.Eventually(t, tc.outcome+" is counted, once", func() bool {
			return strings.Contains(n.scrape(), `nexus_pushes_total{channel="fcm",outcome="`+tc.outcome+`"} 1`) &&
				row("SELECT count(*) FROM push_jobs") == 0
		})
		user := fmt.Sprintf("u%d", k)
		testenv.Eventually(t, tc.outcome+": the user's devices", func() bool {
			return len(n.must(200, "GET", "/diagnostics/"+user, tokenFor(t, "op", "admin"), "")["devices"].([]any)) == tc.left
		})
		live -= each - tc.used
	}
	if !strings.Contains(n.log.String(), "another Firebase project") {
		t.Error("no alarm of a token of another project")
	}
	if _, most := accepted(); most != 5 {
		t.Errorf("a device accepted %d pushes of 5", most)
	}
}

// kill -9 between sending and marking (row F08): at most one repeat, under the same collapse id, none missing.
func TestPushKill(t *testing.T) {
	f := testenv.NewFCM(t)
	hold := make(chan bool)
	var once sync.Once
	f.Answer = func(token string, n int) (int, string, http.Header) {
		if token == "slow" && n == 1 {
			once.Do(func() { close(hold) })
			time.Sleep(time.Second) // FCM has it; the answer comes too late
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
	case <-hold:
	case <-time.After(patience):
		t.Fatal("nothing was sent")
	}
	n.kill()
	n.start()
	n.notify("bob", `,"title":"t","body":"b"`)
	testenv.Eventually(t, "nothing is missing", func() bool { return len(f.Accepted("slow")) >= 1 && len(f.Accepted("quick")) == 1 })
	testenv.Eventually(t, "the job is done again, its lease having run out", func() bool { return len(f.Accepted("slow")) == 2 })
	both := f.Accepted("slow")
	if a, b := at(both[0], "android.collapse_key"), at(both[1], "android.collapse_key"); a != b || a == nil {
		t.Errorf("collapse keys %v and %v", a, b)
	}
}

// Push off: nothing is sent, and the funnel says so. Old events are not pushed (row F28).
func TestPushOffAndOld(t *testing.T) {
	dir := t.TempDir()
	i := start(t, map[string]string{"DATA_DIR": dir, "FIREBASE_PROJECT_ID": "your-project-id", "FIREBASE_PRIVATE_KEY": "your-private-key",
		"FIREBASE_CLIENT_EMAIL": "your-client-email"})
	if !strings.Contains(i.log.String(), "mobile push is off") {
		t.Error("not said that push is off")
	}
	i.device("alice", "tok")
	i.notify("alice", `,"title":"t","body":"b"`)
	testenv.Eventually(t, "it is recorded as skipped", func() bool {
		return strings.Contains(i.scrape(),
			`nexus_pushes_total{channel="fcm",outcome="skipped"} 1`)
	})
	i.stop()
	f := testenv.NewFCM(t)
	f.Answer = func(string, int) (int, string, http.Header) { return 503, "UNAVAILABLE", nil }
	late := start(t, pushing(f, map[string]string{"DATA_DIR": dir, "PUSH_TTL": "3s"}))
	late.notify("alice", `,"title":"t","body":"b"`)
	testenv.Eventually(t, "what FCM did not take in time is given up",
		func() bool {
			return strings.Contains(late.scrape(), `nexus_pushes_total{channel="fcm",outcome="expired"} 1`)
		})
	if f.Contains("skipped") || len(f.Accepted("tok")) != 0 {
		t.Error("something was pushed")
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
