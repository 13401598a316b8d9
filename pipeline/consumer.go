package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// Sink handles what a consumer reads. It owns the positions: a position moves together with what was applied, or not at all.
type Sink interface {
	// Position returns where the sink stands in a partition. The consumer asks when it takes the partition over, and again after
	// ErrMoved. A partition that was never seen before begins where the sink wants it to, and is remembered from then on. An error
	// has the consumer ask again after a while.
	Position(ctx context.Context, of topics.Partition) (Position, error)
	// Apply applies a batch and moves the position from b.From to b.After() in one step. The calls for one partition come in order;
	// those for several partitions come at the same time. Errors: ErrMoved, where the position is not b.From any more (the consumer
	// reads it again and begins anew from there); Permanent, where no repeat can help (the record is found and set aside); any other
	// is transient, and the same batch is offered again after a while.
	Apply(ctx context.Context, b Batch) error
}

// Warmer is a Sink that wants to know the records before its position which are read to warm the dedup window. The consumer calls Warm
// for each of them, in order, before the first Apply of the partition. time is its record time, in Unix milliseconds.
type Warmer interface {
	// Warm takes in the record at a place.
	Warm(at topics.Place, time int64)
}

// Batch is what was read of one partition: every event from From on and below To. Duplicates and misrouted events are in it, marked.
// It may have no events: offsets that no consumer is given (transaction markers, aborted records) move the position as well.
type Batch struct {
	Topic     topics.Topic    // with Partition, what it was read of (Of)
	Partition int32           // its number
	From, To  int64           // offsets: From is the sink's position, To the one after this batch
	Log       string          // the topic's identity (Log.Identity)
	Mark      int64           // record time of the last record below To, in Unix milliseconds; 0: none is known
	Events    []*topics.Event // not validated yet: topics.Valid, or Live
	Records   []*kgo.Record   // as Kafka gave them, one for each event
	// Skipped are offsets of records that nobody can read: their batch decompresses to more than 32 MiB. The intake makes one dead
	// letter of each span; all others pass over them.
	Skipped []Span
}

// Span is a range of offsets of a partition: From is in it, To is not.
type Span struct{ From, To int64 }

// Of is the partition that the batch was read of.
func (b Batch) Of() topics.Partition { return b.Topic.Partition(b.Partition) }

// After is the position to store together with what was applied.
func (b Batch) After() Position { return Position{Next: b.To, Log: b.Log, Mark: b.Mark} }

// markBelow is the record time of the batch's last event below an offset; 0 where there is none.
func (b Batch) markBelow(offset int64) (mark int64) {
	for _, e := range b.Events {
		if e.Offset < offset {
			mark = e.Time
		}
	}
	return mark
}

// Live yields the events that count (iter.Seq): valid, not misrouted, no duplicates. Projections use it; the intake, which tells what
// does not count, reads Events.
func (b Batch) Live(yield func(*topics.Event) bool) {
	for _, e := range b.Events {
		if e.Duplicate || e.Stray || topics.Valid(e) != nil {
			continue
		}
		if !yield(e) {
			return
		}
	}
}

