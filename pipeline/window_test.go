package pipeline

import (
	"container/heap"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/nexus/nexus/topics"
)

// duplicateByDefinition applies the rule as it is written: an earlier record makes a later one of the same identity a
// duplicate as long as no record since, nor the later itself, has a time beyond the earlier's plus the span.
func duplicateByDefinition(times []int64, ids []topics.Identity, span int64, at int) bool {
	for i := range at {
		if ids[i] != ids[at] {
			continue
		}
		alive := true
		for j := i + 1; j <= at; j++ {
			alive = alive && times[j] <= times[i]+span
		}
		if alive {
			return true
		}
	}
	return false
}

func TestWindowIsTheDefinition(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		const n, span = 120, 50
		w := NewWindow(span * time.Millisecond)
		times, ids := make([]int64, n), make([]topics.Identity, n)
		now := int64(1000)
		for i := range n {
			now += r.Int64N(20)
			if r.IntN(8) == 0 {
				now -= r.Int64N(120) // clocks step back
			}
			times[i], ids[i] = now, topics.Identity{byte(r.IntN(6))}
			want := duplicateByDefinition(times, ids, span, i)
			if got := w.Observe(times[i], ids[i], true); got != want {
				t.Fatalf("seed %d, record %d at %d: duplicate %v, want %v", seed, i, now, got, want)
			}
		}
	}
}

func TestWindowEdges(t *testing.T) {
	w := NewWindow(5 * time.Minute)
	id, minute := topics.Identity{1}, int64(60_000)
	for _, step := range []struct {
		at   int64
		want bool
	}{{0, false}, {minute, true}, {4*minute + 50_000, true}, {9*minute + 50_000, true}, {14*minute + 51_000, false}} {
		if got := w.Observe(step.at, id, true); got != step.want {
			t.Errorf("at %d: duplicate %v, want %v", step.at, got, step.want)
		}
	}
	w.Observe(100*minute, topics.Identity{}, false)
	if w.Len() != 0 {
		t.Errorf("%d entries outlive the window", w.Len())
	}
	// No claimed time breaks it.
	for i, step := range []struct {
		at   int64
		id   byte
		want bool
	}{
		{math.MaxInt64, 1, false}, {math.MaxInt64, 1, true},
		{math.MinInt64, 2, false}, {math.MinInt64, 2, true},
		{math.MinInt64, 1, true}, {math.MaxInt64, 2, false},
	} {
		if got := w.Observe(step.at, topics.Identity{step.id}, true); got != step.want {
			t.Errorf("step %d at %d: duplicate %v, want %v", i, step.at, got, step.want)
		}
	}
}

// TestWindowIsTheReference compares long logs, with tables that grow and shrink, with the rule on a map and a heap.
func TestWindowIsTheReference(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		const span = 10_000
		w, ref := NewWindow(span*time.Millisecond), newReference(span)
		now, crowd := int64(0), uint64(1)
		for i := range 30_000 {
			switch now += r.Int64N(20); r.IntN(2_000) {
			case 0:
				now -= r.Int64N(4 * span)
			case 1:
				now += r.Int64N(4 * span)
			case 2:
				now = r.Int64N(2*farTime) - farTime // whatever a clock may say
			case 3:
				now = 1_000_000
			case 4:
				crowd = 1 << r.Uint64N(14)
			}
			var id topics.Identity
			binary.LittleEndian.PutUint64(id[:], r.Uint64N(crowd))
			identified := r.IntN(10) > 0
			if got, want := w.Observe(now, id, identified), ref.observe(now, id, identified); got != want {
				t.Fatalf("seed %d, record %d at %d: duplicate %v, want %v", seed, i, now, got, want)
			}
			if w.Len() < len(ref.alive) {
				t.Fatalf("seed %d, record %d at %d: %d entries, %d are alive", seed, i, now, w.Len(), len(ref.alive))
			}
		}
	}
}

