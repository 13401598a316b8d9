package pipeline

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// Windows are the dedup windows of this process. Its consumers share them: a partition is deduplicated once, by the consumer that reads
// furthest; the others look up which offsets were duplicates. It is safe for concurrent use.
//
// A deduplicator is one window that moves along a partition:
//
//	start ──────────── exact ─────── floor ───────────────── front
//	its window begins  answers are   duplicates below it     the next offset to observe
//	empty              right from    are forgotten
//	                   here on
//
// A consumer that stands within what a deduplicator remembers joins it. One that stands too far below gets a deduplicator of its own,
// which others as far behind share. It joins the next one when it has come to what that one remembers. A deduplicator without readers
// is dropped.
type Windows struct {
	span      time.Duration
	identify  func(*kgo.Record) (topics.Identity, bool)
	retention retention

	mu     sync.Mutex
	chains map[topics.Partition]*chain // one for each partition that was ever attached to
}

// NewWindows makes the windows of a process. span is the dedup window of the log's contract.
func NewWindows(span time.Duration) *Windows {
	return &Windows{span: span, identify: identityOf, retention: retention{spare: 4_096, most: 1 << 20},
		chains: make(map[topics.Partition]*chain)}
}

// Rewind returns, for each position, the offset from which records must be read so that duplicates from the position on are told
// rightly (Log.Rewind).
type Rewind func(positions topics.Ends) (starts topics.Ends, err error)

// Attach makes a reader for each partition; next are the offsets of the consumer's next records to apply. The consumer calls
// it when it takes partitions over, and must give each reader every record from its Start on. After a seek it attaches again, and
// closes the former reader only afterwards, so that its deduplicator is kept. Its error is rewind's; then nothing is attached.
func (w *Windows) Attach(next topics.Ends, rewind Rewind) (map[topics.Partition]*Reader, error) {
	readers, far := make(map[topics.Partition]*Reader), make(topics.Ends)
	for of, at := range next {
		if r := w.chain(of).join(at); r != nil {
			readers[of] = r
		} else {
			far[of] = at
		}
	}
	if len(far) == 0 {
		return readers, nil
	}
	starts, err := rewind(far)
	if err != nil {
		for _, r := range readers {
			r.Close()
		}
		return nil, err
	}
	for of, at := range far {
		readers[of] = w.chain(of).begin(at, min(starts[of], at))
	}
	return readers, nil
}

// Expect makes readers that warm windows for all consumers of this process at once. Warm calls it before the consumers
// attach, with the positions of all of them, by partition. A position that lies further below than the warm-up of the highest one
// begins is left out: its consumer warms on its own. Until a reader is closed, its deduplicator forgets nothing that a consumer at one
// of the positions will ask for. Whoever gives a reader the records from its Start on and below its Until spares the consumers their
// own warm-up: they begin to read at their positions. Its error is rewind's.
func (w *Windows) Expect(positions map[topics.Partition][]int64, rewind Rewind) (map[topics.Partition]*Reader, error) {
	highest, lowest := make(topics.Ends), make(topics.Ends)
	for of, all := range positions {
		if len(all) > 0 {
			highest[of] = slices.Max(all)
		}
	}
	starts, err := rewind(highest)
	if err != nil {
		return nil, err
	}
	for of, high := range highest {
		lowest[of] = high
		for _, at := range positions[of] {
			if at >= starts[of] {
				lowest[of] = min(lowest[of], at)
			}
		}
	}
	readers, err := w.Attach(lowest, rewind)
	for of, r := range readers {
		r.hold(highest[of])
	}
	return readers, err
}

// Entries is how many identities the windows hold, for a metric.
func (w *Windows) Entries() (n int) {
	w.each(func(j *deduplicator) { n += j.window.Len() })
	return n
}

// Bytes is the memory of the windows and of the duplicates they remember, in bytes, for a metric.
func (w *Windows) Bytes() (n int) {
	w.each(func(j *deduplicator) { n += j.window.Bytes() + 8*cap(j.duplicates) })
	return n
}

