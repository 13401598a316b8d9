package pipeline

import (
	"encoding/binary"
	"math"
	"math/bits"
	"math/rand/v2"
	"time"
	"unsafe"

	"github.com/nexus/nexus/topics"
)

// Window is the dedup window of one partition. A record is a duplicate of an earlier one of the same identity as long
// as no record since, itself included, has a time beyond the earlier's time plus the span (equal is inside). So an entry
// dies at the first record that is later by more than the span and never returns; steps back in time change nothing,
// and no wall clock is read: what is a duplicate is a function of the log alone. A Window is owned by one goroutine.
//
// It is an open-addressed table of plain numbers, which the garbage collector does not look into, in segments that grow
// and shrink on their own: no record pays for more than one segment's growth. An entry is dead where its time lies below
// the cut; the dead are removed as time goes on, segment after segment, so one in eight entries is dead at most.
type Window struct {
	span     int64
	seed     uint64 // of the places in the table: nobody can choose keys that crowd one place
	cut      int64  // entries of earlier times are dead
	sweepAt  int64  // the cut at which the next segment is swept
	next     int    // the segment that is swept next
	len      int
	slots    int
	segments [segments]segment
}

const (
	segmentBits = 6
	segments    = 1 << segmentBits
	// sweepsPerSpan is how often a segment loses its dead entries in the time of one span.
	sweepsPerSpan = 8
	// farTime bounds record times, which any producer may claim, so that sums with a span do not overflow.
	farTime = math.MaxInt64 / 4
)

// NewWindow makes an empty window of this span, counted in milliseconds.
func NewWindow(span time.Duration) *Window {
	return &Window{span: span.Milliseconds(), seed: rand.Uint64(), cut: -2 * farTime, sweepAt: -2 * farTime}
}

// Observe takes the next record in, in log order, and reports whether it is a duplicate. ms is its record time, in Unix milliseconds.
// A record without an identity (identified is false) moves time on and is never a duplicate.
func (w *Window) Observe(ms int64, id topics.Identity, identified bool) bool {
	ms = min(max(ms, -farTime), farTime)
	if ms-w.span > w.cut {
		w.cut = ms - w.span
		w.sweep()
	}
	if !identified {
		return false
	}
	hash := w.hash(id)
	s := &w.segments[hash>>(64-segmentBits)]
	e := s.find(hash, id)
	if e != nil && e.time() >= w.cut {
		e.setTime(max(ms, e.time()))
		return true
	}
	if ms < w.cut { // alive although it lies below the cut: from here on nothing else may
		w.dropDead()
		w.cut, w.sweepAt = ms-w.span, ms
		e = s.find(hash, id)
	}
	if e != nil {
		e.setTime(ms)
		return false
	}
	if s.full() {
		w.rebuild(s, 1)
	}
	s.insert(hash, newEntry(id, ms))
	w.len++
	return false
}

// Len is the number of entries, those included that are dead but not removed yet.
func (w *Window) Len() int { return w.len }

// Bytes is the memory of the table, in bytes.
func (w *Window) Bytes() int { return int(unsafe.Sizeof(*w)) + w.slots*int(unsafe.Sizeof(entry{})) }

// hash spreads identities over the table. They are hashes already, but of keys that a sender may choose.
func (w *Window) hash(id topics.Identity) uint64 {
	hi, lo := bits.Mul64(binary.LittleEndian.Uint64(id[:8])^w.seed, 0x9e3779b97f4a7c15)
	return hi ^ lo
}

// sweep removes dead entries: one segment for each step of time, all of them where time made a leap.
func (w *Window) sweep() {
	if w.cut < w.sweepAt {
		return
	}
	step := w.span/(segments*sweepsPerSpan) + 1
	due := (w.cut-w.sweepAt)/step + 1
	w.sweepAt += due * step
	for range min(due, segments) {
		s := &w.segments[w.next]
		w.next = (w.next + 1) % segments
		w.rebuild(s, 0)
	}
}

// dropDead removes every dead entry.
func (w *Window) dropDead() {
	for i := range w.segments {
		w.rebuild(&w.segments[i], 0)
	}
}

// rebuild makes a segment anew without its dead entries, in the size that suits the living and some more.
func (w *Window) rebuild(s *segment, more int) {
	alive := 0
	for i := range s.slots {
		if e := &s.slots[i]; e.taken() && e.time() >= w.cut {
			alive++
		}
	}
	if alive == s.used && more == 0 {
		return
	}
	old := s.slots
	w.len += alive - s.used
	s.slots, s.used = nil, 0
	if alive+more > 0 {
		s.slots = make([]entry, (alive+more)*8/5+1)
	}
	w.slots += len(s.slots) - len(old)
	for i := range old {
		if e := &old[i]; e.taken() && e.time() >= w.cut {
			s.insert(w.hash(e.id), *e)
		}
	}
}

// segment is a part of the table, with linear probing. An entry's place follows from its hash, in the order of hashes, so
// that a rebuild walks both tables from begin to end.
type segment struct {
	slots []entry
	used  int
}

// full tells that the segment takes no further entry: 4 of 5 slots are taken. One slot at least is always free.
func (s *segment) full() bool { return (s.used+1)*5 > len(s.slots)*4 }

func (s *segment) home(hash uint64) int {
	place, _ := bits.Mul64(hash<<segmentBits, uint64(len(s.slots)))
	return int(place)
}

// find is where the identity is, dead or alive; nil if it is not there.
func (s *segment) find(hash uint64, id topics.Identity) *entry {
	if s.used == 0 {
		return nil
	}
	for i := s.home(hash); s.slots[i].taken(); {
		if s.slots[i].id == id {
			return &s.slots[i]
		}
		if i++; i == len(s.slots) {
			i = 0
		}
	}
	return nil
}

// insert adds an entry that is not there, to a segment that is not full.
func (s *segment) insert(hash uint64, e entry) {
	i := s.home(hash)
	for s.slots[i].taken() {
		if i++; i == len(s.slots) {
			i = 0
		}
	}
	s.slots[i] = e
	s.used++
}

// entry is an identity and the greatest time among its live records.
type entry struct {
	id     topics.Identity
	stored int64 // time + takenOffset; zero is an empty slot
}

const takenOffset = 2 * farTime

func newEntry(id topics.Identity, ms int64) entry { return entry{id, ms + takenOffset} }
func (e *entry) taken() bool                      { return e.stored != 0 }
func (e *entry) time() int64                      { return e.stored - takenOffset }
func (e *entry) setTime(ms int64)                 { e.stored = ms + takenOffset }
