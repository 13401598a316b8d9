package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/nexus/nexus/topics"
)

// RepartitionOptions say what Repartition copies.
type RepartitionOptions struct {
	// From is the log; of the new one only the names of the topics differ.
	From Kafka
	// To are the new log's names. It must have no topics yet.
	To topics.Names
	// Partitions is the number for new topics that do not fix their own.
	Partitions int32
	// FromIntake and ToIntake name where the intake keeps its positions in the two logs (GateOptions.Positions).
	FromIntake, ToIntake string
	// Discard first deletes what an earlier copy under To left half made.
	Discard bool
	// Progress is told how far a step is, in records of the old log, at most once a second. May be nil.
	Progress func(step string, t topics.Topic, done, total int64)
}

// Repartitioned is what a copy came to.
type Repartitioned struct {
	Records int64   // copied
	Topics  int     // copied
	Dropped Dropped // what was left out
	// Rejudged names records (topic/partition/offset in the old log, 20 at most) that are duplicates in one log and not in the
	// other. That happens only where a broker's clock was set back by more than the dedup window.
	Rejudged []string
}

// Repartition copies a log into another one whose topics have another number of partitions. What counts in the one counts in
// the other, with the same times, the same ids, and the same order of each key. The old log is only read. Nothing may be
// appended to it meanwhile: that is found at the end, and then the copy is no good.
//
// The new topics keep the times that they are given (CreateTime) until all is copied and verified; only then do they become
// topics that a node accepts. So nobody can mistake a copy that was cut off for a log (decision 0085).
//
// Errors are sentences for the operator: topics of the new prefix that exist, an open transaction, records that were appended meanwhile,
// or Kafka's.
func Repartition(ctx context.Context, o RepartitionOptions) (done Repartitioned, err error) {
	if o.From.Names == o.To {
		return done, errors.New("the new log must have another prefix than the old one")
	}
	from, err := OpenLog(o.From)
	if err != nil {
		return done, err
	}
	defer from.Close()
	kafka := o.From
	kafka.Names, kafka.Partitions = o.To, nil
	to, err := OpenLog(kafka)
	if err != nil {
		return done, err
	}
	defer to.Close()
	r := &repartition{o: o, from: from, to: to, done: &done}
	for _, step := range []func(context.Context) error{r.look, r.clear, r.create, r.copyAll, r.verifyAll, r.handOver, r.unchanged, r.finish} {
		if err := step(ctx); err != nil {
			return done, err
		}
	}
	return done, nil
}

type repartition struct {
	o        RepartitionOptions
	from, to *Log
	plan     plan
	intakes  map[topics.Partition]Position // of the new log
	done     *Repartitioned
}

// copies tells whether a topic is copied: what is kept for an hour only tells who is here now, and nobody is.
func copies(s topics.Spec) bool {
	return s.Retention == topics.Forever || s.Retention >= 24*time.Hour
}

// look learns the old log's contract, where it ends, and how far its intake has come.
func (r *repartition) look(ctx context.Context) error {
	recorded, err := r.from.recordedContract(ctx)
	if err != nil {
		return fmt.Errorf("the log's contract: %w", err)
	}
	if recorded.Window == 0 {
		return fmt.Errorf("topic %s is empty: there is no log to copy under the prefix %q", r.from.nameOf(topics.Control), r.o.From.Names.Prefix)
	}
	r.plan = plan{from: recorded, to: Contract{Window: recorded.Window, Partitions: make(map[topics.Topic]int32)}, began: time.Now(),
		intake: make(topics.Ends), largest: make(map[topics.Topic]int32), retention: make(map[topics.Topic]string)}
	if r.plan.names, err = r.from.existing(ctx); err != nil {
		return err
	}
	for _, s := range topics.Specs() {
		r.plan.to.Partitions[s.Topic] = TopicOptions{Partitions: r.o.Partitions}.partitionsOf(s)
		has := slices.Contains(r.plan.names, r.from.nameOf(s.Topic))
		if has && recorded.Partitions[s.Topic] == 0 { // of an earlier version: nothing was recorded, what is there counts
			if recorded.Partitions[s.Topic], err = r.from.Partitions(ctx, s.Topic); err != nil {
				return err
			}
		}
	}
	if r.plan.starts, err = r.from.listed(r.from.adm.ListStartOffsets(ctx, r.plan.names...)); err != nil {
		return err
	}
	if r.plan.ends, err = r.settledEnds(ctx); err != nil {
		return err
	}
	return r.lookAtIntake(ctx)
}

