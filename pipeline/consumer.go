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

// Sink is where a consumer's events go. It owns the positions: they move with what was folded or not at all.
type Sink interface {
	// Position is the next offset to apply. A partition never seen before begins where the sink wants it to, and is
	// remembered from then on.
	Position(ctx context.Context, t topics.Topic, partition int32) (int64, error)
	// Apply folds a batch and moves the position from b.From to b.To in one step. Calls for one partition come in
	// order, for several at the same time. ErrMoved says that somebody else has moved the position; any other error
	// has the same batch offered again after a while.
	Apply(ctx context.Context, b Batch) error
}

// Batch is what was read of one partition: every event from From on and below To, duplicates and strays marked.
type Batch struct {
	Topic     topics.Topic
	Partition int32
	From, To  int64
	Events    []*topics.Event
	Records   []*kgo.Record // as they came, one for each event
}

// Live yields the events that count: valid, in their own partition, no duplicates.
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

// ErrMoved reports that a position is not what the consumer believed: another one has the partition.
var ErrMoved = errors.New("pipeline: the position was moved by another consumer")

// Consumer reads topics in order, one worker per partition, and hands them to a sink. With a Group it shares the
// partitions with the group's other members; without one it reads all of them. Either way the offsets come from the
// sink, never from Kafka.
type Consumer struct {
	Name     string // in metrics and messages
	Kafka    Kafka
	Log      *slog.Logger
	Topics   []topics.Topic
	Group    string
	Instance string // static group member id (KIP-345)
	Sink     Sink
	// Window is the dedup window of topics that are judged.
	Window time.Duration

	log  *Log
	cl   *kgo.Client
	wake func() // ends the poll under way

	mu         sync.Mutex
	workers    map[partition]*worker
	resets     map[partition]bool
	partitions map[topics.Topic]int32
	goal       map[partition]int64 // the ends when Run began, for CaughtUp; nil until known
	reached    map[partition]int64
}

type partition struct {
	topic topics.Topic
	id    int32
}

const sessionTimeout = 10 * time.Second

// Run reads until ctx ends; then it returns nil once its workers have stopped. An error means that it cannot go on.
func (c *Consumer) Run(ctx context.Context) error {
	var err error
	if c.log, err = OpenLog(c.Kafka); err != nil {
		return err
	}
	defer c.log.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := c.begin(ctx); err != nil {
		return ignoreEnd(ctx, err)
	}
	opts, err := c.options(ctx)
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	if c.cl, err = c.Kafka.Client(append(opts, c.Kafka.Metrics.client(c.Name)...)...); err != nil {
		return err
	}
	c.Kafka.Metrics.add(c)
	defer c.Kafka.Metrics.remove(c)
	defer c.cl.CloseAllowingRebalance()
	defer c.stopAll()
	return c.poll(ctx)
}

