package pipeline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// The partitions of these tests.
var first, second = topics.Messages.Partition(0), topics.Messages.Partition(1)

// madeLog is a log in memory, with holes, and the verdict on each of its offsets by the definition alone.
type madeLog struct {
	span       int64
	records    []*kgo.Record // nil and control records between the others
	end        int64
	duplicates map[int64]bool
}

const madeSpan = 50

func makeLog(r *rand.Rand, n int) *madeLog {
	l := &madeLog{span: madeSpan, duplicates: make(map[int64]bool)}
	ref, now := newReference(l.span), int64(1_000)
	for range n {
		if r.IntN(10) == 0 {
			l.end += 1 + r.Int64N(5) // aborted, compacted
			if r.IntN(2) == 0 {
				l.records = append(l.records, &kgo.Record{Offset: l.end - 1, Attrs: control, Timestamp: time.UnixMilli(now + 10*l.span)})
			}
		}
		switch now += r.Int64N(12); r.IntN(40) {
		case 0:
			now -= r.Int64N(3 * l.span)
		case 1:
			now += r.Int64N(2 * l.span)
		}
		record := &kgo.Record{Offset: l.end, Timestamp: time.UnixMilli(now), Key: []byte("k")}
		if r.IntN(10) > 0 {
			record.Headers = []kgo.RecordHeader{{Key: topics.HeaderID, Value: []byte{byte(r.IntN(8))}}}
		}
		id, identified := identityOf(record)
		l.duplicates[l.end] = ref.observe(now, id, identified)
		l.records = append(l.records, record)
		l.end++
	}
	return l
}

// control is what a transaction marker has.
var control = kgo.NewRecordAttrs(kgo.RecordAttrsOpts{Control: true})

// rewind is what Log.Rewind promises; it may begin too early, never too late.
func (l *madeLog) rewind(positions topics.Ends) (topics.Ends, error) {
	starts := make(topics.Ends)
	for p, next := range positions {
		starts[p] = l.start(next)
	}
	return starts, nil
}

func (l *madeLog) start(next int64) int64 {
	var before *kgo.Record
	for _, r := range l.records {
		if r.Offset < next && !r.Attrs.IsControl() {
			before = r
		}
	}
	if before == nil {
		return 0
	}
	for _, r := range l.records {
		if !r.Attrs.IsControl() && r.Timestamp.UnixMilli() >= before.Timestamp.UnixMilli()-l.span {
			return min(r.Offset, next)
		}
	}
	return next
}

// from is the index of the first record at or above the offset.
func (l *madeLog) from(offset int64) int {
	i, _ := slices.BinarySearchFunc(l.records, offset, func(r *kgo.Record, o int64) int { return int(r.Offset - o) })
	return i
}

// role is a consumer of a madeLog: how it reads, and what it has been told.
type role struct {
	*Reader
	log     *madeLog
	next    int64 // the position
	warming bool  // made by Expect
	at      int   // index of the next record
}

func (l *madeLog) role(r *Reader, next int64, warming bool) *role {
	return &role{Reader: r, log: l, next: next, warming: warming, at: l.from(r.Start)}
}

// advance judges up to n records and compares the verdicts with the definition.
func (o *role) advance(n int) error {
	batch := o.log.records[o.at:min(o.at+n, len(o.log.records))]
	verdicts, err := o.Judge(batch)
	if err != nil {
		return err
	}
	for i, r := range batch {
		want := o.log.duplicates[r.Offset] && r.Offset >= o.next && !o.warming
		if verdicts[i] != want {
			return fmt.Errorf("offset %d: duplicate %v, want %v (position %d, start %d)", r.Offset, verdicts[i], want, o.next, o.Start)
		}
	}
	if o.at += len(batch); len(batch) > 0 && !o.warming {
		o.next = max(o.next, batch[len(batch)-1].Offset+1)
	}
	return nil
}