func (w *Windows) each(visit func(*deduplicator)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.chains {
		c.mu.Lock()
		for _, j := range c.deduplicators {
			visit(j)
		}
		c.mu.Unlock()
	}
}

func (w *Windows) chain(of topics.Partition) *chain {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.chains[of]
	if c == nil {
		c = &chain{span: w.span, identify: w.identify, retention: w.retention}
		w.chains[of] = c
	}
	return c
}

// chain is a partition's deduplicators and their readers: a handful of each.
type chain struct {
	span      time.Duration
	identify  func(*kgo.Record) (topics.Identity, bool)
	retention retention

	mu            sync.Mutex
	deduplicators []*deduplicator
	readers       []*Reader
}

// deduplicator is a window that moves along a partition, and the duplicates that it found.
type deduplicator struct {
	window     *Window
	start      int64
	exact      int64
	floor      int64
	front      int64
	duplicates []int64 // their offsets, ascending, from floor on and below front
}

// knows tells that the deduplicator has, or will have, the right answers from the offset on.
func (d *deduplicator) knows(offset int64) bool { return max(d.exact, d.floor) <= offset }

// furthest is the deduplicator, of those that suit, that has come furthest; nil if none suits.
func (c *chain) furthest(suits func(*deduplicator) bool) (best *deduplicator) {
	for _, j := range c.deduplicators {
		if suits(j) && (best == nil || j.front > best.front) {
			best = j
		}
	}
	return best
}

// join attaches a reader whose position lies within what a deduplicator remembers; nil if there is no such one.
func (c *chain) join(next int64) *Reader {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.furthest(func(j *deduplicator) bool { return j.knows(next) && next <= j.front })
	if j == nil {
		return nil
	}
	return c.add(j, next, next)
}

// begin attaches a reader that may have to read from start on. A deduplicator that did not begin above start has the right answers for
// it; where it has come as far as start, the reader begins at its front.
func (c *chain) begin(next, start int64) *Reader {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.furthest(func(j *deduplicator) bool {
		return (j.exact <= next || j.start <= start) && j.floor <= next && start <= j.front
	})
	if j == nil {
		j = &deduplicator{window: NewWindow(c.span), start: start, exact: next, floor: start, front: start}
		c.deduplicators = append(c.deduplicators, j)
	}
	j.exact = min(j.exact, next)
	return c.add(j, next, min(next, j.front))
}

func (c *chain) add(j *deduplicator, next, start int64) *Reader {
	r := &Reader{Start: start, Until: next, chain: c, deduplicator: j, next: next, read: start}
	c.readers = append(c.readers, r)
	return r
}

// settle has every reader follow the furthest deduplicator that it can. It drops those that nobody follows, and the others forget what
// nobody will ask for.
func (c *chain) settle() {
	for _, r := range c.readers {
		if j := c.furthest(func(j *deduplicator) bool { return j.knows(r.next) && r.read <= j.front }); j != nil {
			r.deduplicator = j
		}
	}
	c.drop()
	if len(c.readers) == 0 {
		return
	}
	lowest := c.readers[0].next
	for _, r := range c.readers {
		lowest = min(lowest, r.next)
	}
	for _, j := range c.deduplicators {
		j.forget(lowest, c.retention)
	}
}

func (c *chain) drop() {
	c.deduplicators = slices.DeleteFunc(c.deduplicators, func(j *deduplicator) bool {
		return !slices.ContainsFunc(c.readers, func(r *Reader) bool { return r.deduplicator == j })
	})
}

// retention is how many duplicates a deduplicator remembers, 8 bytes each.
type retention struct {
	spare int // below what anybody needs now: for a consumer that comes back to a somewhat lower position
	most  int // in all, for a consumer that stands still: where there are more, it has to warm a window of its own
}

// forget gives up duplicates below the offset, and the oldest where there are too many.
func (d *deduplicator) forget(below int64, k retention) {
	n := 0
	if len(d.duplicates) > k.most {
		n = len(d.duplicates) - k.most*7/8
	}
	if unneeded, _ := slices.BinarySearch(d.duplicates, below); unneeded > 2*k.spare { // not for each one that is too many
		n = max(n, unneeded-k.spare)
	}
	if n > 0 {
		d.floor = d.duplicates[n-1] + 1
		d.duplicates = slices.Clone(d.duplicates[n:])
	}
}

