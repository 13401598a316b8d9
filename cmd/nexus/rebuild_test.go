package main

import (
	"bufio"
	"database/sql"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/internal/testenv/logtest"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// A projection that is folded anew is the same (row F30): every table row by row; nothing is appended, nothing is pushed.
func TestRebuild(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]map[string]string{
		"embedded": {"HOST": "127.0.0.1", "PORT": "0", "JWT_SECRET": testSecret, "EMBEDDED_KAFKA_PORT": "0", "DATA_DIR": t.TempDir(),
			"NODE_NAME": "n1"},
		"distributed": {"HOST": "127.0.0.1", "PORT": "0", "JWT_SECRET": testSecret, "KAFKA_BROKERS": testenv.Kafka(t),
			"DATABASE_URL":   testenv.Postgres(t),
			"CLICKHOUSE_URL": testenv.ClickHouse(t), "NEXUS_TOPIC_PREFIX": testenv.Name("t") + ".", "DATA_DIR": t.TempDir(), "NODE_NAME": "n1"},
	} {
		t.Run(name, func(t *testing.T) {
			f := testenv.NewFCM(t)
			i := start(t, pushing(f, env))
			service := tokenFor(t, "service", "publish")
			i.device("alice", "phone")
			i.must(202, "PUT", "/keys", tokenFor(t, "alice"),
				`{"deviceId":"phone","identityKey":"i","prekeys":[{"id":"1","key":"k"},{"id":"2","key":"k"}]}`)
			testenv.Eventually(t, "alice's keys are there", func() bool {
				return len(i.must(200, "GET", "/keys", tokenFor(t, "alice"), "")["devices"].([]any)) == 1
			})
			i.must(200, "GET", "/users/alice/keys", tokenFor(t, "bob"), "")
			chat := i.open("/ws", "bob")
			for k := range 20 {
				i.must(202, "POST", "/messages", tokenFor(t, "alice"), fmt.Sprintf(`{"receiverId":"bob","content":"%d"}`, k))
				i.must(202, "POST", "/messages", tokenFor(t, "alice"), fmt.Sprintf(`{"receiverId":"bob","content":"%d"}`, k/2)) // repeats among them
				i.must(202, "POST", "/notifications", service, `{"userIds":["alice","bob"],"title":"t","body":"","type":"CONNECTION_ACCEPTED"}`)
				i.must(202, "POST", "/announcements", service, `{"title":"t","body":""}`)
			}
			id := fmt.Sprint(chat.expect("message:new", map[string]any{"content": "19"}).Data["id"])
			chat.send(`{"event":"markAsRead","data":{"messageId":"` + id + `"},"id":1}`)
			chat.expect("ack", map[string]any{"ok": true})
			list := i.must(200, "GET", "/notifications?limit=5", tokenFor(t, "alice"), "")["notifications"].([]any)
			i.must(200, "POST", "/notifications/"+fmt.Sprint(at(list[0], "id"))+"/read", tokenFor(t, "alice"), "")
			i.must(200, "DELETE", "/notifications/"+fmt.Sprint(at(list[1], "id")), tokenFor(t, "alice"), "")
			i.must(200, "POST", "/notifications/read-all", tokenFor(t, "bob"), "")
			testenv.Eventually(t, "all is pushed", func() bool { return len(f.Accepted("phone")) == 20 })

			if code, _, problem := rebuilt(t, env, "nothing"); code != 2 || !strings.Contains(problem, "inbox, stats or keys") {
				t.Errorf("a projection of no known name: %d %s", code, problem)
			}
			if name == "embedded" {
				if code, _, problem := rebuilt(t, env, "inbox"); code != 1 || !strings.Contains(problem, "DATA_DIR") {
					t.Errorf("beside a node that runs: %d %s", code, problem)
				}
			}
			for _, path := range []string{"/conversations", "/messages?with=alice", "/notifications"} { // they wait for the inbox
				i.must(200, "GET", path, tokenFor(t, "bob"), "")
			}
			i.stop()
			if name == "distributed" {
				gone(t, env, "n1")
			}
			node := tables(t, env)
			for _, what := range []string{"inbox", "keys", "stats"} {
				if code, out, problem := rebuilt(t, env, what); code != 0 || !strings.Contains(out, what+": rebuilt from") {
					t.Fatalf("%d %s %s", code, out, problem)
				}
			}
			before, ends := tables(t, env), endsOf(t, env)
			for _, table := range slices.Sorted(maps.Keys(node)) {
				switch table {
				case "events", "nexus_events": // what was appended last the node had not counted yet
					for row := range strings.SplitSeq(node[table], "\n") {
						if !strings.Contains(before[table], row) {
							t.Errorf("%s: the node had %s", table, row)
						}
					}
				case "positions", "nexus_offsets":
				default:
					if node[table] != before[table] {
						t.Errorf("%s: the node had\n%s\nrebuilt\n%s", table, node[table], before[table])
					}
				}
			}
			spoil(t, env)
			for _, what := range []string{"inbox", "keys", "stats"} {
				if code, out, problem := rebuilt(t, env, what); code != 0 {
					t.Fatalf("%d %s %s", code, out, problem)
				}
			}
			after := tables(t, env)
			for _, table := range slices.Sorted(maps.Keys(before)) {
				if before[table] != after[table] {
					t.Errorf("%s differs:\n%s\nand\n%s", table, before[table], after[table])
				}
			}
			if len(before) < 10 || !strings.Contains(before["conversations"], "alice") || strings.Count(before["messages"], "\n") < 19 {
				t.Errorf("the tables are not what was looked for: %d of them", len(before))
			}
			if name == "distributed" {
				return
			}
			if now := endsOf(t, env); now != ends {
				t.Errorf("the log had %s, and now %s", ends, now)
			}
			if n := len(f.Accepted("phone")); n != 20 {
				t.Errorf("%d pushes, want the 20 of before", n)
			}
		})
	}
}

