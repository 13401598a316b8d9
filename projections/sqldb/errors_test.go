package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
)

func TestMain(m *testing.M) { testenv.Exit(m) }

func openSQLite(t *testing.T) *sqldb.DB {
	t.Helper()
	db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "t.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func openPostgres(t *testing.T, l sqldb.Limits, dsn string) *sqldb.DB {
	t.Helper()
	db, err := l.OpenPostgres(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// try runs statements in a transaction, the last one with args.
func try(t *testing.T, db *sqldb.DB, statement string, args ...any) error {
	t.Helper()
	return db.Tx(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), statement, args...)
		return err
	})
}

// TestErrorClasses provokes errors on the real engines: those of values are permanent, all others may pass.
func TestErrorClasses(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		db := openSQLite(t)
		must(t, try(t, db, `CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT NOT NULL CHECK (length(v) < 9))`))
		check(t, true, map[string]error{
			"a constraint":   try(t, db, `INSERT INTO t VALUES (1, NULL)`),
			"a check":        try(t, db, `INSERT INTO t VALUES (1, '0123456789')`),
			"a wrong type":   try(t, db, `INSERT INTO t VALUES ('x', 'v')`),
			"too big":        try(t, db, `INSERT INTO t VALUES (1, zeroblob(2000000000))`),
			"no such driver": try(t, db, `INSERT INTO t VALUES (1, ?)`, struct{}{}),
		})
		readOnly := try(t, &sqldb.DB{Read: db.Read, Write: db.Read}, `INSERT INTO t VALUES (1, 'v')`)
		check(t, false, map[string]error{
			"no table":  try(t, db, `INSERT INTO nowhere VALUES (1)`),
			"syntax":    try(t, db, `INSERT`),
			"read-only": readOnly,
			"full":      full(t, db),
		})
	})
	t.Run("postgres", func(t *testing.T) {
		dsn := testenv.Postgres(t)
		db := openPostgres(t, sqldb.Limits{}, dsn)
		must(t, try(t, db, `CREATE TABLE t (k TEXT PRIMARY KEY, n INT NOT NULL)`))
		check(t, true, map[string]error{
			"no UTF-8":           try(t, db, `INSERT INTO t VALUES ($1, 1)`, "\xff"),
			"U+0000":             try(t, db, `INSERT INTO t VALUES ($1, 1)`, "a\x00b"),
			"a number too large": try(t, db, `INSERT INTO t VALUES ('a', 1::bigint << 40)`),
			"a constraint":       try(t, db, `INSERT INTO t VALUES ('a', NULL)`),
			"beyond the index":   try(t, db, `INSERT INTO t SELECT string_agg(md5(i::text), ''), 1 FROM generate_series(1, 300) i`),
			"cannot be encoded":  try(t, db, `INSERT INTO t VALUES ('a', $1)`, struct{}{}),
		})
		away := openPostgres(t, sqldb.Limits{}, "postgres://nexus@127.0.0.1:1/nexus?sslmode=disable")
		check(t, false, map[string]error{
			"no table":      try(t, db, `INSERT INTO nowhere VALUES (1)`),
			"syntax":        try(t, db, `INSERT`),
			"read-only":     try(t, db, `SET TRANSACTION READ ONLY; INSERT INTO t VALUES ('a', 1)`),
			"too slow":      try(t, db, `SET LOCAL statement_timeout=1; SELECT pg_sleep(9)`),
			"lock time-out": locked(t, db),
			"terminated":    try(t, db, `SELECT pg_terminate_backend(pg_backend_pid())`),
			"disk full":     try(t, db, `DO $$BEGIN RAISE disk_full; END$$`),
			"away":          try(t, away, `SELECT 1`),
			"cancelled":     cancelled(t, db),
		})
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, permanent bool, errs map[string]error) {
	t.Helper()
	for name, err := range errs {
		if err == nil || pipeline.IsPermanent(err) != permanent {
			t.Errorf("%s: permanent=%v, want %v: %v", name, pipeline.IsPermanent(err), permanent, err)
		}
	}
}

// full writes beyond what SQLite may take.
func full(t *testing.T, db *sqldb.DB) error {
	_, err := db.Write.ExecContext(t.Context(), `PRAGMA max_page_count=10`)
	must(t, err)
	return try(t, db, `INSERT INTO t SELECT value, 'v' FROM generate_series(1, 100000)`)
}

// locked waits for a row that another transaction holds.
func locked(t *testing.T, db *sqldb.DB) error {
	must(t, try(t, db, `INSERT INTO t VALUES ('held', 1)`))
	var inner error
	err := db.Tx(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(t.Context(), `UPDATE t SET n=2 WHERE k='held'`); err != nil {
			return err
		}
		inner = try(t, db, `SET LOCAL lock_timeout=10; UPDATE t SET n=3 WHERE k='held'`)
		return nil
	})
	must(t, err)
	return inner
}

