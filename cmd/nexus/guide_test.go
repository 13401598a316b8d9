package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
)

// engines are the two ways to run Nexus; the same scenarios hold on both.
func engines(t *testing.T, scenario func(*testing.T, *instance)) {
	t.Run("embedded", func(t *testing.T) { scenario(t, start(t, nil)) })
	t.Run("distributed", func(t *testing.T) {
		scenario(t, start(t, map[string]string{"KAFKA_BROKERS": testenv.Kafka(t), "DATABASE_URL": testenv.Postgres(t),
			"CLICKHOUSE_URL": testenv.ClickHouse(t), "NEXUS_TOPIC_PREFIX": testenv.Name("t") + "."}))
	})
}

// The guide's DashboardService and MessagingService, with the real socket.io-client.
func TestGuideServices(t *testing.T) {
	node, dir := tool(t, "node"), clientDir(t)
	engines(t, func(t *testing.T, i *instance) {
		tokens, err := json.Marshal(map[string]string{"alice": tokenFor(t, "alice"), "bob": tokenFor(t, "bob"),
			"service": tokenFor(t, "service", "publish")})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(node, dir+"/guide.mjs", "http://"+i.base, guide(t), string(tokens))
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "all seen") {
			t.Fatalf("%v\n%s\n%s", err, out, i.log)
		}
		noSecrets(t, i, "Hello, Bob", "named", tokenFor(t, "alice"))
	})
}

// noSecrets: tokens and contents never reach a log.
func noSecrets(t testing.TB, i *instance, secrets ...string) {
	t.Helper()
	for _, s := range append(secrets, testSecret, "eyJ") {
		if strings.Contains(i.log.String(), s) {
			t.Errorf("the log contains %q:\n%s", s, i.log)
		}
	}
}

// What the guide shows of one node with its defaults.
func TestGuide(t *testing.T) {
	i := start(t, nil)
	t.Run("notification types", func(t *testing.T) { testNotificationTypes(t, i) })
	t.Run("wscat", func(t *testing.T) { testWscat(t, i) })
}

// The guide's wscat commands, as they are written there.
func testWscat(t *testing.T, i *instance) {
	wscat := clientDir(t) + "/node_modules/.bin/wscat"
	tool(t, "node")
	text, err := os.ReadFile(guide(t))
	if err != nil {
		t.Fatal(err)
	}
	commands := regexp.MustCompile(`(?m)^wscat -c "(.*)"$`).FindAllStringSubmatch(string(text), -1)
	inputs := regexp.MustCompile(`(?m)^> (.*)$`).FindAllStringSubmatch(string(text), -1)
	if len(commands) != 2 || len(inputs) != 2 {
		t.Fatalf("the guide has %d wscat commands and %d inputs", len(commands), len(inputs))
	}
	url := func(s string) string {
		return strings.NewReplacer("localhost:3000", i.base, "your-jwt-token", tokenFor(t, "user-uuid")).Replace(s)
	}
	dashboard := wscatSession(t, wscat, url(commands[0][1]))
	dashboard.line(t, `"event":"connected","data":{"userId":"user-uuid"`)
	dashboard.send(t, inputs[0][1])
	chat := wscatSession(t, wscat, url(commands[1][1]))
	chat.line(t, "Messaging connection established")
	chat.send(t, inputs[1][1])
	chat.line(t, `"event":"message:sent"`)
	service := tokenFor(t, "service", "publish")
	// The subscription was sent before; it is not acknowledged, so publish until it shows.
	deadline := time.Now().Add(patience)
	for !dashboard.has(`"title":"to events"`) {
		if time.Now().After(deadline) {
			t.Fatal("nothing of the subscribed channel arrives")
		}
		i.must(202, "POST", "/notifications", service, `{"channel":"events","title":"to events","body":"","type":"SYSTEM"}`)
	}
}

type wscatProcess struct {
	in    io.Writer
	lines chan string
}

// piped starts a command that is written to and read from.
func piped(t *testing.T, cmd *exec.Cmd) (in io.Writer, out io.Reader) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if out, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return in, out
}

func wscatSession(t *testing.T, wscat, url string) *wscatProcess {
	t.Helper()
	cmd := exec.Command(wscat, "-c", url)
	in, out := piped(t, cmd)
	p := &wscatProcess{in: in, lines: make(chan string, 1000)}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
		close(p.lines)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return p
}

