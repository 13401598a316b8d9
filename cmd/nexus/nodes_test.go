package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
)

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
