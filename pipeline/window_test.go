package pipeline

import (
	"math/rand/v2"
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
}

func BenchmarkWindow(b *testing.B) {
	w := NewWindow(5 * time.Minute)
	b.ReportAllocs()
	for i := range b.N {
		w.Observe(int64(i)/10, topics.Identity{byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24)}, true)
	}
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
		p.passed(Batch{To: 2, Events: []*topics.Event{{Offset: 0}, {Offset: 1, Duplicate: true}}})
		if readFirst {
			await()
		}
		if len(got) != 2 || got[0] || !got[1] {
			t.Errorf("read first %v: verdicts %v, want the second a duplicate", readFirst, got)
		}
	}
}
