package main

import (
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
)

// A node that is stopped, its log copied to more partitions, its projections rebuilt, and started again answers as before.
func TestRepartitionCommand(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]map[string]string{
		"embedded": {"HOST": "127.0.0.1", "PORT": "0", "JWT_SECRET": testSecret, "EMBEDDED_KAFKA_PORT": "0", "DATA_DIR": t.TempDir(),
			"NODE_NAME": "n1"},
		"distributed": {"HOST": "127.0.0.1", "PORT": "0", "JWT_SECRET": testSecret, "KAFKA_BROKERS": testenv.Kafka(t),
			"DATABASE_URL":   testenv.Postgres(t),
			"CLICKHOUSE_URL": testenv.ClickHouse(t), "NEXUS_TOPIC_PREFIX": testenv.Name("t") + ".", "DATA_DIR": t.TempDir(), "NODE_NAME": "n1"},
	} {
		t.Run(name, func(t *testing.T) {
			i := start(t, env)
			service, alice, bob := tokenFor(t, "service", "publish"), tokenFor(t, "alice"), tokenFor(t, "bob")
			for k := range 20 {
				i.must(202, "POST", "/messages", alice, fmt.Sprintf(`{"receiverId":"bob","content":"%d"}`, k/2))
				i.must(202, "POST", "/notifications", service, `{"userIds":["alice","bob"],"title":"t","body":"","type":"SYSTEM"}`)
				i.must(202, "POST", "/announcements", service, `{"title":"t","body":""}`)
			}
			list := i.must(200, "GET", "/notifications?limit=5", alice, "")["notifications"].([]any)
			i.must(200, "POST", "/notifications/"+fmt.Sprint(at(list[0], "id"))+"/read", alice, "")
			i.must(200, "DELETE", "/notifications/"+fmt.Sprint(at(list[1], "id")), alice, "")
			answers := func(i *instance) (all []string) {
				t.Helper()
				for _, path := range []string{"/notifications?limit=100", "/notifications/unread-count", "/conversations", "/messages?with=alice",
					"/messages?with=bob"} {
					for _, token := range []string{alice, bob} {
						answer := i.must(200, "GET", path, token, "")
						for _, cursor := range []string{"next", "older", "newer"} { // places in the log
							delete(answer, cursor)
						}
						all = append(all, fmt.Sprint(path, answer))
					}
				}
				return all
			}
			before := answers(i)
			beside := appOf(t, env)
			beside.c.Broker.Port, beside.c.BrokerPortSet, beside.leaveWait = 0, true, 0
			says := map[string]string{"embedded": "DATA_DIR", "distributed": "stop them first: n1/"}[name]
			if err := beside.repartition(t.Context(), env["NEXUS_TOPIC_PREFIX"]+"x.", 9, false, io.Discard); err == nil ||
				!strings.Contains(err.Error(), says) {
				t.Errorf("beside a node that runs: %v", err)
			}
			i.stop()
			if name == "distributed" {
				gone(t, env, "n1")
			}
			for _, wrong := range [][]string{{"--partitions", "9"}, {"--to-prefix", "a b"}, {"--to-prefix", "y.", "--partitions", "-1"}} {
				if code, _, problem := command(t, env, append([]string{"repartition"}, wrong...)...); code != 2 {
					t.Errorf("%q: %d %s", wrong, code, problem)
				}
			}
			to := "r" + env["NEXUS_TOPIC_PREFIX"]
			code, out, problem := command(t, env, "repartition", "--to-prefix", to, "--partitions", "9")
			if code != 0 || !strings.Contains(out, "copied and verified") || !strings.Contains(out, "NEXUS_TOPIC_PREFIX="+to) {
				t.Fatalf("%d %s %s", code, out, problem)
			}
			moved := maps.Clone(env)
			moved["NEXUS_TOPIC_PREFIX"] = to
			for _, args := range [][]string{{"rebuild", "inbox"}, {"rebuild", "keys"}, {"rebuild", "stats"}, {"adopt", "push"}} {
				if code, out, problem := command(t, moved, args...); code != 0 {
					t.Fatalf("%q: %d %s %s", args, code, out, problem)
				}
			}
			i = start(t, moved)
			after := answers(i)
			for n, want := range before {
				if after[n] != want {
					t.Errorf("was\n%s\nand is\n%s", want, after[n])
				}
			}
			i.must(202, "POST", "/notifications", service, `{"userId":"alice","title":"after","body":"","type":"SYSTEM"}`)
			testenv.Eventually(t, "what comes after is in the inbox", func() bool {
				return at(i.must(200, "GET", "/notifications?limit=1", alice, "")["notifications"].([]any)[0], "title") == "after"
			})
			i.stop()
			start(t, moved) // its members come back at once, and once more, by the contract of the copy
		})
	}
}
