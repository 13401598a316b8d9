package main

import (
	"bytes"
	"strings"
	"testing"
)

// nexus token and nexus publish against a running server, with the settings of the environment.
func TestCommands(t *testing.T) {
	i := start(t, nil)
	env := map[string]string{"JWT_SECRET": testSecret, "DATA_DIR": t.TempDir()}
	nexus := func(args ...string) (int, string, string) {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), args, func(n string) string { return env[n] }, &stdout, &stderr)
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
		{[]string{"notification", "--user", "alice", "--title", "T", "--body", "B", "--type", "SYSTEM", "--data", `{"a":1}`}, alice, "notification", map[string]any{"title": "T", "data": map[string]any{"a": 1.0}}},
		{[]string{"activity", "--channel", "c", "--type", "x", "--text", "M"}, alice, "activity", map[string]any{"message": "M"}},
		{[]string{"announcement", "--title", "A", "--body", "B"}, alice, "announcement", map[string]any{"title": "A"}},
		{[]string{"message", "--from", "alice", "--to", "bob", "--text", "hi"}, bob, "message:new", map[string]any{"content": "hi"}},
	} {
		if code, out, problem := nexus(append([]string{"publish", tc.args[0], "--server", server}, tc.args[1:]...)...); code != 0 || !strings.Contains(out, `"id"`) {
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
		{[]string{"help"}, 0, ""}, {[]string{"serve", "--help"}, 0, "--kafka-brokers"}, {[]string{"publish", "--help"}, 0, "nexus publish notification"},
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
