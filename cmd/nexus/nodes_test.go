package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/topics"
)

// One node with the settings of a deployment, over a stop and a start: what its layers are tested for by themselves holds of the whole.
// Whom it refuses at the door, what it tells clients of itself, that a read by REST has what a socket has shown, that a stop answers
// first and keeps what it has answered, and that a token of the secret before this one is good.
func TestOneNode(t *testing.T) {
	env := map[string]string{"DATA_DIR": t.TempDir(), "ALLOWED_ORIGIN": "https://app.example.com", "RATE_LIMIT_MESSAGES": "1000"}
	i := start(t, env)
	good := tokenFor(t, "alice")
	for name, tc := range map[string]struct {
		user, token, origin string
		status              int
	}{
		"a forged token": {"alice", good + "x", "", 401}, "another's token": {"bob", good, "", 403},
		"a foreign page": {"alice", good, "https://evil.example", 403}, "the page": {"alice", good, "https://app.example.com", 101},
	} {
		for _, ns := range topics.Namespaces() {
			ws, resp, err := websocket.DefaultDialer.Dial(i.url(string(ns), tc.user, tc.token), originHeader(tc.origin))
			if err == nil {
				ws.Close()
			}
			if resp == nil || resp.StatusCode != tc.status {
				t.Errorf("%s at %s: %v %v, want %d", name, ns, resp, err, tc.status)
			}
		}
	}
	resp, err := http.Get("http://" + i.base + pollingPath)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil ||
		!strings.Contains(string(b), `"pingInterval":30000,"pingTimeout":20000,"maxPayload":1000000`) {
		t.Errorf("Socket.IO clients are told %s %v", b, err)
	}

	alice, bob, bobToken := i.open("/ws", "alice"), i.open("/ws", "bob"), tokenFor(t, "bob")
	alice.send(`{"event":"sendMessage","data":{"receiverId":"bob","content":"hi","clientMessageId":"hi"},"id":"hi"}`)
	id := bob.expect("message:new", map[string]any{"content": "hi"}).Data["id"]
	list := i.must(200, "GET", "/conversations", bobToken, "")["conversations"].([]any)
	if len(list) != 1 || at(list[0], "userId") != "alice" || at(list[0], "unread") != 1.0 || at(list[0], "lastMessage.id") != id {
		t.Errorf("bob's conversations as he is shown the message: %v", list)
	}
	bob.send(fmt.Sprintf(`{"event":"markAsRead","data":{"messageId":%q},"id":"r"}`, id))
	bob.expect("ack", map[string]any{"ok": true})
	if list := i.must(200, "GET", "/messages?with=bob", good, "")["messages"].([]any); at(list[0], "read") != true {
		t.Errorf("once the receipt is acknowledged: %v", list)
	}

	const sent = 500
	for k := range sent {
		alice.send(fmt.Sprintf(`{"event":"sendMessage","data":{"receiverId":"bob","content":"c","clientMessageId":"%d"},"id":%d}`, k, k))
	}
	alice.expect("ack", map[string]any{"ok": true})
	i.stop()
	acked := 1
	for f := range alice.frames {
		if f.Event == "ack" && f.Data["ok"] == true {
			acked++
		}
	}
	if err := <-alice.closed; !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("closed with %v, want 1001", err)
	}

	env["JWT_SECRET"], env["JWT_SECRET_PREVIOUS"] = strings.Repeat("n", 40), testSecret
	again := start(t, env)
	have, cursor, more := 0, "", true
	for more {
		page := again.must(200, "GET", "/messages?with=alice&limit=200&cursor="+cursor, bobToken, "")
		have += len(page["messages"].([]any))
		cursor, more = page["next"].(string)
	}
	if have < acked {
		t.Errorf("%d messages were acknowledged and %d kept", acked, have)
	}
	t.Logf("%d of %d acknowledged before the close, %d kept", acked, sent+1, have)
}

func originHeader(origin string) http.Header {
	if origin == "" {
		return nil
	}
	return http.Header{"Origin": {origin}}
}

// Two nodes on one log and one inbox: whoever is connected where, everybody gets everything, once.
func TestTwoNodes(t *testing.T) {
	env := map[string]string{"KAFKA_BROKERS": testenv.Kafka(t), "DATABASE_URL": testenv.Postgres(t),
		"NEXUS_TOPIC_PREFIX": testenv.Name("t") + "."}
	a, b := start(t, env), start(t, env)
	alice := a.open("/ws", "alice")
	dashboard := b.open("/dashboard", "alice")
	bob := b.open("/ws", "bob")
	alice.expect("presence:online", map[string]any{"userId": "bob"})
	for n := range 20 {
		alice.send(fmt.Sprintf(`{"event":"sendMessage","data":{"receiverId":"bob","content":"to b %d","clientMessageId":"%d"},"id":%d}`, n, n, n))
	}
	var first string
	for n := range 20 { // in the order in which they were sent
		f := bob.expect("message:new", nil)
		if want := fmt.Sprintf("to b %d", n); f.Data["content"] != want {
			t.Fatalf("bob got %v, want %s", f.Data["content"], want)
		}
		if n == 0 {
			first = fmt.Sprint(f.Data["id"])
		}
	}
	// The same message by the other node: the same event.
	again := b.must(202, "POST", "/messages", tokenFor(t, "alice"), `{"receiverId":"bob","content":"to b 0","clientMessageId":"0"}`)
	if again["id"] != first || again["duplicate"] != true {
		t.Errorf("the repeat on the other node: %v, want id %s and duplicate", again, first)
	}
	alice.expect("message:sent", map[string]any{"id": first, "duplicate": true})
	bob.send(fmt.Sprintf(`{"event":"markAsRead","data":{"messageId":%q},"id":"r"}`, first))
	bob.expect("ack", map[string]any{"ok": true})
	alice.expect("message:read", map[string]any{"messageId": first, "userId": "bob"})
	a.must(202, "POST", "/notifications", tokenFor(t, "service", "publish"), `{"userId":"alice","title":"by a","body":"","type":"SYSTEM"}`)
	dashboard.expect("notification", map[string]any{"title": "by a"})
	for _, node := range []*instance{a, b} {
		deadline := time.Now().Add(patience)
		for {
			list := node.must(200, "GET", "/messages?with=bob", tokenFor(t, "alice"), "")["messages"].([]any)
			if len(list) == 20 {
				break
			}
			if len(list) > 20 || time.Now().After(deadline) {
				t.Fatalf("the inbox has %d messages, want 20", len(list))
			}
		}
	}
	// A node that stops takes its users offline, and the other goes on.
	b.stop()
	alice.expect("presence:offline", map[string]any{"userId": "bob"})
	alice.send(`{"event":"sendMessage","data":{"receiverId":"bob","content":"alone"},"id":"x"}`)
	alice.expect("ack", map[string]any{"ok": true})
}
