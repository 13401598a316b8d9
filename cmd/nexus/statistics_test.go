package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// wire is a TCP proxy that a test can cut.
type wire struct {
	target string
	ln     net.Listener

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func newWire(t testing.TB, target string) *wire {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{target: target, ln: ln, conns: make(map[net.Conn]bool)}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { w.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		w.set(true)
		serving.Wait()
	})
	return w
}

// set cuts the wire, or mends it.
func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	if cut {
		for c := range w.conns {
			c.Close()
		}
	}
}

func (w *wire) keep(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		c.Close()
		return false
	}
	w.conns[c] = true
	return true
}

func (w *wire) drop(c net.Conn) {
	c.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, c)
}

func (w *wire) serve(c net.Conn) {
	if !w.keep(c) {
		return
	}
	defer w.drop(c)
	s, err := net.Dial("tcp", w.target)
	if err != nil || !w.keep(s) {
		return
	}
	defer w.drop(s)
	done := make(chan bool)
	go func() { _, _ = io.Copy(s, c); s.Close(); close(done) }()
	_, _ = io.Copy(c, s)
	c.Close()
	<-done
}

// place is where a record stands.
type place struct {
	topic, typ string
	part       int32
	pos        int64
}

// foldLog reads the whole log up to its ends of now and says, by itself, which records are events that count.
func foldLog(t *testing.T, brokers, prefix string) (events map[place]*topics.Event, ends map[string]map[int32]int64) {
	t.Helper()
	names := topics.Names{Prefix: prefix}
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	events, ends = make(map[place]*topics.Event), make(map[string]map[int32]int64)
	for _, s := range topics.Specs() {
		name := names.Name(s.Topic)
		listed, err := kadm.NewClient(cl).ListEndOffsets(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		ends[string(s.Topic)] = make(map[int32]int64)
		from := make(map[int32]kgo.Offset)
		listed.Each(func(o kadm.ListedOffset) {
			ends[string(s.Topic)][o.Partition] = o.Offset
			if o.Offset > 0 {
				from[o.Partition] = kgo.NewOffset().At(0)
			}
		})
		foldTopic(t, brokers, name, s, from, ends[string(s.Topic)], events)
	}
	return events, ends
}

func foldTopic(t *testing.T, brokers, name string, s topics.Spec, from map[int32]kgo.Offset, ends map[int32]int64,
	events map[place]*topics.Event) {
	t.Helper()
	if len(from) == 0 {
		return
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: from}))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seen, left := make(map[string]bool), maps.Clone(from)
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("reading %s: %v", name, ctx.Err())
		}
		fs.EachRecord(func(r *kgo.Record) {
			if r.Offset >= ends[r.Partition]-1 {
				delete(left, r.Partition)
			}
			if r.Offset >= ends[r.Partition] {
				return
			}
			e := pipeline.EventOf(s.Topic, r)
			at := place{string(s.Topic), "dead-letter", r.Partition, r.Offset}
			if s.Topic != topics.DeadLetters {
				name := cmp.Or(e.IdempotencyKey, e.ID)
				key := fmt.Sprint(r.Partition, string(e.Key), e.Type, e.Source, name)
				duplicate := s.Judged && name != "" && seen[key]
				seen[key] = true
				if duplicate || topics.Valid(e) != nil || topics.PartitionOf(e.Key, int32(len(ends))) != r.Partition {
					return
				}
				at.typ = e.Type
			}
			events[at] = e
		})
	}
}

