package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// Gate is the intake: the consumer that reads every topic but dead-letters for what outsiders wrote wrongly. It alone tells what is not
// valid: a dead letter, a count, a line in the log. And it re-routes misrouted records: those that a foreign partitioner put into another
// partition than their key's it appends once more where they belong. All other consumers pass over both kinds.
type Gate struct {
	consumer Consumer
	handler  *intakeHandler
}

// GateOptions are what an intake needs.
type GateOptions struct {
	Kafka    Kafka     // how the log is reached; required
	Producer *Producer // appends dead letters and re-routed records; required
	// Group shares the work with the intakes of other nodes; empty: this one reads everything. Instance is as in Consumer.
	Group, Instance string
	// Positions is the name under which the positions are kept, as offsets of the Kafka group <Positions>.positions.
	Positions string
	Windows   *Windows     // those of this process; required
	Log       *slog.Logger // required
	// WayOut and Watch are as in Consumer.
	WayOut string
	Watch  *Watch
}

// NewGate makes an intake; Run works, Close releases it.
func NewGate(o GateOptions) *Gate {
	handler := &intakeHandler{kafka: o.Kafka, producer: o.Producer, log: o.Log, group: o.Positions + positionsSuffix, now: time.Now,
		written: make(map[topics.Partition]map[int64]bool), lines: make(map[count]*lastWarning)}
	return &Gate{handler: handler, consumer: Consumer{
		Name: "gate", Kafka: o.Kafka, Log: o.Log, Group: o.Group, Instance: o.Instance, Windows: o.Windows, WayOut: o.WayOut, Watch: o.Watch,
		Topics: intakeTopics(), Sink: handler}}
}

// intakeTopics are all but dead-letters, whose records are there because they are not valid.
func intakeTopics() (list []topics.Topic) {
	for _, s := range topics.Specs() {
		if s.Topic != topics.DeadLetters {
			list = append(list, s.Topic)
		}
	}
	return list
}

// Run works until ctx ends; then it returns nil. Its errors are those of Consumer.Run.
func (g *Gate) Run(ctx context.Context) error { return g.consumer.Run(ctx) }

// Close releases the connection to the positions, if one was opened. Call it after Run has returned.
func (g *Gate) Close() { g.handler.close() }

// Consumer is what reads for the intake: for readiness, metrics and Misfits.
func (g *Gate) Consumer() *Consumer { return &g.consumer }

// intakeHandler applies what the intake reads. It keeps its positions as the offsets of a consumer group without members: it has no store
// of its own, and the
// members' group would accept commits from its members only. An append that is repeated because the commit was lost
// carries the identity of the first.
type intakeHandler struct {
	kafka    Kafka
	producer *Producer
	log      *slog.Logger
	group    string
	now      func() time.Time

	once sync.Once
	err  error
	cl   *kgo.Client
	adm  *kadm.Client

	mu      sync.Mutex
	written map[topics.Partition]map[int64]bool // offsets of batches under way whose dead letter or copy the log has
	lines   map[count]*lastWarning
}

// Reasons of dead letters beside those of topics.Valid.
const (
	reasonUnreadable topics.Reason = "unreadable" // its batch decompresses to more than is allowed
	reasonMisrouted  topics.Reason = "stray"      // it cannot be re-routed to its own partition
)

func (s *intakeHandler) open() error {
	s.once.Do(func() {
		if s.cl, s.err = s.kafka.Client(); s.err == nil {
			s.adm = kadm.NewClient(s.cl)
		}
	})
	return s.err
}

func (s *intakeHandler) close() {
	if s.cl != nil {
		s.cl.Close()
	}
}

// Position is the offset committed to the group without members (Sink).
func (s *intakeHandler) Position(ctx context.Context, of topics.Partition) (at Position, err error) {
	if err := s.open(); err != nil {
		return at, err
	}
	name := s.kafka.Names.Name(of.Topic)
	all, err := s.adm.FetchOffsetsForTopics(ctx, s.group, name)
	if errors.Is(err, kerr.GroupIDNotFound) { // nothing was committed yet
		return at, nil
	}
	if err != nil {
		return at, err
	}
	o, ok := all.Lookup(name, of.ID)
	if ok && o.Err != nil {
		return at, o.Err
	}
	if !ok || o.At < 0 {
		return at, nil
	}
	return readMetadata(o.At, o.Metadata), nil
}

