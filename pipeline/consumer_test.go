package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/nexus/nexus/topics"
)

// ahead is a sink that remembers more of one topic than there is.
type ahead struct{ of topics.Topic }

func (a ahead) Position(_ context.Context, of topics.Partition) (Position, error) {
	if of.Topic == a.of {
		return Position{Next: 1000}, nil
	}
	return Position{}, nil
}

func (ahead) Apply(context.Context, Batch) error { return nil }

// TestNoWorkersAreLeft has a consumer end while it takes its partitions over: the workers of those it had already end with it.
func TestNoWorkersAreLeft(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	broker, err := StartBroker(BrokerOptions{Dir: t.TempDir(), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	k := Kafka{Brokers: []string{broker.Addr()}, Log: quiet}
	l, err := OpenLog(k)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.EnsureTopics(t.Context(), TopicOptions{Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	c := &Consumer{Name: "c", Kafka: k, Log: quiet, Topics: []topics.Topic{topics.Devices, topics.Signals, topics.Control},
		Sink: ahead{topics.Control}}
	var wrong *WrongLogError
	if err := c.Run(t.Context()); !errors.As(err, &wrong) {
		t.Errorf("Run on another log: %v", err)
	}
	if n := len(c.all()); n > 0 {
		t.Errorf("%d workers are left", n)
	}
}
