package keys_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/keys"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

const (
	partitions  = 3
	usersOfEach = 2 // partition
	someTime    = 1764583200000
)

// TestFold folds random events of a log that an earlier version began: batches of both topics, of several partitions and users, come in
// any order, are repeated and fail. What comes of it is what a model says of control's events and then those of keys, row by row.
func TestFold(t *testing.T) {
	onStores(t, func(t *testing.T, db *sqldb.DB) {
		for range 2 {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			testFold(t, db, rand.New(rand.NewPCG(seed, 0)))
		}
	})
}

// stream is a partition of a topic.
type stream struct {
	topic  topics.Topic
	part   int32
	events []*topics.Event
	next   int // is folded up to here
}

func (s *stream) batch(size int) pipeline.Batch {
	to := min(s.next+size, len(s.events))
	return pipeline.Batch{Topic: s.topic, Partition: s.part, From: int64(s.next), To: int64(to), Events: s.events[s.next:to]}
}

// randomLog makes the streams of both topics, and what the model says of them.
func randomLog(t *testing.T, r *rand.Rand) (control, after []*stream, want model) {
	want = model{}
	for part := range int32(partitions) {
		at := int64(someTime)
		for _, topic := range []topics.Topic{topics.Control, topics.Keys} {
			s := &stream{topic: topic, part: part}
			for n := range 50 {
				of := r.IntN(usersOfEach)
				e := randomEvent(r, fmt.Sprintf("user%d-%d", part, of), of == 0)
				at += r.Int64N(3_000)
				e.Topic, e.Partition, e.Offset, e.Time = topic, part, int64(n), at
				e.Duplicate, e.Stray = r.IntN(30) == 0, r.IntN(30) == 0
				if err := topics.Valid(e); err != nil {
					t.Fatal(err)
				}
				want.fold(e)
				s.events = append(s.events, e)
			}
			if topic == topics.Control {
				control = append(control, s)
			} else {
				after = append(after, s)
			}
		}
	}
	return control, after, want
}

// folding is what testFold does.
type folding struct {
	*testing.T
	ctx  context.Context
	d    *keys.Directory
	r    *rand.Rand
	left atomic.Int64 // batches' events of control that were not handed over yet
	held sync.WaitGroup
}

func testFold(t *testing.T, db *sqldb.DB, r *rand.Rand) {
	control, after, want := randomLog(t, r)
	ends, ctx := ends{}, bounded(t)
	f := &folding{T: t, ctx: ctx, r: r}
	for _, s := range control {
		ends[s.topic.Partition(s.part)] = int64(len(s.events))
		f.left.Add(int64(len(s.events)))
	}
	f.d = opened(t, db, ends)
	if err := f.d.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	begin(t, f.d, partitions)
	all := slices.Concat(control, after)
	for len(all) > 0 && !t.Failed() {
		at := r.IntN(len(all))
		s := all[at]
		if s.topic == topics.Keys && s.next == 0 && f.left.Load() > 0 {
			f.hold(s)
			all = slices.Delete(all, at, at+1)
			continue
		}
		if f.step(s); s.next == len(s.events) {
			all = slices.Delete(all, at, at+1)
		}
	}
	f.held.Wait()
	if t.Failed() {
		return
	}
	same(t, rowsOf(t, db), want.rows())
	f.answers(slices.Concat(control, after), want)
}

// hold folds a stream of keys beside the others, since it must wait until control is folded.
func (f *folding) hold(s *stream) {
	size := 1 + f.r.IntN(20)
	f.held.Go(func() {
		for s.next < len(s.events) && f.ctx.Err() == nil {
			b := s.batch(size)
			err := f.d.Apply(f.ctx, b)
			if n := f.left.Load(); err == nil && n > 0 {
				f.Errorf("%s/%d was folded while %d events of control were not", s.topic, s.part, n)
				return
			}
			switch {
			case errors.Is(err, context.DeadlineExceeded): // its turn has not come; a worker tries again
			case err != nil:
				f.Error(err)
				return
			default:
				s.next = int(b.To)
			}
		}
	})
}

// step applies a random batch of a stream, or one that changes nothing.
func (f *folding) step(s *stream) {
	b := s.batch(1 + f.r.IntN(20))
	switch f.r.IntN(8) {
	case 0:
		cut, cancel := context.WithCancel(f.ctx)
		cancel()
		if err := f.d.Apply(cut, b); !errors.Is(err, context.Canceled) {
			f.Errorf("cut off: %v", err)
		}
		return
	case 1:
		if s.next == 0 {
			return
		}
		again := pipeline.Batch{Topic: s.topic, Partition: s.part, From: int64(s.next) - 1, To: int64(s.next),
			Events: s.events[s.next-1 : s.next]}
		if err := f.d.Apply(f.ctx, again); !errors.Is(err, pipeline.ErrMoved) {
			f.Errorf("a batch that was folded before: %v", err)
		}
		return
	}
	if s.topic == topics.Control {
		f.left.Add(int64(s.next) - b.To)
	}
	if err := f.d.Apply(f.ctx, b); err != nil {
		f.Error(err)
	}
	s.next = int(b.To)
}

