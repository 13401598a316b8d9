package pipeline

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/nexus/nexus/topics"
)

// TopicOptions shape the topics that EnsureTopics makes.
type TopicOptions struct {
	// Partitions is the number for topics that do not fix their own (TOPIC_PARTITIONS). Existing topics keep theirs. It must be set.
	Partitions int32
	// Replication is the number of replicas (TOPIC_REPLICATION). 0: min(3, brokers), and existing topics keep theirs.
	Replication int
}

// EnsureTopics makes the topics that are missing and checks all of them. A topic that cannot keep what is promised is an
// error that names the topic, the setting, and the command that mends it; all problems are told at once.
func (l *Log) EnsureTopics(ctx context.Context, o TopicOptions) error {
	replication, err := l.replication(ctx, o.Replication)
	if err != nil {
		return err
	}
	names := l.allNames()
	existing, err := l.adm.ListTopics(ctx, names...)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	var problems []error
	for i, s := range topics.Specs() {
		if d, ok := existing[names[i]]; ok && d.Err == nil {
			continue
		}
		if err := l.createTopic(ctx, names[i], o.partitionsOf(s), replication, s.Configs(replication)); err != nil {
			problems = append(problems, fmt.Errorf("create topic %s: %w", names[i], err))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	if err := l.awaitTopics(ctx, names); err != nil {
		return err
	}
	return l.checkTopics(ctx, names, o.Replication)
}

func (o TopicOptions) partitionsOf(s topics.Spec) int32 {
	if s.Partitions > 0 {
		return s.Partitions
	}
	return o.Partitions
}

// allNames are the names in Kafka of all topics, in the order of topics.Specs.
func (l *Log) allNames() (names []string) {
	for _, s := range topics.Specs() {
		names = append(names, l.nameOf(s.Topic))
	}
	return names
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

func (l *Log) createTopic(ctx context.Context, name string, partitions int32, replication int, settings map[string]string) error {
	configs := make(map[string]*string)
	for k, v := range settings {
		configs[k] = new(v)
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

// checkTopics tells everything that is wrong with the topics of these names, which are in the order of topics.Specs.
func (l *Log) checkTopics(ctx context.Context, names []string, replication int) error {
	details, err := l.adm.ListTopics(ctx, names...)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	configs, err := l.settings(ctx, names...)
	if err != nil {
		return err
	}
	var problems []error
	for i, s := range topics.Specs() {
		name := names[i]
		d := details[name]
		if d.Err != nil {
			problems = append(problems, fmt.Errorf("describe topic %s: %w", name, d.Err))
			continue
		}
		if s.Partitions > 0 && len(d.Partitions) != int(s.Partitions) {
			problems = append(problems, fmt.Errorf("topic %s has %d partitions and must have %d: make it anew", name, len(d.Partitions),
				s.Partitions))
		}
		replicas := d.Partitions.NumReplicas()
		if replicas < replication {
			problems = append(problems, fmt.Errorf("topic %s has %d replicas, TOPIC_REPLICATION asks for %d: reassign it or lower the setting", name,
				replicas, replication))
		}
		problems = append(problems, l.checkSettings(s, name, replicas, configs[name])...)
	}
	return errors.Join(problems...)
}

// settings are the topics' settings as they hold, those that the brokers give included, by topic and name.
func (l *Log) settings(ctx context.Context, names ...string) (map[string]map[string]string, error) {
	rs, err := l.adm.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("read the settings of the topics: %w", err)
	}
	out := make(map[string]map[string]string)
	for _, r := range rs {
		if r.Err != nil {
			return nil, fmt.Errorf("read the settings of topic %s: %w", r.Name, r.Err)
		}
		out[r.Name] = make(map[string]string)
		for _, c := range r.Configs {
			out[r.Name][c.Key] = c.MaybeValue()
		}
	}
	return out, nil
}

// rule is what a setting of a topic must be, and why.
type rule struct {
	setting string
	good    func(value string) bool
	mend    string // a value that is good
	why     string
	advice  bool // a topic that breaks it is served, with a warning
}

// rulesFor are the rules for a topic with this number of replicas.
func rulesFor(s topics.Spec, replicas int) []rule {
	keeps := s.Retention == topics.Forever
	rules := []rule{
		{setting: "cleanup.policy", good: is("delete"), mend: "delete", why: "compaction keeps one event of a key and removes the others"},
		{setting: "message.timestamp.type", good: is("LogAppendTime"), mend: "LogAppendTime",
			why: "the dedup window is measured in the broker's time"},
		{setting: "max.message.bytes", good: atLeast(topics.LeastMessageBytes), mend: strconv.Itoa(topics.DefaultMessageBytes),
			why: fmt.Sprintf("events, or batches of them, have up to %d bytes", topics.LeastMessageBytes)},
		{setting: "min.insync.replicas", good: atMost(replicas), mend: strconv.Itoa(max(1, replicas-1)),
			why: fmt.Sprintf("the topic has %d replicas, and every append would fail", replicas)},
		{setting: "retention.bytes", good: is("-1"), mend: "-1", why: "the topic would lose its oldest events when it has grown",
			advice: !keeps && s.Topic != topics.Presence},
		{setting: "unclean.leader.election.enable", good: is("false"), mend: "false",
			why: "a replica that lacks acknowledged events may become the leader", advice: true},
	}
	if keeps {
		return append(rules, rule{setting: "retention.ms", good: is("-1"), mend: "-1", why: "the projections are rebuilt from all of it"})
	}
	return append(rules, rule{setting: "retention.ms", good: func(v string) bool {
		return v == "-1" ||
			atLeast(int(s.Least.Milliseconds()))(v)
	},
		mend: s.RetentionMS(), why: fmt.Sprintf("what the topic says is read for %s", s.Least)})
}

func is(want string) func(string) bool { return func(v string) bool { return v == want } }

func atLeast(least int) func(string) bool {
	return func(v string) bool { n, err := strconv.Atoi(v); return err == nil && n >= least }
}

func atMost(most int) func(string) bool {
	return func(v string) bool { n, err := strconv.Atoi(v); return err == nil && n <= most }
}

// checkSettings tells what is wrong with a topic's settings. A setting that the broker does not know is not looked at.
func (l *Log) checkSettings(s topics.Spec, name string, replicas int, have map[string]string) (problems []error) {
	for _, r := range rulesFor(s, replicas) {
		v, known := have[r.setting]
		if !known || r.good(v) {
			continue
		}
		mend := fmt.Sprintf("kafka-configs.sh --bootstrap-server %s --alter --topic %s --add-config %s=%s", strings.Join(l.kafka.Brokers, ","),
			name, r.setting, r.mend)
		if r.advice {
			l.kafka.Log.Warn("a topic may lose events", "topic", name, "setting", r.setting+"="+v, "why", r.why, "mend", mend)
			continue
		}
		problems = append(problems, fmt.Errorf("topic %s has %s=%s: %s; mend it with: %s", name, r.setting, v, r.why, mend))
	}
	return problems
}
