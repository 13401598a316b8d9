package pipeline

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// A flood of refused records is one line a second for each topic and reason, which says how many are not shown; all are
// counted. No line has anything of a record's contents.
func TestRefusalsAreTold(t *testing.T) {
	var text bytes.Buffer
	reg, now := prometheus.NewRegistry(), time.Unix(1_764_583_200, 0)
	g := NewGate(GateOptions{Producer: &Producer{}, Kafka: Kafka{Metrics: NewMetrics(reg)}, Log: slog.New(slog.NewTextHandler(&text, nil))})
	s := g.handler
	s.now = func() time.Time { return now }
	refuse := func(topic topics.Topic, value string) {
		e := &topics.Event{Topic: topic, Partition: 2, Offset: 7, Key: []byte("user:s3cret"), Value: []byte(value),
			Meta: topics.Meta{Source: strings.Repeat("shop", 100)}}
		for _, o := range s.outputs(Batch{Topic: topic, Partition: 2, Events: []*topics.Event{e}, Records: []*kgo.Record{{}}}) {
			s.wrote(o)
		}
		s.forget(topic.Partition(2), 8)
	}
	for range 100 {
		refuse(topics.Notifications, "s3cret")
	}
	refuse(topics.Notifications, `{"title":"s3cret"}`)
	refuse(topics.Devices, "s3cret")
	now = now.Add(warnEvery)
	refuse(topics.Notifications, "s3cret")
	lines := strings.Split(strings.TrimSpace(text.String()), "\n")
	for i, want := range []string{
		"topic=notifications partition=2 offset=7 reason=json err=\"the value must be one JSON object\" key=user source=shop",
		"topic=notifications partition=2 offset=7 reason=field", "topic=devices partition=2 offset=7 reason=type", "reason=json"} {
		if i >= len(lines) || !strings.Contains(lines[i], want) {
			t.Fatalf("got\n%s\nwant %q as line %d", text.String(), want, i+1)
		}
	}
	if len(lines) != 4 || !strings.HasSuffix(lines[3], "notLogged=99") {
		t.Errorf("%d lines, the last is %q; want 4, and 99 not logged", len(lines), lines[len(lines)-1])
	}
	if strings.Contains(text.String(), "s3cret") || len(lines[0]) > 400 {
		t.Errorf("a line shows contents, or too much: %s", text.String())
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if l := m.GetLabel(); len(l) == 2 { // reason and topic
				counted[l[1].GetValue()+" "+l[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	if n := counted["notifications json"]; n != 101 {
		t.Errorf("%v counted, want 101: %v", n, counted)
	}
}

// Records that nobody can read become one dead letter, which says how many they are and where.
func TestUnreadableIsTold(t *testing.T) {
	g := NewGate(GateOptions{Producer: &Producer{}, Log: slog.New(slog.DiscardHandler)})
	list := g.handler.outputs(Batch{Topic: topics.Messages, Partition: 1, From: 5, To: 90, Skipped: []Span{{From: 10, To: 80}}})
	if len(list) != 1 || list[0].reason != reasonUnreadable || !strings.Contains(list[0].why.Error(), "70 records") {
		t.Fatalf("got %+v", list)
	}
	if got := fmt.Sprintf("%s", list[0].record.Headers); !strings.Contains(got, "messages/1/10") {
		t.Errorf("headers %s", got)
	}
}

// What judging a record costs the gate: a chat message, valid as nearly all are.
func BenchmarkGate(b *testing.B) {
	d := topics.Draft{ReceiverID: "bob", Content: strings.Repeat("hello ", 20), ClientMessageID: "c1"}
	g := NewGate(GateOptions{Producer: &Producer{}, Log: slog.New(slog.DiscardHandler)})
	e := d.Message("alice", "")
	r := &kgo.Record{Key: e.Key, Value: e.Value}
	for _, h := range e.Headers() {
		r.Headers = append(r.Headers, kgo.RecordHeader(h))
	}
	b.ReportAllocs()
	for b.Loop() {
		if g.handler.outputs(Batch{Topic: topics.Messages, Events: []*topics.Event{EventOf(topics.Messages, r)},
			Records: []*kgo.Record{r}}) != nil {
			b.Fatal("not valid")
		}
	}
}
