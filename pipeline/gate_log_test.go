package pipeline_test

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// letters reads the dead letters that a bench's log has.
type letters struct{ *memory }

func (b *bench) letters() letters {
	m := newMemory()
	b.consume(&pipeline.Consumer{Sink: m, Topics: []topics.Topic{topics.DeadLetters}})
	return letters{m}
}

func (b *bench) gate() *pipeline.Gate {
	g := pipeline.NewGate(pipeline.GateOptions{Kafka: b.Kafka, Producer: b.Producer, Positions: b.Kafka.Names.Prefix + "gate",
		Windows: pipeline.NewWindows(b.window), Log: quiet})
	b.t.Cleanup(g.Close)
	return g
}

// byOrigin is how often each record is among them, and the reason of its last.
func (l letters) byOrigin() (n map[string]int, reasons map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, reasons = make(map[string]int), make(map[string]string)
	for origin, reason := range l.told {
		n[origin], reasons[origin] = len(reason), reason[len(reason)-1]
	}
	return n, reasons
}

// Whatever is not valid is told, in every topic that an outsider can write, also amid transactions; what is valid is not.
func testGateTopics(t *testing.T, b *bench) {
	reg := prometheus.NewRegistry()
	b.Kafka.Metrics = pipeline.NewMetrics(reg)
	want := make(map[string]string) // origin to a part of the reason
	next := make(topics.Ends)
	put := func(topic topics.Topic, key, value, reason string, headers ...kgo.RecordHeader) {
		t.Helper()
		parts := int32(3)
		if s, _ := topics.Of(topic); s.Partitions > 0 {
			parts = s.Partitions
		}
		of := topic.Partition(topics.PartitionOf([]byte(key), parts))
		b.raw(topic, of.ID, key, value, headers...)
		if reason != "" {
			want[of.At(next[of]).String()] = reason
		}
		next[of]++
	}
	head := func(pairs ...string) (list []kgo.RecordHeader) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, kgo.RecordHeader{Key: pairs[i], Value: []byte(pairs[i+1])})
		}
		return list
	}
	good := `{"title":"t","body":"b","type":"SYSTEM"}`
	for _, s := range topics.Specs() {
		if s.Topic != topics.DeadLetters {
			put(s.Topic, "user:a", "garbage", "e") // of whatever kind
		}
	}
	message := `{"senderId":"a","receiverId":"b","content":"x"}`
	put(topics.Messages, "dm:a:b", message, "ce_source", head("ce_type", "message")...)
	put(topics.Messages, "dm:a:b", message, "ce_source", head("ce_type", "message", "ce_source", "/users/b")...)
	put(topics.Messages, "dm:a:b", message, "", head("ce_type", "message", "ce_source", "/users/a")...)
	put(topics.Signals, "dm:a:b", `{"userId":"a","isTyping":true}`, "ce_source", head("ce_type", "typing.start", "ce_source", "/users/b")...)
	put(topics.Devices, "user:a", `{"token":"stolen"}`, "ce_source", head("ce_type", "device.registered")...)
	put(topics.Control, "user:a", `{}`, "ce_source", head("ce_type", "session.revoked", "ce_source", "shop")...)
	put(topics.Presence, "s", `{"node":"n1","name":"x"}`, "ce_source", head("ce_type", "node.heartbeat", "ce_source", "/nodes/n2")...)
	put(topics.Notifications, "user:a", `{"upTo":"2025-12-01T10:00:00Z"}`, "ce_source", head("ce_type", "notification.read")...)
	put(topics.Notifications, "user:a", good, "idempotency-key has 200000 bytes", head("idempotency-key", strings.Repeat("k", 200_000))...)
	put(topics.Notifications, "user:a", good, "ce_time", head("ce_time", "noon")...)
	put(topics.Notifications, "user:a", `{"specversion":"1.0","id":"1","source":"s","type":"notification","subject":"user:a","data":`+good+`}`,
		"binary mode", head("content-type", "application/cloudevents+json")...)
	put(topics.Notifications, "user:a", `{"id":"n0-0","title":"t","body":"b","type":"SYSTEM"}`, "nexus-id",
		head("nexus-id", "n0-0", "ce_id", "n0-0")...)
	put(topics.Notifications, "user:a", good, "")

	dead := b.letters()
	stop := b.run(b.gate().Run)
	dead.until(t, fmt.Sprintf("%d dead letters", len(want)), func() bool {
		dead.mu.Lock()
		defer dead.mu.Unlock()
		return len(dead.all) >= len(
			want)
	})

	tx, err := b.Kafka.Client(kgo.TransactionalID(b.Kafka.Names.Prefix + "gate-tx"))
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Close()
	for _, end := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} { // what is aborted is not there
		if err := tx.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		r := &kgo.Record{Topic: b.Kafka.Names.Name(topics.Messages), Key: []byte("dm:a:b"), Value: []byte("garbage")}
		if err := tx.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := tx.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
		if end == kgo.TryCommit {
			want[topics.Messages.Partition(r.Partition).At(r.Offset).String()] = "ce_type"
		}
	}
	dead.until(t, "the transaction's", func() bool { dead.mu.Lock(); defer dead.mu.Unlock(); return len(dead.all) >= len(want) })
	stop()

	n, reasons := dead.byOrigin()
	for origin, reason := range want {
		if n[origin] != 1 || !strings.Contains(reasons[origin], reason) {
			t.Errorf("%s: %d times, %q; want once, with %q", origin, n[origin], reasons[origin], reason)
		}
	}
	if len(n) != len(want) {
		t.Errorf("%d dead letters, want %d: %v", len(n), len(want), n)
	}
	counted := make(map[string]float64)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "nexus_dead_letters_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			counted[m.GetLabel()[1].GetValue()+" "+m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
		}
	}
	some := map[string]float64{"messages sender": 2, "messages type": 2, "signals sender": 1, "devices sender": 1, "presence sender": 1,
		"control sender":  1,
		"deliveries type": 1, "notifications header": 2, "notifications structured": 1, "notifications id": 1, "notifications json": 1}
	for what, times := range some {
		if counted[what] != times {
			t.Errorf("%s counted %v times, want %v; all: %v", what, counted[what], times, maps.Clone(counted))
		}
	}
}