func cancelled(t *testing.T, db *sqldb.DB) error {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return db.Tx(ctx, func(*sql.Tx) error { return nil })
}

// TestErrorsKeepTheirKind: an error of the caller's own comes back as it is.
func TestErrorsKeepTheirKind(t *testing.T) {
	db := openSQLite(t)
	mine := errors.New("mine")
	if err := db.Tx(t.Context(), func(*sql.Tx) error { return fmt.Errorf("x: %w", mine) }); !errors.Is(err, mine) ||
		pipeline.IsPermanent(err) {
		t.Errorf("%v", err)
	}
}

// passwords are hard to write into a URL: each stands there encoded, and as somebody would paste it.
var passwords = []string{"hunter2@home", "hunter2:home", "hunter2/home", "12/hunter2@home", "hunter2?home", "12?hunter2=home",
	"hunter2#home", "12#hunter2",
	"hunter2%home", "hunter2%41home", "hunter2 home", "12 hunter2", "@hunter2@", "/hunter2", `hunter2\'home`, "hunter2[home]"}

// TestPasswordsStayOut: whatever is wrong with DATABASE_URL, no error repeats a piece of the password.
func TestPasswordsStayOut(t *testing.T) {
	const host = "127.0.0.1:1"
	nowhere := strings.Repeat("x", 64) + ".invalid" // a label is too long (RFC 1035): no name server is asked, which may not answer
	for _, password := range passwords {
		for _, written := range []string{password, escape(password)} {
			for name, dsn := range map[string]string{
				"dial":     "postgres://nexus:" + written + "@" + host + "/nexus",
				"lookup":   "postgres://nexus:" + written + "@" + nowhere + "/nexus",
				"port":     "postgres://nexus:" + written + "@127.0.0.1:x/nexus",
				"scheme":   "postgre://nexus:" + written + "@" + host + "/nexus",
				"sslmode":  "postgres://nexus:" + written + "@" + host + "/nexus?sslmode=perhaps",
				"no host":  "postgres://nexus:" + written + "@/nexus?host=127.0.0.1&port=1",
				"no slash": "postgres:nexus:" + written + "@" + host,
				"words":    "host=127.0.0.1 port=1 user=nexus password=" + written + " dbname=nexus",
				"quoted":   "host=127.0.0.1 port=1 user=nexus password='" + written + "' dbname=nexus",
			} {
				staysOut(t, name, dsn)
			}
		}
	}
}

// TestPasswordsStayOutOfServers: the same where a server answers: a wrong password, a wrong database.
func TestPasswordsStayOutOfServers(t *testing.T) {
	at, database, _ := strings.Cut(strings.TrimPrefix(testenv.Postgres(t), "postgres://nexus@"), "/")
	database, _, _ = strings.Cut(database, "?")
	db := openPostgres(t, sqldb.Limits{}, testenv.Postgres(t))
	for _, password := range passwords {
		for name, dsn := range map[string]string{
			"auth": "postgres://nobody:" + escape(password) + "@" + at + "/" + database, "database": "postgres://nexus:" + escape(password) + "@" +
				at + "/nowhere",
			"pasted": "postgres://nexus:" + password + "@" + at + "/nowhere", "parameter": "postgres://nexus:" + escape(password) + "@" + at + "/" +
				database + "?nonsense=1",
		} {
			staysOut(t, name, dsn)
		}
	}
	must(t, db.Write.PingContext(t.Context()))
}

// escape percent-encodes all but letters and digits.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func staysOut(t *testing.T, name, dsn string) {
	t.Helper()
	db, err := sqldb.OpenPostgres(dsn)
	if err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err = errors.Join(db.Write.PingContext(ctx), db.Tx(ctx, func(*sql.Tx) error { return nil }))
		db.Close()
	}
	if err == nil {
		t.Errorf("%s: %q works", name, dsn)
		return
	}
	for _, piece := range []string{"hunter2", "home"} {
		if strings.Contains(err.Error(), piece) {
			t.Errorf("%s: the error of %q has %q: %v", name, dsn, piece, err)
		}
	}
}
