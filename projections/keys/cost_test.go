package keys_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
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

// fill makes rows of a directory that was used for long: users, named name0 and so on, with a phone of 100 one-time keys each, of
// which half wait to be handed out; and a user of that name, whose phone has as many that are spent as all others have together.
func fill(t testing.TB, db *sqldb.DB, name string, users int) {
	t.Helper()
	series := func(n int) string {
		if db.Postgres() {
			return fmt.Sprintf(`(SELECT g AS n FROM generate_series(0, %d) AS g)`, n-1)
		}
		return fmt.Sprintf(`(WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n+1 FROM s WHERE n<%d) SELECT n FROM s)`, n-1)
	}
	id, text := `'00000000-0000-4000-8000-' || CAST(1000000+k.n AS TEXT)`, "'"+strings.Repeat("A", 88)+"'"
	for _, statement := range []string{
		`INSERT INTO key_devices SELECT '` + name + `' || u.n, 'phone', 'i', 100 FROM ` + series(users) + ` u`,
		`INSERT INTO prekeys (user_id, device_id, id, n, key, taken_by, taken_at) SELECT '` + name + `' || u.n, 'phone', ` + id + `, k.n,
			CASE WHEN k.n<50 THEN '' ELSE ` + text + ` END, CASE WHEN k.n<50 THEN '' END, CASE WHEN k.n<50 THEN 1 END
			FROM ` + series(users) + ` u CROSS JOIN ` + series(100) + ` k`,
		fmt.Sprintf(`INSERT INTO key_devices VALUES ('%s', 'phone', 'i', %d)`, name, 100*users),
		`INSERT INTO prekeys (user_id, device_id, id, n, key, taken_by, taken_at) SELECT '` + name + `', 'phone', ` + id + `, k.n, '', '', 1
			FROM ` + series(100*users) + ` k`,
		`ANALYZE`,
	} {
		if _, err := db.Write.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// use does with a user's phone what clients do: it publishes, somebody looks, takes a one-time key and is given it.
func use(t *testing.T, d *keys.Directory, user string, part int32) {
	t.Helper()
	at, err := d.Position(t.Context(), topics.Keys.Partition(part))
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]string, topics.MaxPrekeys)
	for n := range ids {
		ids[n] = fmt.Sprintf("%d-%d", at.Next, n)
	}
	apply(t, d, batch(t, part, at.Next, published(user, ids...)))
	if list, err := d.Devices(t.Context(), user); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	ids, err = d.Left(t.Context(), user, "phone", 64)
	if err != nil || len(ids) == 0 {
		t.Fatalf("left are %v, %v", ids, err)
	}
	e := taken(user, ids[0])
	apply(t, d, batch(t, part, at.Next+1, e))
	if h, err := d.Outcome(bounded(t), e); err != nil || h == nil {
		t.Errorf("got %v, %v", h, err)
	}
}

// TestCost: what keys cost does not depend on how many others there are, nor on how many one-time keys a device has had. PostgreSQL counts
// the pages that it touches; SQLite tells the plan of every statement that runs.
func TestCost(t *testing.T) {
	t.Run("sqlite", testPlans)
	t.Run("postgres", testPages)
}

