// Package sqldb opens the relational databases that projections live in, SQLite and PostgreSQL, behind database/sql,
// applies their migrations, inserts in bulk, and keeps positions. One set of queries with $n runs on both.
package sqldb

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	_ "modernc.org/sqlite" // driver "sqlite"
)

// DB is a database that projections live in. It is safe for concurrent use.
type DB struct {
	// Read is for queries, which run beside a writer. Write is for what changes something. On PostgreSQL both are the same pool.
	Read, Write *sql.DB
	postgres    bool
	limits      Limits
}

// How long SQLite waits for a lock that another process has: below the limits, so that the error says which it was.
const (
	busyWriting = 10_000 // ms
	busyReading = 3_000  // ms
)

// OpenSQLite opens the file, and makes it where it is missing. Its folder must exist. One connection writes, so that transactions wait for
// each other instead of failing as busy. A commit does not wait for the disk (decision 0001). Errors name the file.
func OpenSQLite(file string) (*DB, error) {
	dsn := "file:" + (&url.URL{Path: file}).EscapedPath() + "?_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_txlock=immediate"
	w, err := sql.Open("sqlite", fmt.Sprintf("%s&_pragma=busy_timeout(%d)", dsn, busyWriting))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	w.SetMaxOpenConns(1)
	if err := w.Ping(); err != nil {
		w.Close()
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	r, err := sql.Open("sqlite", fmt.Sprintf("%s&_pragma=busy_timeout(%d)&_pragma=query_only(1)", dsn, busyReading))
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	r.SetMaxOpenConns(4)
	return &DB{Read: r, Write: w, limits: Limits{}.OrDefault()}, nil
}

// Close releases the connections.
func (d *DB) Close() error {
	if d.Read == d.Write {
		return d.Write.Close()
	}
	return errors.Join(d.Read.Close(), d.Write.Close())
}

// Postgres reports whether this is PostgreSQL; else it is SQLite.
func (d *DB) Postgres() bool { return d.postgres }

// Step is the part of a migration that SQL cannot say. It runs after the file of this name, in the same transaction.
type Step struct {
	File string // NNNN_name.sql
	Run  func(context.Context, *sql.Tx) error
}

// Migrate applies the files migrations/NNNN_name.sql that have not been applied yet, in order, all in one transaction, and makes the
// table of positions. Call it before anything else. set names the projection, so that several can share a database. Many nodes may
// call it at once: on PostgreSQL they wait for each other, since CREATE TABLE IF NOT EXISTS alone does not bear that. Errors name the file.
func (d *DB) Migrate(ctx context.Context, set string, files embed.FS, steps ...Step) error {
	return d.Long(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if d.postgres { // the lock is the transaction's: one of the session would stay with a connection of PgBouncer's
			if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(7311200)`); err != nil {
				return fmt.Errorf("migrate %s: wait for other nodes' migrations: %w", set, err)
			}
		}
		if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY)`); err != nil {
			return fmt.Errorf("migrate %s: table migrations: %w", set, err)
		}
		if err := d.makePositions(ctx, tx); err != nil {
			return fmt.Errorf("migrate %s: table positions: %w", set, err)
		}
		names, err := fs.Glob(files, "migrations/*.sql")
		if err != nil {
			return fmt.Errorf("migrate %s: %w", set, err)
		}
		for _, name := range names {
			if err := migrate(ctx, tx, set+"/"+path.Base(name), name, files, steps); err != nil {
				return fmt.Errorf("migrate %s/%s: %w", set, path.Base(name), err)
			}
		}
		return nil
	})
}

func migrate(ctx context.Context, tx *sql.Tx, as, file string, files embed.FS, steps []Step) error {
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM migrations WHERE name=$1`, as).Scan(&n); err != nil || n > 0 {
		return err
	}
	text, err := files.ReadFile(file)
	if err != nil {
		return err
	}
	for statement := range strings.SplitSeq(string(text), ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	for _, s := range steps {
		if s.File != path.Base(file) {
			continue
		}
		if err := s.Run(ctx, tx); err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO migrations (name) VALUES ($1)`, as)
	return err
}

// Tx runs fn in a writing transaction and commits it, within Limits.Tx. Where fn returns an error it rolls back and returns that. An error
// that comes of the values written is pipeline.Permanent (decision 0076).
func (d *DB) Tx(ctx context.Context, fn func(*sql.Tx) error) error {
	begun := time.Now()
	bounded, cancel := context.WithTimeout(ctx, d.limits.Tx)
	defer cancel()
	err := d.run(bounded, fn)
	if err != nil && time.Since(begun) >= d.limits.Tx && ctx.Err() == nil { // the caller, or a dial, may have had less time
		return fmt.Errorf("the transaction took longer than %s: %w", d.limits.Tx, err)
	}
	return classify(err)
}