// Consumer reads topics in the order of their offsets, with one worker for each partition, and hands them to a Sink. Where to begin,
// the sink says, never Kafka. Fill in the exported fields, then call Run once; do not change them afterwards. All methods but Run, Check
// and Misfits may be called at any time, from any goroutine.
//
// How a partition is taken over, and catches up:
//
//	assigned ── Sink.Position, the log's extent ──▶ checked ── Windows.Attach ──▶ warming ── Next reached ──▶ applying
//	   ▲            │ any other error:                 │ the position is of             records below            │ Behind() is 0
//	   │            │ again, with growing pauses       │ another log: Run ends          the position only        ▼ the first time
//	   │            ▼                                  ▼ (*WrongLogError)               warm the window       caught up
//	   └── ErrMoved, ErrForgotten, offset out of range: Consumer.reset, from any state on
//
// Without a Group all partitions are assigned when Run begins. With one the group assigns them, and revoking one ends its worker.
type Consumer struct {
	Name  string       // in metrics and messages; required
	Kafka Kafka        // how the log is reached; required
	Log   *slog.Logger // required
	// Topics are read whole, each partition on its own. Required.
	Topics []topics.Topic
	// Group is the Kafka consumer group whose members share the partitions. Empty: this consumer reads all of them.
	Group string
	// Instance is the static member id in the group (KIP-345): a process that comes back within Kafka.Session has its partitions back
	// at once. Empty: a dynamic member.
	Instance string
	// Sink is given what was read. Required.
	Sink Sink
	// Windows are the dedup windows of this process, which its consumers share. Required where a topic is deduplicated.
	Windows *Windows
	// Watch tells where the log ends now, for Problem. nil: only what stood in the log when Run began counts as behind.
	Watch *Watch
	// WayOut ends the sentence of a *WrongLogError: what an operator can do where the sink's store remembers another log.
	WayOut string
	// SetAside keeps a record that the sink can never apply, with the reason (Producer.SetAside). An error has it tried again.
	// nil: the record is logged and counted only.
	SetAside func(ctx context.Context, e *topics.Event, r *kgo.Record, reason error) error

	cluster *Log
	cl      *kgo.Client
	started chan struct{} // closed once cl is there: a group's callbacks may come before
	wake    func()        // ends the poll under way

	mu         sync.Mutex
	workers    map[topics.Partition]*worker
	resets     map[topics.Partition]bool
	partitions map[topics.Topic]int32
	identities map[topics.Topic]string
	goal       topics.Ends               // the ends when Run began, for CaughtUp; nil until known
	failure    error                     // why Run has to end
	assigned   map[topics.Partition]bool // what the group has given this member, workers or not yet; nil until it has
}

// sessionTimeout is the default of Kafka.Session.
const sessionTimeout = 10 * time.Second

// Run reads until ctx ends; then it returns nil, once its workers have stopped. An error means that it cannot go on: a *WrongLogError,
// another live process of the same Instance, or a log that cannot be asked at the start.
func (c *Consumer) Run(ctx context.Context) error {
	var err error
	if c.cluster, err = OpenLog(c.Kafka); err != nil {
		return err
	}
	defer c.cluster.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := c.begin(ctx); err != nil {
		return ignoreEnd(ctx, err)
	}
	defer c.stopAll()
	opts, err := c.options(ctx) // without a group this takes all partitions over
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	c.started = make(chan struct{})
	if c.cl, err = c.Kafka.Client(append(opts, c.Kafka.Metrics.client(c.Name)...)...); err != nil {
		return err
	}
	close(c.started)
	c.Kafka.Metrics.add(c)
	defer c.Kafka.Metrics.remove(c)
	defer c.cl.CloseAllowingRebalance()
	defer c.stopAll() // before the client goes, which they pause and resume
	probing := make(chan struct{})
	go func() {
		defer close(probing)
		c.probe(ctx)
	}()
	defer func() { <-probing }()
	defer cancel()
	return c.poll(ctx)
}

