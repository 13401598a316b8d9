package pipeline

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/topics"
)

// partitions is how many startLog makes for each topic.
const partitions = 8

// startLog starts an embedded broker and makes the topics.
func startLog(t *testing.T) (*Broker, Kafka) {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	broker, err := StartBroker(BrokerOptions{Dir: t.TempDir(), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { broker.Close() })
	k := Kafka{Brokers: []string{broker.Addr()}, Log: quiet}
	l, err := OpenLog(k)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.EnsureTopics(t.Context(), TopicOptions{Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
	return broker, k
}

// TestPauses has records offered and pulled at the same time: whatever the order, who has nothing queued is not paused (B5).
func TestPauses(t *testing.T) {
	cl, err := kgo.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	c := &Consumer{cl: cl, Log: slog.New(slog.DiscardHandler)}
	w := newWorker(c, topics.Notifications.Partition(0), Position{}, 0)
	many := make([]item, maxQueued+1)
	for range 2000 {
		var offered sync.WaitGroup
		offered.Go(func() { w.offer(many...) })
		for got := 0; got < len(many); {
			got += len(w.pull())
		}
		offered.Wait()
		if paused := cl.PauseFetchPartitions(nil); len(paused) > 0 || w.now().Paused {
			t.Fatalf("nothing is queued, and paused are %v (the worker says %v)", paused, w.now().Paused)
		}
	}
}

// large is an event of 200 KiB that no codec makes smaller.
func large(topic topics.Topic, typ string) *topics.Event {
	return topics.New(topic, "user:a", topics.Meta{Type: typ}, incompressible)
}

var incompressible = func() []byte {
	b := make([]byte, 200<<10)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return b
}()

// TestWaitingBytes: what waits for a log that is away is bounded in bytes, not in records alone (B12).
func TestWaitingBytes(t *testing.T) {
	broker, k := startLog(t)
	if err := broker.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := NewProducer(k)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(k.Log)
	const beyond = 50
	size := len(incompressible)
	most := map[topics.Topic]int{topics.Deliveries: maxTelemetryBytes, topics.Notifications: maxWaitingBytes}
	refused := make(map[topics.Topic]*atomic.Int64)
	var answered sync.WaitGroup
	for topic, bytes := range most {
		count := new(atomic.Int64)
		refused[topic] = count
		for range bytes/size + beyond {
			answered.Add(1)
			p.Post(large(topic, topics.TypeNotification), func(err error) {
				defer answered.Done()
				if errors.Is(err, ErrOverloaded) {
					count.Add(1)
				}
			})
		}
	}
	if err := p.cl.AbortBufferedRecords(t.Context()); err != nil { // the others would wait for DeliveryTimeout
		t.Fatal(err)
	}
	answered.Wait()
	for topic, count := range refused {
		if n := count.Load(); n < beyond || n > 2*beyond {
			t.Errorf("%s: %d of %d records of 200 KiB were refused, and %d bytes may wait", topic, n, most[topic]/size+beyond, most[topic])
		}
	}
}

// TestQueuedBytes: a worker has its fetching paused by what waits for it in bytes, too (B12).
func TestQueuedBytes(t *testing.T) {
	cl, err := kgo.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	w := newWorker(&Consumer{cl: cl, Log: slog.New(slog.DiscardHandler)}, topics.Notifications.Partition(0), Position{}, 0)
	offered := 0
	for ; !w.now().Paused; offered++ {
		if offered*len(incompressible) > maxQueuedBytes {
			t.Fatalf("%d records of 200 KiB wait, and fetching goes on", offered)
		}
		w.offer(items([]*kgo.Record{{Offset: int64(offered), Value: incompressible}})...)
	}
	for range offered {
		w.pull()
	}
	if s := w.now(); s.Paused || w.weight != 0 {
		t.Errorf("nothing waits, and the worker is paused (%v) by %d bytes", s.Paused, w.weight)
	}
}

// TestFetchedBytes: what a client has fetched and nobody has taken is bounded in bytes, whatever the backlog (B12).
func TestFetchedBytes(t *testing.T) {
	_, k := startLog(t)
	p, err := NewProducer(k)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 100 { // 20 MB
		e := large(topics.Devices, topics.TypeDeviceRegistered)
		e.Key = []byte(topics.UserKey(fmt.Sprint(n)))
		if err := p.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	p.Close(k.Log)
	starts := make(map[int32]kgo.Offset)
	for n := range int32(partitions) {
		starts[n] = kgo.NewOffset().AtStart()
	}
	cl, err := k.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{k.Names.Name(topics.Devices): starts}))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	testenv.Eventually(t, "something is fetched", func() bool { return cl.BufferedFetchBytes() > 0 })
	if n, most := cl.BufferedFetchBytes(), int64(1<<20+len(incompressible)); n > most {
		t.Errorf("%d bytes were fetched that nobody asked for, want at most %d", n, most)
	}
}
