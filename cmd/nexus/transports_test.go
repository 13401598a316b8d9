package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
)

// The real socket.io-client by every transport, with binary data, over the limits, and a client of an older protocol.
func TestTransports(t *testing.T) {
	node, dir := tool(t, "node"), clientDir(t)
	i := start(t, map[string]string{"RATE_LIMIT_MESSAGES": "10000"})
	tokens, err := json.Marshal(map[string]string{"alice": tokenFor(t, "alice"), "bob": tokenFor(t, "bob")})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(node, dir+"/transports.mjs", "http://"+i.base, string(tokens)).CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "all seen") {
		t.Fatalf("%v\n%s\n%s", err, out, i.log)
	}
}

// The real python-socketio, whose handlers take one argument: it passes on all that an event has, and fails where a
// handler takes fewer.
func TestPythonClient(t *testing.T) {
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	python := filepath.Join(root, ".cache/python-socketio/bin/python")
	if _, err := os.Stat(python); err != nil {
		missing(t, "python-socketio is not installed; run internal/testenv/setup.sh")
	}
	i := start(t, nil)
	tokens, err := json.Marshal(map[string]string{"alice": tokenFor(t, "alice"), "bob": tokenFor(t, "bob"),
		"service": tokenFor(t, "service", "publish")})
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(root, "internal/testenv/client/python.py")
	if out, err := exec.Command(python, script, "http://"+i.base, string(tokens)).CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "all seen") {
		t.Fatalf("%v\n%s\n%s", err, out, i.log)
	}
}

// A page of an allowed origin gets through by every way, one of another by none.
func TestChromium(t *testing.T) {
	node, dir := tool(t, "node"), clientDir(t)
	tool(t, "chromium")
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(`<!doctype html><script src="/socket.io.js"></script>`))
	})
	mux.HandleFunc("/socket.io.js", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, filepath.Join(dir, "node_modules/socket.io-client/dist/socket.io.js"))
	})
	allowed, evil := httptest.NewServer(mux), httptest.NewServer(mux)
	defer allowed.Close()
	defer evil.Close()
	i := start(t, map[string]string{"ALLOWED_ORIGIN": allowed.URL})
	for page, want := range map[string]map[string]string{
		allowed.URL: {"default": "a by websocket", "websocket": "a by websocket", "raw": "connected", "rest": "200"},
		evil.URL:    {"default": "refused: xhr poll error", "websocket": "refused: websocket error", "raw": "refused", "rest": "refused"},
	} {
		out, err := exec.Command(node, dir+"/browser.mjs", page, "http://"+i.base, "alice", tokenFor(t, "alice")).Output()
		if err != nil {
			exit, _ := errors.AsType[*exec.ExitError](err)
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		var got map[string]string
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		for name, w := range want {
			if got[name] != w {
				t.Errorf("from %s: %s %q, want %q", page, name, got[name], w)
			}
		}
	}
}
