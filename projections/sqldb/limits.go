package sqldb

import (
	"cmp"
	"context"
	"database/sql"
	"time"
)

// Limits bound the time that a database may take. A zero field has its default. A limit that is reached is an error, and the pipeline
// tries again.
type Limits struct {
	// Tx is for a transaction from begin to commit (default 30 s), and for a statement whose caller set no deadline. A commit that
	// did not answer in time may have happened: positions are moved by compare-and-set, so it is safe to try again.
	Tx time.Duration
	// Read is for a query until its last row is read, the wait for a connection included (default 5 s).
	Read time.Duration
	// Dial is for a connection until it can be used (default 3 s); connect_timeout in the URL wins.
	Dial time.Duration
	// Life is how long a connection of the pool is used at most (default 30 min): after a change of primary or a new address none
	// stays where it was.
	Life time.Duration
}

// OrDefault returns the limits with the defaults in the place of zeros.
func (l Limits) OrDefault() Limits {
	return Limits{
		Tx:   cmp.Or(l.Tx, 30*time.Second),
		Read: cmp.Or(l.Read, 5*time.Second),
		Dial: cmp.Or(l.Dial, 3*time.Second),
		Life: cmp.Or(l.Life, 30*time.Minute),
	}
}

// Reading bounds ctx by Limits.Read.
func (d *DB) Reading(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d.limits.Read)
}

// Query hands each row of a query to scan, all within Limits.Read. It stops at scan's first error and returns it.
func (d *DB) Query(ctx context.Context, scan func(*sql.Rows) error, query string, args ...any) error {
	ctx, cancel := d.Reading(ctx)
	defer cancel()
	rows, err := d.Read.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Get reads the first row of a query into dest, within Limits.Read; sql.ErrNoRows where there is none.
func (d *DB) Get(ctx context.Context, dest []any, query string, args ...any) error {
	ctx, cancel := d.Reading(ctx)
	defer cancel()
	return d.Read.QueryRowContext(ctx, query, args...).Scan(dest...)
}