// Adopt sets the positions, for nexus adopt: the intake goes on from there. No intake of the log may run meanwhile.
func (s *intakeHandler) Adopt(ctx context.Context, to map[topics.Partition]Position) error {
	if err := s.open(); err != nil {
		return err
	}
	var os kadm.Offsets
	for of, at := range to {
		os.Add(kadm.Offset{Topic: s.kafka.Names.Name(of.Topic), Partition: of.ID, At: at.Next, LeaderEpoch: -1, Metadata: at.metadata()})
	}
	rs, err := s.adm.CommitOffsets(ctx, s.group, os)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		return fmt.Errorf("commit the intake's positions: %w", err)
	}
	return nil
}

// Apply validates a batch, appends dead letters and re-routed records, many at a time, and then moves the position (Sink). Where it is
// stopped or fails in the middle, it stores how far it came: what is written is not written twice, neither when the batch is offered
// again nor by the node that goes on.
func (s *intakeHandler) Apply(ctx context.Context, b Batch) error {
	finish := context.WithoutCancel(ctx)
	next, err := s.write(ctx, b)
	if commitErr := s.commit(finish, b, next); commitErr != nil {
		return errors.Join(err, commitErr)
	}
	if err == nil { // else the same batch comes again, from its beginning
		s.forget(b.Of(), b.To)
	}
	return err
}

// output is what a record gives rise to.
type output struct {
	e      *topics.Event
	record *kgo.Record
	reason topics.Reason // of a dead letter; none: a re-routed record
	why    error
	answer chan error
}

// maxUnanswered bounds what waits for the log's answer at a time, in bytes: the producer is that of the clients' events too.
const maxUnanswered = 1 << 20

// write appends what a batch gives rise to, and returns the offset below which all of that is written.
func (s *intakeHandler) write(ctx context.Context, b Batch) (next int64, err error) {
	var waiting []output
	weight := 0
	for _, o := range s.outputs(b) {
		if ctx.Err() != nil {
			next, err = s.await(ctx, waiting, o.e.Offset)
			return next, errors.Join(err, ctx.Err())
		}
		o.answer = make(chan error, 1)
		s.producer.produceRecordAsync(o.record, func(_ *kgo.Record, err error) { o.answer <- err })
		waiting = append(waiting, o)
		if weight += sizeOf(o.record); weight < maxUnanswered {
			continue
		}
		if next, err = s.await(ctx, waiting, b.To); err != nil {
			return next, err
		}
		waiting, weight = waiting[:0], 0
	}
	return s.await(ctx, waiting, b.To)
}

// await waits for the answers, also while the intake is being stopped. It returns the offset of the first that failed, or else
// next.
func (s *intakeHandler) await(ctx context.Context, list []output, next int64) (int64, error) {
	finish := context.WithoutCancel(ctx)
	var failed error
	for _, o := range list {
		err := s.producer.await(finish, o.answer)
		if err != nil && TooLarge(err) && o.reason == "" { // its copy is larger than the log takes: it was as large as it may be
			o.reason, o.why = reasonMisrouted, errors.New(
				"the record stands in another partition than its key's, and is too large to be re-routed")
			err = s.producer.produceRecord(finish, s.producer.deadLetter(o.e, o.record, o.why))
		}
		if err != nil {
			if failed == nil {
				next, failed = o.e.Offset, err
			}
			continue
		}
		s.wrote(o)
	}
	return next, failed
}

