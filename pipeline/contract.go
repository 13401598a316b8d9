package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// Contract is what every node must believe of a log for as long as the log lives: with another window or another number of
// partitions the same records would mean something else. Topic control holds it.
type Contract struct {
	// Window is the dedup window (DEDUP_WINDOW).
	Window time.Duration
	// Partitions is how many partitions each topic has.
	Partitions map[topics.Topic]int32
	// Identities are the topics' (Log.Identity) as they were when the contract was read. They are not recorded.
	Identities map[topics.Topic]string
}

// contractTimeout bounds how long reading and recording the contract take.
const contractTimeout = time.Minute

// AgreeContract returns the contract of this log, and records it where the log has none yet. The first record that tells
// something rules, so nodes that race at the first start agree. It is an error where a topic has not the number of
// partitions that is recorded; and where set says that an operator asked for the wanted window and another one is recorded.
// Call it once EnsureTopics has made the topics, and before anything is produced or consumed.
func AgreeContract(ctx context.Context, l *Log, wanted time.Duration, set bool) (Contract, error) {
	ctx, cancel := context.WithTimeout(ctx, contractTimeout)
	defer cancel()
	c := Contract{Identities: make(map[topics.Topic]string)}
	counts := make(map[topics.Topic]int32)
	for _, s := range topics.Specs() {
		var err error
		if c.Identities[s.Topic], counts[s.Topic], err = l.describe(ctx, s.Topic); err != nil {
			return c, err
		}
	}
	recorded, err := l.recordedContract(ctx)
	if err == nil && !recorded.complete() {
		if err = l.record(ctx, Contract{Window: firstOf(recorded.Window, wanted), Partitions: counts}); err == nil {
			recorded, err = l.recordedContract(ctx) // another node may have been first
		}
	}
	if err != nil {
		return c, fmt.Errorf("the log's contract: %w", err)
	}
	c.Window, c.Partitions = recorded.Window, recorded.Partitions
	if set && c.Window != wanted {
		return c, fmt.Errorf("DEDUP_WINDOW is %s, but this log was begun with %s, and a change would tell other records to be duplicates: "+
			"set DEDUP_WINDOW=%s (or unset it), or begin a new log with another NEXUS_TOPIC_PREFIX", wanted, c.Window, c.Window)
	}
	return c, l.compare(c, counts)
}

func firstOf(recorded, wanted time.Duration) time.Duration {
	if recorded > 0 {
		return recorded
	}
	return wanted
}

// compare tells every topic that has not the partitions of the contract.
func (l *Log) compare(c Contract, counts map[topics.Topic]int32) error {
	var problems []error
	for _, s := range topics.Specs() {
		if have, want := counts[s.Topic], c.Partitions[s.Topic]; have != want {
			problems = append(problems, errors.New(l.differs(s.Topic, have, want)))
		}
	}
	return errors.Join(problems...)
}

// differs is the sentence on a topic that has not the partitions of the contract.
func (l *Log) differs(t topics.Topic, have, want int32) string {
	return fmt.Sprintf("topic %s has %d partitions, and this log was begun with %d: keys now belong to other partitions than their earlier "+
		"events. "+
		"Ways out: copy the log to the number that you want with nexus repartition, which keeps order and identity; "+
		"or, where nothing of the topic is needed any more, delete it and make it anew with %d", l.nameOf(t), have, want, want)
}

// complete tells whether the window and the partitions of every topic are recorded.
func (c Contract) complete() bool {
	for _, s := range topics.Specs() {
		if c.Partitions[s.Topic] == 0 {
			return false
		}
	}
	return c.Window > 0
}

// event is the record that holds the contract.
func (c Contract) event() *topics.Event {
	return topics.Contract{Window: c.Window.String(), Partitions: c.Partitions}.Event()
}

// record appends a contract, with a producer of its own: the nodes' producers are made by what is agreed.
func (l *Log) record(ctx context.Context, c Contract) error {
	p, err := NewProducer(l.kafka)
	if err != nil {
		return err
	}
	defer p.Close(l.kafka.Log)
	return p.Append(ctx, c.event())
}

// recordedContract reads topic control until the contract is complete, at most to the end. The first record that tells the
// window, or a topic's partitions, rules.
func (l *Log) recordedContract(ctx context.Context) (Contract, error) {
	c := Contract{Partitions: make(map[topics.Topic]int32)}
	control := topics.Control.Partition(0)
	starts, err := l.Starts(ctx, topics.Control)
	if err != nil {
		return c, err
	}
	ends, err := l.Ends(ctx, topics.Control)
	if err != nil {
		return c, err
	}
	r, err := l.read(topics.Control, map[int32]Span{0: {From: starts[control], To: ends[control]}})
	if err != nil {
		return c, err
	}
	defer r.close()
	for !c.complete() {
		rec, err := r.record(ctx, 0)
		if err != nil || rec == nil {
			return c, err
		}
		if err := c.learn(rec); err != nil {
			return c, fmt.Errorf("topic %s, offset %d: %w", l.nameOf(topics.Control), rec.Offset, err)
		}
	}
	return c, nil
}

// learn takes in what a record of control says first. The topic's first record must tell the window: all that stands in the
// log is deduplicated by it.
func (c *Contract) learn(r *kgo.Record) error {
	e := EventOf(topics.Control, r)
	if e.Type != topics.TypeLogContract && e.Type != topics.TypeDedupWindow || topics.Valid(e) != nil {
		if c.Window == 0 {
			return errors.New("the topic does not begin with the log's contract: it is not Nexus's own, or its beginning was removed")
		}
		return nil
	}
	v, err := topics.ReadContract(e)
	if err != nil {
		return errors.New("the contract cannot be read: an earlier or later version of Nexus wrote it otherwise")
	}
	window, err := time.ParseDuration(v.Window)
	if err != nil || window <= 0 {
		return fmt.Errorf("the dedup window %q is no duration", v.Window)
	}
	if c.Window == 0 {
		c.Window = window
	}
	for t, n := range v.Partitions {
		if c.Partitions[t] == 0 && n > 0 {
			c.Partitions[t] = n
		}
	}
	return nil
}
