package main

import (
	"bytes"
	"cmp"
	"database/sql"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/projections/sqldb"
)

// Two users and three devices write encrypted; afterwards the plaintext is in no topic, table, statistic, push or log,
// where what a control message left behind is found. On embedded engines the stores' files are searched, on the real
// servers every row of every table.
func TestEndToEndEncryption(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		data := t.TempDir()
		testEndToEnd(t, map[string]string{"DATA_DIR": data}, func() map[string][]byte { return filesIn(t, data) }, "inbox.db", "stats.db")
	})
	t.Run("distributed", func(t *testing.T) {
		env := map[string]string{"KAFKA_BROKERS": testenv.Kafka(t), "DATABASE_URL": testenv.Postgres(t), "CLICKHOUSE_URL": testenv.ClickHouse(t),
			"NEXUS_TOPIC_PREFIX": testenv.Name("t") + "."}
		testEndToEnd(t, env, func() map[string][]byte { return rowsOf(t, env) }, "postgres messages", "clickhouse nexus_events")
	})
}

// testEndToEnd runs the scenario; stored returns what the stores have, by name, of which one must have contents and one rows.
func testEndToEnd(t *testing.T, env map[string]string, stored func() map[string][]byte, contents, statistics string) {
	node, dir := tool(t, "node"), clientDir(t)
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	f := testenv.NewFCM(t)
	i := start(t, pushing(f, env))
	i.device("bob", "bobs-device")
	secret, control := "the-secret-plaintext", "the-control-plaintext"
	i.must(202, "POST", "/messages", tokenFor(t, "alice"), `{"receiverId":"bob","content":"`+control+`"}`)
	tokens, err := json.Marshal(map[string]string{"alice": tokenFor(t, "alice"), "bob": tokenFor(t, "bob")})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(node, dir+"/e2e.mjs", "http://"+i.base, string(tokens), secret,
		filepath.Join(root, "docs/e2e/nexus-e2e.js")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "all seen") {
		t.Fatalf("%v\n%s\n%s", err, out, i.log)
	}
	i.must(202, "POST", "/messages", tokenFor(t, "alice"), `{"receiverId":"bob","encrypted":{"opaque":"last"}}`) // bob is away by now, or soon
	testenv.Eventually(t, "both kinds are pushed", func() bool { return f.Contains(control) })
	testenv.Eventually(t, "the statistics have both", func() bool {
		return i.must(200, "GET", "/stats", tokenFor(t, "bob"),
			"")["messages"].(float64) >= 7
	})
	brokers, prefix := cmp.Or(env["KAFKA_BROKERS"], i.kafka), cmp.Or(env["NEXUS_TOPIC_PREFIX"], "nexus.")
	events, _ := foldLog(t, brokers, prefix)
	found := map[string]bool{}
	for _, e := range events {
		found[secret] = found[secret] || bytes.Contains(e.Value, []byte(secret))
		found[control] = found[control] || bytes.Contains(e.Value, []byte(control))
	}
	if found[secret] || !found[control] {
		t.Errorf("topics: secret %v, control %v", found[secret], found[control])
	}
	i.stop()
	have := stored()
	for name, b := range have {
		if holds(b, secret) {
			t.Errorf("%s has the secret", name)
		}
	}
	if !holds(have[contents], control) || !holds(have[statistics], "received") { // statistics keep no contents at all
		t.Errorf("what the control message left was not found in %d stores: %d and %d bytes", len(have), len(have[contents]),
			len(have[statistics]))
	}
	if f.Contains(secret) || !strings.Contains(i.log.String(), "user=bob") {
		t.Errorf("a push has the secret: %v; the log has nothing of the run: %v", f.Contains(secret),
			!strings.Contains(i.log.String(), "user=bob"))
	}
	noSecrets(t, i, secret, control)
}

// holds tells whether b has the text, as it is or in hexadecimal, which is how PostgreSQL shows bytes.
func holds(b []byte, text string) bool {
	return bytes.Contains(b, []byte(text)) || bytes.Contains(b, fmt.Appendf(nil, "%x", text))
}

