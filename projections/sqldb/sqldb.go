// Package sqldb opens the relational databases that projections live in, SQLite and PostgreSQL, behind database/sql,
// applies their migrations, inserts in bulk, and keeps positions. One set of queries with $n runs on both.
package sqldb

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
	_ "modernc.org/sqlite"             // driver "sqlite"
)

// DB is a database of a projection. Read runs beside a writer; Write is for transactions that change something. It is
// safe for concurrent use.
type DB struct {
	Read, Write *sql.DB
	postgres    bool
}

// OpenSQLite opens the file at path, making it where it is missing. Its folder must exist. One connection writes, so
// transactions queue up instead of failing as busy. A commit does not wait for the disk (synchronous=NORMAL): what a loss
// of power takes is folded again from the log, and a table must never be ahead of it.
func OpenSQLite(file string) (*DB, error) {
	dsn := "file:" + (&url.URL{Path: file}).EscapedPath() + "?_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=busy_timeout(10000)&_txlock=immediate"
	w, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	w.SetMaxOpenConns(1)
	if err := w.Ping(); err != nil {
		w.Close()
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	r, err := sql.Open("sqlite", dsn+"&_pragma=query_only(1)")
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	r.SetMaxOpenConns(4)
	return &DB{Read: r, Write: w}, nil
}

// OpenPostgres opens a pool on a PostgreSQL URL. It does not wait for the server to be there.
func OpenPostgres(dsn string) (*DB, error) {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return nil, errors.New("DATABASE_URL is not a PostgreSQL URL like postgres://user:password@host:5432/name")
	}
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	db.SetConnMaxIdleTime(time.Minute)
	return &DB{Read: db, Write: db, postgres: true}, nil
}

// Close releases the connections.
func (d *DB) Close() error {
	if d.Read == d.Write {
		return d.Write.Close()
	}
	return errors.Join(d.Read.Close(), d.Write.Close())
}

// Postgres tells the engine.
func (d *DB) Postgres() bool { return d.postgres }

// Migrate applies the files migrations/NNNN_name.sql that have not been applied yet, in order, each in a transaction.
// set names the projection, so that several can share a database. Many nodes may call it at once: PostgreSQL's CREATE
// TABLE IF NOT EXISTS alone does not bear that.
func (d *DB) Migrate(ctx context.Context, set string, files embed.FS) error {
	return d.Tx(ctx, func(tx *sql.Tx) error {
		if d.postgres {
			if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(7311200)`); err != nil {
				return fmt.Errorf("lock for migrations: %w", err)
			}
		}
		if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY)`); err != nil {
			return fmt.Errorf("table migrations: %w", err)
		}
		if err := d.makePositions(ctx, tx); err != nil {
			return fmt.Errorf("table positions: %w", err)
		}
		names, err := fs.Glob(files, "migrations/*.sql")
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := migrate(ctx, tx, set+"/"+path.Base(name), name, files); err != nil {
				return err
			}
		}
		return nil
	})
}

func migrate(ctx context.Context, tx *sql.Tx, as, file string, files embed.FS) error {
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM migrations WHERE name=$1`, as).Scan(&n); err != nil || n > 0 {
		return err
	}
	text, err := files.ReadFile(file)
	if err != nil {
		return err
	}
	for _, statement := range strings.Split(string(text), ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("migration %s: %w", as, err)
		}
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO migrations (name) VALUES ($1)`, as)
	return err
}

// Tx runs fn in a writing transaction and commits it.
func (d *DB) Tx(ctx context.Context, fn func(*sql.Tx) error) error {
	tx, err := d.Write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback()
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// Table describes what Insert writes.
type Table struct {
	Name string
	// Columns are written as name and PostgreSQL type: text, bigint or bytea.
	Columns []string
}

// Insert adds rows; one whose key exists already is left as it is. PostgreSQL gets one statement, SQLite a prepared one
// for each row: that is the fastest way in either (docs/performance.md).
func (d *DB) Insert(ctx context.Context, tx *sql.Tx, t Table, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	var err error
	if d.postgres {
		err = insertArrays(ctx, tx, t, rows)
	} else {
		err = insertEach(ctx, tx, t, rows)
	}
	if err != nil {
		return fmt.Errorf("insert into %s: %w", t.Name, err)
	}
	return nil
}

func insertEach(ctx context.Context, tx *sql.Tx, t Table, rows [][]any) error {
	var names, marks []string
	for _, c := range t.Columns {
		name, _, _ := strings.Cut(c, " ")
		names, marks = append(names, name), append(marks, "?")
	}
	stmt, err := tx.PrepareContext(ctx, fmt.Sprintf(`INSERT INTO %s (%s) VALUES (%s) ON CONFLICT DO NOTHING`,
		t.Name, strings.Join(names, ","), strings.Join(marks, ",")))
	if err != nil {
		return err
	}
	defer stmt.Close()
	for _, row := range rows {
		if _, err := stmt.ExecContext(ctx, row...); err != nil {
			return err
		}
	}
	return nil
}

func insertArrays(ctx context.Context, tx *sql.Tx, t Table, rows [][]any) error {
	var names, arrays []string
	args := make([]any, len(t.Columns))
	for i, c := range t.Columns {
		name, typ, _ := strings.Cut(c, " ")
		names = append(names, name)
		arrays = append(arrays, fmt.Sprintf("$%d::%s[]", i+1, typ))
		args[i] = column(typ, rows, i)
	}
	_, err := tx.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %s (%s) SELECT * FROM unnest(%s) ON CONFLICT DO NOTHING`,
		t.Name, strings.Join(names, ","), strings.Join(arrays, ",")), args...)
	return err
}

func column(typ string, rows [][]any, i int) any {
	switch typ {
	case "bigint":
		return gather[int64](rows, i)
	case "bytea":
		return gather[[]byte](rows, i)
	}
	return gather[string](rows, i)
}

func gather[T any](rows [][]any, i int) []T {
	out := make([]T, len(rows))
	for n, row := range rows {
		out[n] = row[i].(T)
	}
	return out
}