// TestWindowsAreTheDefinition has roles come, go, stall and fall behind at random: every verdict of every role is that of
// the definition, no judge hashes an offset twice, and roles that have reached the end share one judge.
func TestWindowsAreTheDefinition(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 3))
		if err := interleave(r); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func interleave(r *rand.Rand) error {
	l, w := makeLog(r, 400), NewWindows(madeSpan*time.Millisecond)
	w.retention = retention{spare: r.IntN(8), most: 8 + r.IntN(64)}
	var judging *deduplicator
	hashed := make(map[*deduplicator]map[int64]int)
	w.identify = func(record *kgo.Record) (topics.Identity, bool) {
		if hashed[judging] == nil {
			hashed[judging] = make(map[int64]int)
		}
		hashed[judging][record.Offset]++
		return identityOf(record)
	}
	var roles []*role
	attach := func(next int64) error {
		rs, err := w.Attach(topics.Ends{first: next}, l.rewind)
		if err == nil {
			roles = append(roles, l.role(rs[first], next, false))
		}
		return err
	}
	remove := func(o *role) {
		o.Close()
		roles = slices.DeleteFunc(roles, func(other *role) bool { return other == o })
	}
	advance := func(o *role, n int) error {
		judging = o.deduplicator
		err := o.advance(n)
		if errors.Is(err, ErrForgotten) {
			err = attach(o.next)
			remove(o)
		}
		return err
	}
	for range 300 {
		var err error
		switch op := r.IntN(20); {
		case op == 0 || len(roles) == 0:
			err = attach(r.Int64N(l.end + 1))
		case op == 1 && len(roles) < 8:
			var expected []int64
			for range 1 + r.IntN(5) {
				expected = append(expected, r.Int64N(l.end+1))
			}
			var rs map[topics.Partition]*Reader
			if rs, err = w.Expect(map[topics.Partition][]int64{first: expected}, l.rewind); err == nil {
				roles = append(roles, l.role(rs[first], 0, true))
			}
		case op == 2:
			remove(roles[r.IntN(len(roles))])
		case op == 3: // moved, or a batch that was never applied
			o := roles[r.IntN(len(roles))]
			err = attach(max(0, o.next-r.Int64N(60)))
			remove(o)
		default:
			err = advance(roles[r.IntN(len(roles))], r.IntN(40))
		}
		if err != nil {
			return err
		}
	}
	for _, o := range slices.Clone(roles) {
		if o.warming {
			remove(o)
		}
	}
	for len(roles) > 0 {
		behind := slices.DeleteFunc(slices.Clone(roles), func(o *role) bool { return o.at == len(l.records) })
		if len(behind) == 0 {
			break
		}
		if err := advance(behind[r.IntN(len(behind))], 1+r.IntN(40)); err != nil {
			return err
		}
	}
	c := w.chain(first)
	if n := len(c.deduplicators); n != min(1, len(roles)) {
		return fmt.Errorf("%d judges for %d roles at the end of the log", n, len(roles))
	}
	for _, offsets := range hashed {
		for offset, n := range offsets {
			if n != 1 {
				return fmt.Errorf("a judge hashed offset %d %d times", offset, n)
			}
		}
	}
	for len(roles) > 0 {
		remove(roles[0])
	}
	if w.Entries() != 0 || w.Bytes() != 0 || len(c.deduplicators) != 0 || len(c.readers) != 0 {
		return errors.New("something is kept for nobody")
	}
	return nil
}

// The same side by side, for the race detector.
func TestWindowsAreTheDefinitionConcurrently(t *testing.T) {
	seed := rand.Uint64()
	l, w := makeLog(rand.New(rand.NewPCG(seed, 4)), 2_000), NewWindows(madeSpan*time.Millisecond)
	w.retention = retention{spare: 4, most: 64}
	run := func(n uint64) error {
		r := rand.New(rand.NewPCG(seed, 5+n))
		next := r.Int64N(l.end + 1)
		var former *role
		for range 40 {
			rs, err := w.Attach(topics.Ends{first: next}, l.rewind)
			if err != nil {
				return err
			}
			o := l.role(rs[first], next, false)
			if former != nil {
				former.Close()
			}
			for range r.IntN(40) {
				if err = o.advance(r.IntN(60)); err != nil {
					break
				}
				w.Bytes()
			}
			if err != nil && !errors.Is(err, ErrForgotten) {
				return err
			}
			former, next = o, max(0, o.next-r.Int64N(100))
			if r.IntN(4) == 0 {
				next = r.Int64N(l.end + 1)
			}
		}
		former.Close()
		return nil
	}
	var wg sync.WaitGroup
	for n := range uint64(6) {
		wg.Go(func() {
			if err := run(n); err != nil {
				t.Errorf("seed %d, role %d: %v", seed, n, err)
			}
		})
	}
	wg.Wait()
	if n := w.Entries(); n != 0 {
		t.Errorf("seed %d: %d entries are kept for nobody", seed, n)
	}
}