// filesIn reads all files under a directory but the log's own, which is compressed and read by a client; a write-ahead log
// counts as its database's.
func filesIn(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(path, "kafka") {
			return err
		}
		b, err := os.ReadFile(path)
		name, _, _ := strings.Cut(filepath.Base(path), "-wal")
		files[name] = append(files[name], b...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// rowsOf reads every row of every table of PostgreSQL and ClickHouse, as text.
func rowsOf(t *testing.T, env map[string]string) map[string][]byte {
	t.Helper()
	pg, err := sqldb.OpenPostgres(env["DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	defer pg.Close()
	o, err := clickhouse.ParseDSN(env["CLICKHOUSE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	ch := clickhouse.OpenDB(o)
	defer ch.Close()
	all := make(map[string][]byte)
	for _, table := range column(t, pg.Write, "SELECT tablename FROM pg_tables WHERE schemaname='public'") {
		all["postgres "+table] = []byte(strings.Join(column(t, pg.Write, "SELECT t::text FROM "+table+" t"), "\n"))
	}
	for _, table := range column(t, ch, "SELECT name FROM system.tables WHERE database=currentDatabase()") {
		all["clickhouse "+table] = []byte(strings.Join(column(t, ch, "SELECT toString(tuple(*)) FROM "+table), "\n"))
	}
	return all
}

// column reads a query's one column.
func column(t *testing.T, db *sql.DB, query string) (list []string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		list = append(list, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return list
}

// One-time keys are handed out once over all nodes, whoever asks where.
func TestOneTimeKeys(t *testing.T) {
	t.Parallel()
	env := cluster(t)
	nodes := launchAll(t, 3, env)
	owner := tokenFor(t, "owner")
	var prekeys []string
	for k := range 40 {
		prekeys = append(prekeys, fmt.Sprintf(`{"id":"k%d","key":"public %d"}`, k, k))
	}
	nodes[0].must(400, "PUT", "/keys", owner, `{"deviceId":"phone","prekeys":[]}`)
	nodes[0].must(400, "PUT", "/keys", owner, `{"deviceId":"phone","identityKey":"i","prekeys":[{"id":"1","key":"a"},{"id":"1","key":"b"}]}`)
	nodes[0].must(202, "PUT", "/keys", owner, `{"deviceId":"phone","identityKey":"identity","prekeys":[`+strings.Join(prekeys, ",")+`]}`)
	for _, n := range nodes {
		testenv.Eventually(t, "every node has the keys", func() bool {
			list := n.must(200, "GET", "/keys", owner, "")["devices"].([]any)
			return len(list) == 1 && at(list[0], "prekeys") == 40.0
		})
	}
	var mu sync.Mutex
	var got []string
	none := 0
	var asking sync.WaitGroup
	for k := range 6 {
		asking.Go(func() {
			for range 8 { // 48 for 40 keys
				devices := nodes[k%3].must(200, "GET", "/users/owner/keys", tokenFor(t, fmt.Sprintf("asker%d", k)), "")["devices"].([]any)
				mu.Lock()
				if id := at(devices[0], "prekey.id"); id != nil {
					got = append(got, fmt.Sprint(id))
				} else {
					none++
				}
				if at(devices[0], "identityKey") != "identity" {
					t.Errorf("%v", devices)
				}
				mu.Unlock()
			}
		})
	}
	asking.Wait()
	slices.Sort(got)
	if n := len(slices.Compact(slices.Clone(got))); n != len(got) {
		t.Errorf("%d keys were handed out and only %d are different: %v", len(got), n, got)
	}
	if len(got) != 40 || none != 8 {
		t.Errorf("%d keys handed out, %d answers without", len(got), none)
	}
	nodes[1].must(200, "GET", "/users/owner/keys?prekeys=false", tokenFor(t, "x"), "")
	limited := 0
	for range 110 {
		if status, _ := nodes[2].call("GET", "/users/owner/keys?prekeys=false", tokenFor(t, "greedy"), ""); status == 429 {
			limited++
		}
	}
	if limited != 10 {
		t.Errorf("%d of 110 requests were refused, want 10", limited)
	}
}