// settledEnds are the ends of the old log. It is an error where a transaction is open.
func (r *repartition) settledEnds(ctx context.Context) (topics.Ends, error) {
	names := r.plan.names
	ends, err := r.from.listed(r.from.adm.ListCommittedOffsets(ctx, names...))
	if err != nil {
		return nil, err
	}
	high, err := r.from.listed(r.from.adm.ListEndOffsets(ctx, names...))
	if err != nil {
		return nil, err
	}
	for of, end := range high {
		if ends[of] != end {
			return nil, fmt.Errorf("a transaction is open in %s/%d: end it, and stop the services that write", r.from.nameOf(of.Topic), of.ID)
		}
	}
	return ends, nil
}

func (r *repartition) lookAtIntake(ctx context.Context) error {
	intake := NewGate(GateOptions{Kafka: r.o.From, Positions: r.o.FromIntake})
	handler := intake.consumer.Sink.(*intakeHandler)
	defer handler.close()
	for _, t := range intake.consumer.Topics {
		for of := range r.plan.ends {
			if of.Topic != t {
				continue
			}
			at, err := handler.Position(ctx, of)
			if err != nil {
				return err
			}
			r.plan.intake[of] = at.Next
		}
	}
	return nil
}

// clear makes sure that the new log has no topics.
func (r *repartition) clear(ctx context.Context) error {
	found, err := r.to.existing(ctx)
	if err != nil || len(found) == 0 {
		return err
	}
	if !r.o.Discard {
		return fmt.Errorf("there are topics of the prefix %q already: %s. If an earlier copy left them half made, --discard deletes them; else "+
			"take another prefix",
			r.o.To.Prefix, strings.Join(found, ", "))
	}
	settings, err := r.to.settings(ctx, found...)
	if err != nil {
		return err
	}
	for _, name := range found {
		if settings[name]["message.timestamp.type"] != "CreateTime" {
			return fmt.Errorf("topic %s is finished, not left half made by a copy: nothing was deleted; take another prefix", name)
		}
	}
	rs, err := r.to.adm.DeleteTopics(ctx, found...)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		return fmt.Errorf("delete what an earlier copy left: %w", err)
	}
	for failures := 0; len(found) > 0; failures++ { // Kafka forgets them after its answer
		if !sleep(ctx, min(backoff(failures), time.Second)) {
			return ctx.Err()
		}
		if found, err = r.to.existing(ctx); err != nil {
			return err
		}
	}
	return nil
}

// existing are the names of the topics that this log has, in order.
func (l *Log) existing(ctx context.Context) (found []string, err error) {
	ds, err := l.adm.ListTopics(ctx, l.allNames()...)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(ds)) {
		if !errors.Is(ds[name].Err, kerr.UnknownTopicOrPartition) {
			found = append(found, name)
		}
	}
	return found, nil
}

// create makes the new topics with the settings that were set on the old ones, as far as they are good.
func (r *repartition) create(ctx context.Context) error {
	ds, err := r.from.adm.ListTopics(ctx, r.plan.names...)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	configs, err := r.from.adm.DescribeTopicConfigs(ctx, r.plan.names...)
	if err != nil {
		return fmt.Errorf("read the settings of the topics: %w", err)
	}
	for i, s := range topics.Specs() {
		like := r.from.nameOf(s.Topic)
		if !slices.Contains(r.plan.names, like) { // one that the old log's version did not know is as safe as control
			like = r.from.nameOf(topics.Control)
		}
		replicas := max(1, ds[like].Partitions.NumReplicas())
		settings := s.Configs(replicas)
		for _, c := range configs {
			if c.Name != r.from.nameOf(s.Topic) {
				continue
			}
			maps.Copy(settings, good(s, replicas, c.Configs))
		}
		most, _ := strconv.Atoi(settings["max.message.bytes"])
		r.plan.largest[s.Topic] = int32(min(max(most, topics.LeastMessageBytes), maxBatchBytes))
		r.plan.retention[s.Topic] = settings["retention.ms"]
		settings["message.timestamp.type"], settings["retention.ms"] = "CreateTime", "-1" // until finish
		name := r.to.allNames()[i]
		if err := r.to.createTopic(ctx, name, r.plan.to.Partitions[s.Topic], replicas, settings); err != nil {
			return fmt.Errorf("create topic %s: %w", name, err)
		}
	}
	return r.to.awaitTopics(ctx, r.to.allNames())
}

