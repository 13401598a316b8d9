package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
)

// nexusRun runs a command to its end.
func nexusRun(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, problem bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	code = run(ctx, args, env, &out, &problem)
	return code, out.String(), problem.String()
}

// A store that remembers another log than the one that is there is told at the start, for every part, with the ways out; no
// way folds past what nobody has, and each leads to a node that is ready and shows every event of this log (X1). The embedded
// stores meet every kind of ruin, on copies of one installation; the others one log that has lost records and one that is another's.
func TestAnotherLog(t *testing.T) {
	t.Parallel()
	kafkaDir := func(env map[string]string) string { return filepath.Join(env["DATA_DIR"], "kafka") }
	ruins := map[string]func(t *testing.T, env map[string]string, backup string){
		"wiped": func(t *testing.T, env map[string]string, _ string) {
			if err := os.RemoveAll(kafkaDir(env)); err != nil {
				t.Fatal(err)
			}
		},
		"restored from a backup": func(t *testing.T, env map[string]string, backup string) {
			if err := os.RemoveAll(kafkaDir(env)); err != nil {
				t.Fatal(err)
			}
			copyDir(t, kafkaDir(env), backup)
		},
		"cut off by a loss of power": func(t *testing.T, env map[string]string, _ string) { cutSegments(t, kafkaDir(env)) },
		"another installation's":     func(_ *testing.T, env map[string]string, _ string) { env["NEXUS_TOPIC_PREFIX"] = "other." },
	}
	settings := func(t *testing.T) map[string]string {
		return map[string]string{"HOST": "127.0.0.1", "PORT": "0", "JWT_SECRET": testSecret, "EMBEDDED_KAFKA_PORT": "0", "DATA_DIR": t.TempDir(),
			"NODE_NAME": "n1"}
	}
	t.Run("sqlite", func(t *testing.T) {
		installed := settings(t)
		backup := installation(t, installed)
		for name, ruin := range ruins {
			t.Run(name, func(t *testing.T) {
				env := settings(t)
				copyDir(t, env["DATA_DIR"], installed["DATA_DIR"])
				ruin(t, env, backup)
				testAnotherLog(t, env)
			})
		}
	})
	t.Run("postgres and clickhouse", func(t *testing.T) {
		for _, name := range []string{"restored from a backup", "another installation's"} {
			t.Run(name, func(t *testing.T) {
				env := settings(t)
				env["DATABASE_URL"], env["CLICKHOUSE_URL"] = testenv.Postgres(t), testenv.ClickHouse(t)
				ruins[name](t, env, installation(t, env))
				testAnotherLog(t, env)
			})
		}
	})
}