// begin learns the topics' partitions and ends.
func (c *Consumer) begin(ctx context.Context) error {
	partitions, goal := make(map[topics.Topic]int32), make(map[partition]int64)
	for _, t := range c.Topics {
		ends, err := c.log.Ends(ctx, t)
		if err != nil {
			return err
		}
		partitions[t] = int32(len(ends))
		for p, end := range ends {
			goal[partition{t, p}] = end
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.workers, c.resets, c.reached = make(map[partition]*worker), make(map[partition]bool), make(map[partition]int64)
	c.partitions, c.goal = partitions, goal
	return nil
}

func (c *Consumer) options(ctx context.Context) ([]kgo.Opt, error) {
	if c.Group != "" {
		opts := []kgo.Opt{
			kgo.ConsumerGroup(c.Group),
			kgo.SessionTimeout(sessionTimeout),
			kgo.HeartbeatInterval(2 * time.Second),
			kgo.RebalanceTimeout(sessionTimeout),
			kgo.Balancers(kgo.CooperativeStickyBalancer()),
			kgo.DisableAutoCommit(),
			// Held only while polled records are handed to their workers: a revocation in between would give a later
			// worker the records of an earlier one.
			kgo.BlockRebalanceOnPoll(),
			kgo.AdjustFetchOffsetsFn(c.assigned),
			kgo.OnPartitionsRevoked(c.revoked),
			kgo.OnPartitionsLost(c.revoked),
		}
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
		starts, err := c.take(ctx, t, ids)
		if err != nil {
			return nil, err
		}
		all[c.Kafka.Names.Name(t)] = starts
	}
	return []kgo.Opt{kgo.ConsumePartitions(all)}, nil
}

// assigned replaces Kafka's idea of the offsets by the sink's (kgo.AdjustFetchOffsetsFn).
func (c *Consumer) assigned(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	out := make(map[string]map[int32]kgo.Offset)
	for name, ps := range offsets {
		t, ok := c.Kafka.Names.Topic(name)
		if !ok {
			continue
		}
		starts, err := c.take(ctx, t, sorted(ps))
		if err != nil {
			return nil, err
		}
		out[name] = starts
	}
	return out, nil
}

// take starts a worker for each partition and returns where to read from: far enough back to warm the dedup window.
// It does not give up while ctx lives.
func (c *Consumer) take(ctx context.Context, t topics.Topic, ids []int32) (map[int32]kgo.Offset, error) {
	for failures := 0; ; failures++ {
		starts, err := c.tryTake(ctx, t, ids)
		if err == nil {
			return starts, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		c.Log.Warn("taking partitions over failed, trying again", "topic", t, "partitions", ids, "err", err)
		if !sleep(ctx, backoff(failures)) {
			return nil, ctx.Err()
		}
	}
}

func (c *Consumer) tryTake(ctx context.Context, t topics.Topic, ids []int32) (map[int32]kgo.Offset, error) {
	next := make(map[int32]int64)
	for _, id := range ids {
		var err error
		if next[id], err = c.Sink.Position(ctx, t, id); err != nil {
			return nil, fmt.Errorf("position of %s/%d: %w", t, id, err)
		}
	}
	start := maps.Clone(next)
	judged := isJudged(t)
	if judged {
		var err error
		if start, err = c.log.Rewind(ctx, t, next, c.Window); err != nil {
			return nil, err
		}
	}
	if c.forgets(c.Kafka.Names.Name(t)) {
		firsts, err := c.log.Starts(ctx, t)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			start[id] = max(start[id], firsts[id])
		}
	}
	offsets := make(map[int32]kgo.Offset)
	for _, id := range ids {
		w := &worker{c: c, of: partition{t, id}, next: next[id], count: c.partitions[t], ready: make(chan struct{}, 1), done: make(chan struct{})}
		if judged {
			w.window = NewWindow(c.Window)
		}
		c.replace(ctx, w)
		offsets[id] = kgo.NewOffset().At(start[id]).WithEpoch(-1)
	}
	return offsets, nil
}

// forgets tells that a topic's records are removed in time: a consumer that comes late goes on with what is left.
func (c *Consumer) forgets(name string) bool {
	t, _ := c.Kafka.Names.Topic(name)
	s, _ := topics.Of(t)
	return s.Retention != topics.Forever
}

func isJudged(t topics.Topic) bool {
	s, _ := topics.Of(t)
	return s.Judged
}

// replace starts w in the place of the partition's former worker.
func (c *Consumer) replace(ctx context.Context, w *worker) {
	c.stop(w.of)
	// Not ctx: in a group that of the assignment ends with it, and revoked stops the worker then.
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.cancel = cancel
	c.mu.Lock()
	c.workers[w.of] = w
	c.reached[w.of] = w.next
	c.mu.Unlock()
	go w.run(run)
}

func (c *Consumer) revoked(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	for name, ids := range lost {
		t, _ := c.Kafka.Names.Topic(name)
		for _, id := range ids {
			c.stop(partition{t, id})
		}
	}
}

func (c *Consumer) stop(of partition) {
	c.mu.Lock()
	w := c.workers[of]
	delete(c.workers, of)
	delete(c.resets, of)
	c.mu.Unlock()
	if w != nil {
		w.cancel()
		<-w.done
	}
}

func (c *Consumer) stopAll() {
	c.mu.Lock()
	all := make([]partition, 0, len(c.workers))
	for of := range c.workers {
		all = append(all, of)
	}
	c.mu.Unlock()
	for _, of := range all {
		c.stop(of)
	}
}

func (c *Consumer) poll(ctx context.Context) error {
	for ctx.Err() == nil {
		polling, cancel := context.WithCancel(ctx)
		c.mu.Lock()
		c.wake = cancel
		pending := len(c.resets) > 0
		c.mu.Unlock()
		if pending {
			cancel()
		}
		fs := c.cl.PollRecords(polling, 10_000)
		cancel()
		err := c.hand(ctx, fs)
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

// hand gives polled records to their workers.
func (c *Consumer) hand(ctx context.Context, fs kgo.Fetches) error {
	for _, fe := range fs.Errors() {
		switch {
		case errors.Is(fe.Err, context.Canceled) || ctx.Err() != nil:
		case errors.Is(fe.Err, kerr.OffsetOutOfRange) && c.forgets(fe.Topic):
			t, _ := c.Kafka.Names.Topic(fe.Topic)
			c.Log.Warn("the topic's retention overtook the consumer; it goes on with what is left", "topic", fe.Topic, "partition", fe.Partition)
			c.reset(partition{t, fe.Partition})
		case errors.Is(fe.Err, kerr.OffsetOutOfRange):
			return fmt.Errorf("%s/%d: the position lies outside the log: the log was truncated or is another one; "+
				"rebuild the projection from the log, or restore the log: %w", fe.Topic, fe.Partition, fe.Err)
		case errors.Is(fe.Err, kerr.FencedInstanceID):
			return fmt.Errorf("another live process of the same NODE_NAME took the place of this one: %w", fe.Err)
		case errors.Is(fe.Err, kgo.ErrClientClosed):
			return fe.Err
		default:
			c.Log.Warn("reading failed, the client tries again", "topic", fe.Topic, "partition", fe.Partition, "err", fe.Err)
		}
	}
	fs.EachPartition(func(p kgo.FetchTopicPartition) {
		if len(p.Records) == 0 {
			return
		}
		t, _ := c.Kafka.Names.Topic(p.Topic)
		c.mu.Lock()
		w := c.workers[partition{t, p.Partition}]
		c.mu.Unlock()
		if w != nil && w.offer(p.Records) {
			c.cl.PauseFetchPartitions(map[string][]int32{p.Topic: {p.Partition}})
		}
	})
	return nil
}

// seek begins anew on the partitions whose position somebody else moved.
func (c *Consumer) seek(ctx context.Context) error {
	c.mu.Lock()
	resets := c.resets
	c.resets = make(map[partition]bool)
	c.mu.Unlock()
	for of := range resets {
		c.mu.Lock()
		_, ours := c.workers[of]
		c.mu.Unlock()
		if !ours {
			continue
		}
		offsets, err := c.take(ctx, of.topic, []int32{of.id})
		if err != nil {
			return err
		}
		name := c.Kafka.Names.Name(of.topic)
		c.cl.SetOffsets(map[string]map[int32]kgo.EpochOffset{name: {of.id: offsets[of.id].EpochOffset()}})
		c.cl.ResumeFetchPartitions(map[string][]int32{name: {of.id}})
	}
	return nil
}

// reset asks the poll loop to begin anew on a partition.
func (c *Consumer) reset(of partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resets[of] = true
	if c.wake != nil {
		c.wake()
	}
}

func (c *Consumer) progress(of partition, next int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reached[of] = next
}

// CaughtUp reports whether everything that stood in the log when Run began, in the partitions this member has, has been
// applied.
func (c *Consumer) CaughtUp() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.goal == nil || c.Group == "" && len(c.workers) < len(c.goal) {
		return false
	}
	for of := range c.workers {
		if c.reached[of] < c.goal[of] {
			return false
		}
	}
	return true
}

// lag is how many records below ends are not applied yet, by topic, in the partitions this member has.
func (c *Consumer) lag(ends map[partition]int64) map[topics.Topic]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[topics.Topic]int64)
	for of := range c.workers {
		out[of.topic] += max(0, ends[of]-c.reached[of])
	}
	return out
}

// Behind is how many records that stood in the log when Run began are not applied yet, in the partitions this member has.
func (c *Consumer) Behind() (n int64) {
	c.mu.Lock()
	goal := c.goal // never changed once it is there
	c.mu.Unlock()
	for _, lag := range c.lag(goal) {
		n += lag
	}
	return n
}

func (c *Consumer) windowEntries() (n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.workers {
		n += w.entries.Load()
	}
	return n
}

// ignoreEnd turns the error of a context that ended on purpose into none.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