// good are the settings that were set on a topic itself and that break no rule.
func good(s topics.Spec, replicas int, configs []kadm.Config) map[string]string {
	out := make(map[string]string)
	for _, c := range configs {
		if c.Source == kmsg.ConfigSourceDynamicTopicConfig && c.Value != nil {
			out[c.Key] = *c.Value
		}
	}
	for _, rule := range rulesFor(s, replicas) {
		if v, set := out[rule.setting]; set && !rule.advice && !rule.good(v) {
			delete(out, rule.setting)
		}
	}
	return out
}

// copyAll appends everything to the new topics, and notes where their intake goes on.
func (r *repartition) copyAll(ctx context.Context) error {
	r.intakes = make(map[topics.Partition]Position)
	for _, s := range topics.Specs() {
		if !copies(s) {
			continue
		}
		if err := r.copyTopic(ctx, s.Topic); err != nil {
			return fmt.Errorf("copy %s: %w", r.from.nameOf(s.Topic), err)
		}
		r.done.Topics++
	}
	return nil
}

// What may wait for the new log.
const (
	copyWaiting      = 10_000
	copyWaitingBytes = 32 << 20
)

// copyRetries bounds how often an append is tried: for some minutes. Not RecordDeliveryTimeout, which counts from a record's
// own time, hours or years ago.
const copyRetries = 60

func (r *repartition) copyTopic(ctx context.Context, t topics.Topic) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	cl, err := r.to.kafka.Client(kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.SnappyCompression(), kgo.NoCompression()), kgo.ProducerBatchMaxBytes(r.plan.largest[t]),
		kgo.MaxBufferedRecords(copyWaiting), kgo.MaxBufferedBytes(copyWaitingBytes), kgo.RecordRetries(copyRetries))
	if err != nil {
		return err
	}
	defer cl.Close()
	name, next, last := r.to.nameOf(t), make(map[int32]int64), make(map[int32]int64)
	err = r.each(ctx, "copying", t, func(c *copied) error {
		p := c.record.Partition
		c.record.Topic = name
		r.intake(t, c, Position{Next: next[p], Mark: last[p]})
		next[p]++
		last[p] = c.record.Timestamp.UnixMilli()
		r.done.Records++
		cl.Produce(ctx, c.record, func(_ *kgo.Record, err error) {
			if err != nil {
				fail(fmt.Errorf("append what stood at %s: %w", coordinatesOf(c.source), err))
			}
		})
		return ctx.Err()
	})
	if err == nil {
		err = cl.Flush(ctx)
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	for p := range r.plan.to.Partitions[t] {
		if _, noted := r.intakes[t.Partition(p)]; !noted {
			r.intakes[t.Partition(p)] = Position{Next: next[p], Mark: last[p]}
		}
	}
	return err
}

// intake notes the first record of each new partition that the old log's intake had not seen.
func (r *repartition) intake(t topics.Topic, c *copied, at Position) {
	if c.source == nil {
		return
	}
	of := t.Partition(c.record.Partition)
	if _, noted := r.intakes[of]; !noted && c.source.Offset >= r.plan.intake[t.Partition(c.source.Partition)] {
		r.intakes[of] = at
	}
}

func coordinatesOf(r *kgo.Record) string {
	if r == nil {
		return "no place"
	}
	return fmt.Sprintf("%s/%d/%d", r.Topic, r.Partition, r.Offset)
}

// each hands on what is to be copied of a topic, in order, and tells how far it is.
func (r *repartition) each(ctx context.Context, step string, t topics.Topic, do func(*copied) error) error {
	m, err := newMerge(ctx, r.from, t, &r.plan)
	if err != nil {
		return err
	}
	defer m.close()
	total, told := m.reader.left(), time.Now()
	for {
		c, err := m.next(ctx)
		if err != nil {
			return err
		}
		if c == nil {
			break
		}
		if err := do(c); err != nil {
			return err
		}
		if r.o.Progress != nil && time.Since(told) >= time.Second {
			told = time.Now()
			r.o.Progress(step, t, total-m.reader.left(), total)
		}
	}
	if step == "copying" {
		r.done.Dropped.Strays += m.dropped.Strays
		r.done.Dropped.Contracts += m.dropped.Contracts
		r.done.Dropped.Contents += m.dropped.Contents
	}
	if r.o.Progress != nil && total > 0 {
		r.o.Progress(step, t, total, total)
	}
	return nil
}

