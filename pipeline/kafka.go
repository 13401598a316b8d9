package pipeline

import (
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
	Brokers []string
	Names   topics.Names
	TLS     bool
	// SASLMechanism is PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, or empty for none.
	SASLMechanism, SASLUsername, SASLPassword string
	Log                                       *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

// Client opens a franz-go client on the log with the options of ours that hold everywhere and those given.
func (k Kafka) Client(more ...kgo.Opt) (*kgo.Client, error) {
	d, err := newDecompressor()
	if err != nil {
		return nil, err
	}
	opts := []kgo.Opt{
		kgo.WithDecompressor(d),
		kgo.WithHooks(d),
		kgo.FetchMaxBytes(4 << 20),
		kgo.FetchMaxPartitionBytes(1 << 20),
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

// Log asks the cluster about topics and offsets. It is safe for concurrent use.
type Log struct {
	kafka Kafka
	cl    *kgo.Client
	adm   *kadm.Client
}

// OpenLog connects to the cluster; Close releases it.
func OpenLog(k Kafka) (*Log, error) {
	// Answers on topics come from the client's cache: it must not outlive what EnsureTopics has just made.
	cl, err := k.Client(kgo.MetadataMinAge(10 * time.Millisecond))
	if err != nil {
		return nil, err
	}
	return &Log{kafka: k, cl: cl, adm: kadm.NewClient(cl)}, nil
}

// Close releases the connections.
func (l *Log) Close() { l.cl.Close() }

// Ping answers whether a broker can be reached.
func (l *Log) Ping(ctx context.Context) error { return l.cl.Ping(ctx) }

// TopicOptions shape the topics that EnsureTopics makes.
type TopicOptions struct {
	// Partitions of topics that do not fix their own number; existing topics keep theirs. Default 6.
	Partitions int32
	// Replication 0 means min(3, brokers).
	Replication int
}

// EnsureTopics makes the topics that are missing and checks those that exist: a wrong timestamp type or retention is an
// error that says how to mend it.
func (l *Log) EnsureTopics(ctx context.Context, o TopicOptions) error {
	replication, err := l.replication(ctx, o.Replication)
	if err != nil {
		return err
	}
	existing, err := l.adm.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	var problems []error
	var names []string
	for _, s := range topics.Specs() {
		name := l.kafka.Names.Name(s.Topic)
		names = append(names, name)
		if d, ok := existing[name]; ok && d.Err == nil {
			problems = append(problems, l.checkTopic(ctx, s, name, d, o.Replication))
			continue
		}
		if err := l.createTopic(ctx, s, name, o.Partitions, replication); err != nil {
			problems = append(problems, fmt.Errorf("create topic %s: %w", name, err))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	return l.awaitTopics(ctx, names)
}

// awaitTopics returns once every broker that leads a partition of these topics serves it: Kafka answers a creation, this
// node's or another's, and lists the topic before that.
func (l *Log) awaitTopics(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for failures := 0; ; failures++ {
		listed, err := l.adm.ListEndOffsets(ctx, names...)
		if err == nil {
			err = listed.Error()
		}
		if err == nil {
			return nil
		}
		if !sleep(ctx, min(backoff(failures), time.Second)) {
			return fmt.Errorf("topics that were made do not appear: %w", err)
		}
	}
}

func (l *Log) replication(ctx context.Context, wanted int) (int, error) {
	if wanted > 0 {
		return wanted, nil
	}
	brokers, err := l.adm.ListBrokers(ctx)
	if err != nil {
		return 0, fmt.Errorf("list brokers: %w", err)
	}
	return min(3, max(1, len(brokers))), nil
}

func (l *Log) createTopic(ctx context.Context, s topics.Spec, name string, partitions int32, replication int) error {
	if s.Partitions > 0 {
		partitions = s.Partitions
	}
	configs := make(map[string]*string)
	for k, v := range s.Configs(replication) {
		configs[k] = kadm.StringPtr(v)
	}
	r, err := l.adm.CreateTopic(ctx, partitions, int16(replication), configs, name)
	if err == nil {
		err = r.Err
	}
	if errors.Is(err, kerr.TopicAlreadyExists) { // another node was faster
		return nil
	}
	return err
}

func (l *Log) checkTopic(ctx context.Context, s topics.Spec, name string, d kadm.TopicDetail, replication int) error {
	if s.Partitions > 0 && len(d.Partitions) != int(s.Partitions) {
		return fmt.Errorf("topic %s has %d partitions and must have %d: make it anew", name, len(d.Partitions), s.Partitions)
	}
	if have := d.Partitions.NumReplicas(); have < replication {
		return fmt.Errorf("topic %s has %d replicas, TOPIC_REPLICATION asks for %d: reassign it or lower the setting", name, have, replication)
	}
	rs, err := l.adm.DescribeTopicConfigs(ctx, name)
	if err != nil {
		return fmt.Errorf("read the settings of topic %s: %w", name, err)
	}
	want := s.Configs(1)
	var problems []error
	for _, r := range rs {
		for _, c := range r.Configs {
			if c.Key != "message.timestamp.type" && (c.Key != "retention.ms" || s.Retention != topics.Forever) {
				continue
			}
			if w := want[c.Key]; c.MaybeValue() != w {
				problems = append(problems, fmt.Errorf("topic %s has %s=%s and must have %s; mend it with: kafka-configs.sh --alter --topic %s --add-config %s=%s",
					name, c.Key, c.MaybeValue(), w, name, c.Key, w))
			}
		}
	}
	return errors.Join(problems...)
}

// Partitions is how many partitions a topic has.
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

// Members are the instances, or else the client addresses, of a group's members. A group that does not exist has none.
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

// Ends is the offset after the last committed record of every partition of a topic.
func (l *Log) Ends(ctx context.Context, t topics.Topic) (map[int32]int64, error) {
	return l.offsets(l.adm.ListCommittedOffsets(ctx, l.kafka.Names.Name(t)))
}

// Starts is the first offset that every partition of a topic still has.
func (l *Log) Starts(ctx context.Context, t topics.Topic) (map[int32]int64, error) {
	return l.offsets(l.adm.ListStartOffsets(ctx, l.kafka.Names.Name(t)))
}

func (l *Log) offsets(listed kadm.ListedOffsets, err error) (map[int32]int64, error) {
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	out := make(map[int32]int64)
	listed.Each(func(o kadm.ListedOffset) { out[o.Partition] = o.Offset })
	return out, nil
}

// allEnds is the end of every partition of every topic.
func (l *Log) allEnds(ctx context.Context) (map[partition]int64, error) {
	var names []string
	for _, s := range topics.Specs() {
		names = append(names, l.nameOf(s.Topic))
	}
	listed, err := l.adm.ListCommittedOffsets(ctx, names...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	ends := make(map[partition]int64)
	listed.Each(func(o kadm.ListedOffset) {
		t, _ := l.kafka.Names.Topic(o.Topic)
		ends[partition{t, o.Partition}] = o.Offset
	})
	return ends, nil
}

// nameOf is a topic's name in Kafka for messages to operators.
func (l *Log) nameOf(t topics.Topic) string { return l.kafka.Names.Name(t) }

// sorted returns a map's keys in order, for stable messages.
func sorted[K ~string | ~int32, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
