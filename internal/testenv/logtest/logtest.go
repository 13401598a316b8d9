// Package logtest gives tests a log to work on: an embedded broker that may be away for a while, or real Kafka, with topics
// and a producer of the test's own. It stands beside testenv because it needs package pipeline, whose own tests need testenv.
package logtest

import (
	"log/slog"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// Quiet is a logger for what a test does not look at.
func Quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// Broker is an embedded broker.
type Broker struct {
	Addr string // host:port; it stays the same over Stop and Start

	t       testing.TB
	options pipeline.BrokerOptions
	running *pipeline.Broker // nil while it is stopped
}

// Start starts an embedded broker in a new folder; it ends with the test. Dir, Log, MinSession and Port of the options are set here.
func Start(t testing.TB, o pipeline.BrokerOptions) *Broker {
	t.Helper()
	o.Dir, o.Log, o.MinSession = t.TempDir(), Quiet(), 100*time.Millisecond // as testenv.Kafka
	b := &Broker{t: t, options: o}
	t.Cleanup(b.Stop)
	b.Start()
	return b
}

// Stop ends it; its data stays. Stopping one that is stopped does nothing.
func (b *Broker) Stop() {
	if b.running != nil {
		_ = b.running.Close()
		b.running = nil
	}
}

// Start starts it again after Stop.
func (b *Broker) Start() {
	b.t.Helper()
	var err error
	if b.running, err = pipeline.StartBroker(b.options); err != nil {
		b.running = nil
		b.t.Fatal(err)
	}
	b.Addr = b.running.Addr()
	_, port, _ := net.SplitHostPort(b.Addr)
	b.options.Port, _ = strconv.Atoi(port)
}

// Fixture is a log with topics of its own, and a producer. A test may put others in their place: those that are there in the
// end are closed.
type Fixture struct {
	Kafka    pipeline.Kafka
	Log      *pipeline.Log
	Producer *pipeline.Producer
}

// Open makes the topics of a new log at a broker, with so many partitions each. Log and producer are closed with the test.
func Open(t testing.TB, addr string, partitions int32) *Fixture {
	t.Helper()
	f := &Fixture{Kafka: pipeline.Kafka{Brokers: []string{addr}, Log: Quiet(), Names: topics.Names{Prefix: testenv.Name("t") + "."}}}
	var err error
	if f.Log, err = pipeline.OpenLog(f.Kafka); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Log.Close() })
	if err := f.Log.EnsureTopics(t.Context(), pipeline.TopicOptions{Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
	if f.Producer, err = pipeline.NewProducer(f.Kafka); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Producer.Close(Quiet()) })
	return f
}

// OnBoth runs a test on an embedded broker and on real Kafka: what is built on the one holds on the other. The two run at the same time.
func OnBoth(t *testing.T, test func(t *testing.T, addr string)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, Start(t, pipeline.BrokerOptions{}).Addr)
	})
	t.Run("kafka", func(t *testing.T) {
		t.Parallel()
		test(t, testenv.Kafka(t))
	})
}
