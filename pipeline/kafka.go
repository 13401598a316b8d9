package pipeline

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/nexus/nexus/topics"
)

// Kafka says how the log is reached and what its topics are called.
type Kafka struct {
	// Brokers are host:port of some brokers (KAFKA_BROKERS); the others are learned from them.
	Brokers []string
	// Names maps topics to their names in Kafka (NEXUS_TOPIC_PREFIX).
	Names topics.Names
	// TLS has connections encrypted, and the broker's certificate checked by the system's roots (KAFKA_TLS).
	TLS bool
	// SASLMechanism is PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, or empty for none (KAFKA_SASL_MECHANISM).
	SASLMechanism, SASLUsername, SASLPassword string
	// Log is told of lost producer state and of topics that are badly set up. Required.
	Log *slog.Logger
	// Partitions are the counts of the log's contract (AgreeContract). Keys are placed by them. Where a topic is missing here,
	// Kafka's own count holds.
	Partitions map[topics.Topic]int32
	// Metrics count what producers and consumers do. May be nil.
	Metrics *Metrics
	// Delivery is how long a record may wait for the broker's answer before its append fails. Default, which 0 means: DeliveryTimeout.
	Delivery time.Duration
	// Session is how long the group of a consumer waits for a member that says nothing (Kafka: session.timeout.ms), and for one that
	// shall join a rebalance. A broker takes 6 s at least, unless it is told otherwise (group.min.session.timeout.ms). Default, which 0
	// means: 10 s.
	Session time.Duration
}

func (k Kafka) delivery() time.Duration { return cmp.Or(k.Delivery, DeliveryTimeout) }

func (k Kafka) session() time.Duration { return cmp.Or(k.Session, sessionTimeout) }

// Client opens a franz-go client on the log, with our options that hold everywhere and then those given. It does not connect yet. The
// caller closes it. An error means that an option or the SASL mechanism is not valid.
func (k Kafka) Client(more ...kgo.Opt) (*kgo.Client, error) {
	d, err := newDecompressor()
	if err != nil {
		return nil, err
	}
	opts := []kgo.Opt{
		kgo.WithDecompressor(d),
		kgo.WithHooks(d),
		kgo.FetchMaxBytes(1 << 20),
		kgo.FetchMaxPartitionBytes(256 << 10),
		kgo.SeedBrokers(k.Brokers...),
		kgo.ClientID("nexus"),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxWait(500 * time.Millisecond),
		kgo.MetadataMinAge(250 * time.Millisecond),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
	}
	if k.TLS {
		opts = append(opts, kgo.DialTLSConfig(&tls.Config{MinVersion: tls.VersionTLS12}))
	}
	if m, err := k.mechanism(); err != nil {
		return nil, err
	} else if m != nil {
		opts = append(opts, kgo.SASL(m))
	}
	return kgo.NewClient(append(opts, more...)...)
}

func (k Kafka) mechanism() (sasl.Mechanism, error) {
	switch strings.ToUpper(k.SASLMechanism) {
	case "":
		return nil, nil
	case "PLAIN":
		return plain.Auth{User: k.SASLUsername, Pass: k.SASLPassword}.AsMechanism(), nil
	case "SCRAM-SHA-256":
		return scram.Auth{User: k.SASLUsername, Pass: k.SASLPassword}.AsSha256Mechanism(), nil
	case "SCRAM-SHA-512":
		return scram.Auth{User: k.SASLUsername, Pass: k.SASLPassword}.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("SASL mechanism %q is not PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", k.SASLMechanism)
}

// Log is the admin client: it asks the cluster about topics and offsets, makes topics, and looks up single records. All methods return
// Kafka's errors with the topic's name. It is safe for concurrent use.
type Log struct {
	kafka Kafka
	cl    *kgo.Client
	adm   *kadm.Client
	small batchDecompressor // of what timesAt looks at
}

// OpenLog makes the admin client; Close releases it. It connects with the first question. An error means that k is not a usable
// configuration.
func OpenLog(k Kafka) (*Log, error) {
	// Answers on topics come from the client's cache: it must not outlive what EnsureTopics has just made.
	cl, err := k.Client(kgo.MetadataMinAge(10 * time.Millisecond))
	if err != nil {
		return nil, err
	}
	small, err := newBatchDecompressor(lookBatchBytes)
	if err != nil {
		cl.Close()
		return nil, err
	}
	return &Log{kafka: k, cl: cl, adm: kadm.NewClient(cl), small: small}, nil
}

// Close releases the connections.
func (l *Log) Close() { l.cl.Close() }

// Ping returns nil where a broker answers.
func (l *Log) Ping(ctx context.Context) error { return l.cl.Ping(ctx) }

// Partitions is how many partitions a topic has in Kafka now.
func (l *Log) Partitions(ctx context.Context, t topics.Topic) (int32, error) {
	name := l.kafka.Names.Name(t)
	ds, err := l.adm.ListTopics(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("partitions of %s: %w", name, err)
	}
	d := ds[name]
	if d.Err != nil {
		return 0, fmt.Errorf("partitions of %s: %w", name, d.Err)
	}
	return int32(len(d.Partitions)), nil
}

// Members lists the members of a consumer group, in order: by their static ids, or else by their client's address. A group that does
// not exist has none.
func (l *Log) Members(ctx context.Context, group string) (names []string, err error) {
	gs, err := l.adm.DescribeGroups(ctx, group)
	if err == nil {
		err = gs[group].Err
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("group %s: %w", group, err)
	}
	for _, m := range gs[group].Members {
		name := m.ClientHost
		if m.InstanceID != nil {
			name = *m.InstanceID
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// Ends returns, of every partition of a topic, the offset after the last record that a read_committed consumer is given (Kafka: the
// last stable offset).
func (l *Log) Ends(ctx context.Context, t topics.Topic) (topics.Ends, error) {
	return l.listed(l.adm.ListCommittedOffsets(ctx, l.nameOf(t)))
}

// Starts returns, of every partition of a topic, the first offset that it still has: all below is removed.
func (l *Log) Starts(ctx context.Context, t topics.Topic) (topics.Ends, error) {
	return l.listed(l.adm.ListStartOffsets(ctx, l.nameOf(t)))
}

// listed is the offsets of an answer. Topics that are not ours are left out.
func (l *Log) listed(list kadm.ListedOffsets, err error) (topics.Ends, error) {
	if err == nil {
		err = list.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	out := make(topics.Ends)
	list.Each(func(o kadm.ListedOffset) {
		if t, ours := l.kafka.Names.Topic(o.Topic); ours {
			out[t.Partition(o.Partition)] = o.Offset
		}
	})
	return out, nil
}

// nameOf is a topic's name in Kafka for messages to operators.
func (l *Log) nameOf(t topics.Topic) string { return l.kafka.Names.Name(t) }

// sorted returns a map's keys in order, for stable messages.
func sorted[K ~string | ~int32, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