// answers holds what the directory answers against the model.
func (f *folding) answers(all []*stream, want model) {
	for user, devices := range want {
		list, err := f.d.Devices(f.ctx, user)
		if err != nil || len(list) != len(devices) {
			f.Errorf("%s has devices %v, %v; want %d", user, list, err, len(devices))
			continue
		}
		for _, x := range list {
			left, err := f.d.Left(f.ctx, user, x.ID, 1000)
			if d := devices[x.ID]; err != nil || d.identity != x.IdentityKey || !slices.Equal(left, d.left()) || len(left) != x.Prekeys {
				f.Errorf("%s has %+v with %v, %v; want %s with %v", user, x, left, err, d.identity, d.left())
			}
		}
	}
	given := 0
	for _, s := range all {
		for _, e := range s.events {
			if e.Type != topics.TypeKeyTaken {
				continue
			}
			h, err := f.d.Outcome(f.ctx, e)
			got := ""
			if h != nil {
				got = h.IdentityKey + " " + h.Prekey.Key
				given++
			}
			if err != nil || got != want.outcome(e) {
				f.Errorf("%s/%d at offset %d got %q, %v; want %q", s.topic, s.part, e.Offset, got, err, want.outcome(e))
			}
		}
	}
	f.Logf("%d one-time keys given", given)
}

// TestKeysWaitForControl: the beginning of topic keys is not folded before control is, and then says what it waits for. Nothing else waits.
func TestKeysWaitForControl(t *testing.T) {
	onStores(t, func(t *testing.T, db *sqldb.DB) {
		d := opened(t, db, ends{topics.Control.Partition(0): 0, topics.Control.Partition(2): 2})
		begin(t, d, 3)
		first := batch(t, 0, 0, published("a", "1"))
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := d.Apply(short, first)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "control/2 is folded up to offset 0, not yet to 2") {
			t.Errorf("got %v, want that it waits for control", err)
		}
		if rows := rowsOf(t, db); rows != "" {
			t.Errorf("there is %s", rows)
		}
		older := batch(t, 2, 0, published("c", "1"), taken("c", "1"))
		older.Topic = topics.Control
		apply(t, d, older)
		apply(t, d, first)
		apply(t, d, batch(t, 2, 0, published("c", "1", "2")))
		if ids := left(t, d, "c"); !slices.Equal(ids, []string{"2"}) {
			t.Errorf("left are %v: what was handed out by control does not come back", ids)
		}
		// Once it has begun nothing is asked of control, which grows.
		unknown := opened(t, db, nil)
		apply(t, unknown, batch(t, 0, 1, published("a", "2")))
	})
}

// TestSpent: the text of a one-time key that was handed out a minute ago goes when its device publishes further ones; the id stays used.
func TestSpent(t *testing.T) {
	onBothStores(t, func(t *testing.T, db *sqldb.DB, d *keys.Directory) {
		first, second := taken("a", "1"), taken("a", "2")
		apply(t, d, batch(t, 0, 0, published("a", "1", "2", "3"), published("b", "1"), first, taken("b", "1")))
		b := batch(t, 0, 4, second, published("a", "4"))
		b.Events[0].Time, b.Events[1].Time = someTime+30_000, someTime+60_001
		apply(t, d, b)
		if h, err := d.Outcome(bounded(t), first); err != nil || h != nil {
			t.Errorf("after a minute there is %+v, %v", h, err)
		}
		if h, err := d.Outcome(bounded(t), second); err != nil || h == nil || h.Prekey.Key != "key of 2" {
			t.Errorf("after half a minute there is %+v, %v", h, err)
		}
		rows := rowsOf(t, db)
		for _, row := range []string{`a phone 1 0 "" ""`, `a phone 3 2 "key of 3" "-"`, `b phone 1 0 "key of 1" `} {
			if !strings.Contains(rows, row) {
				t.Errorf("there is\n%s\nwant %s", rows, row)
			}
		}
		apply(t, d, batch(t, 0, 6, published("a", "1", "5")))
		if ids := left(t, d, "a"); !slices.Equal(ids, []string{"3", "4", "5"}) {
			t.Errorf("left are %v: one that was handed out does not come back", ids)
		}
	})
}

// TestSpentOfBefore: one-time keys that a build without 0002_spent.sql handed out stay handed out, with their texts until the device
// publishes.
func TestSpentOfBefore(t *testing.T) {
	onBothStores(t, func(t *testing.T, db *sqldb.DB, d *keys.Directory) {
		e := taken("a", "1")
		apply(t, d, batch(t, 0, 0, published("a", "1", "2"), e))
		for _, statement := range []string{`DROP INDEX prekeys_spent`, `ALTER TABLE prekeys DROP COLUMN taken_at`,
			`DELETE FROM migrations WHERE name='keys/0002_spent.sql'`} {
			if _, err := db.Write.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		d = opened(t, db, nil)
		if h, err := d.Outcome(bounded(t), e); err != nil || h == nil || h.Prekey.Key != "key of 1" {
			t.Errorf("after the migration there is %+v, %v", h, err)
		}
		apply(t, d, batch(t, 0, 2, published("a", "3")))
		rows := rowsOf(t, db)
		for _, row := range []string{`a phone 1 0 "" ""`, `a phone 2 1 "key of 2" "-"`, `a phone 3 2 "key of 3" "-"`} {
			if !strings.Contains(rows, row) {
				t.Errorf("there is\n%s\nwant %s", rows, row)
			}
		}
	})
}

func TestMain(m *testing.M) { testenv.Exit(m) }
