package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nexus/nexus/projections/sqldb"
)

// Only a transaction that did take as long as it may is told to be too long: not one in which something else timed out.
func TestTxBlamesItsOwnLimit(t *testing.T) {
	db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Tx(t.Context(), func(*sql.Tx) error { return context.DeadlineExceeded })
	if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "took longer") {
		t.Errorf("a deadline of its own: %v", err)
	}
}
