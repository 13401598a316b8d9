// Package topics is the vocabulary of Nexus: the Kafka topics, the audience keys, the event types, the headers that
// carry them, and what makes a record valid. It does no I/O and imports nothing of ours.
package topics

import (
	"strconv"
	"strings"
	"time"
)

// Topic is the name of a topic without its prefix.
type Topic string

// The topics. Who writes and reads them is told in docs/architecture.md.
const (
	Messages      Topic = "messages"
	Notifications Topic = "notifications"
	Broadcasts    Topic = "broadcasts"
	Presence      Topic = "presence"
	Signals       Topic = "signals"
	Devices       Topic = "devices"
	Keys          Topic = "keys"
	Control       Topic = "control"
	Deliveries    Topic = "deliveries"
	DeadLetters   Topic = "dead-letters"
)

// Forever is the retention of topics whose records the projections are rebuilt from (Kafka: retention.ms=-1).
const Forever time.Duration = -1

// Bounds of what a topic takes at once (Kafka: max.message.bytes), in bytes. A batch of the producer has at most the least,
// franz-go's default; the other is Kafka's default.
const (
	LeastMessageBytes   = 1_000_012
	DefaultMessageBytes = 1_048_588
)

// Spec says how a topic is made.
type Spec struct {
	Topic Topic
	// Letter stands for the topic in the ids that are spliced into records without one: <letter><partition>-<offset>.
	Letter byte
	// Partitions is fixed where order over all records matters; 0 takes the configured number.
	Partitions int32
	Retention  time.Duration
	// Least is the shortest retention with which the topic does its work, where it is not kept forever.
	Least time.Duration
	// Judged topics are deduplicated.
	Judged bool
}

// Specs lists every topic.
func Specs() []Spec {
	return []Spec{
		{Topic: Messages, Letter: 'm', Retention: Forever, Judged: true},
		{Topic: Notifications, Letter: 'n', Retention: Forever, Judged: true},
		{Topic: Broadcasts, Letter: 'b', Partitions: 1, Retention: Forever, Judged: true},
		{Topic: Presence, Letter: 'p', Partitions: 1, Retention: time.Hour, Least: 15 * time.Minute},
		{Topic: Signals, Letter: 's', Retention: time.Hour, Least: time.Minute},
		{Topic: Devices, Letter: 'd', Retention: Forever},
		{Topic: Keys, Letter: 'k', Retention: Forever},
		{Topic: Control, Letter: 'c', Partitions: 1, Retention: Forever},
		{Topic: Deliveries, Letter: 'v', Retention: 7 * 24 * time.Hour, Least: time.Hour},
		{Topic: DeadLetters, Letter: 'x', Retention: 30 * 24 * time.Hour, Least: time.Hour},
	}
}

// Configs are the topic's settings in Kafka's words, also where they are Kafka's defaults: the brokers' own may differ.
// Record time is broker time, because the dedup window is measured in it. Replicas above 2 need two in sync before an
// append is answered.
func (s Spec) Configs(replication int) map[string]string {
	c := map[string]string{
		"cleanup.policy":         "delete",
		"message.timestamp.type": "LogAppendTime",
		"retention.ms":           s.RetentionMS(),
		"retention.bytes":        "-1",
		"max.message.bytes":      strconv.Itoa(DefaultMessageBytes),
		"min.insync.replicas":    "1",
	}
	if replication >= 3 {
		c["min.insync.replicas"] = "2"
	}
	return c
}

// RetentionMS is the retention as Kafka writes it.
func (s Spec) RetentionMS() string {
	if s.Retention == Forever {
		return "-1"
	}
	return strconv.FormatInt(s.Retention.Milliseconds(), 10)
}

// Of returns a topic's spec.
func Of(t Topic) (Spec, bool) {
	for _, s := range Specs() {
		if s.Topic == t {
			return s, true
		}
	}
	return Spec{}, false
}

// Deduplicated tells whether repeats in the topic are found by a dedup window (Spec.Judged).
func (t Topic) Deduplicated() bool {
	s, _ := Of(t)
	return s.Judged
}

// Names maps topics to their names in Kafka.
type Names struct{ Prefix string }

// Name is the name of t in Kafka.
func (n Names) Name(t Topic) string { return n.Prefix + string(t) }

// Topic is the topic that Kafka calls name; ok is false for one that is not ours.
func (n Names) Topic(name string) (t Topic, ok bool) {
	rest, ok := strings.CutPrefix(name, n.Prefix)
	if !ok {
		return "", false
	}
	_, ok = Of(Topic(rest))
	return Topic(rest), ok
}
