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
