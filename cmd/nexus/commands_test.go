package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
)

// What nexus does beside serve, against one running server.
func TestCommands(t *testing.T) {
	dir := t.TempDir()
	i := start(t, map[string]string{"DATA_DIR": dir, "ALLOWED_ORIGIN": "https://app.example.com", "MAX_CONNECTIONS_PER_USER": "2"})
	for _, sub := range []struct {
		name string
		test func(t *testing.T, i *instance, dir string)
	}{{"tail", testTail}, {"doctor", testDoctor}, {"publish", testPublish}, {"server by settings", testServerBySettings}} {
		t.Run(sub.name, func(t *testing.T) {
			of := *i
			of.t = t
			sub.test(t, &of, dir)
		})
	}
}

// nexus token and nexus publish, with the settings of the environment.
func testPublish(t *testing.T, i *instance, _ string) {
	env := map[string]string{"JWT_SECRET": testSecret, "DATA_DIR": t.TempDir()}
	nexus := func(args ...string) (int, string, string) {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), args, env, &stdout, &stderr)
		return code, strings.TrimSpace(stdout.String()), stderr.String()
	}
	server := "http://" + i.base
	code, token, _ := nexus("token", "--user", "alice")
	if code != 0 {
		t.Fatalf("nexus token: %d", code)
	}
	i.must(200, "GET", "/notifications", token, "")
	alice, bob := i.open("/dashboard", "alice"), i.open("/ws", "bob")
	alice.send(`{"event":"subscribe","data":{"channels":["c"]},"id":1}`)
	alice.expect("ack", nil)
	for _, tc := range []struct {
		args  []string
		s     *socket
		event string
		want  map[string]any
	}{
		{[]string{"notification", "--user", "alice", "--title", "T", "--body", "B", "--type", "SYSTEM", "--data", `{"a":1}`}, alice,
			"notification", map[string]any{"title": "T", "data": map[string]any{"a": 1.0}}},
		{[]string{"activity", "--channel", "c", "--type", "x", "--text", "M"}, alice, "activity", map[string]any{"message": "M"}},
		{[]string{"announcement", "--title", "A", "--body", "B"}, alice, "announcement", map[string]any{"title": "A"}},
		{[]string{"message", "--from", "alice", "--to", "bob", "--text", "hi"}, bob, "message:new", map[string]any{"content": "hi"}},
	} {
		if code, out, problem := nexus(append([]string{"publish", tc.args[0], "--server", server}, tc.args[1:]...)...); code != 0 ||
			!strings.Contains(out, `"id"`) {
			t.Errorf("publish %s: %d %s %s", tc.args[0], code, out, problem)
			continue
		}
		tc.s.expect(tc.event, tc.want)
	}
	for _, tc := range []struct {
		args []string
		code int
		say  string
	}{
		{[]string{"help"}, 0, ""}, {[]string{"serve", "--help"}, 0, "--kafka-brokers"},
		{[]string{"publish", "--help"}, 0, "nexus publish notification"},
		{[]string{"nonsense"}, 2, "no command"}, {[]string{"token"}, 2, "--user"}, {[]string{"token", "--nonsense"}, 2, "nonsense"},
		{[]string{"publish"}, 2, "notification, activity"}, {[]string{"serve", "3000"}, 2, "--port"},
		{[]string{"publish", "notification", "--server", server, "--user", "alice"}, 1, "field title"},
		{[]string{"publish", "announcement", "--server", "http://127.0.0.1:1", "--title", "x"}, 1, "refused"},
	} {
		if code, _, problem := nexus(tc.args...); code != tc.code || !strings.Contains(problem, tc.say) {
			t.Errorf("nexus %s: %d %q, want %d and %q", strings.Join(tc.args, " "), code, problem, tc.code, tc.say)
		}
	}
}

