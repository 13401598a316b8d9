package pipeline_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// printer is a Sink that prints messages. It keeps its position in memory; a store keeps it beside what it stores, and moves both in
// one transaction.
type printer struct {
	next    int64
	printed chan struct{}
}

func (p *printer) Position(context.Context, topics.Partition) (pipeline.Position, error) {
	return pipeline.Position{Next: p.next}, nil
}

func (p *printer) Apply(_ context.Context, b pipeline.Batch) error {
	for e := range b.Live { // valid, in the partition of its key, and no duplicate
		m := topics.ReadMessage(e)
		fmt.Println(m.SenderID, "to", m.ReceiverID+":", m.Content)
		p.printed <- struct{}{}
	}
	p.next = b.To
	return nil
}

// A log in a folder: two messages are appended, the first of them twice, and read.
func Example() {
	dir, err := os.MkdirTemp("", "nexus-example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	quiet := slog.New(slog.DiscardHandler)
	broker, err := pipeline.StartBroker(pipeline.BrokerOptions{Dir: dir, Log: quiet})
	if err != nil {
		panic(err)
	}
	defer broker.Close()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	kafka := pipeline.Kafka{Brokers: []string{broker.Addr()}, Names: topics.Names{Prefix: "nexus."}, Log: quiet}
	log, err := pipeline.OpenLog(kafka)
	if err != nil {
		panic(err)
	}
	defer log.Close()
	if err := log.EnsureTopics(ctx, pipeline.TopicOptions{Partitions: 1}); err != nil {
		panic(err)
	}
	contract, err := pipeline.AgreeContract(ctx, log, 5*time.Minute, false) // a log that has begun keeps the dedup window that it began with
	if err != nil {
		panic(err)
	}
	kafka.Partitions = contract.Partitions

	producer, err := pipeline.NewProducer(kafka)
	if err != nil {
		panic(err)
	}
	defer producer.Close(quiet)
	first := topics.Draft{ReceiverID: "bob", Content: "Hello", ClientMessageID: "1"}
	second := topics.Draft{ReceiverID: "bob", Content: "Are you there?", ClientMessageID: "2"}
	for _, d := range []topics.Draft{first, first, second} {
		if err := producer.Append(ctx, d.Message("alice", "")); err != nil {
			panic(err)
		}
	}

	p := &printer{printed: make(chan struct{})}
	consumer := pipeline.Consumer{Name: "example", Kafka: kafka, Log: quiet, Topics: []topics.Topic{topics.Messages}, Sink: p,
		Windows: pipeline.NewWindows(contract.Window)}
	ended := make(chan error, 1)
	go func() { ended <- consumer.Run(ctx) }()
	<-p.printed
	<-p.printed
	cancel()
	fmt.Println("ended:", <-ended)
	// Output:
	// alice to bob: Hello
	// alice to bob: Are you there?
	// ended: <nil>
}