// begin learns the topics' identities, partitions and ends.
func (c *Consumer) begin(ctx context.Context) error {
	partitions, identities, goal := make(map[topics.Topic]int32), make(map[topics.Topic]string), make(topics.Ends)
	for _, t := range c.Topics {
		identity, n, err := c.cluster.describe(ctx, t)
		if err != nil {
			return err
		}
		ends, err := c.cluster.Ends(ctx, t)
		if err != nil {
			return err
		}
		if agreed := c.Kafka.Partitions[t]; agreed > 0 { // by the log's contract; the watch ends the node where Kafka has others
			n = agreed
		}
		partitions[t], identities[t] = n, identity
		maps.Copy(goal, ends)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.workers, c.resets = make(map[topics.Partition]*worker), make(map[topics.Partition]bool)
	c.partitions, c.identities, c.goal = partitions, identities, goal
	return nil
}

func (c *Consumer) options(ctx context.Context) ([]kgo.Opt, error) {
	// Transaction markers move positions: an end behind one is reached.
	opts := []kgo.Opt{kgo.KeepControlRecords()}
	if c.Group != "" {
		session := c.Kafka.session()
		opts = append(opts,
			kgo.ConsumerGroup(c.Group),
			kgo.SessionTimeout(session),
			kgo.HeartbeatInterval(session/5), // so a member hears of a rebalance
			kgo.RebalanceTimeout(session),
			kgo.Balancers(kgo.CooperativeStickyBalancer()),
			kgo.DisableAutoCommit(),
			// Held only while polled records are handed to their workers: a revocation in between would give a later
			// worker the records of an earlier one.
			kgo.BlockRebalanceOnPoll(),
			kgo.AdjustFetchOffsetsFn(c.offsets),
			kgo.OnPartitionsAssigned(c.onAssigned),
			kgo.OnPartitionsRevoked(c.onRevoked),
			kgo.OnPartitionsLost(c.onRevoked),
		)
		if c.Instance != "" {
			opts = append(opts, kgo.InstanceID(c.Instance))
		}
		var names []string
		for _, t := range c.Topics {
			names = append(names, c.Kafka.Names.Name(t))
		}
		return append(opts, kgo.ConsumeTopics(names...)), nil
	}
	all := make(map[string]map[int32]kgo.Offset)
	for _, t := range c.Topics {
		ids := make([]int32, 0, c.partitions[t])
		for p := range c.partitions[t] {
			ids = append(ids, p)
		}
		starts, err := c.takeOver(ctx, t, ids)
		if err != nil {
			return nil, err
		}
		all[c.Kafka.Names.Name(t)] = starts
	}
	return append(opts, kgo.ConsumePartitions(all)), nil
}

func (c *Consumer) poll(ctx context.Context) error {
	for ctx.Err() == nil {
		polling, cancel := context.WithCancel(ctx)
		c.mu.Lock()
		c.wake = cancel
		pending, failure := len(c.resets) > 0, c.failure
		c.mu.Unlock()
		if failure != nil {
			cancel()
			return failure
		}
		if pending {
			cancel()
		}
		fs := c.cl.PollRecords(polling, maxPolled)
		cancel()
		err := c.dispatch(ctx, fs)
		if err == nil {
			err = c.seek(ctx)
		}
		if c.Group != "" {
			c.cl.AllowRebalance()
		}
		if err != nil {
			return ignoreEnd(ctx, err)
		}
	}
	return nil
}

// fail has Run end with an error.
func (c *Consumer) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil {
		c.failure = err
	}
	if c.wake != nil {
		c.wake()
	}
}

// dispatch gives polled records to their workers.
func (c *Consumer) dispatch(ctx context.Context, fs kgo.Fetches) error {
	fs.EachPartition(func(p kgo.FetchTopicPartition) {
		if w := c.workerOf(p.Topic, p.Partition); w != nil && len(p.Records) > 0 {
			w.offer(items(p.Records)...)
		}
	})
	for _, fe := range fs.Errors() {
		if err := c.fetchFailed(ctx, fe); err != nil {
			return err
		}
	}
	return nil
}

func (c *Consumer) workerOf(topic string, id int32) *worker {
	t, _ := c.Kafka.Names.Topic(topic)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.workers[t.Partition(id)]
}

