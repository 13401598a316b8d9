package pipeline

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/nexus/nexus/topics"
)

// TestGarbageIsRefused has a client send batches whose records nobody can read. Kafka refuses them; in the embedded log they
// would stand before every reader for ever.
func TestGarbageIsRefused(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	broker, err := StartBroker(BrokerOptions{Dir: t.TempDir(), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	k := Kafka{Brokers: []string{broker.Addr()}, Log: quiet, Names: topics.Names{Prefix: "g."}}
	l, err := OpenLog(k)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.createTopic(t.Context(), l.nameOf(topics.Control), 1, 1, nil); err != nil {
		t.Fatal(err)
	}
	old, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers...), kgo.MaxVersions(kversion.V3_0_0())) // topics go by name
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	for name, attrs := range map[string]int16{"no zstd": 4, "no gzip": 1, "no records": 0, "no snappy": 2} {
		req := kmsg.NewPtrProduceRequest()
		req.Acks, req.TimeoutMillis = -1, 1000
		topic, part := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
		topic.Topic, part.Records = l.nameOf(topics.Control), batchOf([]byte("records"), attrs)
		topic.Partitions = append(topic.Partitions, part)
		req.Topics = append(req.Topics, topic)
		resp, err := req.RequestWith(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		if code := resp.Topics[0].Partitions[0].ErrorCode; code == 0 {
			t.Errorf("%s: was taken", name)
		}
	}
	if err := l.record(t.Context(), Contract{Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	ends, _ := l.Ends(ctx, topics.Control)
	r, err := l.read(topics.Control, map[int32]Span{0: {To: ends[topics.Control.Partition(0)]}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if rec, err := r.record(ctx, 0); err != nil || rec == nil {
		t.Errorf("what stands behind them is not read: %v %v", rec, err)
	}
}