// outputs lists what a batch gives rise to and what is not written yet, in the order of its offsets.
func (s *intakeHandler) outputs(b Batch) (list []output) {
	done := s.writtenOf(b.Of())
	for _, hole := range b.Skipped {
		e := &topics.Event{Topic: b.Topic, Partition: b.Partition, Offset: hole.From}
		if !done[e.Offset] {
			why := fmt.Errorf("%d records cannot be read: their batch decompresses to more than %d MiB", hole.To-hole.From, maxBatchBytes>>20)
			list = append(list, output{e: e, record: s.producer.deadLetter(e, &kgo.Record{}, why), reason: reasonUnreadable, why: why})
		}
	}
	for i, e := range b.Events {
		if done[e.Offset] {
			continue
		}
		var refusal *topics.Refusal
		switch err := topics.Valid(e); {
		case errors.As(err, &refusal):
			list = append(list, output{e: e, record: s.producer.deadLetter(e, b.Records[i], err), reason: refusal.Reason, why: err})
		case e.Stray:
			list = append(list, output{e: e, record: reroute(e, b.Records[i])})
		}
	}
	slices.SortStableFunc(list, func(a, b output) int { return cmp.Compare(a.e.Offset, b.e.Offset) })
	return list
}

func (s *intakeHandler) writtenOf(of topics.Partition) map[int64]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.written[of])
}

// wrote notes, counts and tells what the log has taken.
func (s *intakeHandler) wrote(o output) {
	of := o.e.At().Partition
	s.mu.Lock()
	if s.written[of] == nil {
		s.written[of] = make(map[int64]bool)
	}
	s.written[of][o.e.Offset] = true
	s.mu.Unlock()
	if o.reason == "" {
		s.kafka.Metrics.rerouted()
		return
	}
	s.refused(o.e, o.reason, o.why)
}

// forget drops what is below the position.
func (s *intakeHandler) forget(of topics.Partition, next int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.written[of], func(offset int64, _ bool) bool { return offset < next })
}

// count is what dead letters are counted by; a line, when the last one of a kind was logged and how many have not been since.
type count struct {
	topic  topics.Topic
	reason topics.Reason
}

type lastWarning struct {
	at     time.Time
	silent int
}

// warnEvery is how often dead letters of one topic and reason are logged.
const warnEvery = time.Second

// refused counts a dead letter and logs it, at most one a second for each topic and reason. The line names what finds the record and its
// writer, and never its contents.
func (s *intakeHandler) refused(e *topics.Event, reason topics.Reason, why error) {
	s.kafka.Metrics.deadLetter(e.Topic, reason)
	s.mu.Lock()
	l := s.lines[count{e.Topic, reason}]
	if l == nil {
		l = &lastWarning{}
		s.lines[count{e.Topic, reason}] = l
	}
	now, silent := s.now(), l.silent
	if now.Sub(l.at) < warnEvery {
		l.silent++
		s.mu.Unlock()
		return
	}
	l.at, l.silent = now, 0
	s.mu.Unlock()
	s.log.Warn("dead letter", "topic", e.Topic, "partition", e.Partition, "offset", e.Offset, "reason", reason, "err", why,
		"key", keyKind(e.Key), "source", short(e.Source), "notLogged", silent)
}

// keyKind names the kind of a key, and nothing that stands in it.
func keyKind(key []byte) string {
	a, err := topics.ParseAudience(string(key))
	switch {
	case len(key) == 0:
		return "none"
	case err != nil:
		return "other"
	}
	return [...]string{"other", "user", "dm", "channel", "all"}[a.Kind]
}

// short bounds what a line repeats of a header.
func short(s string) string {
	if len(s) > 64 {
		s = strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

func sizeOf(r *kgo.Record) int {
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}

// positionsSuffix makes the name of the group without members that holds the positions.
const positionsSuffix = ".positions"

// commitFor bounds a commit, also while the intake is being stopped.
const commitFor = 3 * time.Second

func (s *intakeHandler) commit(ctx context.Context, b Batch, next int64) error {
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
		return fmt.Errorf("commit the intake's position: %w", err)
	}
	return nil
}

// reroute is the copy of a misrouted record that is appended once more; the producer places it by its key. It has all headers as they
// are, so it keeps its identity. A record without one gets its topic, partition and offset as its idempotency key.
func reroute(e *topics.Event, r *kgo.Record) *kgo.Record {
	c := &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers}
	if e.IdempotencyKey == "" && e.ID == "" {
		c.Headers = append(slices.Clone(r.Headers), kgo.RecordHeader{Key: topics.HeaderIdempotencyKey, Value: []byte(e.At().String())})
	}
	return c
}
