package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// OpenPostgres is Limits.OpenPostgres with the default limits.
func OpenPostgres(dsn string) (*DB, error) { return Limits{}.OpenPostgres(dsn) }

// OpenPostgres opens a pool of 16 connections on a PostgreSQL URL (DATABASE_URL). It does not wait for the server to be there. What the
// URL sets itself (connect_timeout, statement_timeout, default_query_exec_mode and so on) stays as it is there. An error means that it
// is no such URL; it never quotes it, since it has the password.
func (l Limits) OpenPostgres(dsn string) (*DB, error) {
	l = l.OrDefault()
	if err := CheckURL("DATABASE_URL", dsn); err != nil {
		return nil, err
	}
	c, err := pgx.ParseConfig(dsn)
	if err != nil { // pgx repeats parts of the URL
		return nil, errors.New("DATABASE_URL is not a PostgreSQL URL like postgres://user:password@host:5432/name")
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = l.Dial
	}
	if !strings.Contains(dsn, "default_query_exec_mode") {
		c.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	c.DialFunc = Dialer(l.Dial).DialContext
	db := sql.OpenDB(connector{Connector: stdlib.GetConnector(*c), begin: beginQuery(c.RuntimeParams, l.Tx), limit: l.Tx})
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	db.SetConnMaxIdleTime(time.Minute)
	db.SetConnMaxLifetime(l.Life)
	return &DB{Read: db, Write: db, postgres: true, limits: l}, nil
}

// CheckURL refuses a URL whose password was not percent-encoded: what stands behind its first @ / ? or # would be taken for
// the host, a path or a parameter, and come to light in errors. A keyword/value string is no URL and passes. name is the
// setting's.
func CheckURL(name, dsn string) error {
	_, rest, isURL := strings.Cut(dsn, "://")
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	if isURL && (strings.Count(authority, "@") > 1 || strings.Contains(rest[len(authority):], "@")) {
		return fmt.Errorf("%s has an @ that does not stand before the host: in a password write @ as %%40, / as %%2F, ? as %%3F, # as %%23", name)
	}
	return nil
}

// beginQuery begins a transaction and bounds it on the server as well: a client that has gone silent holds its locks no
// longer than that. The bounds are the transaction's, not the session's: PgBouncer refuses them when a session begins,
// and would give a session's settings to others.
func beginQuery(chosen map[string]string, limit time.Duration) string {
	var q strings.Builder
	q.WriteString("begin")
	for _, name := range []string{"statement_timeout", "idle_in_transaction_session_timeout"} {
		if _, ok := chosen[name]; !ok {
			fmt.Fprintf(&q, "; set local %s=%d", name, limit.Milliseconds())
		}
	}
	return q.String()
}

// connector makes connections on which every statement ends within a time.
type connector struct {
	driver.Connector
	begin string
	limit time.Duration
}

// Connect opens a connection (driver.Connector).
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	inner, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	pg, ok := inner.(*stdlib.Conn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("sqldb: pgx made a %T", inner), inner.Close())
	}
	return &conn{Conn: pg, begin: c.begin, limit: c.limit}, nil
}

// conn is a connection of database/sql, which uses it from one goroutine at a time.
type conn struct {
	*stdlib.Conn
	begin string
	limit time.Duration
	end   time.Time // of the transaction under way; zero outside of one
}

// bound gives a statement the end of its transaction, or the limit where its caller set none: a connection that has gone
// silent must not hold anybody for ever.
func (c *conn) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if !c.end.IsZero() {
		return context.WithDeadline(ctx, c.end)
	}
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.limit)
}

// ResetSession is called before the connection is used again; it asks one that was idle whether it lives.
func (c *conn) ResetSession(ctx context.Context) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	return c.Conn.ResetSession(ctx)
}

// ExecContext runs a statement within the limit (driver.ExecerContext).
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	return c.Conn.ExecContext(ctx, query, args)
}

// QueryContext runs a query; its rows must be read within the limit (driver.QueryerContext).
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	ctx, cancel := c.bound(ctx)
	inner, err := c.Conn.QueryContext(ctx, query, args)
	if err != nil {
		cancel()
		return nil, err
	}
	return boundRows{inner, cancel}, nil
}

// boundRows releases a query's limit once its rows have been read.
type boundRows struct {
	driver.Rows
	cancel context.CancelFunc
}

// Close ends the query (driver.Rows).
func (r boundRows) Close() error {
	defer r.cancel()
	return r.Rows.Close()
}

// BeginTx begins a transaction that ends with ctx. DB.Tx asks for no options.
func (c *conn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	if o != (driver.TxOptions{}) {
		return c.Conn.BeginTx(ctx, o)
	}
	if c.Conn.Conn().IsClosed() {
		return nil, driver.ErrBadConn
	}
	ctx, cancel := c.bound(ctx)
	t, err := c.Conn.Conn().BeginTx(ctx, pgx.TxOptions{BeginQuery: c.begin})
	if err != nil {
		cancel()
		return nil, err
	}
	c.end, _ = ctx.Deadline()
	return &transaction{c, t, ctx, cancel}, nil
}

// transaction is a pgx.Tx for database/sql.
type transaction struct {
	c      *conn
	tx     pgx.Tx
	ctx    context.Context
	cancel context.CancelFunc
}

// Commit ends the transaction (driver.Tx).
func (t *transaction) Commit() error {
	defer t.release()
	return t.tx.Commit(t.ctx)
}

// Rollback ends the transaction (driver.Tx).
func (t *transaction) Rollback() error {
	defer t.release()
	return t.tx.Rollback(t.ctx)
}

func (t *transaction) release() {
	t.c.end = time.Time{}
	t.cancel()
}
