package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/testenv"
)

// Few file descriptors (X11): the node says so at the start, refuses connections with 503 and Retry-After, and goes on
// appending what those who are in send. Those who leave make room.
func TestFewDescriptors(t *testing.T) {
	few := filepath.Join(t.TempDir(), "nexus") // the real binary under a lower limit
	if err := os.WriteFile(few, []byte("#!/bin/sh\nulimit -n 256\nexec "+nexusBinary(t)+" \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	n := launchBinary(t, few, map[string]string{"HOST": "127.0.0.1", "PORT": "0", "DATA_DIR": t.TempDir(), "EMBEDDED_KAFKA_PORT": "0",
		"JWT_SECRET":               testSecret,
		"MAX_CONNECTIONS_PER_USER": "1000"})
	if !strings.Contains(n.log.String(), "the limit of file descriptors is lower than MAX_CONNECTIONS_PER_NAMESPACE needs") {
		t.Errorf("no warning at the start:\n%s", n.log)
	}
	var in []*websocket.Conn
	defer func() {
		for _, ws := range in {
			ws.Close()
		}
	}()
	refused, token := 0, tokenFor(t, "alice")
	for range 300 {
		ws, resp, err := websocket.DefaultDialer.Dial(n.url("/ws", "alice", token), nil)
		switch {
		case err == nil:
			in = append(in, ws)
		case resp == nil:
			t.Fatalf("after %d connections: %v, want 503", len(in), err)
		default:
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" ||
				!strings.Contains(string(body), `"code":"unavailable"`) {
				t.Fatalf("after %d connections: %s %s", len(in), resp.Status, body)
			}
			refused++
		}
	}
	if len(in) < 20 || refused < 100 {
		t.Fatalf("%d let in, %d refused", len(in), refused)
	}
	// What an own client of the node needs is there: an append by one who is in, and once one has left by REST.
	if err := in[0].WriteMessage(websocket.TextMessage,
		[]byte(`{"event":"sendMessage","data":{"receiverId":"bob","content":"still"},"id":1}`)); err != nil {
		t.Fatal(err)
	}
	_ = in[0].SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		_, b, err := in[0].ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), `"event":"ack"`) {
			if !strings.Contains(string(b), `"ok":true`) {
				t.Errorf("not appended: %s", b)
			}
			break
		}
	}
	for range 5 {
		in[len(in)-1].Close()
		in = in[:len(in)-1]
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	testenv.Eventually(t, "there is room again", func() bool {
		resp, err := client.Get("http://" + n.base + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode == http.StatusOK
	})
}