// Five consumers that start near one another hash every record once, and read nothing before their positions where
// somebody has warmed the windows for them.
func TestWindowsWarmOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 6))
	l, w, hashes := makeLog(r, 2_000), NewWindows(madeSpan*time.Millisecond), 0
	w.identify = func(r *kgo.Record) (topics.Identity, bool) { hashes++; return identityOf(r) }
	high := l.end - 100
	near := []int64{high, high - 1, high - 3, l.start(high) + 1, l.start(high)}
	expected, err := w.Expect(map[topics.Partition][]int64{first: append([]int64{5}, near...), second: nil}, l.rewind)
	if err != nil || len(expected) != 1 {
		t.Fatal(expected, err)
	}
	warm := l.role(expected[first], 0, true)
	if warm.Start != l.start(l.start(high)) || warm.Until != high {
		t.Fatalf("warms from %d until %d, want %d, %d", warm.Start, warm.Until, l.start(l.start(high)), high)
	}
	began := warm.at
	if err := warm.advance(l.from(warm.Until) - began); err != nil {
		t.Fatal(err)
	}
	none := func(topics.Ends) (topics.Ends, error) { return nil, errors.New("asked for nothing") }
	var roles []*role
	for _, next := range near {
		rs, err := w.Attach(topics.Ends{first: next}, none)
		if err != nil || rs[first].Start != next {
			t.Fatalf("at %d: %v, begins at %+v", next, err, rs[first])
		}
		roles = append(roles, l.role(rs[first], next, false))
	}
	warm.Close()
	for _, o := range roles {
		if err := o.advance(len(l.records)); err != nil {
			t.Error(err)
		}
	}
	want := 0
	for _, r := range l.records[began:] {
		if !r.Attrs.IsControl() {
			want++
		}
	}
	if hashes != want {
		t.Errorf("%d records were hashed %d times", want, hashes)
	}
}

// What cannot be rewound leaves nothing behind.
func TestWindowsAttachFails(t *testing.T) {
	l, w := makeLog(rand.New(rand.NewPCG(1, 7)), 50), NewWindows(madeSpan*time.Millisecond)
	readers, err := w.Attach(topics.Ends{first: 0}, l.rewind)
	if err != nil {
		t.Fatal(err)
	}
	down := errors.New("down")
	fails := func(topics.Ends) (topics.Ends, error) { return nil, down }
	for range 2 {
		if rs, err := w.Attach(topics.Ends{first: 0, second: 7}, fails); !errors.Is(err, down) || rs != nil {
			t.Errorf("attached %v, %v", rs, err)
		}
	}
	if rs, err := w.Expect(map[topics.Partition][]int64{first: {0}, second: {7}}, fails); !errors.Is(err, down) || rs != nil {
		t.Errorf("expected %v, %v", rs, err)
	}
	if n := len(w.chain(first).readers); n != 1 {
		t.Errorf("%d readers, want the first alone", n)
	}
	readers[first].Close()
	readers[first].Close()
	if _, err := readers[first].Judge(nil); !errors.Is(err, ErrReaderClosed) {
		t.Errorf("a closed reader judges: %v", err)
	}
}

// A consumer that stalls while very many duplicates come is told so, and pays a warm-up of its own.
func TestWindowsForgetForTheStalled(t *testing.T) {
	w := NewWindows(time.Minute)
	w.retention = retention{spare: 10, most: 100}
	start := func(topics.Ends) (topics.Ends, error) { return topics.Ends{first: 0}, nil }
	attach := func() *Reader {
		rs, err := w.Attach(topics.Ends{first: 0}, start)
		if err != nil {
			t.Fatal(err)
		}
		return rs[first]
	}
	record := func(offset int64) []*kgo.Record {
		return []*kgo.Record{{Offset: offset, Headers: []kgo.RecordHeader{{Key: topics.HeaderID, Value: []byte("same")}}}}
	}
	runs, stalls := attach(), attach()
	for o := range int64(1_000) {
		if got, err := runs.Judge(record(o)); err != nil || got[0] != (o > 0) {
			t.Fatalf("offset %d: %v, %v", o, got, err)
		}
		if n := len(runs.deduplicator.duplicates); n > 100 {
			t.Fatalf("%d duplicates are kept", n)
		}
	}
	if _, err := stalls.Judge(record(0)); !errors.Is(err, ErrForgotten) {
		t.Fatalf("the stalled reader: %v", err)
	}
	again := attach()
	stalls.Close()
	for o := range int64(1_000) {
		if got, err := again.Judge(record(o)); err != nil || got[0] != (o > 0) {
			t.Fatalf("offset %d: %v, %v", o, got, err)
		}
	}
	if again.deduplicator != runs.deduplicator {
		t.Error("the two have not met")
	}
}