// The server is where its settings say.
func TestServerURL(t *testing.T) {
	for _, tc := range []struct{ named, host, port, want string }{{"", "", "3700", "http://localhost:3700"},
		{"", "0.0.0.0", "1", "http://localhost:1"},
		{"", "::", "1", "http://localhost:1"}, {"", "10.0.0.1", "1", "http://10.0.0.1:1"}, {"", "::1", "1", "http://[::1]:1"},
		{"https://x", "h", "1", "https://x"}} {
		if got := (&Config{Host: tc.host, Port: tc.port}).serverURL(tc.named); got != tc.want {
			t.Errorf("%+v: %s", tc, got)
		}
	}
}

// Commands find the server by the settings that it has; who does not reach it is told how.
func testServerBySettings(t *testing.T, i *instance, _ string) {
	_, port, _ := strings.Cut(i.base, ":")
	env := environment{"JWT_SECRET": testSecret, "DATA_DIR": t.TempDir(), "HOST": "127.0.0.1", "PORT": port}
	if code, out, problem := command(t, env, "publish", "announcement", "--title", "T", "--body", "B"); code != 0 {
		t.Errorf("%d %s%s", code, out, problem)
	}
	env["PORT"] = "1"
	if code, _, problem := command(t, env, "publish", "announcement", "--title", "T", "--body", "B"); code != 1 ||
		!strings.Contains(problem, "--server") {
		t.Errorf("%d %s", code, problem)
	}
}

// command runs nexus with settings and returns its exit code and output.
func command(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, problem bytes.Buffer
	code = run(t.Context(), args, env, &out, &problem)
	return code, out.String(), problem.String()
}

// nexus tail finds the embedded log by DATA_DIR, decodes, filters, and shows what is wrong with a dead letter.
func testTail(t *testing.T, i *instance, dir string) {
	env := map[string]string{"DATA_DIR": dir, "JWT_SECRET": testSecret}
	service := tokenFor(t, "service", "publish")
	i.must(202, "POST", "/notifications", service, `{"userIds":["alice","bob"],"title":"hello","body":"\u001b[31m","type":"SYSTEM"}`)
	i.must(202, "POST", "/announcements", service, `{"title":"to all","body":"b"}`)
	code, out, problem := command(t, env, "tail", "notifications", "broadcasts", "--since", "start", "--limit", "3")
	if code != 0 || strings.Count(out, "\n") != 3 || !strings.Contains(out, "user:alice notification {") ||
		!strings.Contains(out, "all announcement {") {
		t.Errorf("%d\n%s%s", code, out, problem)
	}
	if strings.Contains(out, "\x1b") {
		t.Errorf("a control character of a producer's reaches the terminal: %q", out)
	}
	if code, out, problem = command(t, env, "tail", "--since", "1h", "--audience", "user:bob", "--limit", "1", "--json"); code != 0 ||
		!strings.Contains(out, `"key":"user:bob"`) ||
		!strings.Contains(out, `"topic":"notifications"`) || !strings.Contains(out, `"title":"hello"`) {
		t.Errorf("%d\n%s%s", code, out, problem)
	}
	if code, out, problem = command(t, env, "tail", "--since", "start", "--type", "announcement", "--limit", "1", "--color=true"); code != 0 ||
		!strings.Contains(out, "\x1b[33mannouncement\x1b[0m") {
		t.Errorf("%d\n%q%s", code, out, problem)
	}
	for _, tc := range []struct {
		args []string
		code int
		say  string
	}{{[]string{"tail", "nonsense"}, 2, "there are messages, notifications"}, {[]string{"tail", "--since", "soon"}, 2, "--since"},
		{[]string{"tail", "--help"}, 0, "nexus tail shows"}} {
		if code, _, problem := command(t, env, tc.args...); code != tc.code || !strings.Contains(problem, tc.say) {
			t.Errorf("nexus %v: %d %q", tc.args, code, problem)
		}
	}
	if code, _, problem := command(t, map[string]string{"DATA_DIR": t.TempDir()}, "tail"); code != 1 ||
		!strings.Contains(problem, "KAFKA_BROKERS") {
		t.Errorf("without a server: %d %q", code, problem)
	}
}

