package sqldb_test

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// answering is a database that takes a millisecond to say where a projection stands.
type answering struct {
	next  [4]atomic.Int64 // by partition
	fails atomic.Pointer[error]
	asked atomic.Int64 // questions so far
	now   atomic.Int64 // of them, under way
	most  atomic.Int64 // at once
}

func (a *answering) all(context.Context) (map[topics.Partition]pipeline.Position, error) {
	a.asked.Add(1)
	a.most.Store(max(a.most.Load(), a.now.Add(1)))
	defer a.now.Add(-1)
	at := make(map[topics.Partition]pipeline.Position)
	for p := range a.next {
		at[topics.Keys.Partition(int32(p))] = pipeline.Position{Next: a.next[p].Load()}
	}
	err := a.fails.Load()
	time.Sleep(time.Millisecond)
	if err != nil {
		return nil, *err
	}
	return at, nil
}

// TestWaitersShare: who waits for random offsets is told once they are reached and not before, however many come and go; the database is
// asked once at a time, no more often than for one, and by nobody once nobody waits.
func TestWaitersShare(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed, 0))
		db := new(answering)
		w := sqldb.NewWaiters(db.all)
		const waiters, highest = 300, 100
		var done sync.WaitGroup
		for range waiters {
			ends := topics.Ends{topics.Keys.Partition(r.Int32N(4)): 1 + r.Int64N(highest), topics.Keys.Partition(r.Int32N(4)): 1 + r.Int64N(highest)}
			patience := time.Duration(r.IntN(3000)) * time.Millisecond
			done.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				err := w.Await(ctx, ends)
				reached := true
				for of, end := range ends {
					reached = reached && db.next[of.ID].Load() >= end
				}
				if err == nil && !reached {
					t.Errorf("told that %v are reached", ends)
				}
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
			})
		}
		begun := time.Now()
		for step := range highest {
			for p := range db.next {
				db.next[p].Store(int64(step + 1))
			}
			time.Sleep(10 * time.Millisecond)
		}
		done.Wait()
		// A pause of 5 ms and an answer that takes 1 ms; those who come all at once are one more.
		if most := int64(time.Since(begun)/(6*time.Millisecond)) + 2; db.asked.Load() > most {
			t.Errorf("%d waiters cost %d questions in %s, want at most %d", waiters, db.asked.Load(), time.Since(begun), most)
		}
		if n := db.most.Load(); n != 1 {
			t.Errorf("%d questions at once", n)
		}
		time.Sleep(time.Second)
		before := db.asked.Load()
		time.Sleep(time.Second)
		if n := db.asked.Load() - before; n > 0 {
			t.Errorf("asked %d times while nobody waited", n)
		}
	})
}

// Who comes is answered at once, not at the end of somebody else's pause.
func TestWaiterIsAnsweredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := new(answering)
		db.next[0].Store(9)
		w := sqldb.NewWaiters(db.all)
		var other sync.WaitGroup
		other.Go(func() {
			if err := w.Await(t.Context(), topics.Ends{topics.Keys.Partition(0): 10}); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(2 * time.Millisecond) // in the pause
		begun := time.Now()
		if err := w.Await(t.Context(), topics.Ends{topics.Keys.Partition(0): 9}); err != nil || time.Since(begun) > time.Millisecond {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
		db.next[0].Store(10)
		other.Wait()
	})
}

// A wait that ends without what was waited for says why: the database's error, or which partition is short of which offset.
func TestWaitersAreToldWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := new(answering)
		db.next[3].Store(7)
		w := sqldb.NewWaiters(db.all)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := w.Await(ctx, topics.Ends{topics.Keys.Partition(3): 8})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "keys/3 is folded up to offset 7, not yet to 8") {
			t.Error(err)
		}
		short, end := context.WithTimeout(t.Context(), 500*time.Microsecond) // an answer takes longer
		defer end()
		err = w.Await(short, topics.Ends{topics.Keys.Partition(3): 8})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the database has not answered") {
			t.Error(err)
		}
		away := errors.New("the database is away")
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var waiting sync.WaitGroup
		for range 9 {
			waiting.Go(func() {
				if err := w.Await(ctx, topics.Ends{topics.Keys.Partition(0): 1}); !errors.Is(err, away) {
					t.Errorf("got %v, want the database's error", err)
				}
			})
		}
		time.Sleep(time.Second)
		db.fails.Store(&away)
		waiting.Wait()
		db.fails.Store(nil)
		db.next[0].Store(1)
		if err := w.Await(t.Context(), topics.Ends{topics.Keys.Partition(0): 1}); err != nil {
			t.Errorf("once the database is back: %v", err)
		}
	})
}

// On the stores: what another transaction has committed is seen, and a position that was never made is not reached.
func TestWaitersOnStores(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { testWaiters(t, openSQLite(t)) })
	t.Run("postgres", func(t *testing.T) { testWaiters(t, openPostgres(t, sqldb.Limits{}, testenv.Postgres(t))) })
}

func testWaiters(t *testing.T, db *sqldb.DB) {
	must(t, db.Migrate(t.Context(), "p", embed.FS{}))
	p := sqldb.Positions{DB: db, Projection: "p"}
	w := sqldb.NewWaiters(p.All)
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	told := make(chan error, 1)
	go func() { told <- w.Await(ctx, topics.Ends{topics.Messages.Partition(0): 5}) }()
	if _, err := p.Next(ctx, topics.Messages.Partition(0)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Next(ctx, topics.Messages.Partition(1)); err != nil {
		t.Fatal(err)
	}
	must(t, db.Tx(ctx, func(tx *sql.Tx) error {
		return p.Move(ctx, tx, pipeline.Batch{Topic: topics.Messages, Partition: 1, To: 9}, 0)
	}))
	must(t, w.Await(ctx, topics.Ends{topics.Messages.Partition(1): 9}))
	select {
	case err := <-told:
		t.Fatalf("partition 0 has not moved: %v", err)
	default:
	}
	must(t, db.Tx(ctx, func(tx *sql.Tx) error {
		return p.Move(ctx, tx, pipeline.Batch{Topic: topics.Messages, To: 5}, 0)
	}))
	must(t, <-told)
}
