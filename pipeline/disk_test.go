package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// While the disk is full the embedded log answers as Kafka does, with an error that clients try again after: what an outside
// client has appended is there once there is room.
func TestDiskFull(t *testing.T) {
	var free atomic.Uint64
	b, err := StartBroker(BrokerOptions{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
		free: func() (uint64, error) { return free.Load(), nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	client := func(opts ...kgo.Opt) *kgo.Client {
		cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(b.Addr()), kgo.DefaultProduceTopic("t"), kgo.MetadataMinAge(10*time.Millisecond),
			kgo.RetryBackoffFn(func(int) time.Duration { return 10 * time.Millisecond }))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.Close)
		return cl
	}
	outside := client()
	if _, err := kadm.NewClient(outside).CreateTopic(t.Context(), 1, 1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	err = client(kgo.RecordRetries(3), kgo.UnknownTopicRetries(3)).ProduceSync(t.Context(), kgo.StringRecord("refused")).FirstErr()
	if !errors.Is(err, kerr.KafkaStorageError) || !kerr.IsRetriable(err) {
		t.Errorf("a client that gives up is told %v", err)
	}
	acked := make(chan error, 1)
	outside.Produce(context.Background(), kgo.StringRecord("waits"), func(_ *kgo.Record, err error) { acked <- err })
	free.Store(1 << 30)
	if err := <-acked; err != nil {
		t.Errorf("once there is room: %v", err)
	}
}
