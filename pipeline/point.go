package pipeline

import (
	"context"
	"sort"
	"sync"
	"time"

	"github.com/nexus/nexus/topics"
)

// Point is a place between two records of a partition, as a client's offset names it: the client has everything below Next. Check tells
// whether a log still has the same records there: one that was truncated or restored from a backup, and has grown since, has others
// (decision 0024).
type Point struct {
	Next  int64
	Check uint16 // of the record time of the last record below Next; 0 where there is none
}

// PointAt is the point right above a record. time is its record time, in Unix milliseconds; 0 means that no record stands below.
func PointAt(next, time int64) Point {
	return Point{next, uint16(time) ^ uint16(time>>16) ^ uint16(time>>32)}
}

// pack puts a point into one word, so that its two halves change as one. Offsets have 47 bits: at a million records a second
// and partition that is four years.
func (p Point) pack() uint64 { return uint64(p.Next)<<16 | uint64(p.Check) }

func unpack(v uint64) Point { return Point{int64(v >> 16), uint16(v)} }

// retainedPoints is how many of a partition's last records the tail remembers to verify points with, 16 bytes each.
const retainedPoints = 8192

// history knows the last records of a partition by time. It is safe for concurrent use.
type history struct {
	mu      sync.Mutex
	records []record // in order, a ring of the last keptPoints that begins at first
	first   int
}

// add takes in the next record; one that is known already changes nothing.
func (h *history) add(offset, time int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.records); n > 0 && h.at(n-1).offset >= offset {
		return
	}
	r := record{offset: offset, time: time, found: true}
	if len(h.records) < retainedPoints {
		h.records = append(h.records, r)
		return
	}
	h.records[h.first] = r
	h.first = (h.first + 1) % retainedPoints
}

func (h *history) at(i int) record { return h.records[(h.first+i)%len(h.records)] }

// below finds the last record below an offset; known is false where the history does not go back that far.
func (h *history) below(next int64) (r record, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := sort.Search(len(h.records), func(i int) bool { return h.at(i).offset >= next })
	if n == 0 {
		return r, false
	}
	return h.at(n - 1), true
}

// Verify reports whether points are surely of this log: below each stands what stood there when the point was made. The edge asks for
// each client that comes back with an offset. Where memory does not go back that far it looks into the log. It waits, for half a second
// at most, for the tail to come to a point that is ahead of it: the client may have it from a node that was a moment ahead. Errors:
// ctx's, or those of the log; nothing is known then.
func (t *Tail) Verify(ctx context.Context, points map[topics.Partition]Point) (bool, error) {
	if err := t.reach(ctx, points); err != nil {
		return false, err
	}
	unknown := make(topics.Ends)
	for of, point := range points {
		part := t.part(of)
		switch r, known := part.history.below(point.Next); {
		case point.Next > part.high.Load():
			return false, nil
		case known && PointAt(point.Next, r.time) != point:
			return false, nil
		case !known && point.Next > 0:
			unknown[of] = point.Next
		case point.Next == 0 && point.Check != 0:
			return false, nil
		}
	}
	if len(unknown) == 0 {
		return true, nil
	}
	return t.verifyInLog(ctx, points, unknown)
}

// aheadFor is how long a tail is waited for to come to a point: longer than nodes are apart, unless one stands still.
const aheadFor = 500 * time.Millisecond

// reach returns once nothing below the points is left to be routed, or after aheadFor.
func (t *Tail) reach(ctx context.Context, points map[topics.Partition]Point) error {
	late := time.Now().Add(aheadFor)
	for of, point := range points {
		for point.Next > t.part(of).high.Load() && time.Now().Before(late) {
			if !sleep(ctx, time.Millisecond) {
				return ctx.Err()
			}
		}
	}
	return nil
}

// verifyInLog is Verify for points that memory does not know. A herd of clients that come back is answered by timesAt; what
// that leaves open is looked for the slow way.
func (t *Tail) verifyInLog(ctx context.Context, points map[topics.Partition]Point, unknown topics.Ends) (bool, error) {
	found, err := t.look(ctx, unknown)
	if err != nil {
		return false, err
	}
	open := make(topics.Ends)
	for of, next := range unknown {
		switch r, known := found[of]; {
		case !known:
			open[of] = next
		case PointAt(next, r.time) != points[of]:
			return false, nil
		}
	}
	if len(open) == 0 {
		return true, nil
	}
	return t.verifySlowly(ctx, points, open)
}

// look is timesAt for some clients at once.
func (t *Tail) look(ctx context.Context, unknown topics.Ends) (map[topics.Partition]record, error) {
	if err := enter(ctx, t.looking); err != nil {
		return nil, err
	}
	defer leave(t.looking)
	found := t.cluster.timesAt(ctx, unknown)
	t.cluster.kafka.Metrics.looked("fetch", len(unknown))
	return found, nil
}

// verifySlowly is verifyInLog by a scan, which opens clients: for a few at once.
func (t *Tail) verifySlowly(ctx context.Context, points map[topics.Partition]Point, open topics.Ends) (bool, error) {
	if err := enter(ctx, t.verifying); err != nil {
		return false, err
	}
	defer leave(t.verifying)
	t.cluster.kafka.Metrics.looked("scan", len(open))
	all, err := t.cluster.extents(ctx, open, true)
	if err != nil {
		return false, err
	}
	for of := range open {
		x, point := all[of], points[of]
		if inside := x.start <= point.Next && point.Next <= x.end; !inside || PointAt(point.Next, x.before.time) != point { // no record: time 0
			return false, nil
		}
	}
	return true, nil
}

// enter waits for room among those who do something at once; leave makes room.
func enter(ctx context.Context, room chan struct{}) error {
	select {
	case room <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func leave(room chan struct{}) { <-room }
