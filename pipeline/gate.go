package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// Gate reads the topics that product services write. It alone writes dead letters, and it appends strays, records that
// a foreign partitioner put into another partition than their key's, once more where they belong. Everybody else skips
// both kinds.
type Gate struct {
	consumer Consumer
}

// GateOptions are what a gate needs.
type GateOptions struct {
	Kafka    Kafka
	Producer *Producer
	// Group shares the work with the gates of other nodes; empty: this gate reads everything.
	Group, Instance string
	// Positions names where the positions are kept.
	Positions string
	Windows   *Windows
	Log       *slog.Logger
	// WayOut is Consumer.WayOut.
	WayOut string
}

// NewGate makes a gate; Run works until ctx ends.
func NewGate(o GateOptions) *Gate {
	return &Gate{Consumer{
		Name: "gate", Kafka: o.Kafka, Log: o.Log, Group: o.Group, Instance: o.Instance, Windows: o.Windows, WayOut: o.WayOut,
		Topics: []topics.Topic{topics.Notifications, topics.Broadcasts},
		Sink:   &gateSink{kafka: o.Kafka, producer: o.Producer, log: o.Log, group: o.Positions + positionsSuffix, upTo: make(map[partition]int64)},
	}}
}

// Run works until ctx ends.
func (g *Gate) Run(ctx context.Context) error { return g.consumer.Run(ctx) }

// Close releases the connection to the positions, which the first look at them opens.
func (g *Gate) Close() { g.consumer.Sink.(*gateSink).close() }

// Consumer is what reads for the gate, for its progress.
func (g *Gate) Consumer() *Consumer { return &g.consumer }

// gateSink keeps its positions as the offsets of a consumer group without members: it has no store of its own, and the
// members' group would accept commits from its members only. An append that is repeated because the commit was lost
// carries the identity of the first.
type gateSink struct {
	kafka    Kafka
	producer *Producer
	log      *slog.Logger
	group    string

	once sync.Once
	err  error
	cl   *kgo.Client
	adm  *kadm.Client

	mu   sync.Mutex
	upTo map[partition]int64 // everything below has been judged here
}

func (s *gateSink) open() error {
	s.once.Do(func() {
		if s.cl, s.err = s.kafka.Client(); s.err == nil {
			s.adm = kadm.NewClient(s.cl)
		}
	})
	return s.err
}

func (s *gateSink) close() {
	if s.cl != nil {
		s.cl.Close()
	}
}

func (s *gateSink) Position(ctx context.Context, t topics.Topic, p int32) (at Position, err error) {
	if err := s.open(); err != nil {
		return at, err
	}
	all, err := s.adm.FetchOffsetsForTopics(ctx, s.group, s.kafka.Names.Name(t))
	if errors.Is(err, kerr.GroupIDNotFound) { // nothing was committed yet
		return at, nil
	}
	if err != nil {
		return at, err
	}
	o, ok := all.Lookup(s.kafka.Names.Name(t), p)
	if ok && o.Err != nil {
		return at, o.Err
	}
	if !ok || o.At < 0 {
		return at, nil
	}
	return readMetadata(o.At, o.Metadata), nil
}

// Adopt goes on from these positions.
func (s *gateSink) Adopt(ctx context.Context, to map[topics.Topic]map[int32]Position) error {
	if err := s.open(); err != nil {
		return err
	}
	var os kadm.Offsets
	for t, ps := range to {
		for p, at := range ps {
			os.Add(kadm.Offset{Topic: s.kafka.Names.Name(t), Partition: p, At: at.Next, LeaderEpoch: -1, Metadata: at.metadata()})
		}
	}
	rs, err := s.adm.CommitOffsets(ctx, s.group, os)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		return fmt.Errorf("commit the gate's positions: %w", err)
	}
	return nil
}

// Apply notes how far it came also where it is stopped or fails amid a batch: what it has written is not written twice,
// neither when the batch is tried again nor by whoever goes on.
func (s *gateSink) Apply(ctx context.Context, b Batch) error {
	finish, of := context.WithoutCancel(ctx), partition{b.Topic, b.Partition}
	for i, e := range b.Events {
		if e.Offset < s.judgedTo(of) {
			continue
		}
		err := ctx.Err()
		if err == nil {
			err = s.judge(finish, e, b.Records[i])
		}
		if err != nil {
			return errors.Join(err, s.commit(finish, b, e.Offset))
		}
		s.judged(of, e.Offset+1)
	}
	return s.commit(finish, b, b.To)
}

func (s *gateSink) judgedTo(of partition) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.upTo[of]
}

func (s *gateSink) judged(of partition, next int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upTo[of] = next
}

// positionsSuffix makes the name of the group without members that holds the positions.
const positionsSuffix = ".positions"

// commitFor bounds a commit, also while the gate is being stopped.
const commitFor = 3 * time.Second

func (s *gateSink) commit(ctx context.Context, b Batch, next int64) error {
	if next == b.From {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, commitFor)
	defer cancel()
	after := b.After()
	after.Next = next
	if next != b.To { // stopped amid the batch: the last record below is another one
		after.Mark = b.markBelow(next)
	}
	var os kadm.Offsets
	os.Add(kadm.Offset{Topic: s.kafka.Names.Name(b.Topic), Partition: b.Partition, At: next, LeaderEpoch: -1, Metadata: after.metadata()})
	rs, err := s.adm.CommitOffsets(ctx, s.group, os)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		return fmt.Errorf("commit the gate's position: %w", err)
	}
	return nil
}

func (s *gateSink) judge(ctx context.Context, e *topics.Event, r *kgo.Record) error {
	if err := topics.Valid(e); err != nil {
		s.kafka.Metrics.deadLetter()
		s.log.Warn("dead letter", "topic", e.Topic, "partition", e.Partition, "offset", e.Offset)
		return s.producer.produce(ctx, s.producer.deadLetter(e, r, err))
	}
	if !e.Stray {
		return nil
	}
	s.kafka.Metrics.stray()
	return s.producer.produce(ctx, carryOver(e, r))
}

// carryOver appends all headers as they are, so the record keeps its identity; one without any gets the place where it
// stood.
func carryOver(e *topics.Event, r *kgo.Record) *kgo.Record {
	c := &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers}
	if e.IdempotencyKey == "" && e.ID == "" {
		c.Headers = append(slices.Clone(r.Headers), kgo.RecordHeader{Key: topics.HeaderIdempotencyKey, Value: []byte(origin(e))})
	}
	return c
}