// A peak's memory is given back while traffic goes on, and at steady traffic the dead are a small part.
func TestWindowGivesMemoryBack(t *testing.T) {
	w := NewWindow(time.Minute)
	var id topics.Identity
	n, ms := uint64(0), int64(0)
	observe := func(records int, every int64) {
		for range records {
			binary.LittleEndian.PutUint64(id[:], n)
			w.Observe(ms, id, true)
			n, ms = n+1, ms+every
		}
	}
	observe(300_000, 1) // 60,000 in a minute, for five minutes
	if got := w.Len(); got < 60_000 || got > 60_000*9/8+segments {
		t.Errorf("%d entries at 60,000 alive", got)
	}
	if perEntry := w.Bytes() / w.Len(); perEntry > 41 {
		t.Errorf("%d bytes for an entry", perEntry)
	}
	observe(140, 1_000) // one in a second
	if got := w.Len(); got > 60*9/8+segments {
		t.Errorf("%d entries at 60 alive", got)
	}
	if got := w.Bytes(); got > 16<<10 {
		t.Errorf("%d bytes at 60 alive", got)
	}
}

// BenchmarkWindow fills a window with a million entries, then goes on at its full size. "map" is the rule on a map and
// a heap: the window as it was, for comparison.
func BenchmarkWindow(b *testing.B) {
	const alive = 1_000_000
	id := func(i int) (id topics.Identity) {
		binary.LittleEndian.PutUint64(id[:], uint64(i)*0x9e3779b97f4a7c15)
		return id
	}
	type observer func(ms int64, id topics.Identity, identified bool) bool
	for _, of := range []struct {
		name string
		make func() observer
	}{
		{"map", func() observer { return newReference(alive).observe }},
		{"table", func() observer { return NewWindow(alive * time.Millisecond).Observe }},
	} {
		b.Run(of.name+"/fill", func(b *testing.B) {
			var before, after runtime.MemStats
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				began, observe := cpuTime(), of.make()
				for i := range alive {
					observe(int64(i), id(i), true)
				}
				b.ReportMetric(float64((cpuTime()-began).Nanoseconds())/alive, "cpu-ns/record")
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/alive, "B/entry")
				runtime.KeepAlive(observe)
			}
		})
		b.Run(of.name+"/steady", func(b *testing.B) {
			observe, n := of.make(), 0
			for ; n < 2*alive; n++ {
				observe(int64(n), id(n), true)
			}
			b.ReportAllocs()
			began, first := cpuTime(), n
			for b.Loop() {
				observe(int64(n), id(n), true)
				n++
			}
			b.ReportMetric(float64((cpuTime()-began).Nanoseconds())/float64(n-first), "cpu-ns/record")
		})
	}
}

// cpuTime is what this process has used: a busy machine does not change it much.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// reference is the rule on a map and a heap.
type reference struct {
	span   int64
	alive  map[topics.Identity]int64
	expiry expiries
}

func newReference(span int64) *reference {
	return &reference{span: span, alive: make(map[topics.Identity]int64)}
}

func (w *reference) observe(ms int64, id topics.Identity, identified bool) bool {
	for len(w.expiry) > 0 && w.expiry[0].ms+w.span < ms {
		e := heap.Pop(&w.expiry).(expiry)
		if w.alive[e.id] == e.ms {
			delete(w.alive, e.id)
		}
	}
	if !identified {
		return false
	}
	last, duplicate := w.alive[id]
	if !duplicate || ms > last {
		w.alive[id] = ms
		heap.Push(&w.expiry, expiry{ms, id})
	}
	return duplicate
}

type expiry struct {
	ms int64
	id topics.Identity
}

// expiries is a heap, earliest first. An entry whose time is no longer that of its identity is stale.
type expiries []expiry

func (h expiries) Len() int           { return len(h) }
func (h expiries) Less(i, j int) bool { return h[i].ms < h[j].ms }
func (h expiries) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *expiries) Push(x any)        { *h = append(*h, x.(expiry)) }
func (h *expiries) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// The answer to an append and the tail's reading of it race: either order must give the verdict.
func TestTailPartAnswersInEitherOrder(t *testing.T) {
	for _, readFirst := range []bool{true, false} {
		p := &tailPart{waiting: make(map[int64]func(bool)), duplicates: make(map[int64]bool)}
		got := make(map[int64]bool)
		await := func() {
			for o := range int64(2) {
				p.await(o, func(duplicate bool) { got[o] = duplicate })
			}
		}
		if !readFirst {
			await()
		}
		p.routed(Batch{To: 2, Events: []*topics.Event{{Offset: 0}, {Offset: 1, Duplicate: true}}})
		if readFirst {
			await()
		}
		if len(got) != 2 || got[0] || !got[1] {
			t.Errorf("read first %v: verdicts %v, want the second a duplicate", readFirst, got)
		}
	}
}