// fetchFailed decides what an error of a fetch means: an error ends the consumer.
func (c *Consumer) fetchFailed(ctx context.Context, fe kgo.FetchError) error {
	t, _ := c.Kafka.Names.Topic(fe.Topic)
	of := t.Partition(fe.Partition)
	var large *kgo.ErrDecompressTooLarge
	switch {
	case errors.Is(fe.Err, context.Canceled) || ctx.Err() != nil || errors.Is(fe.Err, errFetchFull):
	case errors.As(fe.Err, &large):
		c.stepOver(of, large)
	case errors.Is(fe.Err, kerr.OffsetOutOfRange):
		return c.outOfRange(ctx, of)
	case errors.Is(fe.Err, kerr.FencedInstanceID):
		return fmt.Errorf("another live process of the same NODE_NAME took the place of this one: %w", fe.Err)
	case errors.Is(fe.Err, kgo.ErrClientClosed):
		return fe.Err
	default:
		c.Log.Warn("reading failed, the client tries again", "topic", fe.Topic, "partition", fe.Partition, "err", fe.Err)
	}
	return nil //nolint:nilerr // the others were told, or mean nothing: reading goes on
}

// stepOver goes on behind a batch that is too large to be decompressed. The sink is told of it.
func (c *Consumer) stepOver(of topics.Partition, large *kgo.ErrDecompressTooLarge) {
	c.Log.Error("a batch is stepped over: it decompresses to more than is allowed", "topic", of.Topic, "partition", of.ID,
		"from", large.Offset, "to", large.NextOffset, "bytes", maxBatchBytes)
	if w := c.workerOf(large.Topic, large.Partition); w != nil {
		w.offer(item{from: large.Offset, next: large.NextOffset, skipped: true})
	}
	c.cl.SetOffsets(map[string]map[int32]kgo.EpochOffset{large.Topic: {large.Partition: {Epoch: large.Epoch, Offset: large.NextOffset}}})
}

// outOfRange begins anew where retention overtook the consumer, and ends it where the log is not the one that it read.
func (c *Consumer) outOfRange(ctx context.Context, of topics.Partition) error {
	all, err := c.cluster.extents(ctx, topics.Ends{of: 0}, false)
	if err != nil {
		c.Log.Warn("reading failed: the offset is out of range, and the log cannot be asked why", "topic", of.Topic, "partition", of.ID, "err",
			err)
		c.reset(of)
		return nil
	}
	next := c.nextOf(of)
	if x := all[of]; expires(of.Topic) && next < x.start {
		c.Log.Warn("the topic's retention overtook the consumer; it goes on with what is left", "topic", of.Topic, "partition", of.ID, "from",
			next, "to", x.start)
		c.reset(of)
		return nil
	} else if why := (Position{Next: next}).misfit("", x, expires(of.Topic)); why != "" {
		return c.wrongLog(of, why)
	}
	c.reset(of) // it was so for a moment: a leader that was behind
	return nil
}

func (c *Consumer) wrongLog(of topics.Partition, why string) error {
	return &WrongLogError{Consumer: c.Name, Topic: c.Kafka.Names.Name(of.Topic), Partition: of.ID, Why: why, WayOut: c.WayOut}
}

// seek begins anew on the partitions whose position somebody else moved.
func (c *Consumer) seek(ctx context.Context) error {
	c.mu.Lock()
	resets := c.resets
	c.resets = make(map[topics.Partition]bool)
	c.mu.Unlock()
	for of := range resets {
		c.mu.Lock()
		_, ours := c.workers[of]
		c.mu.Unlock()
		if !ours {
			continue
		}
		offsets, err := c.takeOver(ctx, of.Topic, []int32{of.ID})
		if err != nil {
			return err
		}
		c.cl.SetOffsets(map[string]map[int32]kgo.EpochOffset{c.Kafka.Names.Name(of.Topic): {of.ID: offsets[of.ID].EpochOffset()}})
	}
	return nil
}

// reset asks the poll loop to begin anew on a partition.
func (c *Consumer) reset(of topics.Partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resets[of] = true
	if c.wake != nil {
		c.wake()
	}
}

// ignoreEnd turns the error of a context that ended on purpose into none.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // that is what it is for
	}
	return err
}
