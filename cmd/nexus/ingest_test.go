package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
)

// Product services by REST: what is accepted shows at the client and in the inbox.
func TestIngestByREST(t *testing.T) {
	engines(t, func(t *testing.T, i *instance) {
		service, alice := tokenFor(t, "billing", "publish"), tokenFor(t, "alice")
		s := i.open("/dashboard", "alice")
		s.send(`{"event":"subscribe","data":{"channels":["c"]},"id":1}`)
		s.expect("ack", nil)
		post := func(path, body string, header ...string) string {
			t.Helper()
			out := i.must(202, "POST", path, service, body, header...)
			id, _ := out["id"].(string)
			return id
		}
		n := `{"userId":"alice","title":"n","body":"b","type":"SYSTEM"}`
		first := post("/notifications", n, "Idempotency-Key", "k1")
		if again := post("/api/notifications", n, "Idempotency-Key", "k1"); again != first {
			t.Errorf("the same key got the ids %s and %s", first, again)
		}
		s.expect("notification", map[string]any{"id": first, "priority": "normal"})
		ids := i.must(202, "POST", "/notifications", service,
			`{"userIds":["alice","bob","alice"],"title":"many","body":"","type":"SYSTEM"}`)["ids"].(map[string]any)
		s.expect("notification", map[string]any{"id": ids["alice"], "title": "many"})
		post("/activities", `{"userId":"alice","type":"x","message":"m","data":{"a":1}}`)
		s.expect("activity", map[string]any{"type": "x", "userId": "alice"})
		post("/activities", `{"channel":"c","userId":"bob","type":"y","message":"m"}`)
		s.expect("activity", map[string]any{"type": "y", "userId": "bob"})
		post("/announcements", `{"title":"a","body":"b"}`)
		s.expect("announcement", map[string]any{"title": "a"})

		event := `{"specversion":"1.0","id":"%s","source":"shop","type":"notification","subject":"user:alice","data":{"title":"%s","body":"","type":"SYSTEM"}}`
		structured := post("/events", fmt.Sprintf(event, "e1", "structured"), "Content-Type", "application/cloudevents+json")
		s.expect("notification", map[string]any{"id": structured, "title": "structured"})
		post("/events", `{"title":"binary","body":"","type":"SYSTEM"}`, "ce-specversion", "1.0", "ce-id", "e2", "ce-source", "shop", "ce-type",
			"notification", "ce-subject", "channel:c")
		s.expect("notification", map[string]any{"title": "binary"})
		batch := i.must(202, "POST", "/events", service, "["+fmt.Sprintf(event, "e1", "structured")+","+fmt.Sprintf(event, "e3", "batch")+"]",
			"Content-Type", "application/cloudevents-batch+json")
		if batch["ids"].([]any)[0] != structured {
			t.Errorf("the same CloudEvent got another id: %v, was %s", batch["ids"], structured)
		}
		s.expect("notification", map[string]any{"title": "batch"})

		list := i.must(200, "GET", "/notifications", alice, "")["notifications"].([]any)
		var titles []string
		for _, n := range list {
			titles = append(titles, fmt.Sprint(n.(map[string]any)["title"]))
		}
		if got := strings.Join(titles, " "); got != "batch structured a many n" {
			t.Errorf("the inbox has %q: something is missing or doubled", got)
		}
		if got := i.must(200, "GET", "/notifications/unread-count", alice, "")["count"]; got != 5.0 {
			t.Errorf("unread-count %v, want 5", got)
		}
		i.must(200, "POST", "/notifications/"+first+"/read", alice, "")
		s.expect("notification:read", map[string]any{"notificationId": first})
		if got := i.must(200, "GET", "/notifications/unread-count", alice, "")["count"]; got != 4.0 {
			t.Errorf("unread-count %v right after reading one, want 4", got)
		}
		i.must(200, "DELETE", "/notifications/"+first, alice, "")
		i.must(404, "POST", "/notifications/"+first+"/read", alice, "")
		i.must(404, "POST", "/notifications/"+first+"/read", tokenFor(t, "bob"), "")
		if got := i.must(200, "POST", "/notifications/read-all", alice, "")["count"]; got != 0.0 {
			t.Errorf("unread after read-all: %v", got)
		}
		if got := i.must(200, "GET", "/notifications?unread=true", alice, "")["notifications"].([]any); len(got) != 0 {
			t.Errorf("unread after read-all: %v", got)
		}
	})
}

