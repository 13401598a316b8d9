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

// Windows are the dedup windows of this process. Its consumers share them: a partition is judged once, by whoever reads
// furthest, and the others look the verdicts up. It is safe for concurrent use.
//
// A judge is one window that moves along a partition:
//
//	start ──────────── exact ─────── floor ───────────────── front
//	its window begins  verdicts are  duplicates below it     the next offset to observe
//	empty              right from    are forgotten
//	                   here on
//
// A consumer that stands within what a judge remembers joins it. One that stands too far below gets a judge of its own,
// which others as far behind share, and joins the next judge when it has come to what that one remembers. A judge without
// readers is dropped.
type Windows struct {
	span      time.Duration
	identify  func(*kgo.Record) (topics.Identity, bool)
	retention retention

	mu     sync.Mutex
	chains map[partition]*chain // one for each partition that was ever attached to
}

// NewWindows makes the process's windows.
func NewWindows(span time.Duration) *Windows {
	return &Windows{span: span, identify: identityOf, retention: retention{spare: 4_096, most: 1 << 20}, chains: make(map[partition]*chain)}
}

// Rewind tells for each position where the reading has to start for its verdicts to be right (see Log.Rewind).
type Rewind func(positions map[int32]int64) (starts map[int32]int64, err error)

// Attach gives a consumer's place in the judging of a topic's partitions, whose next records to be applied are at next.
// Each reader has to be given every record from its Start on. After a seek the consumer attaches again, and closes the
// former reader afterwards, so that the judge is kept. Where rewind fails, nothing is attached.
func (w *Windows) Attach(t topics.Topic, next map[int32]int64, rewind Rewind) (map[int32]*Reader, error) {
	readers, far := make(map[int32]*Reader), make(map[int32]int64)
	for p, at := range next {
		if r := w.chain(partition{t, p}).join(at); r != nil {
			readers[p] = r
		} else {
			far[p] = at
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
	for p, at := range far {
		readers[p] = w.chain(partition{t, p}).begin(at, min(starts[p], at))
	}
	return readers, nil
}

// Expect is called before the consumers attach, with the positions of all of them. Its readers have judges that begin low
// enough for every position that is not below where the warm-up of the highest begins, and keep them so until they are
// closed. Whoever gives a reader the records from its Start on and below its Until spares all consumers the warm-up: they
// begin at their own positions.
func (w *Windows) Expect(t topics.Topic, positions map[int32][]int64, rewind Rewind) (map[int32]*Reader, error) {
	highest, lowest := make(map[int32]int64), make(map[int32]int64)
	for p, all := range positions {
		if len(all) > 0 {
			highest[p] = slices.Max(all)
		}
	}
	starts, err := rewind(highest)
	if err != nil {
		return nil, err
	}
	for p, high := range highest {
		lowest[p] = high
		for _, at := range positions[p] {
			if at >= starts[p] {
				lowest[p] = min(lowest[p], at)
			}
		}
	}
	readers, err := w.Attach(t, lowest, rewind)
	for p, r := range readers {
		r.hold(highest[p])
	}
	return readers, err
}

// Entries is how many identities the windows hold.
func (w *Windows) Entries() (n int) {
	w.each(func(j *deduplicator) { n += j.window.Len() })
	return n
}

// Bytes is how much memory the windows and the duplicates they remember take.
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

func (w *Windows) chain(of partition) *chain {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.chains[of]
	if c == nil {
		c = &chain{span: w.span, identify: w.identify, retention: w.retention}
		w.chains[of] = c
	}
	return c
}

// chain is a partition's judges and their readers: a handful of each.
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

// knows tells that the judge has, or will have, the right verdicts from the offset on.
func (j *deduplicator) knows(offset int64) bool { return max(j.exact, j.floor) <= offset }

// furthest is the judge, of those that suit, that has come furthest; nil if none suits.
func (c *chain) furthest(suits func(*deduplicator) bool) (best *deduplicator) {
	for _, j := range c.deduplicators {
		if suits(j) && (best == nil || j.front > best.front) {
			best = j
		}
	}
	return best
}

// join attaches a reader whose position lies within what a judge remembers; nil if there is no such judge.
func (c *chain) join(next int64) *Reader {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.furthest(func(j *deduplicator) bool { return j.knows(next) && next <= j.front })
	if j == nil {
		return nil
	}
	return c.add(j, next, next)
}

// begin attaches a reader that may have to read from start on. A judge that did not begin above start has the right
// verdicts for it, and one that has come as far as start spares it a part of the way.
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

// settle has every reader follow the furthest judge that it can, drops judges that nobody follows, and has the others
// forget what nobody will ask for.
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

// retention is how many duplicates a judge remembers, 8 bytes each.
type retention struct {
	spare int // although nobody needs them now: for a consumer that comes back to a somewhat lower position
	most  int // for a consumer that does not get on: more costs it a warm-up of its own
}

// forget gives up duplicates below the offset, and the oldest where there are too many.
func (j *deduplicator) forget(below int64, k retention) {
	n := 0
	if len(j.duplicates) > k.most {
		n = len(j.duplicates) - k.most*7/8
	}
	if unneeded, _ := slices.BinarySearch(j.duplicates, below); unneeded > 2*k.spare { // not for each one that is too many
		n = max(n, unneeded-k.spare)
	}
	if n > 0 {
		j.floor = j.duplicates[n-1] + 1
		j.duplicates = slices.Clone(j.duplicates[n:])
	}
}

// isDuplicate is the verdict on an offset between floor and front.
func (j *deduplicator) isDuplicate(offset int64) bool {
	_, found := slices.BinarySearch(j.duplicates, offset)
	return found
}

// observe takes the next record in. A transaction marker is none, but shows that nothing else stands below it.
func (j *deduplicator) observe(r *kgo.Record, identify func(*kgo.Record) (topics.Identity, bool)) {
	j.front = r.Offset + 1
	if r.Attrs.IsControl() {
		return
	}
	id, identified := identify(r)
	if j.window.Observe(r.Timestamp.UnixMilli(), id, identified) {
		j.duplicates = append(j.duplicates, r.Offset)
	}
}

// Reader is a consumer's place in the judging of a partition. It belongs to one goroutine.
type Reader struct {
	// Start is where to read from, at or below the position.
	Start int64
	// Until is where the warm-up ends: the position, or with Expect the highest one.
	Until int64

	chain        *chain
	deduplicator *deduplicator // nil once closed
	next         int64         // the verdicts that will be asked for begin here
	read         int64         // everything from Start on and below is observed
	held         bool          // next stays where it is
}

func (r *Reader) hold(until int64) {
	r.chain.mu.Lock()
	defer r.chain.mu.Unlock()
	r.held, r.Until = true, until
}

var (
	// ErrForgotten reports that too many duplicates came while this consumer did not get on: it has to attach again.
	ErrForgotten = errors.New("pipeline: the verdicts on these records are not kept any more")
	// ErrReaderClosed reports the use of a reader after Close.
	ErrReaderClosed = errors.New("pipeline: the reader is closed")
)

// Judge takes the next records in, in the order of the log, and tells which are duplicates. Records below the position only
// warm the window and are not told to be any. Control records are welcome, nil in the place of a record is passed over. Each
// verdict is given once: a batch that is tried again keeps its own. After ErrForgotten the consumer attaches again at its
// position; nothing else is the matter.
func (r *Reader) Judge(records []*kgo.Record) ([]bool, error) {
	verdicts := make([]bool, len(records))
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
			verdicts[i] = r.deduplicator.isDuplicate(record.Offset)
			r.next = record.Offset + 1
		}
		r.read = record.Offset + 1
	}
	c.settle()
	return verdicts, nil
}

// Close gives the place up. The second call does nothing.
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