// Where the log takes some dead letters of a batch and refuses others, those that it took are not written again.
func testGateOnce(t *testing.T, b *bench) {
	cl, err := b.Kafka.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	limit := func(bytes string) {
		t.Helper()
		rs, err := kadm.NewClient(cl).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes",
			Value: new(bytes)}},
			b.Kafka.Names.Name(topics.DeadLetters))
		if err != nil || rs[0].Err != nil {
			t.Fatal(err, rs)
		}
	}
	// Keys of different partitions of dead-letters: the large one fails alone.
	large, small := "user:0", ""
	for i := 1; small == ""; i++ {
		if k := fmt.Sprint("user:", i); topics.PartitionOf([]byte(k), 3) != topics.PartitionOf([]byte(large), 3) {
			small = k
		}
	}
	limit("2000")
	for i := range 20 {
		key, value := small, "garbage"
		if i == 10 {
			key, value = large, incompressible(8000)
		}
		b.raw(topics.Broadcasts, 0, key, value) // one partition: one batch
	}
	dead := b.letters()
	b.run(b.gate().Run)
	count := func() int { dead.mu.Lock(); defer dead.mu.Unlock(); return len(dead.all) }
	dead.until(t, "the small ones", func() bool { return count() >= 19 })
	limit("1048588")
	dead.until(t, "the large one", func() bool { n, _ := dead.byOrigin(); return n["broadcasts/0/10"] > 0 })
	b.raw(topics.Broadcasts, 0, small, "garbage")
	dead.until(t, "one more", func() bool { n, _ := dead.byOrigin(); return n["broadcasts/0/20"] > 0 })
	n, _ := dead.byOrigin()
	for origin, times := range n {
		if times != 1 {
			t.Errorf("%s is in dead-letters %d times", origin, times)
		}
	}
	if len(n) != 21 {
		t.Errorf("%d dead letters, want 21", len(n))
	}
}

// incompressible is random text.
func incompressible(n int) string {
	b := make([]byte, n/2)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