// Refused requests change nothing and say why.
func TestRefusals(t *testing.T) {
	i := start(t, map[string]string{"ALLOWED_ORIGIN": "https://app.example.com"})
	service, alice := tokenFor(t, "billing", "publish"), tokenFor(t, "alice")
	for _, tc := range []struct {
		name, method, path, token, body string
		status                          int
		code                            string
		header                          []string
	}{
		{"no token", "POST", "/notifications", "", `{}`, 401, "token_invalid", nil},
		{"bad token", "GET", "/notifications", "x.y.z", ``, 401, "token_invalid", nil},
		{"no scope", "POST", "/notifications", alice, `{"userId":"alice","title":"t","body":"b","type":"SYSTEM"}`, 403, "forbidden", nil},
		{"no audience", "POST", "/notifications", service, `{"title":"t","body":"b","type":"SYSTEM"}`, 400, "invalid_payload", nil},
		{"two audiences", "POST", "/notifications", service, `{"userId":"a","channel":"c","title":"t","body":"b","type":"SYSTEM"}`, 400,
			"invalid_payload", nil},
		{"unknown type", "POST", "/notifications", service, `{"userId":"a","title":"t","body":"b","type":"X"}`, 400, "invalid_payload", nil},
		{"unknown field", "POST", "/notifications", service, `{"userId":"a","title":"t","body":"b","type":"SYSTEM","x":1}`, 400,
			"invalid_payload", nil},
		{"not JSON", "POST", "/notifications", service, `{`, 400, "invalid_payload", nil},
		{"one of many invalid", "POST", "/notifications", service, `{"userIds":["a","b:c"],"title":"t","body":"b","type":"SYSTEM"}`, 400,
			"invalid_payload", nil},
		{"event without subject", "POST", "/events", service, `{"specversion":"1.0","id":"1","source":"s","type":"notification","data":{"a":1}}`,
			400, "invalid_payload", []string{"Content-Type", "application/cloudevents+json"}},
		{"no CloudEvent", "POST", "/events", service, `{}`, 400, "invalid_payload", nil},
		{"too large", "POST", "/notifications", service, `{"userId":"a","title":"` + strings.Repeat("x", 1_100_000) +
			`","body":"b","type":"SYSTEM"}`, 413, "too_large", nil},
		{"value too large", "POST", "/notifications", service, `{"userId":"a","title":"` + strings.Repeat("x", 300_000) +
			`","body":"b","type":"SYSTEM"}`, 400, "invalid_payload", nil},
		{"unknown route", "GET", "/nothing", alice, ``, 404, "not_found", nil},
		{"foreign origin", "GET", "/notifications", alice, ``, 403, "forbidden", []string{"Origin", "https://evil.example"}},
		{"bad cursor", "GET", "/notifications?cursor=x", alice, ``, 400, "invalid_payload", nil},
		{"bad limit", "GET", "/notifications?limit=0", alice, ``, 400, "invalid_payload", nil},
		{"no device token", "POST", "/notifications/device-token", alice, `{}`, 400, "invalid_payload", nil},
		{"presence of nobody", "GET", "/presence/a:b", alice, ``, 400, "invalid_payload", nil},
	} {
		status, out := i.call(tc.method, tc.path, tc.token, tc.body, tc.header...)
		e, _ := out["error"].(map[string]any)
		if status != tc.status || e["code"] != tc.code || e["message"] == "" {
			t.Errorf("%s: %d %v, want %d %s", tc.name, status, out, tc.status, tc.code)
		}
	}
	if got := i.must(200, "GET", "/notifications", tokenFor(t, "a"), "")["notifications"].([]any); len(got) != 0 {
		t.Errorf("a refused request left %v", got)
	}
	i.must(204, "OPTIONS", "/notifications", "", "", "Origin", "https://app.example.com", "Access-Control-Request-Method", "POST")
	noSecrets(t, i, "xxxxxxxx")
}

