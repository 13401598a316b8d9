package keys_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/keys"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// ends is a log whose topic control ends there. nil: it cannot be asked.
type ends topics.Ends

func (e ends) Ends(context.Context, topics.Topic) (topics.Ends, error) {
	if e == nil {
		return nil, errors.New("the log cannot be asked")
	}
	return topics.Ends(e), nil
}

// onStores runs a test on a new database of each kind.
func onStores(t *testing.T, test func(*testing.T, *sqldb.DB)) {
	for name, open := range map[string]func(*testing.T) (*sqldb.DB, error){
		"sqlite":   func(t *testing.T) (*sqldb.DB, error) { return sqldb.OpenSQLite(filepath.Join(t.TempDir(), "k.db")) },
		"postgres": func(t *testing.T) (*sqldb.DB, error) { return sqldb.OpenPostgres(testenv.Postgres(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			db, err := open(t)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			test(t, db)
		})
	}
}

// onBothStores runs a test on a new directory of each store, over a log that an earlier version has not written to.
func onBothStores(t *testing.T, test func(*testing.T, *sqldb.DB, *keys.Directory)) {
	onStores(t, func(t *testing.T, db *sqldb.DB) {
		d := opened(t, db, ends{})
		begin(t, d, 3)
		test(t, db, d)
	})
}

func opened(t testing.TB, db *sqldb.DB, log ends) *keys.Directory {
	t.Helper()
	d, err := keys.Open(t.Context(), db, log)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// bounded is a context for what may wait: a test then fails with words, and does not hang.
func bounded(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	t.Cleanup(cancel)
	return ctx
}

// begin makes the positions, as a consumer does that takes these partitions over.
func begin(t testing.TB, d *keys.Directory, partitions int32) {
	t.Helper()
	for _, topic := range keys.Topics() {
		for p := range partitions {
			if _, err := d.Position(t.Context(), topic.Partition(p)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// batch gives events the places from an offset on.
func batch(t *testing.T, part int32, from int64, events ...*topics.Event) pipeline.Batch {
	t.Helper()
	for i, e := range events {
		e.Partition, e.Offset, e.Time = part, from+int64(i), 1764583200000
		if err := topics.Valid(e); err != nil {
			t.Fatal(err)
		}
	}
	return pipeline.Batch{Topic: topics.Keys, Partition: part, From: from, To: from + int64(len(events)), Events: events}
}

func apply(t *testing.T, d *keys.Directory, b pipeline.Batch) {
	t.Helper()
	if err := d.Apply(bounded(t), b); err != nil {
		t.Fatal(err)
	}
}

func published(user string, ids ...string) *topics.Event {
	k := topics.DeviceKeys{DeviceID: "phone", IdentityKey: "i"}
	for _, id := range ids {
		k.Prekeys = append(k.Prekeys, topics.Prekey{ID: id, Key: "key of " + id})
	}
	return k.Event(user)
}

func taken(user, id string) *topics.Event {
	return topics.KeyTaken{DeviceID: "phone", PrekeyID: id, By: "asker"}.Event(user)
}

func left(t *testing.T, d *keys.Directory, user string) []string {
	t.Helper()
	ids, err := d.Left(t.Context(), user, "phone", 1000)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// The first key.taken has the key; whoever asked learns what became of his own, whichever it is.
func TestFirstTakenHasIt(t *testing.T) {
	onBothStores(t, func(t *testing.T, _ *sqldb.DB, d *keys.Directory) {
		first, second, none := taken("a", "1"), taken("a", "1"), taken("a", "9")
		apply(t, d, batch(t, 0, 0, published("a", "1", "2"), first, second, none, published("a", "1")))
		h, err := d.Outcome(bounded(t), first)
		if err != nil || h == nil || h.IdentityKey != "i" || h.Prekey != (topics.Prekey{ID: "1", Key: "key of 1"}) {
			t.Errorf("the first got %+v, %v", h, err)
		}
		for _, e := range []*topics.Event{second, none} {
			if h, err := d.Outcome(bounded(t), e); err != nil || h != nil {
				t.Errorf("one that came too late got %+v, %v", h, err)
			}
		}
		if ids := left(t, d, "a"); !slices.Equal(ids, []string{"2"}) {
			t.Errorf("left are %v: a key that was handed out does not come back", ids)
		}
	})
}

// Rows and position move as one: a batch that somebody else has applied changes nothing.
func TestMoved(t *testing.T) {
	onBothStores(t, func(t *testing.T, _ *sqldb.DB, d *keys.Directory) {
		apply(t, d, batch(t, 1, 0, published("a", "1")))
		if err := d.Apply(bounded(t), batch(t, 1, 0, taken("a", "1"))); !errors.Is(err, pipeline.ErrMoved) {
			t.Errorf("got %v, want ErrMoved", err)
		}
		at, err := d.Position(t.Context(), topics.Keys.Partition(1))
		if err != nil || at.Next != 1 || len(left(t, d, "a")) != 1 {
			t.Errorf("at %+v, %v, left %v", at, err, left(t, d, "a"))
		}
	})
}

// Folded by several workers side by side, each with users and a partition of its own, in whatever batches, and once more from the
// beginning: the rows are the same.
func TestFoldedAnew(t *testing.T) {
	onBothStores(t, func(t *testing.T, db *sqldb.DB, d *keys.Directory) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		var log [3][]*topics.Event
		for p := range log {
			for n := range 60 {
				user := fmt.Sprintf("%d of %d", n%4, p)
				e := published(user, fmt.Sprint(r.IntN(9)), fmt.Sprint(10+r.IntN(9)))
				if r.IntN(2) == 0 {
					e = taken(user, fmt.Sprint(r.IntN(19)))
				}
				log[p] = append(log[p], e)
			}
		}
		var before string
		for round := range 2 {
			var workers sync.WaitGroup
			for p, events := range log {
				size := 1 + r.IntN(20)
				workers.Go(func() {
					from := int64(0)
					for some := range slices.Chunk(events, size) {
						if err := d.Apply(bounded(t), batch(t, int32(p), from, some...)); err != nil {
							t.Error(err)
						}
						from += int64(len(some))
					}
				})
			}
			workers.Wait()
			now := rowsOf(t, db)
			if round > 0 {
				same(t, now, before)
			}
			before = now
			if err := d.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			if empty := rowsOf(t, db); empty != "" {
				t.Errorf("after Reset there is\n%s", empty)
			}
		}
	})
}

// rowsOf are all rows of the directory, as text, in order.
func rowsOf(t *testing.T, db *sqldb.DB) string {
	t.Helper()
	var all []string
	rows, err := db.Read.QueryContext(t.Context(), `SELECT user_id, device_id, identity_key, stored, '', '' FROM key_devices
		UNION ALL SELECT user_id, device_id, id, n, key, COALESCE(taken_by, '-') FROM prekeys`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var user, device, name, text, taken string
		var n int64
		if err := rows.Scan(&user, &device, &name, &n, &text, &taken); err != nil {
			t.Fatal(err)
		}
		all = append(all, rowOf(user, device, name, n, text, taken))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// same fails where rows differ, and shows some that do.
func same(t *testing.T, got, want string) {
	t.Helper()
	shown := 0
	differ := func(what, rows, others string) {
		for row := range strings.SplitSeq(rows, "\n") {
			if !strings.Contains("\n"+others+"\n", "\n"+row+"\n") && shown < 10 {
				t.Errorf("%s row %s", what, row)
				shown++
			}
		}
	}
	differ("there is, and must not be,", got, want)
	differ("there is not", want, got)
}

// rowOf is a row as text, of either table.
func rowOf(user, device, name string, n int64, text, taken string) string {
	return fmt.Sprintf("%s %s %s %d %q %q", user, device, name, n, text, taken)
}

// Another log is taken on: what is there stays, what was handed out stays handed out, and folding goes on from there.
func TestAdopt(t *testing.T) {
	onBothStores(t, func(t *testing.T, _ *sqldb.DB, d *keys.Directory) {
		apply(t, d, batch(t, 2, 0, published("a", "1", "2"), taken("a", "1")))
		to := map[topics.Partition]pipeline.Position{topics.Keys.Partition(2): {Next: 0, Log: "another"}}
		if err := d.Adopt(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		late := taken("a", "1") // at the place where the former log's key.taken stood
		apply(t, d, batch(t, 2, 0, published("a", "1", "3"), late))
		if h, err := d.Outcome(bounded(t), late); err != nil || h != nil {
			t.Errorf("a key that was handed out under the former log went to %+v, %v", h, err)
		}
		if ids := left(t, d, "a"); !slices.Equal(ids, []string{"2", "3"}) {
			t.Errorf("left are %v", ids)
		}
	})
}