func (p *wscatProcess) send(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

func (p *wscatProcess) line(t *testing.T, part string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case l, open := <-p.lines:
			if !open {
				t.Fatalf("wscat ended before %s", part)
			}
			if strings.Contains(l, part) {
				return
			}
		case <-deadline:
			t.Fatalf("wscat shows no %s", part)
		}
	}
}

// has looks, for a moment, for a line.
func (p *wscatProcess) has(part string) bool {
	for {
		select {
		case l := <-p.lines:
			if strings.Contains(l, part) {
				return true
			}
		case <-time.After(200 * time.Millisecond):
			return false
		}
	}
}

// The guide's numbers are the defaults.
func TestGuideDefaults(t *testing.T) {
	defaults := make(map[string]string)
	for _, s := range settings() {
		defaults[s.name] = s.fallback
	}
	for name, want := range map[string]string{"PORT": "3000", "MAX_CONNECTIONS_PER_USER": "5", "MAX_CONNECTIONS_PER_NAMESPACE": "1000",
		"RATE_LIMIT_MESSAGES": "100",
		"RATE_LIMIT_WINDOW":   "1m", "DEDUP_WINDOW": "5m", "PING_INTERVAL": "30s", "COMPRESSION_THRESHOLD": "1024"} {
		if defaults[name] != want {
			t.Errorf("%s is %s by default, want %s", name, defaults[name], want)
		}
	}
}

// The guide's variables are read from .env.
func TestGuideDotenv(t *testing.T) {
	text, err := os.ReadFile(guide(t))
	if err != nil {
		t.Fatal(err)
	}
	env := regexp.MustCompile("(?s)```env\n(.*?)```").FindStringSubmatch(string(text))[1]
	t.Chdir(t.TempDir())
	if err := os.WriteFile(".env", []byte(env), 0o600); err != nil {
		t.Fatal(err)
	}
	i := start(t, map[string]string{"JWT_SECRET": ""}) // the guide's own placeholder: taken, with a warning, in embedded mode alone
	if !strings.Contains(i.log.String(), "JWT_SECRET is weak") {
		t.Errorf("no warning of the placeholder:\n%s", i.log)
	}
	for origin, want := range map[string]int{"http://localhost:3001": 401, "http://localhost:3002": 403} {
		if got, _ := i.call("GET", "/stats", "", "", "Origin", origin); got != want {
			t.Errorf("from %s: %d, want %d", origin, got, want)
		}
	}
	if code, _, _ := command(t, nil, "token", "--user", "alice"); code != 0 {
		t.Error("nexus token does not read .env")
	}
	if err := os.WriteFile(".env", []byte("PING_INTERVAL=soon\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, problem := command(t, nil, "serve"); code != 2 || !strings.Contains(problem, "PING_INTERVAL in .env") {
		t.Errorf("%d %s", code, problem)
	}
}

// Each of the eight notification types reaches the dashboard, the inbox and the statistics; a ninth is refused.
func testNotificationTypes(t *testing.T, i *instance) {
	service, alice := tokenFor(t, "service", "publish"), tokenFor(t, "alice")
	s := i.open("/dashboard", "alice")
	types := []string{"MESSAGE", "CONNECTION_REQUEST", "CONNECTION_ACCEPTED", "POST_COMMENT", "COMMENT_MENTION", "REFERRAL_APPLICATION",
		"PROJECT_UPDATE", "SYSTEM"}
	for _, typ := range types {
		i.must(202, "POST", "/notifications", service, `{"userId":"alice","title":"t","body":"b","type":"`+typ+`"}`)
		s.expect("notification", map[string]any{"type": typ})
	}
	i.must(400, "POST", "/notifications", service, `{"userId":"alice","title":"t","body":"b","type":"OTHER"}`)
	testenv.Eventually(t, "all eight are in the inbox", func() bool {
		return len(i.must(200, "GET", "/notifications", alice, "")["notifications"].([]any)) == len(types)
	})
	if got := i.must(200, "GET", "/stats", alice, "")["connections"]; got != 1.0 {
		t.Errorf("connections %v, want the one CONNECTION_ACCEPTED", got)
	}
}