// The device-token routes, exactly as in the guide, and what a user reads of messages and presence.
func TestUserRoutes(t *testing.T) {
	i := start(t, nil)
	alice, bob := tokenFor(t, "alice"), tokenFor(t, "bob")
	for _, prefix := range []string{"", "/api"} {
		out := i.must(200, "POST", prefix+"/notifications/device-token", alice, `{"token":"fcm-device-token-here"}`)
		if len(out) != 1 || out["message"] != "Device token registered successfully" {
			t.Errorf("register answered %v", out)
		}
		out = i.must(200, "DELETE", prefix+"/notifications/device-token", alice, "")
		if len(out) != 1 || out["message"] != "Device token unregistered successfully" {
			t.Errorf("unregister answered %v", out)
		}
	}
	s := i.open("/ws", "bob")
	sent := i.must(202, "POST", "/messages", alice, `{"receiverId":"bob","content":"hi","clientMessageId":"1"}`)
	again := i.must(202, "POST", "/messages", alice, `{"receiverId":"bob","content":"hi","clientMessageId":"1"}`)
	if again["id"] != sent["id"] || again["duplicate"] != true {
		t.Errorf("a repeat answered %v, the first %v", again, sent)
	}
	s.expect("message:new", map[string]any{"id": sent["id"], "content": "hi"})
	list := i.must(200, "GET", "/messages?with=alice", bob, "")["messages"].([]any)
	if len(list) != 1 || list[0].(map[string]any)["id"] != sent["id"] || list[0].(map[string]any)["read"] != false {
		t.Errorf("bob's messages: %v", list)
	}
	s.send(fmt.Sprintf(`{"event":"markAsRead","data":{"messageId":%q},"id":"r"}`, sent["id"]))
	s.expect("ack", map[string]any{"ok": true})
	list = i.must(200, "GET", "/messages?with=bob", alice, "")["messages"].([]any)
	if list[0].(map[string]any)["read"] != true {
		t.Errorf("after the receipt: %v", list)
	}
	i.open("/dashboard", "bob")
	testenv.Eventually(t, "bob is counted", func() bool { return i.must(200, "GET", "/presence", alice, "")["online"] == 1.0 })
	if got := i.must(200, "GET", "/presence/bob", alice, ""); got["online"] != true {
		t.Errorf("presence of bob: %v", got)
	}
	if got := i.must(200, "GET", "/presence?userIds=bob,carol", alice, ""); got["bob"].(map[string]any)["online"] != true ||
		got["carol"].(map[string]any)["online"] != false {
		t.Errorf("presence: %v", got)
	}
	i.must(200, "GET", "/stats", alice, "")
	i.must(200, "GET", "/healthz", "", "")
	i.must(200, "GET", "/readyz", "", "")
}