// copyDir copies a folder with all that is in it.
func copyDir(t *testing.T, to, from string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// installation fills the stores and the log of a node, and returns a backup of the log from amid that.
func installation(t *testing.T, env map[string]string) (backup string) {
	t.Helper()
	service, alice := tokenFor(t, "service", "publish"), tokenFor(t, "alice")
	fill := func(what string, n int) {
		i := start(t, env)
		for k := range n {
			i.must(202, "POST", "/messages", alice, fmt.Sprintf(`{"receiverId":"bob","content":"%s %d"}`, what, k))
			i.must(202, "POST", "/notifications", service, fmt.Sprintf(`{"userId":"alice","title":"%s %d","body":"","type":"CONNECTION_ACCEPTED"}`,
				what, k))
		}
		for _, path := range []string{"/messages?with=bob", "/notifications", "/stats"} {
			fresh(i, path, alice)
		}
		i.stop()
	}
	fill("old", 5)
	backup = filepath.Join(t.TempDir(), "backup")
	copyDir(t, backup, filepath.Join(env["DATA_DIR"], "kafka"))
	fill("lost", 5)
	return backup
}

func testAnotherLog(t *testing.T, env map[string]string) {
	code, out, problem := nexusRun(t, env, "serve")
	if code != 1 || strings.Contains(out, "listening") {
		t.Fatalf("nexus serve on another log: %d %s %s", code, out, problem)
	}
	for _, want := range []string{"nexus serve: inbox: ", "stats: ", "nexus rebuild inbox", "nexus adopt stats"} {
		if !strings.Contains(problem, want) {
			t.Errorf("nexus serve does not say %q: %s", want, problem)
		}
	}
	if code, out, _ := nexusRun(t, env, "adopt"); code != 1 || !strings.Contains(out, "inbox: ") {
		t.Errorf("nexus adopt, which only looks: %d %s", code, out)
	}
	other := maps.Clone(env) // the other way out, on copies of the embedded engines
	if env["DATABASE_URL"] == "" {
		other["DATA_DIR"] = t.TempDir()
		copyDir(t, other["DATA_DIR"], env["DATA_DIR"])
		adopted(t, other)
	}
	for _, what := range []string{"inbox", "keys", "stats"} {
		if code, out, problem := nexusRun(t, env, "rebuild", what); code != 0 {
			t.Fatalf("nexus rebuild %s: %d %s %s", what, code, out, problem)
		}
	}
	if code, out, problem := nexusRun(t, env, "adopt", "push", "gate"); code != 0 {
		t.Fatalf("nexus adopt push gate: %d %s %s", code, out, problem)
	}
	i, alice := start(t, env), tokenFor(t, "alice")
	before := len(fresh(i, "/messages?limit=200&with=bob", alice)["messages"].([]any))
	newEvents(t, i, before, len(fresh(i, "/notifications?limit=200", alice)["notifications"].([]any)))
}

// adopted has every store take the log on, and goes on.
func adopted(t *testing.T, env map[string]string) {
	t.Helper()
	if code, out, problem := nexusRun(t, env, "adopt", "inbox", "keys", "stats", "push", "gate"); code != 0 {
		t.Fatalf("nexus adopt: %d %s %s", code, out, problem)
	}
	i := start(t, env)
	newEvents(t, i, 10, 10) // what the store had stays
	i.stop()
	if code, out, problem := nexusRun(t, env, "adopt"); code != 0 {
		t.Errorf("after nexus adopt: %d %s %s", code, out, problem)
	}
}

// newEvents makes sure that everything from now on is shown, once, after what there was.
func newEvents(t *testing.T, i *instance, messages, notifications int) {
	t.Helper()
	service, alice := tokenFor(t, "service", "publish"), tokenFor(t, "alice")
	stats := fresh(i, "/stats", alice)
	for k := range 7 {
		i.must(202, "POST", "/messages", alice, fmt.Sprintf(`{"receiverId":"bob","content":"new %d"}`, k))
		i.must(202, "POST", "/notifications", service, fmt.Sprintf(`{"userId":"alice","title":"new %d","body":"","type":"CONNECTION_ACCEPTED"}`,
			k))
	}
	list := fresh(i, "/messages?limit=200&with=bob", alice)["messages"].([]any)
	if len(list) != messages+7 || at(list[len(list)-1], "content") != "new 6" {
		t.Errorf("%d messages, the last %v; want %d and new 6", len(list), list[len(list)-1], messages+7)
	}
	list = fresh(i, "/notifications?limit=200", alice)["notifications"].([]any)
	if len(list) != notifications+7 || at(list[0], "title") != "new 6" {
		t.Errorf("%d notifications, the first %v; want %d and new 6", len(list), list[0], notifications+7)
	}
	i.must(200, "POST", "/notifications/"+fmt.Sprint(at(list[len(list)-1], "id"))+"/read", alice, "")
	if n := fresh(i, "/notifications/unread-count", alice)["count"]; n != float64(notifications+6) {
		t.Errorf("%v unread, want %d: a mark on what stood before the change does not count", n, notifications+6)
	}
	testenv.Eventually(t, "the statistics count on", func() bool {
		now := i.must(200, "GET", "/stats", alice, "")
		return now["messages"].(float64)-stats["messages"].(float64) == 7 && now["connections"].(float64)-stats["connections"].(float64) == 7
	})
}

// fresh reads until the answer is not stale: on a busy machine a projection may be more than two seconds behind.
func fresh(i *instance, path, token string) (out map[string]any) {
	i.t.Helper()
	testenv.Eventually(i.t, path+" is not stale", func() bool {
		out = i.must(200, "GET", path, token, "")
		return out["stale"] == nil
	})
	return out
}

// cutSegments takes the last bytes off the log of notifications and messages, as a loss of power does.
func cutSegments(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".dat") || !strings.Contains(path, "messages-") &&
			!strings.Contains(path, "notifications-") {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > 1000 {
			err = os.Truncate(path, info.Size()-500)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