// nexus doctor answers the guide's three troubles.
func testDoctor(t *testing.T, i *instance, _ string) {
	env := map[string]string{"JWT_SECRET": testSecret, "DATA_DIR": t.TempDir()}
	server := "http://" + i.base
	good := tokenFor(t, "alice")
	for name, tc := range map[string]struct {
		args []string
		code int
		say  []string
	}{
		"connection: all well": {[]string{"--token", good, "--user", "alice", "--origin", "https://app.example.com"}, 0,
			[]string{"is ready", "https://app.example.com may connect", "the token is valid", "/dashboard: connected as alice",
				"/ws: connected as alice"}},
		"connection: token":  {[]string{"--token", good + "x"}, 1, []string{"the token is refused", "HS256 over JWT_SECRET"}},
		"connection: userId": {[]string{"--token", good, "--user", "bob"}, 1, []string{`"bob" is not the token's user "alice"`}},
		"connection: CORS": {[]string{"--origin", "https://evil.example"}, 1,
			[]string{"https://evil.example may not connect", "ALLOWED_ORIGIN"}},
		"messages: no connection": {[]string{"--user", "carol"}, 1, []string{"carol has no connection", "its inbox"}},
		"nothing to examine":      {nil, 2, []string{"--token, --user or --origin"}},
	} {
		code, out, problem := command(t, env, append([]string{"doctor", "--server", server}, tc.args...)...)
		if code != tc.code {
			t.Errorf("%s: exit code %d\n%s%s", name, code, out, problem)
		}
		for _, want := range tc.say {
			if !strings.Contains(out+problem, want) {
				t.Errorf("%s: no word of %q in\n%s%s", name, want, out, problem)
			}
		}
		if strings.Contains(out+problem, good) {
			t.Errorf("%s: the token is printed", name)
		}
	}
	s := i.open("/dashboard", "carol")
	s.send(`{"event":"subscribe","data":{"channels":["news"]},"id":1}`)
	s.expect("ack", nil)
	i.must(200, "POST", "/notifications/device-token", tokenFor(t, "carol"), `{"token":"tok"}`)
	examine := func(channel string) (int, string) {
		code, out, problem := command(t, env, "doctor", "--server", server, "--user", "carol", "--channel", channel)
		return code, out + problem
	}
	testenv.Eventually(t, "the doctor sees the subscription", func() bool {
		_,
			out := examine("news")
		return strings.Contains(out, "carol is subscribed to news")
	})
	if _, out := examine("other"); !strings.Contains(out, "carol is not subscribed to other") || !strings.Contains(out, "channels: news") {
		t.Error(out)
	}
	testenv.Eventually(t, "the doctor sees the device", func() bool {
		_, out := examine("news")
		return strings.Contains(out, "1 devices, but mobile push is off") && strings.Contains(out, "FIREBASE_PROJECT_ID")
	})
	if _, out, _ := command(t, env, "doctor", "--server", server, "--user", "carol", "--device", "another"); !strings.Contains(out,
		"that device is not registered for carol") {
		t.Error(out)
	}
	if _, out, _ := command(t, env, "doctor", "--server", server, "--user", "carol", "--device", "tok"); strings.Contains(out,
		"not registered") {
		t.Error(out)
	}
	i.open("/dashboard", "dan")
	i.open("/dashboard", "dan")
	if code, out, _ := command(t, env, "doctor", "--server", server, "--token", tokenFor(t, "dan")); code != 1 ||
		!strings.Contains(out, "status 429") || !strings.Contains(out, "MAX_CONNECTIONS_PER_USER") {
		t.Errorf("%d %s", code, out)
	}
	if code, out, _ := command(t, env, "doctor", "--server", "http://127.0.0.1:1", "--user", "dan"); code != 1 ||
		!strings.Contains(out, "does not answer") {
		t.Errorf("%d %s", code, out)
	}
}