// Conversations by REST; read here clears there; an announcement waits for those who were away.
func TestConversationsAndReceipts(t *testing.T) {
	engines(t, func(t *testing.T, i *instance) {
		alice, bob := tokenFor(t, "alice"), tokenFor(t, "bob")
		first := fmt.Sprint(i.must(202, "POST", "/messages", alice, `{"receiverId":"bob","content":"one"}`)["id"])
		i.must(202, "POST", "/messages", tokenFor(t, "carol"), `{"receiverId":"bob","content":"two"}`)
		list := i.must(200, "GET", "/conversations", bob, "")["conversations"].([]any)
		if len(list) != 2 || at(list[0], "userId") != "carol" || at(list[0], "unread") != 1.0 || at(list[0], "lastMessage.content") != "two" ||
			at(list[1], "lastMessage.read") != false {
			t.Errorf("bob's conversations: %v", list)
		}
		// A receipt reaches every device of both, and clears the count.
		devices := []*socket{i.open("/ws", "alice"), i.open("/ws", "alice"), i.open("/ws", "bob"), i.open("/ws", "bob")}
		devices[2].send(`{"event":"markAsRead","data":{"messageId":"` + first + `"}}`)
		for _, d := range devices {
			d.expect("message:read", map[string]any{"messageId": first, "userId": "bob"})
		}
		list = i.must(200, "GET", "/conversations?limit=1", bob, "")["conversations"].([]any)
		if len(list) != 1 || at(list[0], "userId") != "carol" {
			t.Errorf("the first page: %v", list)
		}
		page := i.must(200, "GET", "/messages?with=alice&limit=1", bob, "")
		i.must(202, "POST", "/messages", alice, `{"receiverId":"bob","content":"three"}`)
		newer := i.must(200, "GET", "/messages?with=alice&after="+fmt.Sprint(page["newer"]), bob, "")["messages"].([]any)
		if len(newer) != 1 || at(newer[0], "content") != "three" {
			t.Errorf("newer than the page: %v", newer)
		}
		i.must(400, "GET", "/messages?with=alice&after=x&cursor=y", bob, "")
		// Notifications: read on one device, cleared on the other; read-all is one record.
		i.must(202, "POST", "/announcements", tokenFor(t, "service", "publish"), `{"title":"while away","body":""}`)
		id := i.notify("bob", `,"title":"a","body":""`)
		i.notify("bob", `,"title":"b","body":""`)
		testenv.Eventually(t, "an announcement and two notifications wait for bob, who was away", func() bool {
			return i.must(200, "GET", "/notifications/unread-count", bob, "")["count"] == 3.0
		})
		phone, laptop := i.open("/dashboard", "bob"), i.open("/dashboard", "bob")
		i.must(200, "POST", "/notifications/"+id+"/read", bob, "")
		for _, d := range []*socket{phone, laptop} {
			d.expect("notification:read", map[string]any{"notificationId": id})
		}
		i.must(200, "POST", "/notifications/read-all", bob, "")
		for _, d := range []*socket{phone, laptop} {
			if f := d.expectSoon("notification:read", patience); f.Data["upTo"] == nil {
				t.Errorf("read-all: %v", f.Data)
			}
		}
		if got := i.must(200, "GET", "/notifications/unread-count", bob, "")["count"]; got != 0.0 {
			t.Errorf("after read-all: %v unread", got)
		}
	})
}

// Whoever goes on typing is said to be typing once in a while, not for every key.
func TestTypingIsCoalesced(t *testing.T) {
	i := start(t, nil)
	alice, bob := i.open("/ws", "alice"), i.open("/ws", "bob")
	for n := range 30 {
		alice.send(fmt.Sprintf(`{"event":"typing","data":{"receiverId":"bob","isTyping":true},"id":%d}`, n))
	}
	for range 30 {
		if f := alice.expect("ack", nil); f.Data["ok"] != true {
			t.Fatalf("%v", f.Data)
		}
	}
	alice.send(`{"event":"typing","data":{"receiverId":"bob","isTyping":false}}`)
	starts := 0
	for f := range bob.frames {
		if f.Event == "typing:start" {
			starts++
		}
		if f.Event == "typing:stop" {
			break
		}
	}
	if starts < 1 || starts > 2 {
		t.Errorf("bob was told %d times", starts)
	}
}