// A command waits for nodes that were just stopped, whom their groups still know, and names those that do not go.
func TestNodesThatLeave(t *testing.T) {
	addr := logtest.Start(t, pipeline.BrokerOptions{}).Addr
	log := logtest.Open(t, addr, 1)
	const group, name = "inbox", "n1/inbox"
	member, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.ConsumerGroup(group), kgo.InstanceID(name),
		kgo.ConsumeTopics(log.Kafka.Names.Name(topics.Messages)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(member.Close)
	members := func() []string {
		list, err := log.Log.Members(t.Context(), group)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	testenv.Eventually(t, "the node is a member", func() bool { return slices.Equal(members(), []string{name}) })
	a := &app{logs: log.Log}
	c := &pipeline.Consumer{Name: "inbox", Group: group, Instance: "n2/inbox"}
	if err := a.nobodyFolds(t.Context(), c, io.Discard); err == nil || !strings.Contains(err.Error(), "stop them first: "+name) {
		t.Errorf("beside a node that runs: %v", err)
	}
	a.leaveWait = testenv.Patience
	told, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- a.nobodyFolds(t.Context(), c, in)
		in.Close()
	}()
	line, err := bufio.NewReader(told).ReadString('\n')
	if err != nil || !strings.Contains(line, "waiting for nodes to leave: "+name) {
		t.Errorf("%q, %v", line, err)
	}
	if _, err := kadm.NewClient(member).LeaveGroup(t.Context(), kadm.LeaveGroup(group).InstanceIDs(name)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil || c.Group != "" || c.Instance != "" {
		t.Errorf("%v; the consumer reads as %q of group %q", err, c.Instance, c.Group)
	}
}

// spoil makes every table wrong.
func spoil(t *testing.T, env map[string]string) {
	t.Helper()
	spoilt := []string{"UPDATE messages SET read_at=1", "UPDATE notifications SET deleted_at=1", "DELETE FROM announcements",
		"DELETE FROM conversations", "UPDATE devices SET registered=0",
		"UPDATE prekeys SET taken_by='ghost'", "DELETE FROM key_devices",
		"INSERT INTO marks (user_id, read_to, deleted_to) VALUES ('ghost', 1, 1)",
		"INSERT INTO announcement_states (user_id, id) VALUES ('ghost', 'x')",
		"UPDATE feed SET at=1", "INSERT INTO feed_trimmed (topic, part, next) VALUES ('messages', 0, 9)"}
	exec := func(db *sql.DB, statements ...string) {
		t.Helper()
		for _, s := range statements {
			if _, err := db.ExecContext(t.Context(), s); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
	}
	with := func(db *sqldb.DB, err error) *sqldb.DB {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
	if env["DATABASE_URL"] == "" {
		exec(with(sqldb.OpenSQLite(filepath.Join(env["DATA_DIR"], "inbox.db"))).Write, spoilt...)
		exec(with(sqldb.OpenSQLite(filepath.Join(env["DATA_DIR"], "stats.db"))).Write, "UPDATE events SET detail='ghost'")
		return
	}
	exec(with(sqldb.OpenPostgres(env["DATABASE_URL"])).Write, spoilt...)
	o, err := clickhouse.ParseDSN(env["CLICKHOUSE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	ch := clickhouse.OpenDB(o)
	defer ch.Close()
	exec(ch, "INSERT INTO nexus_events (user_id, type, topic, part, pos) SELECT 'ghost', 'message', 'messages', 0, 100000")
}

func rebuilt(t *testing.T, env map[string]string, what string) (code int, out, problem string) {
	t.Helper()
	return command(t, env, "rebuild", what)
}

// tables are all rows of the projections' tables, in order.
func tables(t *testing.T, env map[string]string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	if env["DATABASE_URL"] == "" {
		for _, file := range []string{"inbox.db", "stats.db"} {
			db, err := sqldb.OpenSQLite(filepath.Join(env["DATA_DIR"], file))
			if err != nil {
				t.Fatal(err)
			}
			for _, table := range column(t, db.Read, "SELECT name FROM sqlite_master WHERE type='table'") {
				all[table] += rowsIn(t, db.Read, "SELECT * FROM "+table)
			}
			db.Close()
		}
		return all
	}
	pg, err := sqldb.OpenPostgres(env["DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	defer pg.Close()
	for _, table := range column(t, pg.Read, "SELECT tablename FROM pg_tables WHERE schemaname='public'") {
		all[table] = rowsIn(t, pg.Read, "SELECT * FROM "+table)
	}
	o, err := clickhouse.ParseDSN(env["CLICKHOUSE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	ch := clickhouse.OpenDB(o)
	defer ch.Close()
	all["nexus_events"] = rowsIn(t, ch, "SELECT DISTINCT * FROM nexus_events")
	all["nexus_offsets"] = rowsIn(t, ch, "SELECT topic, part, max(next) FROM nexus_offsets GROUP BY topic, part")
	return all
}

func rowsIn(t *testing.T, db *sql.DB, query string) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for rows.Next() {
		cells, into := make([]any, len(names)), make([]any, len(names))
		for k := range cells {
			into[k] = &cells[k]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		for k, c := range cells {
			if b, is := c.([]byte); is {
				cells[k] = string(b)
			}
		}
		lines = append(lines, fmt.Sprint(cells))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// endsOf is where the log's topics end, of the node's files.
func endsOf(t *testing.T, env map[string]string) string {
	t.Helper()
	if env["KAFKA_BROKERS"] != "" {
		return ""
	}
	code, out, problem := command(t, env, "rebuild", "stats") // it tells how many records there are
	if code != 0 {
		t.Fatal(problem)
	}
	_, after, _ := strings.Cut(out, "rebuilt from ")
	records, _, _ := strings.Cut(after, " in ")
	return records
}
