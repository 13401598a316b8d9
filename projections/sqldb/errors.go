package sqldb

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/nexus/nexus/pipeline"
)

// classify marks as permanent the errors of a transaction that come of the values in it: no repeat can mend them. All
// others (no connection, locks, a full disk, a missing table, a read-only server) may pass.
func classify(err error) error {
	if err != nil && ofValues(err) {
		return pipeline.Permanent(err)
	}
	return err
}

// Classes of SQLSTATE (PostgreSQL, appendix A) that speak of values.
const (
	classData       = "22" // data exception
	classConstraint = "23" // integrity constraint violation
	classLimit      = "54" // program limit exceeded: a row that does not fit an index, too
)

func ofValues(err error) bool {
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && len(pg.Code) == 5 {
		switch pg.Code[:2] {
		case classData, classConstraint, classLimit:
			return true
		}
		return false
	}
	if lite := (*sqlite.Error)(nil); errors.As(err, &lite) {
		switch lite.Code() & 0xff { // the extended codes' low byte is the code
		case sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH:
			return true
		}
		return false
	}
	// Neither driver has a type for a value that it cannot write.
	return strings.Contains(err.Error(), "failed to encode args[") || strings.Contains(err.Error(), "sql: converting argument")
}