// verifyAll reads both logs again and compares them record by record: contents, headers, times, order, and what is a
// duplicate.
func (r *repartition) verifyAll(ctx context.Context) error {
	for _, s := range topics.Specs() {
		if !copies(s) {
			continue
		}
		if err := r.verifyTopic(ctx, s.Topic); err != nil {
			return fmt.Errorf("verify %s: %w", r.to.nameOf(s.Topic), err)
		}
	}
	return nil
}

// maxMismatches bounds how many places are told.
const maxMismatches = 20

func (r *repartition) verifyTopic(ctx context.Context, t topics.Topic) error {
	ends, err := r.to.Ends(ctx, t)
	if err != nil {
		return err
	}
	spans, windows := make(map[int32]Span), make(map[int32]*Window)
	for of, end := range ends {
		spans[of.ID], windows[of.ID] = Span{To: end}, NewWindow(r.plan.to.Window)
	}
	reader, err := r.to.read(t, spans)
	if err != nil {
		return err
	}
	defer reader.close()
	err = r.each(ctx, "verifying", t, func(c *copied) error {
		p := c.record.Partition
		found, err := reader.record(ctx, p)
		if err != nil {
			return err
		}
		if !c.same(found) {
			return fmt.Errorf("partition %d does not hold what stood at %s where it should: somebody else writes to it", p, coordinatesOf(c.source))
		}
		e := EventOf(t, found)
		id, ok := e.Identity(e.Key)
		duplicate := windows[p].Observe(e.Time, id, ok)
		if c.deduplicated && duplicate != c.duplicate && len(r.done.Rejudged) < maxMismatches {
			r.done.Rejudged = append(r.done.Rejudged, coordinatesOf(c.source))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for p := range spans {
		if more, err := reader.record(ctx, p); err != nil || more != nil {
			return errors.Join(err, fmt.Errorf("partition %d holds more than was copied: somebody else writes to it", p))
		}
	}
	return nil
}

// handOver has the new log's intake go on where the old one's ends: what is a dead letter already does not become one again.
func (r *repartition) handOver(ctx context.Context) error {
	var os kadm.Offsets
	for of, at := range r.intakes {
		if _, read := r.plan.intake[of.Topic.Partition(0)]; !read {
			continue
		}
		identity, err := r.to.Identity(ctx, of.Topic)
		if err != nil {
			return err
		}
		at.Log = identity
		os.Add(kadm.Offset{Topic: r.to.nameOf(of.Topic), Partition: of.ID, At: at.Next, LeaderEpoch: -1, Metadata: at.metadata()})
	}
	rs, err := r.to.adm.CommitOffsets(ctx, r.o.ToIntake+positionsSuffix, os)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		return fmt.Errorf("commit the intake's positions: %w", err)
	}
	return nil
}

// unchanged makes sure that nobody has written to the old log meanwhile.
func (r *repartition) unchanged(ctx context.Context) error {
	ends, err := r.settledEnds(ctx)
	if err != nil {
		return err
	}
	written := make(map[string]bool)
	for of, end := range ends {
		if end != r.plan.ends[of] {
			written[r.from.nameOf(of.Topic)] = true
		}
	}
	if len(written) > 0 {
		return fmt.Errorf("records were appended to %s while it was copied: a node or a service still runs. Stop it, and copy again with "+
			"--discard",
			strings.Join(slices.Sorted(maps.Keys(written)), ", "))
	}
	return nil
}

// finish makes the new topics what a node accepts.
func (r *repartition) finish(ctx context.Context) error {
	for _, s := range topics.Specs() {
		name := r.to.nameOf(s.Topic)
		set := func(setting, value string) kadm.AlterConfig {
			return kadm.AlterConfig{Op: kadm.SetConfig, Name: setting, Value: new(value)}
		}
		rs, err := r.to.adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{set("retention.ms", r.plan.retention[s.Topic]),
			set("message.timestamp.type", "LogAppendTime")}, name)
		if err == nil {
			err = rs[0].Err
		}
		if err != nil {
			return fmt.Errorf("finish topic %s: %w", name, err)
		}
	}
	return r.settled(ctx)
}

// settled returns once the new topics pass what a node checks: Kafka answers an alteration before every broker tells of it.
func (r *repartition) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for failures := 0; ; failures++ {
		err := r.to.checkTopics(ctx, r.to.allNames(), 0)
		if err == nil || !sleep(ctx, min(backoff(failures), time.Second)) {
			return err
		}
	}
}