func testPages(t *testing.T) {
	db, err := sqldb.OpenPostgres(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d := opened(t, db, ends{})
	begin(t, d, 3)
	pages := testenv.Pages(t, db.Write, "prekeys", "key_devices")
	cost := func(user string) int64 {
		use(t, d, user, 0)
		before := pages()
		use(t, d, user, 0)
		return pages() - before
	}
	fill(t, db, "some", 20)
	few := cost("some7")
	fill(t, db, "u", 500)
	for _, user := range []string{"u77", "u"} {
		if n := cost(user); n > 2*few || few == 0 { // an index grows by a level
			t.Errorf("what user %s does touches %d pages among 100,000 one-time keys, %d among 4,000", user, n, few)
		} else {
			t.Logf("%d pages, then %d for %s", few, n, user)
		}
	}
}

func testPlans(t *testing.T) {
	file := filepath.Join(t.TempDir(), "k.db")
	db, err := sqldb.OpenSQLite(file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d := opened(t, db, ends{})
	begin(t, d, 3)
	fill(t, db, "u", 50)
	plain := *db
	rec := &recorder{driver: db.Read.Driver(), file: file}
	db.Read = sql.OpenDB(rec)
	defer db.Read.Close()
	db.Write = db.Read
	db.Write.SetMaxOpenConns(1)
	defer plain.Close()
	apply(t, d, batch(t, 1, 0, topics.DeviceKeys{DeviceID: "phone", Removed: true}.Event("u7")))
	use(t, d, "u17", 0)
	use(t, d, "u7", 1)
	use(t, d, "u", 2)
	if len(rec.seen) < 12 {
		t.Errorf("only %d statements were seen", len(rec.seen))
	}
	for _, s := range rec.seen {
		if !strings.Contains(s.text, "prekeys") && !strings.Contains(s.text, "key_devices") {
			continue
		}
		err := plain.Query(t.Context(), func(rows *sql.Rows) error {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				return err
			}
			if strings.HasPrefix(detail, "SCAN ") && detail != "SCAN CONSTANT ROW" || strings.Contains(detail, "TEMP B-TREE") {
				t.Errorf("%s: %s", s.text, detail)
			}
			t.Logf("%.70q: %s", s.text, detail)
			return nil
		}, `EXPLAIN QUERY PLAN `+s.text, s.args...)
		if err != nil {
			t.Errorf("%s: %v", s.text, err)
		}
	}
}

// recorder opens connections to a SQLite file that keep each statement once (driver.Connector).
type recorder struct {
	driver driver.Driver
	file   string
	mu     sync.Mutex
	seen   []statement
}

type statement struct {
	text string
	args []any
}

func (r *recorder) Driver() driver.Driver { return r.driver }

func (r *recorder) Connect(context.Context) (driver.Conn, error) {
	c, err := r.driver.Open("file:" + r.file)
	return recorded{c, r}, err
}

func (r *recorder) add(text string, args []any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.ContainsFunc(r.seen, func(s statement) bool { return s.text == text }) {
		r.seen = append(r.seen, statement{text, args})
	}
}

func (r *recorder) ran(text string, args []driver.NamedValue) {
	values := make([]any, len(args))
	for n, a := range args {
		values[n] = a.Value
	}
	r.add(text, values)
}

// recorded is a connection of a recorder.
type recorded struct {
	driver.Conn
	r *recorder
}

func (c recorded) ExecContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Result, error) {
	c.r.ran(text, args)
	return c.Conn.(driver.ExecerContext).ExecContext(ctx, text, args)
}

func (c recorded) QueryContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Rows, error) {
	c.r.ran(text, args)
	return c.Conn.(driver.QueryerContext).QueryContext(ctx, text, args)
}

func (c recorded) PrepareContext(ctx context.Context, text string) (driver.Stmt, error) {
	c.r.add(text, make([]any, strings.Count(text, "?")))
	return c.Conn.(driver.ConnPrepareContext).PrepareContext(ctx, text)
}

func (c recorded) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	return c.Conn.(driver.ConnBeginTx).BeginTx(ctx, o)
}

// BenchmarkMillion tells what clients wait for among a million one-time keys, on a device that has had half of them: run it with
// -benchtime 100x.
func BenchmarkMillion(b *testing.B) {
	for name, open := range map[string]func() (*sqldb.DB, error){
		"sqlite":   func() (*sqldb.DB, error) { return sqldb.OpenSQLite(filepath.Join(b.TempDir(), "k.db")) },
		"postgres": func() (*sqldb.DB, error) { return sqldb.OpenPostgres(testenv.Postgres(b)) },
	} {
		b.Run(name, func(b *testing.B) {
			db, err := open()
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			d := opened(b, db, ends{})
			begin(b, d, 1)
			fill(b, db, "u", 5_000)
			next := int64(0)
			fold := func(b *testing.B, e *topics.Event) {
				e.Offset, e.Time = next, someTime
				if err := topics.Valid(e); err != nil {
					b.Fatal(err)
				}
				if err := d.Apply(b.Context(), pipeline.Batch{Topic: topics.Keys, From: next, To: next + 1, Events: []*topics.Event{e}}); err != nil {
					b.Fatal(err)
				}
				next++
			}
			b.Run("publish", func(b *testing.B) {
				for n := range b.N {
					ids := make([]string, topics.MaxPrekeys)
					for i := range ids {
						ids[i] = fmt.Sprintf("%d-%d-%d", next, n, i)
					}
					fold(b, published("u", ids...))
				}
			})
			b.Run("devices", func(b *testing.B) {
				for b.Loop() {
					if _, err := d.Devices(b.Context(), "u"); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("take", func(b *testing.B) {
				for b.Loop() {
					ids, err := d.Left(b.Context(), "u", "phone", 1)
					if err != nil || len(ids) == 0 {
						b.Fatal(ids, err)
					}
					e := taken("u", ids[0])
					fold(b, e)
					if h, err := d.Outcome(b.Context(), e); err != nil || h == nil {
						b.Fatal(h, err)
					}
				}
			})
		})
	}
}