// The statistics are the log's own numbers: after ClickHouse was away, after kill -9, and after a replay of everything.
func TestStatisticsEqualTheLog(t *testing.T) {
	t.Parallel()
	env := cluster(t)("n1", "RATE_LIMIT_MESSAGES", "100000")
	host, database, _ := strings.Cut(strings.TrimPrefix(env["CLICKHOUSE_URL"], "clickhouse://"), "/")
	w := newWire(t, host)
	env["CLICKHOUSE_URL"] = "clickhouse://" + w.ln.Addr().String() + "/" + database
	ch, err := clickhouse.Open(&clickhouse.Options{Addr: []string{host}, Auth: clickhouse.Auth{Database: database}})
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	n := launch(t, env)
	direct, err := kgo.NewClient(kgo.SeedBrokers(env["KAFKA_BROKERS"]), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	service := tokenFor(t, "service", "publish")
	load := func(round int) {
		t.Helper()
		for k := range 20 {
			n.must(202, "POST", "/messages", tokenFor(t, "alice"), fmt.Sprintf(`{"receiverId":"bob","content":"%d %d"}`, round, k))
			n.must(202, "POST", "/notifications", service, `{"userIds":["alice","bob","carol"],"title":"t","body":"","type":"CONNECTION_ACCEPTED"}`,
				"Idempotency-Key", fmt.Sprint(round, k/2))
			n.must(202, "POST", "/activities", service, `{"userId":"alice","type":"post_created","message":"m"}`)
			n.must(202, "POST", "/notifications", service, `{"channel":"news","title":"t","body":"","type":"SYSTEM"}`)
			for p := range int32(3) { // strays, garbage, repeats, wherever they fall
				value, key := `{"title":"direct","body":"","type":"SYSTEM"}`, fmt.Sprintf("%d-%d", round, k%10)
				if p == 1 {
					value = "garbage"
				}
				direct.Produce(t.Context(), &kgo.Record{Topic: env["NEXUS_TOPIC_PREFIX"] + "notifications", Partition: (p + int32(k)) % 6,
					Key:   []byte("user:dora"),
					Value: []byte(value), Headers: []kgo.RecordHeader{{Key: "idempotency-key", Value: []byte(key)}}}, nil)
			}
		}
		n.must(202, "POST", "/announcements", service, `{"title":"t","body":"b"}`)
		if err := direct.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	dashboard, chat := n.open("/dashboard", "alice"), n.open("/ws", "bob")
	chat.send(`{"event":"typing","data":{"receiverId":"alice","isTyping":true}}`)
	n.must(200, "POST", "/notifications/device-token", tokenFor(t, "alice"), `{"token":"tok"}`)
	n.must(202, "POST", "/revocations", tokenFor(t, "op", "admin"), `{"userId":"nobody"}`)
	load(1)
	dashboard.expect("stats_update", map[string]any{"messages": 20.0, "connections": 10.0, "posts": 20.0})

	w.set(true) // ClickHouse is away
	load(2)     // everything else works
	chat.expect("message:new", map[string]any{"content": "2 19"})
	if got := n.must(200, "GET", "/notifications/unread-count", tokenFor(t, "alice"), ""); got["stale"] != nil {
		t.Errorf("the inbox: %v", got)
	}
	dashboard.expect("stats_update", map[string]any{"stale": true})
	if outage, err := time.ParseDuration(os.Getenv("NEXUS_TEST_OUTAGE")); err == nil { // minutes, by hand
		before := n.peakRSS()
		for end := time.Now().Add(outage); time.Now().Before(end); {
			n.must(202, "POST", "/messages", tokenFor(t, "carol"), fmt.Sprintf(`{"receiverId":"dora","content":"%d"}`, time.Now().UnixNano()))
		}
		dashboard.expect("stats_update", map[string]any{"stale": true})
		t.Logf("ClickHouse away for %s under load: the node's peak memory grew by %d MB", outage, (n.peakRSS()-before)>>20)
	}
	if status, out := n.call("GET", "/readyz", "", ""); status != 503 || !strings.Contains(fmt.Sprint(out), "stats:") {
		t.Errorf("readyz: %d %v", status, out)
	}
	w.set(false)
	testenv.Eventually(t, "the statistics catch up", func() bool {
		got, stats := n.call("GET", "/stats", tokenFor(t, "alice"), "")
		return got == 200 && stats["messages"] == 40.0 && stats["stale"] == nil
	})
	dashboard.expect("stats_update", map[string]any{"messages": 40.0, "connections": 20.0, "posts": 40.0, "stale": nil})

	load(3)
	n.kill() // amid the inserts
	n.start()
	load(4)
	n.kill()
	if err := ch.Exec(t.Context(), "TRUNCATE TABLE nexus_offsets"); err != nil { // everything is folded once more
		t.Fatal(err)
	}
	n.start()

	events, ends := foldLog(t, env["KAFKA_BROKERS"], env["NEXUS_TOPIC_PREFIX"])
	testenv.Eventually(t, "the statistics reach the log's end", func() bool {
		have := make(map[string]map[int32]int64)
		var topic string
		var part int32
		var next int64
		rows, err := ch.Query(t.Context(), "SELECT topic, part, max(next) FROM nexus_offsets GROUP BY topic, part")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			if err := rows.Scan(&topic, &part, &next); err != nil {
				t.Fatal(err)
			}
			if have[topic] == nil {
				have[topic] = make(map[int32]int64)
			}
			have[topic][part] = next
		}
		for topic, ps := range ends {
			for part, end := range ps {
				if have[topic][part] < end {
					return false
				}
			}
		}
		return true
	})
	rows := make(map[place]bool)
	found, err := ch.Query(t.Context(), "SELECT DISTINCT topic, type, part, pos FROM nexus_events")
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	for found.Next() {
		var p place
		if err := found.Scan(&p.topic, &p.typ, &p.part, &p.pos); err != nil {
			t.Fatal(err)
		}
		if p.pos < ends[p.topic][p.part] {
			rows[p] = true
		}
	}
	counts := make(map[string][2]int)
	for p := range events {
		c := counts[p.topic+" "+p.typ]
		c[0]++
		counts[p.topic+" "+p.typ] = c
		if !rows[p] {
			t.Errorf("%+v is in the log and not in the statistics", p)
		}
	}
	for p := range rows {
		c := counts[p.topic+" "+p.typ]
		c[1]++
		counts[p.topic+" "+p.typ] = c
		if events[p] == nil {
			t.Errorf("%+v is in the statistics and not in the log", p)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%-40s log %4d, statistics %4d", k, counts[k][0], counts[k][1])
	}
	for _, want := range []string{"messages message", "notifications notification", "notifications activity", "broadcasts announcement",
		"broadcasts notification",
		"signals typing.start", "devices device.registered", "control log.contract", "control session.revoked", "presence node.heartbeat",
		"presence presence.connected",
		"deliveries delivery.websocket", "dead-letters dead-letter"} {
		if counts[want][0] == 0 {
			t.Errorf("the run had no %s: it shows nothing of them", want)
		}
	}
	// The documented views say the same.
	var messages, appended uint64
	if err := ch.QueryRow(t.Context(), "SELECT sum(events) FROM nexus_events_per_hour WHERE type='message'").Scan(&messages); err != nil ||
		int(messages) != counts["messages message"][0] {
		t.Errorf("nexus_events_per_hour: %d messages, %v", messages, err)
	}
	if err := ch.QueryRow(t.Context(), "SELECT appended FROM nexus_delivery_funnel WHERE event='activity'").Scan(&appended); err != nil ||
		int(appended) != counts["notifications activity"][0] {
		t.Errorf("nexus_delivery_funnel: %d activities, %v", appended, err)
	}
	for _, q := range []string{
		"SELECT event, toString(appended), toString(websocket), toString(push) FROM nexus_delivery_funnel ORDER BY event",
		"SELECT event, toString(p50_ms), toString(p95_ms), toString(p99_ms) FROM nexus_delivery_latency ORDER BY event",
		"SELECT 'active', toString(users), '', '' FROM nexus_active_users"} {
		rows, err := ch.Query(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var a, b, c, d string
			if err := rows.Scan(&a, &b, &c, &d); err != nil {
				t.Fatal(err)
			}
			t.Log(a, b, c, d)
		}
		rows.Close()
	}
}

// peakRSS is the most memory that a process has held, in bytes.
func (n *node) peakRSS() int {
	n.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		n.t.Skip("no /proc")
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(b)
	kb, _ := strconv.Atoi(string(m[1]))
	return kb << 10
}
