package main

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
)

// scrape is what /metrics shows.
func (i *instance) scrape() string {
	i.t.Helper()
	resp, err := http.Get("http://" + i.base + "/metrics")
	if err != nil {
		i.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		i.t.Fatalf("/metrics: %d %v", resp.StatusCode, err)
	}
	return string(b)
}

// The event log tells who came, who went and why; metrics count it; neither names a token or a content, nor do metrics
// name a user.
func TestMonitoring(t *testing.T) {
	i := start(t, nil)
	service := tokenFor(t, "service", "publish")
	alice, bob := i.open("/dashboard", "alice"), i.open("/ws", "bob")
	leave := i.joinByPolling("carol")
	for range 2 {
		i.must(202, "POST", "/notifications", service, `{"userId":"alice","title":"secret-title","body":"secret-body","type":"SYSTEM"}`,
			"Idempotency-Key", "k")
	}
	alice.expect("notification", nil)
	bob.send(`{"event":"sendMessage","data":{"receiverId":"carol","content":"secret-content"},"id":1}`)
	bob.expect("ack", map[string]any{"ok": true})
	bob.send(`{"event":"no such event ` + strings.Repeat("x", 50) + `"}`)
	bob.expect("error", map[string]any{"code": "unknown_event"})
	i.refused("/ws", "alice", "garbage")
	for _, want := range []string{
		`nexus_connections{namespace="/dashboard",protocol="raw",transport="websocket"} 1`,
		`nexus_connections{namespace="/ws",protocol="socket.io",transport="polling"} 1`,
		`nexus_cluster_connections{namespace="/ws"} 2`,
		`nexus_sessions_opened_total{namespace="/ws"} 2`,
		`nexus_sessions_refused_total{code="token_invalid"} 1`,
		`nexus_frames_sent_total{event="notification",namespace="/dashboard"} 1`,
		`nexus_frames_received_total{event="unknown",namespace="/ws"} 1`,
		`nexus_frames_refused_total{code="unknown_event"} 1`,
		`nexus_append_to_delivery_seconds_count{event="notification"} 1`,
		`nexus_queue_bytes`,
		`nexus_consumer_lag_records{consumer="inbox",topic="notifications"}`,
		`nexus_dedup_window_bytes `,
		`nexus_duplicates_total{consumer="inbox",topic="notifications"} 1`,
		`nexus_strays_total 0`,
		`nexus_kafka_write_bytes_total{client="producer"`,
		`nexus_http_request_seconds_count{method="POST",route="/notifications",status="202"}`,
		`go_goroutines`,
	} {
		testenv.Eventually(t, want, func() bool { return strings.Contains(i.scrape(), want) })
	}
	bob.ws.Close()
	alice.ws.Close()
	leave()
	testenv.Eventually(t, "every end has its reason", func() bool {
		m := i.scrape()
		return strings.Contains(m, `nexus_sessions_closed_total{namespace="/ws",reason="left"} 1`) &&
			strings.Contains(m, `nexus_sessions_closed_total{namespace="/ws",reason="lost"} 1`)
	})
	for _, want := range []string{`session opened.*user=alice namespace=/dashboard protocol=raw transport=websocket`,
		`session closed.*user=bob namespace=/ws reason=lost`,
		`session closed.*user=carol namespace=/ws reason=left`} {
		if !regexp.MustCompile(want).MatchString(i.log.String()) {
			t.Errorf("no line like %s in:\n%s", want, i.log)
		}
	}
	noSecrets(t, i, "secret-title", "secret-body", "secret-content")
	for _, secret := range []string{"alice", "bob", "carol", "secret-", "eyJ"} {
		if strings.Contains(i.scrape(), secret) {
			t.Errorf("the metrics contain %q", secret)
		}
	}
}

const pollingPath = "/socket.io/?EIO=4&transport=polling"

// joinByPolling has a Socket.IO client join /ws by long-polling; leave has it leave the namespace. It answers no pings.
func (i *instance) joinByPolling(user string) (leave func()) {
	i.t.Helper()
	do := func(method, path, body string) string {
		r, err := http.NewRequest(method, "http://"+i.base+path, strings.NewReader(body))
		if err != nil {
			i.t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			i.t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			i.t.Fatalf("%s %s: %s %v", method, path, resp.Status, err)
		}
		return string(b)
	}
	sid, _, _ := strings.Cut(strings.TrimPrefix(do("GET", pollingPath, ""), `0{"sid":"`), `"`)
	path := pollingPath + "&sid=" + sid
	do("POST", path, `40/ws,{"userId":"`+user+`","token":"`+tokenFor(i.t, user)+`"}`)
	for !strings.Contains(do("GET", path, ""), "40/ws,") {
	}
	return func() { do("POST", path, "41/ws,") }
}