// Product services straight into the topics: kcat with its default partitioner, with and without headers, with garbage
// among it.
func TestIngestByKcat(t *testing.T) {
	kcat := tool(t, "kcat")
	t.Run("embedded", func(t *testing.T) { i := start(t, nil); testKcat(t, i, kcat, i.kafka, "nexus.") })
	t.Run("distributed", func(t *testing.T) {
		prefix, addr := testenv.Name("t")+".", testenv.Kafka(t)
		testKcat(t, start(t, map[string]string{"KAFKA_BROKERS": addr, "DATABASE_URL": testenv.Postgres(t), "NEXUS_TOPIC_PREFIX": prefix}), kcat,
			addr, prefix)
	})
}

func testKcat(t *testing.T, i *instance, kcat, addr, prefix string) {
	produce := func(topic, lines string, args ...string) {
		t.Helper()
		cmd := exec.Command(kcat, append([]string{"-P", "-b", addr, "-t", prefix + topic, "-K", "|"}, args...)...)
		cmd.Stdin = strings.NewReader(lines)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("kcat: %v %s", err, out)
		}
	}
	const users, each = 12, 5
	sockets := make([]*socket, users)
	for u := range users {
		sockets[u] = i.open("/dashboard", fmt.Sprint("user", u))
	}
	garbage := 0
	var b strings.Builder
	for n := range each {
		for u := range users {
			fmt.Fprintf(&b, "user:user%d|{\"title\":\"%d\",\"body\":\"b\",\"type\":\"SYSTEM\"}\n", u, n)
			if u%4 == 0 {
				fmt.Fprintf(&b, "user:user%d|garbage %d\n", u, n)
				garbage++
			}
		}
	}
	produce("notifications", b.String())
	produce("notifications", "user:user1|{\"type\":\"x\",\"userId\":\"user2\",\"message\":\"with headers\"}\n", "-H", "ce_type=activity", "-H",
		"ce_id=17", "-H", "ce_source=shop")
	produce("notifications", "user:user1|{\"type\":\"x\",\"userId\":\"user2\",\"message\":\"with headers\"}\n", "-H", "ce_type=activity", "-H",
		"ce_id=17", "-H", "ce_source=shop")
	produce("broadcasts", "all|{\"title\":\"to all\",\"body\":\"b\"}\n")
	produce("broadcasts", "nonsense|{}\n")
	garbage++
	for u, s := range sockets {
		got := make(map[string]int)
		announced := false
		deadline := time.After(patience)
		for len(got) < each || !announced {
			select {
			case f := <-s.frames:
				switch f.Event {
				case "notification":
					got[fmt.Sprint(f.Data["title"])]++
				case "announcement":
					announced = true
				}
			case <-deadline:
				t.Fatalf("user%d got %v, announcement %v\n%s", u, got, announced, i.log)
			}
		}
		for title, n := range got {
			if n != 1 {
				t.Errorf("user%d got notification %s %d times", u, title, n)
			}
		}
		// Once more: what user1 got twice is one activity.
		list := i.must(200, "GET", "/notifications", tokenFor(t, fmt.Sprint("user", u)), "")["notifications"].([]any)
		if len(list) != each+1 {
			t.Errorf("the inbox of user%d has %d, want %d", u, len(list), each+1)
		}
	}
	deadline := time.Now().Add(patience)
	for {
		out, err := exec.Command(kcat, "-C", "-b", addr, "-t", prefix+"dead-letters", "-e", "-q", "-f", "%h\n").Output()
		if err != nil {
			t.Fatal(err)
		}
		seen := make(map[string]int)
		for line := range strings.FieldsSeq(string(out)) {
			if _, origin, ok := strings.Cut(line, "nexus-origin="); ok {
				origin, _, _ = strings.Cut(origin, ",")
				seen[origin]++
			}
		}
		for origin, n := range seen {
			if n != 1 {
				t.Errorf("%s is %d times in dead-letters", origin, n)
			}
		}
		if len(seen) == garbage {
			return
		}
		if time.Now().After(deadline) || len(seen) > garbage {
			t.Fatalf("dead-letters has %d records, want %d", len(seen), garbage)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