// isDuplicate tells of an offset between floor and front.
func (d *deduplicator) isDuplicate(offset int64) bool {
	_, found := slices.BinarySearch(d.duplicates, offset)
	return found
}

// observe takes the next record in. A transaction marker has no identity; it only shows that nothing else stands below it.
func (d *deduplicator) observe(r *kgo.Record, identify func(*kgo.Record) (topics.Identity, bool)) {
	d.front = r.Offset + 1
	if r.Attrs.IsControl() {
		return
	}
	id, identified := identify(r)
	if d.window.Observe(r.Timestamp.UnixMilli(), id, identified) {
		d.duplicates = append(d.duplicates, r.Offset)
	}
}

// Reader tells a consumer which records of one partition are duplicates. It belongs to one goroutine.
type Reader struct {
	// Start is the offset to read from, at or below the position.
	Start int64
	// Until is the offset at which the warm-up ends: the position, or with Expect the highest of them.
	Until int64

	chain        *chain
	deduplicator *deduplicator // nil once closed
	next         int64         // what will be asked begins here
	read         int64         // everything from Start on and below is observed
	held         bool          // next stays where it is
}

func (r *Reader) hold(until int64) {
	r.chain.mu.Lock()
	defer r.chain.mu.Unlock()
	r.held, r.Until = true, until
}

var (
	// ErrForgotten reports that too many duplicates came while this consumer stood still: it has to attach again.
	ErrForgotten = errors.New("pipeline: which of these records are duplicates is not known any more")
	// ErrReaderClosed reports the use of a reader after Close.
	ErrReaderClosed = errors.New("pipeline: the reader is closed")
)

// Judge takes the next records in, in the order of the log, and tells which are duplicates: one answer for each record. Records below
// the position only warm the window; their answer is false. Transaction markers must be given as well; a nil record is passed over.
// Call it once for each record: a batch that is applied again keeps the answers. Errors: ErrForgotten, after which the consumer
// attaches again at its position; ErrReaderClosed.
func (r *Reader) Judge(records []*kgo.Record) ([]bool, error) {
	duplicates := make([]bool, len(records))
	c := r.chain
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.deduplicator == nil {
		return nil, ErrReaderClosed
	}
	for i, record := range records {
		if record == nil {
			continue
		}
		if record.Offset >= r.deduplicator.front {
			r.deduplicator.observe(record, c.identify)
		}
		if !r.held && record.Offset >= r.next {
			if record.Offset < r.deduplicator.floor {
				return nil, ErrForgotten
			}
			duplicates[i] = r.deduplicator.isDuplicate(record.Offset)
			r.next = record.Offset + 1
		}
		r.read = record.Offset + 1
	}
	c.settle()
	return duplicates, nil
}

// Close ends the reader. A second call does nothing.
func (r *Reader) Close() {
	c := r.chain
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readers = slices.DeleteFunc(c.readers, func(other *Reader) bool { return other == r })
	r.deduplicator = nil
	c.drop()
}

// identityOf is EventOf(r).Identity(r.Key), without an event.
func identityOf(r *kgo.Record) (topics.Identity, bool) {
	var id, idem, typ, source []byte
	for i := range r.Headers {
		switch h := &r.Headers[i]; h.Key {
		case topics.HeaderID:
			id = h.Value
		case topics.HeaderIdempotencyKey:
			idem = h.Value
		case topics.HeaderType:
			typ = h.Value
		case topics.HeaderSource:
			source = h.Value
		}
	}
	if len(idem) == 0 {
		idem = id
	}
	if len(idem) == 0 {
		return topics.Identity{}, false
	}
	b := make([]byte, 0, 256)
	for _, s := range [...][]byte{r.Key, typ, source, idem} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	sum := sha256.Sum256(b)
	return topics.Identity(sum[:16]), true
}