// longLimit is for work on whole tables, which takes minutes where they are large.
const longLimit = time.Hour

// Long is Tx for work on whole tables (migrations, rebuild, adopt): it may take an hour, on the server as well. Its errors are not
// classified.
func (d *DB) Long(ctx context.Context, fn func(context.Context, *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, longLimit)
	defer cancel()
	return d.run(ctx, func(tx *sql.Tx) error {
		if d.postgres {
			if _, err := tx.ExecContext(ctx, `SET LOCAL statement_timeout=0; SET LOCAL idle_in_transaction_session_timeout=0`); err != nil {
				return fmt.Errorf("lift the server's limits: %w", err)
			}
		}
		return fn(ctx, tx)
	})
}

func (d *DB) run(ctx context.Context, fn func(*sql.Tx) error) error {
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
	// Conflict is what becomes of a row whose key exists already: the text after ON CONFLICT; empty: DO NOTHING.
	Conflict string
}

// Insert adds rows; their keys must differ where t.Conflict updates rows. PostgreSQL gets one statement, SQLite a prepared one for each
// row: that is the fastest way in either (docs/performance.md). The values are string, int64 or []byte, as t.Columns says.
func (d *DB) Insert(ctx context.Context, tx *sql.Tx, t Table, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	_, err := d.insert(ctx, tx, t, rows, -1)
	return err
}

// InsertNew is Insert, and returns the set of values that the new rows have in a column; rows that were there before are missing from it.
// The column must be a bigint and differ in all rows.
func (d *DB) InsertNew(ctx context.Context, tx *sql.Tx, t Table, rows [][]any, column string) (map[int64]bool, error) {
	i := slices.Index(t.Columns, column+" bigint")
	if i < 0 {
		return nil, fmt.Errorf("insert into %s: there is no bigint column %s", t.Name, column)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	return d.insert(ctx, tx, t, rows, i)
}

// insert writes rows and returns the values of one column of the new ones; told is the column's index, -1 for none.
func (d *DB) insert(ctx context.Context, tx *sql.Tx, t Table, rows [][]any, told int) (map[int64]bool, error) {
	way := insertEach
	if d.postgres {
		way = insertArrays
	}
	written, err := way(ctx, tx, t, rows, told)
	if err != nil {
		return nil, fmt.Errorf("insert into %s: %w", t.Name, err)
	}
	return written, nil
}

// names are the columns' without their types.
func (t Table) names() []string {
	out := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		out[i], _, _ = strings.Cut(c, " ")
	}
	return out
}

func (t Table) statement(source string) string {
	return fmt.Sprintf(`INSERT INTO %s (%s) %s ON CONFLICT %s`, t.Name, strings.Join(t.names(), ","), source, cmp.Or(t.Conflict, "DO NOTHING"))
}

func insertEach(ctx context.Context, tx *sql.Tx, t Table, rows [][]any, told int) (map[int64]bool, error) {
	marks := strings.TrimSuffix(strings.Repeat("?,", len(t.Columns)), ",")
	stmt, err := tx.PrepareContext(ctx, t.statement("VALUES ("+marks+")"))
	if err != nil {
		return nil, err
	}
	defer stmt.Close()
	written := make(map[int64]bool)
	for _, row := range rows {
		r, err := stmt.ExecContext(ctx, row...)
		if err != nil {
			return nil, err
		}
		if told < 0 {
			continue
		}
		n, err := r.RowsAffected()
		if err != nil {
			return nil, err
		}
		if n > 0 {
			written[row[told].(int64)] = true
		}
	}
	return written, nil
}

func insertArrays(ctx context.Context, tx *sql.Tx, t Table, rows [][]any, told int) (map[int64]bool, error) {
	var arrays []string
	args := make([]any, len(t.Columns))
	for i, c := range t.Columns {
		_, typ, _ := strings.Cut(c, " ")
		arrays = append(arrays, fmt.Sprintf("$%d::%s[]", i+1, typ))
		args[i] = column(typ, rows, i)
	}
	statement := t.statement("SELECT * FROM unnest(" + strings.Join(arrays, ",") + ")")
	if told < 0 {
		_, err := tx.ExecContext(ctx, statement, args...)
		return nil, err
	}
	answer, err := tx.QueryContext(ctx, statement+" RETURNING "+t.names()[told], args...)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	written := make(map[int64]bool)
	for answer.Next() {
		var v int64
		if err := answer.Scan(&v); err != nil {
			return nil, err
		}
		written[v] = true
	}
	return written, answer.Err()
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
