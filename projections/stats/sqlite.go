package stats

import (
	"context"
	"database/sql"
	"embed"
	"fmt"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

//go:embed migrations/*.sql
var migrations embed.FS

// SQLite keeps the statistics in an embedded database. It is safe for concurrent use.
type SQLite struct {
	db        *sqldb.DB
	positions sqldb.Positions
	shift     int64 // sqldb.Positions.Shift
}

// OpenSQLite prepares the tables. The caller closes db.
func OpenSQLite(ctx context.Context, db *sqldb.DB) (*SQLite, error) {
	s := &SQLite{db: db, positions: sqldb.Positions{DB: db, Projection: "stats"}}
	if err := db.Migrate(ctx, "stats", migrations); err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	var err error
	if s.shift, err = s.positions.Shift(ctx); err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	return s, nil
}

// Adopt takes another log on: what is counted stays, and counting goes on from these positions.
func (s *SQLite) Adopt(ctx context.Context, to map[topics.Partition]pipeline.Position) error {
	return s.positions.Adopt(ctx, to, func(*sql.Tx) error { return nil })
}

// Ping answers whether the database can be used.
func (s *SQLite) Ping(ctx context.Context) error { return s.db.Read.PingContext(ctx) }

// Position is where the statistics stand (pipeline.Sink).
func (s *SQLite) Position(ctx context.Context, of topics.Partition) (pipeline.Position, error) {
	return s.positions.Next(ctx, of)
}

// Reset empties the statistics: they are folded anew from the log's beginning.
func (s *SQLite) Reset(ctx context.Context) error {
	s.shift = 0
	return s.positions.Reset(ctx, eventsTable.Name)
}

// Reached tells whether everything below ends is counted.
func (s *SQLite) Reached(ctx context.Context, ends topics.Ends) (bool, error) {
	for of, end := range ends {
		at, err := s.positions.Next(ctx, of)
		if err != nil || at.Next < end {
			return false, err
		}
	}
	return true, nil
}

var eventsTable = sqldb.Table{Name: "events", Columns: []string{
	"user_id text", "type text", "topic text", "part bigint", "pos bigint", "at bigint", "detail text",
	"ref_topic text", "ref_part bigint", "ref_pos bigint", "sessions bigint", "latency_ms bigint"}}

// Apply folds a batch (pipeline.Sink).
func (s *SQLite) Apply(ctx context.Context, b pipeline.Batch) error {
	var rows [][]any
	for _, r := range rowsOf(b) {
		rows = append(rows, []any{r.user, r.typ, r.topic, int64(r.part), r.pos + s.shift, r.at, r.detail,
			r.refTopic, int64(r.refPart), r.refPos + s.shift, r.sessions, r.delay})
	}
	err := s.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := s.positions.Move(ctx, tx, b, b.From); err != nil {
			return err
		}
		return s.db.Insert(ctx, tx, eventsTable, rows)
	})
	if err != nil {
		return fmt.Errorf("stats: fold %s from %d to %d: %w", b.Of(), b.From, b.To, err)
	}
	return nil
}

// Counts answers for each of the users; one without events has zeros.
func (s *SQLite) Counts(ctx context.Context, users []string) (map[string]Counts, error) {
	out := make(map[string]Counts, len(users))
	for _, u := range users {
		var c Counts
		err := s.db.Get(ctx, []any{&c.Connections, &c.Messages, &c.Posts}, `SELECT
			(SELECT count(*) FROM events WHERE user_id=$1 AND type='notification' AND detail=$2),
			(SELECT count(*) FROM events WHERE user_id=$1 AND type='message'),
			(SELECT count(*) FROM events WHERE user_id=$1 AND type='activity' AND detail=$3)`,
			u, detailConnection, detailPost)
		if err != nil {
			return nil, fmt.Errorf("stats: counts: %w", err)
		}
		out[u] = c
	}
	return out, nil
}