func TestIdentityOfRecord(t *testing.T) {
	names := []string{topics.HeaderID, topics.HeaderSource, topics.HeaderType, topics.HeaderIdempotencyKey, topics.HeaderTime, "Ce_id", "x",
		""}
	values := []string{"", "a", "message", "notification", "/users/u1", string(make([]byte, 200))}
	identified := make(map[bool]int)
	for seed := range uint64(20_000) {
		r := rand.New(rand.NewPCG(seed, 8))
		record := &kgo.Record{Key: []byte(values[r.IntN(len(values))])}
		if r.IntN(4) == 0 {
			record.Key = nil
		}
		for range r.IntN(10) {
			h := kgo.RecordHeader{Key: names[r.IntN(len(names))]}
			if r.IntN(8) > 0 {
				h.Value = []byte(values[r.IntN(len(values))])
			}
			record.Headers = append(record.Headers, h)
		}
		e := EventOf(topics.Messages, record)
		want, wantOK := e.Identity(e.Key)
		if got, ok := identityOf(record); got != want || ok != wantOK {
			t.Fatalf("seed %d: %x %v, want %x %v: %v", seed, got, ok, want, wantOK, record.Headers)
		}
		identified[wantOK]++
	}
	if len(identified) != 2 {
		t.Errorf("all the same: %v", identified)
	}
}

// madeRecords are records as a client appends them, each of its own identity, one in a millisecond.
func madeRecords(n int) []*kgo.Record {
	out := make([]*kgo.Record, n)
	for i := range out {
		m := topics.Meta{Type: topics.TypeMessage, Source: topics.SourceOf(fmt.Sprint("user-", i%1000)), ID: fmt.Sprintf("%036d", i),
			IdempotencyKey: fmt.Sprintf("%036d", i), Time: "2026-01-01T00:00:00Z", ContentType: "application/json"}
		out[i] = &kgo.Record{Offset: int64(i), Timestamp: time.UnixMilli(int64(i)), Key: fmt.Append(nil, "dm:user-", i%1000)}
		for _, h := range m.Headers() {
			out[i].Headers = append(out[i].Headers, kgo.RecordHeader(h))
		}
	}
	return out
}

func BenchmarkIdentity(b *testing.B) {
	r := madeRecords(1)[0]
	b.Run("event", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			e := EventOf(topics.Messages, r)
			e.Identity(e.Key)
		}
	})
	b.Run("record", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			identityOf(r)
		}
	})
}

// BenchmarkWarm warms a window with a million records, each batch made before its time is taken: a client's records are
// fresh in the processor's cache too.
func BenchmarkWarm(b *testing.B) {
	const n = 1_000_000
	records := madeRecords(maxBatch)
	for b.Loop() {
		w, took := NewWindows(time.Hour), time.Duration(0)
		rs, err := w.Expect(map[topics.Partition][]int64{first: {n}}, zero)
		if err != nil {
			b.Fatal(err)
		}
		for offset := int64(0); offset < n; {
			for _, r := range records {
				r.Offset, r.Timestamp = offset, time.UnixMilli(offset)
				for _, h := range r.Headers {
					if h.Key == topics.HeaderIdempotencyKey {
						binary.LittleEndian.PutUint64(h.Value, uint64(offset))
					}
				}
				offset++
			}
			began := cpuTime()
			if _, err := rs[first].Judge(records); err != nil {
				b.Fatal(err)
			}
			took += cpuTime() - began
		}
		b.ReportMetric(float64(took.Nanoseconds())/n, "cpu-ns/record")
		if w.Entries() != n {
			b.Fatal(w.Entries())
		}
	}
}

func zero(positions topics.Ends) (topics.Ends, error) {
	starts := maps.Clone(positions)
	for p := range starts {
		starts[p] = 0
	}
	return starts, nil
}

// BenchmarkFiveReaders is five consumers at once on one partition: the time for a record and a reader.
func BenchmarkFiveReaders(b *testing.B) {
	records := madeRecords(200_000)
	for _, size := range []int{1, 10, 100, 1_000} {
		b.Run(fmt.Sprint("batch=", size), func(b *testing.B) {
			for b.Loop() {
				w := NewWindows(time.Hour)
				began := cpuTime()
				var wg sync.WaitGroup
				for range 5 {
					rs, err := w.Attach(topics.Ends{first: 0}, zero)
					if err != nil {
						b.Fatal(err)
					}
					wg.Go(func() {
						for batch := range slices.Chunk(records, size) {
							if _, err := rs[first].Judge(batch); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64((cpuTime()-began).Nanoseconds())/float64(5*len(records)), "cpu-ns/record/reader")
			}
		})
	}
}
