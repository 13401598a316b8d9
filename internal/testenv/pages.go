package testenv

import (
	"database/sql"
	"strings"
	"testing"
)

// Pages has PostgreSQL tell how many pages of tables, their indexes included, were touched so far: for tests of what something costs. The
// counters are a connection's own until it gives them away, so db gets one connection for good. What autovacuum touches would be
// counted as well: it is turned off for the tables.
func Pages(t testing.TB, db *sql.DB, tables ...string) func() int64 {
	t.Helper()
	for _, table := range tables {
		if _, err := db.ExecContext(t.Context(), `ALTER TABLE `+table+` SET (autovacuum_enabled=false)`); err != nil {
			t.Fatal(err)
		}
	}
	db.SetMaxOpenConns(1)
	return func() (n int64) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), `SELECT pg_stat_force_next_flush()`); err != nil {
			t.Fatal(err)
		}
		row := db.QueryRowContext(t.Context(), `SELECT sum(heap_blks_hit+heap_blks_read+coalesce(idx_blks_hit+idx_blks_read, 0))
			FROM pg_statio_user_tables WHERE relname = ANY(string_to_array($1, ' '))`, strings.Join(tables, " "))
		if err := row.Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
}
