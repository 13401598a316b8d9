package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/internal/testenv/witness"
	"github.com/nexus/nexus/topics"
)

func TestMain(m *testing.M) { testenv.Exit(m) }

const testSecret = "test-secret-0123456789abcdef0123456789abcdef"

// instance is a running nexus serve.
type instance struct {
	t                testing.TB
	base             string // host:port
	kafka            string // the embedded one
	log              *testenv.Buffer
	stop             func()
	*witness.Witness // of all that its clients get
}

// start runs the same run as main does, on free ports, with more settings in env.
func start(t testing.TB, env map[string]string) *instance {
	t.Helper()
	settings := map[string]string{"PORT": "0", "HOST": "127.0.0.1", "DATA_DIR": t.TempDir(), "EMBEDDED_KAFKA_PORT": "0",
		"JWT_SECRET": testSecret}
	maps.Copy(settings, env)
	if settings["KAFKA_BROKERS"] != "" {
		settings["EMBEDDED_KAFKA_PORT"] = ""
	}
	ctx, cancel := context.WithCancel(context.Background())
	out, in := io.Pipe()
	log := &testenv.Buffer{}
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"serve"}, settings, in, log)
		in.Close()
	}()
	i := &instance{t: t, log: log, Witness: witness.New(t)}
	var once sync.Once
	i.stop = func() {
		once.Do(func() {
			if i.kafka != "" {
				if err := i.records(i.kafka); err != nil {
					t.Errorf("read the log at the end: %v", err)
				}
			}
			i.Tell(t)
			cancel()
			if code := <-done; code != 0 {
				t.Errorf("nexus serve ended with %d:\n%s", code, log)
			}
			noSecrets(t, i) // in no log of any test
		})
	}
	t.Cleanup(i.stop)
	i.await(out)
	return i
}

// await reads what the server prints once it is up.
func (i *instance) await(out io.Reader) {
	i.t.Helper()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if addr, ok := strings.CutPrefix(lines.Text(), "nexus is listening on http://localhost"); ok {
			i.base = "127.0.0.1" + addr
			if strings.Contains(i.log.String(), "embedded Kafka is running") {
				continue
			}
			break
		}
		if addr, ok := strings.CutPrefix(lines.Text(), "embedded Kafka is listening on "); ok {
			i.kafka = addr
			break
		}
	}
	if i.base == "" {
		i.t.Fatalf("the server did not come up:\n%s", i.log)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
}

func tokenFor(t testing.TB, user string, scopes ...string) string {
	t.Helper()
	token, err := api.Tokens{Secrets: [][]byte{[]byte(testSecret)}}.Sign(api.Claims{User: user, Scopes: scopes}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// call makes a REST request and decodes the answer.
func (i *instance) call(method, path, token, body string, header ...string) (int, map[string]any) {
	i.t.Helper()
	r, err := http.NewRequest(method, "http://"+i.base+path, strings.NewReader(body))
	if err != nil {
		i.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	r.Header.Set("Content-Type", "application/json")
	for n := 0; n+1 < len(header); n += 2 {
		r.Header.Set(header[n], header[n+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		i.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		i.t.Fatal(err)
	}
	i.Note(i.Answer(method, path, resp.StatusCode, resp.Header.Get("Content-Type"), b))
	out := make(map[string]any)
	if len(b) > 0 {
		if err := json.Unmarshal(b, &out); err != nil {
			i.t.Fatalf("%s %s answered %d %q", method, path, resp.StatusCode, b)
		}
	}
	return resp.StatusCode, out
}

// must makes a REST request that has to be answered with a status.
func (i *instance) must(status int, method, path, token, body string, header ...string) map[string]any {
	i.t.Helper()
	got, out := i.call(method, path, token, body, header...)
	if got != status {
		i.t.Fatalf("%s %s answered %d %v, want %d", method, path, got, out, status)
	}
	return out
}

// socket is a raw WebSocket client.
type socket struct {
	*witness.Witness
	ns     topics.Namespace
	t      testing.TB
	ws     *websocket.Conn
	frames chan frame
	closed chan error
}

type frame struct {
	Event  string
	Data   map[string]any
	ID     any
	Offset string
}

func (i *instance) url(ns, user, token string) string {
	return "ws://" + i.base + ns + "?userId=" + user + "&token=" + token
}

// open connects a raw client and waits for connected.
func (i *instance) open(ns, user string, more ...string) *socket {
	i.t.Helper()
	s := i.dial(i.url(ns, user, tokenFor(i.t, user)) + strings.Join(more, ""))
	s.expect("connected", nil)
	return s
}

func (i *instance) dial(address string) *socket {
	i.t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		i.t.Fatal(err)
	}
	ws, resp, err := (&websocket.Dialer{EnableCompression: true}).Dial(address, nil)
	if err != nil {
		status := ""
		if resp != nil {
			status = resp.Status
		}
		i.t.Fatalf("dial: %v %s", err, status)
	}
	s := &socket{Witness: i.Witness, ns: topics.Namespace(u.Path), t: i.t, ws: ws, frames: make(chan frame, 10_000),
		closed: make(chan error, 1)}
	go s.read()
	i.t.Cleanup(func() { ws.Close() })
	return s
}

func (s *socket) read() {
	for {
		_, b, err := s.ws.ReadMessage()
		if err != nil {
			s.Closed(err)
			s.closed <- err
			close(s.frames)
			return
		}
		s.Raw(s.ns, b)
		var f frame
		if err := json.Unmarshal(b, &f); err != nil {
			f.Event = "not JSON: " + string(b)
		}
		s.frames <- f
	}
}

func (s *socket) send(text string) {
	s.t.Helper()
	s.Ask(s.ns, text)
	if err := s.ws.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

const patience = 15 * time.Second

// expect waits for a frame of an event whose data has the fields of want.
func (s *socket) expect(event string, want map[string]any) frame {
	s.t.Helper()
	deadline := time.After(patience)
	var seen []string
	for {
		select {
		case f, open := <-s.frames:
			if !open {
				s.t.Fatalf("closed while waiting for %s %v; got %q", event, want, seen)
			}
			if f.Event == event && has(f.Data, want) {
				return f
			}
			seen = append(seen, fmt.Sprintf("%s %v", f.Event, f.Data))
		case <-deadline:
			s.t.Fatalf("no %s %v; got %q", event, want, seen)
		}
	}
}

func has(data, want map[string]any) bool {
	for k, v := range want {
		if fmt.Sprint(data[k]) != fmt.Sprint(v) {
			return false
		}
	}
	return true
}

// expectClose waits for the connection's end and checks the close code.
func (s *socket) expectClose(code int) {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case _, open := <-s.frames:
			if open {
				continue
			}
			if err := <-s.closed; !websocket.IsCloseError(err, code) {
				s.t.Fatalf("closed with %v, want %d", err, code)
			}
			return
		case <-deadline:
			s.t.Fatalf("not closed, want close code %d", code)
		}
	}
}

// tool finds a program that a test drives; without it the test is skipped, or fails where everything is required.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, name+" is not installed")
	}
	return path
}

func missing(t testing.TB, what string) {
	t.Helper()
	testenv.Note("no " + what)
	if os.Getenv("NEXUS_TEST_REQUIRE_REAL") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// clientDir is where the Node clients are installed.
func clientDir(t testing.TB) string {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "internal/testenv/client")
	if _, err := os.Stat(filepath.Join(dir, "node_modules/socket.io-client")); err != nil {
		missing(t, "socket.io-client is not installed; run internal/testenv/setup.sh")
	}
	return dir
}

func guide(t testing.TB) string {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "docs/product-guide.md")
}
