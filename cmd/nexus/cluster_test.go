package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/internal/testenv/witness"
)

// node is nexus serve as a process of its own.
type node struct {
	*instance
	cmd    *exec.Cmd
	binary string
	env    []string
	out    io.Closer // what it prints goes in here
}

var builtOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "nexus-bin")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "nexus")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// nexusBinary is nexus, built once for all tests.
func nexusBinary(t testing.TB) string {
	t.Helper()
	path, err := builtOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// launch starts a node and waits until it serves.
func launch(t testing.TB, env map[string]string) *node {
	t.Helper()
	return launchBinary(t, nexusBinary(t), env)
}

func launchBinary(t testing.TB, binary string, env map[string]string) *node {
	t.Helper()
	n := &node{instance: &instance{t: t, Witness: witness.New(t)}, binary: binary}
	t.Cleanup(func() { n.Tell(t) })
	for k, v := range env {
		n.env = append(n.env, k+"="+v)
	}
	n.start()
	t.Cleanup(func() {
		n.kill()
		noSecrets(t, n.instance)
	})
	return n
}

func (n *node) start() {
	n.t.Helper()
	n.log = &testenv.Buffer{}
	n.cmd = exec.Command(n.binary, "serve")
	n.cmd.Env, n.cmd.Stderr = n.env, n.log
	out, in := io.Pipe()
	n.cmd.Stdout, n.out = in, in
	n.cmd.WaitDelay = time.Second
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	up := make(chan bool)
	go func() { n.await(out); close(up) }()
	select {
	case <-up:
	case <-time.After(time.Minute):
		n.t.Fatalf("a node is not up after a minute:\n%s", n.log)
	}
}

func (n *node) kill() {
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
	_ = n.out.Close()
}

// cluster is the settings of nodes that share real Kafka, PostgreSQL and ClickHouse.
func cluster(t testing.TB) func(name string, more ...string) map[string]string {
	t.Helper()
	shared := map[string]string{"HOST": "127.0.0.1", "PORT": "0", "JWT_SECRET": testSecret, "KAFKA_BROKERS": testenv.Kafka(t),
		"DATABASE_URL": testenv.Postgres(t), "CLICKHOUSE_URL": testenv.ClickHouse(t), "NEXUS_TOPIC_PREFIX": testenv.Name("t") + "."}
	return func(name string, more ...string) map[string]string {
		env := map[string]string{"NODE_NAME": name, "DATA_DIR": t.TempDir()}
		maps.Copy(env, shared)
		for i := 0; i+1 < len(more); i += 2 {
			env[more[i]] = more[i+1]
		}
		return env
	}
}

// gone has the groups forget nodes that were stopped or killed: they are static members, for whom the groups would wait for 10 s.
func gone(t *testing.T, env map[string]string, nodes ...string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(env["KAFKA_BROKERS"]))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for _, p := range appOf(t, env).stored() {
		var members []string
		for _, node := range nodes {
			members = append(members, node+"/"+p.name)
		}
		_, err := kadm.NewClient(cl).LeaveGroup(t.Context(), kadm.LeaveGroup(env["NEXUS_TOPIC_PREFIX"]+p.name).InstanceIDs(members...))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// launchAll starts nodes n0, n1… at once.
func launchAll(t *testing.T, count int, env func(name string, more ...string) map[string]string, more ...string) []*node {
	t.Helper()
	nodes := make([]*node, count)
	var starting sync.WaitGroup
	for k := range nodes {
		starting.Go(func() { nodes[k] = launch(t, env(fmt.Sprintf("n%d", k), more...)) })
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return nodes
}

// refused dials and returns the status of the refusal, 101 where there was none.
func (i *instance) refused(ns, user, token string) (int, string) {
	i.t.Helper()
	ws, resp, err := websocket.DefaultDialer.Dial(i.url(ns, user, token), nil)
	if err == nil {
		ws.Close()
		return 101, ""
	}
	if resp == nil {
		return 0, err.Error()
	}
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// What holds over all nodes, with three processes on one real Kafka.
func TestThreeNodes(t *testing.T) {
	t.Parallel()
	env := cluster(t)
	nodes := launchAll(t, 3, env, "PING_INTERVAL", "5s", "MAX_CONNECTIONS_PER_NAMESPACE", "30")
	a, b, c := nodes[0], nodes[1], nodes[2]
	t.Run("presence", func(t *testing.T) {
		alice := a.open("/dashboard", "alice")
		defer alice.ws.Close()
		bob, bobToo := b.open("/dashboard", "bob"), c.open("/dashboard", "bob")
		alice.expect("user_status", map[string]any{"userId": "bob", "status": "online"})
		for _, n := range nodes {
			testenv.Eventually(t, "every node counts two online", func() bool {
				return n.must(200, "GET", "/presence", tokenFor(t, "x"),
					"")["online"] == 2.0
			})
			if got := n.must(200, "GET", "/presence/bob", tokenFor(t, "x"), ""); got["online"] != true {
				t.Errorf("bob: %v", got)
			}
			if got := n.must(200, "GET", "/presence/nobody", tokenFor(t, "x"), ""); got["online"] != false {
				t.Errorf("nobody: %v", got)
			}
		}
		bob.ws.Close() // one of two sessions: still online
		testenv.Eventually(t, "one session is left", func() bool {
			return a.must(200, "GET", "/diagnostics/bob", tokenFor(t, "op", "admin"), "")["connections"] == 1.0
		})
		bobToo.ws.Close()
		alice.expect("user_status", map[string]any{"userId": "bob", "status": "offline"})
	})
	t.Run("five connections of a user", func(t *testing.T) {
		token := tokenFor(t, "carol")
		var socks []*socket
		for k := range 5 {
			socks = append(socks, nodes[k%3].open("/ws", "carol"))
		}
		for _, n := range nodes {
			if status, body := n.refused("/ws", "carol", token); status != 429 || !strings.Contains(body, "too_many_connections") {
				t.Errorf("the sixth: %d %s", status, body)
			}
		}
		if status, _ := a.refused("/dashboard", "carol", token); status != 101 {
			t.Errorf("the other namespace: %d", status)
		}
		socks[1].ws.Close()
		testenv.Eventually(t, "the place is free again, on another node",
			func() bool { s, _ := c.refused("/ws", "carol", token); return s == 101 })
		for _, s := range socks {
			s.ws.Close()
		}
	})
	t.Run("connections in a namespace", func(t *testing.T) {
		var socks []*socket
		testenv.Eventually(t, "all places are free", func() bool {
			return a.must(200, "GET", "/presence", tokenFor(t, "x"),
				"")["dashboard"] == 0.0
		})
		for k := range 30 {
			socks = append(socks, nodes[k%3].open("/dashboard", fmt.Sprintf("full%d", k/5)))
		}
		for _, n := range nodes {
			if status, body := n.refused("/dashboard", "late", tokenFor(t, "late")); status != 503 || !strings.Contains(body, "namespace") {
				t.Errorf("one too many: %d %s", status, body)
			}
		}
		socks[0].ws.Close()
		testenv.Eventually(t, "the place is free again, on another node",
			func() bool { s, _ := b.refused("/dashboard", "late", tokenFor(t, "late")); return s == 101 })
		for _, s := range socks {
			s.ws.Close()
		}
	})
	t.Run("a hundred messages a minute", func(t *testing.T) {
		watch := []*socket{a.open("/ws", "erin"), b.open("/ws", "erin"), c.open("/ws", "erin")}
		dan := []*socket{a.open("/ws", "dan"), b.open("/ws", "dan"), b.open("/ws", "dan")}
		send := func(k, n int) frame {
			dan[k].send(fmt.Sprintf(`{"event":"sendMessage","data":{"receiverId":"erin","content":"%d"},"id":%d}`, n, n))
			return dan[k].expect("ack", nil)
		}
		for n := range 100 {
			if f := send(n%3, n); f.Data["ok"] != true {
				t.Fatalf("message %d: %v", n+1, f.Data)
			}
		}
		for _, s := range watch { // every node has seen all
			for range 100 {
				s.expect("message:new", nil)
			}
		}
		for k := range dan {
			f := send(k, 100+k)
			e, _ := f.Data["error"].(map[string]any)
			if e["code"] != "rate_limited" || e["retryAfterMs"] == nil {
				t.Errorf("message 101 by socket %d: %v", k, f.Data)
			}
		}
		for _, n := range nodes {
			if status, out := n.call("POST", "/messages", tokenFor(t, "dan"), `{"receiverId":"erin","content":"x"}`, "X-Forwarded-For",
				"192.0.2.1"); status != 429 {
				t.Errorf("message 101 by REST: %d %v", status, out)
			}
		}
		for _, s := range append(watch, dan...) {
			s.ws.Close()
		}
	})
	t.Run("revocation", func(t *testing.T) {
		old := tokenFor(t, "frank")
		one, two := a.open("/dashboard", "frank"), c.open("/ws", "frank")
		bystander := b.open("/ws", "grace")
		b.must(403, "POST", "/revocations", tokenFor(t, "x", "publish"), `{"userId":"frank"}`)
		b.must(202, "POST", "/revocations", tokenFor(t, "op", "admin"), `{"userId":"frank"}`)
		for _, s := range []*socket{one, two} {
			s.expect("error", map[string]any{"code": "token_revoked"})
			s.expectClose(4401)
		}
		for _, n := range nodes {
			testenv.Eventually(t, "the old token is refused", func() bool {
				s, body := n.refused("/ws", "frank", old)
				return s == 401 && strings.Contains(body, "token_revoked")
			})
			n.must(401, "GET", "/notifications", old, "")
			testenv.Eventually(t, "a new token is good", func() bool { s, _ := n.refused("/ws", "frank", tokenFor(t, "frank")); return s == 101 })
		}
		bystander.send(`{"event":"typing","data":{"receiverId":"x","isTyping":false},"id":1}`)
		bystander.expect("ack", map[string]any{"ok": true})
		bystander.ws.Close()
	})
	t.Run("a node that is killed", func(t *testing.T) {
		alice := a.open("/dashboard", "alice")
		stays := c.open("/dashboard", "stays")
		alice.expect("user_status", map[string]any{"userId": "stays", "status": "online"})
		for k := range 5 {
			b.open("/dashboard", "heidi")
			if k == 0 {
				alice.expect("user_status", map[string]any{"userId": "heidi", "status": "online"})
			}
		}
		if status, _ := a.refused("/dashboard", "heidi", tokenFor(t, "heidi")); status != 429 {
			t.Errorf("the sixth: %d", status)
		}
		// Whoever left before is shown as gone by now, and alice has been told.
		testenv.Eventually(t, "three are online", func() bool {
			return a.must(200, "GET", "/presence", tokenFor(t, "x"),
				"")["dashboard"] == 3.0
		})
		alice.send(`{"event":"subscribe","data":{"channels":[]},"id":"settled"}`)
		alice.expect("ack", nil)
		killed := time.Now()
		b.kill()
		offline := 0
		for offline == 0 {
			f := alice.expectSoon("user_status", 40*time.Second)
			if f.Data["userId"] != "heidi" || f.Data["status"] != "offline" {
				t.Fatalf("alice was told %v", f.Data)
			}
			offline++
		}
		t.Logf("offline %s after the kill", time.Since(killed).Round(time.Second))
		// It comes back: its user is let in at once, and nobody is told anything twice.
		b.start()
		back := b.open("/dashboard", "heidi")
		if f := alice.expectSoon("user_status", 40*time.Second); f.Data["userId"] != "heidi" || f.Data["status"] != "online" {
			t.Errorf("alice was told %v", f.Data)
		}
		// Killed with every place taken, and started again at once: the places are free.
		for range 4 {
			b.open("/dashboard", "heidi")
		}
		b.kill()
		b.start()
		for range 5 {
			b.open("/dashboard", "heidi")
		}
		back.ws.Close()
		stays.ws.Close()
		alice.ws.Close()
	})
}

// expectSoon waits for the next frame of an event, whatever its data.
func (s *socket) expectSoon(event string, within time.Duration) frame {
	s.t.Helper()
	deadline := time.After(within)
	for {
		select {
		case f, open := <-s.frames:
			if !open {
				s.t.Fatalf("closed while waiting for %s", event)
			}
			if f.Event == event {
				return f
			}
		case <-deadline:
			s.t.Fatalf("no %s within %s", event, within)
		}
	}
}

// Duplicates over nodes and restarts: the window is measured in record time, and slides.
func TestDedupOverRestarts(t *testing.T) {
	t.Parallel()
	env := cluster(t)
	send := func(n *node) map[string]any {
		t.Helper()
		return n.must(202, "POST", "/messages", tokenFor(t, "alice"), `{"receiverId":"bob","content":"x","clientMessageId":"1"}`)
	}
	one := launch(t, env("n1"))
	first := send(one)
	if first["duplicate"] != nil {
		t.Fatalf("the first is a duplicate: %v", first)
	}
	others := launchAll(t, 2, env)
	for _, n := range others {
		if again := send(n); again["duplicate"] != true || again["id"] != first["id"] {
			t.Errorf("on another node: %v, want a duplicate of %v", again, first["id"])
		}
	}
	one.kill()
	for _, n := range others {
		n.kill()
	}
	gone(t, env("n1"), "n0", "n1", "n2")
	one.start()
	if again := send(one); again["duplicate"] != true || again["id"] != first["id"] {
		t.Errorf("after all were killed: %v, want a duplicate of %v", again, first["id"])
	}
	testenv.Eventually(t, "the inbox has it once", func() bool {
		return len(one.must(200, "GET", "/messages?with=alice", tokenFor(t, "bob"), "")["messages"].([]any)) == 1
	})
}

// Beyond the window a repeat is delivered again, as the same event: the inbox has it once. A restart measures the window alike.
func TestDedupBeyondTheWindow(t *testing.T) {
	t.Parallel()
	const window = time.Second
	env := map[string]string{"DATA_DIR": t.TempDir(), "DEDUP_WINDOW": window.String()}
	body := `{"receiverId":"bob","content":"x","clientMessageId":"1"}`
	alice, bob := tokenFor(t, "alice"), tokenFor(t, "bob")
	i := start(t, env)
	s := i.open("/ws", "bob")
	first := i.must(202, "POST", "/messages", alice, body)
	for range 2 {
		sent, err := time.Parse(time.RFC3339, fmt.Sprint(s.expect("message:new", nil).Data["timestamp"]))
		if err != nil {
			t.Fatal(err)
		}
		// The moment itself; the record's time is not before the frame's.
		testenv.Eventually(t, "the window is over", func() bool { return time.Since(sent) > window+100*time.Millisecond })
		if later := i.must(202, "POST", "/messages", alice, body); later["duplicate"] != nil || later["id"] != first["id"] {
			t.Errorf("beyond the window: %v, want it delivered again as %v", later, first["id"])
		}
	}
	s.expect("message:new", map[string]any{"id": first["id"]})
	i.stop()
	i = start(t, env)
	if later := i.must(202, "POST", "/messages", alice, body); later["id"] != first["id"] { // a duplicate or not: the restart took its time
		t.Errorf("after a restart: %v, want the same event", later)
	}
	if list := fresh(i, "/messages?with=alice", bob)["messages"].([]any); len(list) != 1 {
		t.Errorf("the inbox has it %d times", len(list))
	}
}

// Two live processes of one name: the newer one stays, the older one says why it ends.
func TestOneNodeOfAName(t *testing.T) {
	t.Parallel()
	env := cluster(t)
	older := launch(t, env("same"))
	newer := launch(t, env("same"))
	ended := make(chan error, 1)
	go func() { ended <- older.cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil || older.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(older.log.String(), "NODE_NAME") {
			t.Errorf("%v:\n%s", err, older.log)
		}
	case <-time.After(30 * time.Second):
		t.Error("both live on")
	}
	s := newer.open("/ws", "alice")
	s.send(`{"event":"typing","data":{"receiverId":"x","isTyping":false},"id":1}`)
	s.expect("ack", map[string]any{"ok": true})
	s.ws.Close()
}

// commandWith is nexus serve with settings, not started yet.
func commandWith(t testing.TB, env map[string]string, log io.Writer) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(nexusBinary(t), "serve")
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Stderr = log
	return cmd
}
