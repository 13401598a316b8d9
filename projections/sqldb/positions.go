package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// positionsTable is shared by the projections of a database. log and mark say which log next counts in (pipeline.Position);
// mark was taken where next was marked, and says nothing of another next: a node of an earlier version, which shares the work
// while nodes are upgraded or put back, moves next alone. generation is how often the projection has taken another log on
// (Adopt).
const positionsTable = `CREATE TABLE IF NOT EXISTS positions (projection TEXT NOT NULL, topic TEXT NOT NULL,
	part BIGINT NOT NULL, next BIGINT NOT NULL, log TEXT NOT NULL DEFAULT '', mark BIGINT NOT NULL DEFAULT 0,
	marked BIGINT NOT NULL DEFAULT 0, generation BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (projection, topic, part))`

// columns are what a Position is read from.
const columns = `next, log, CASE WHEN marked=next THEN mark ELSE 0 END`

// makePositions makes the table, or gives one of an earlier version the columns that it lacks.
func (d *DB) makePositions(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, positionsTable); err != nil {
		return err
	}
	for _, column := range []string{"log TEXT NOT NULL DEFAULT ''", "mark BIGINT NOT NULL DEFAULT 0",
		"marked BIGINT NOT NULL DEFAULT 0", "generation BIGINT NOT NULL DEFAULT 0"} {
		if err := d.addColumn(ctx, tx, "positions", column); err != nil {
			return err
		}
	}
	return nil
}

// addColumn adds a column where the table does not have it.
func (d *DB) addColumn(ctx context.Context, tx *sql.Tx, table, column string) error {
	if d.postgres {
		_, err := tx.ExecContext(ctx, `ALTER TABLE `+table+` ADD COLUMN IF NOT EXISTS `+column)
		return err
	}
	var n int
	name, _, _ := strings.Cut(column, " ")
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM pragma_table_info($1) WHERE name=$2`, table, name).Scan(&n); err != nil || n > 0 {
		return err
	}
	_, err := tx.ExecContext(ctx, `ALTER TABLE `+table+` ADD COLUMN `+column)
	return err
}

// Positions are the rows of one projection in the table positions, which Migrate makes. Its methods return the database's errors, with
// topic and partition, within Limits.Read where nothing else is said.
type Positions struct {
	DB         *DB
	Projection string // the projection's name, the rows' first key
}

// Reset empties these tables and sets every position back to the beginning of whatever log comes, in one transaction (DB.Long). nexus
// rebuild calls it.
func (p Positions) Reset(ctx context.Context, tables ...string) error {
	return p.DB.Long(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, t := range tables {
			if _, err := tx.ExecContext(ctx, `DELETE FROM `+t); err != nil {
				return fmt.Errorf("empty table %s: %w", t, err)
			}
		}
		_, err := tx.ExecContext(ctx, `UPDATE positions SET next=0, log='', mark=0, marked=0, generation=0 WHERE projection=$1`, p.Projection)
		return err
	})
}

// Next reads a position (pipeline.Sink.Position). Where the row is missing it is made, at 0.
func (p Positions) Next(ctx context.Context, of topics.Partition) (pipeline.Position, error) {
	at, err := p.Peek(ctx, of)
	if !errors.Is(err, sql.ErrNoRows) {
		return at, err
	}
	return p.Begin(ctx, of, pipeline.Position{})
}

// Begin reads a position. Where the row is missing it is made, at first.
func (p Positions) Begin(ctx context.Context, of topics.Partition, first pipeline.Position) (pipeline.Position, error) {
	ctx, cancel := p.DB.Reading(ctx)
	defer cancel()
	_, err := p.DB.Write.ExecContext(ctx, `INSERT INTO positions (projection, topic, part, next, log, mark, marked)
		VALUES ($1,$2,$3,$4,$5,$6,$4) ON CONFLICT DO NOTHING`, p.Projection, string(of.Topic), int64(of.ID), first.Next, first.Log, first.Mark)
	if err != nil {
		return pipeline.Position{}, fmt.Errorf("make the position of %s: %w", of, err)
	}
	return p.Peek(ctx, of)
}

// Peek reads a position and makes nothing; sql.ErrNoRows where there is none yet.
func (p Positions) Peek(ctx context.Context, of topics.Partition) (at pipeline.Position, err error) {
	err = p.DB.Get(ctx, []any{&at.Next, &at.Log, &at.Mark}, `SELECT `+columns+` FROM positions WHERE projection=$1 AND topic=$2 AND part=$3`,
		p.Projection, string(of.Topic), int64(of.ID))
	return at, err
}

// Move moves the position of a batch's partition to b.After(), in the transaction of its rows. It returns pipeline.ErrMoved where the
// stored offset is not from any more: the transaction must then be rolled back.
func (p Positions) Move(ctx context.Context, tx *sql.Tx, b pipeline.Batch, from int64) error {
	to := b.After()
	r, err := tx.ExecContext(ctx,
		`UPDATE positions SET next=$1, log=$2, mark=$3, marked=$1 WHERE projection=$4 AND topic=$5 AND part=$6 AND next=$7`,
		to.Next, to.Log, to.Mark, p.Projection, string(b.Topic), int64(b.Partition), from)
	if err != nil {
		return fmt.Errorf("move the position of %s: %w", b.Of(), err)
	}
	n, err := r.RowsAffected()
	if err == nil && n == 0 {
		err = pipeline.ErrMoved
	}
	return err
}

// GenerationBits is how many low bits of a stored offset are the offset in the log; above them stands the generation, the number of times
// that the projection has taken another log on. So what it has of a former log stands before everything of the new one and is never
// taken for it (decision 0023).
const GenerationBits = 40

// Shift is what a projection adds to an offset of the log to store it: its generation, above GenerationBits.
func (p Positions) Shift(ctx context.Context) (int64, error) {
	var generation int64
	err := p.DB.Get(ctx, []any{&generation}, `SELECT COALESCE(max(generation), 0) FROM positions WHERE projection=$1`, p.Projection)
	if err != nil {
		return 0, fmt.Errorf("read the generation of %s: %w", p.Projection, err)
	}
	return generation << GenerationBits, nil
}

// Adopt takes another log on (nexus adopt): it sets the positions and begins a new generation. more changes what else depends on that, in
// the same transaction (DB.Long). No node may apply anything meanwhile.
func (p Positions) Adopt(ctx context.Context, to map[topics.Partition]pipeline.Position, more func(*sql.Tx) error) error {
	return p.DB.Long(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for of, at := range to {
			_, err := tx.ExecContext(ctx, `INSERT INTO positions (projection, topic, part, next, log, mark, marked) VALUES ($1,$2,$3,$4,$5,$6,$4)
				ON CONFLICT (projection, topic, part) DO UPDATE SET next=excluded.next, log=excluded.log, mark=excluded.mark, marked=excluded.marked`,
				p.Projection, string(of.Topic), int64(of.ID), at.Next, at.Log, at.Mark)
			if err != nil {
				return fmt.Errorf("adopt %s: %w", of, err)
			}
		}
		_, err := tx.ExecContext(ctx,
			`UPDATE positions SET generation=(SELECT max(generation)+1 FROM positions WHERE projection=$1) WHERE projection=$1`, p.Projection)
		if err != nil {
			return fmt.Errorf("adopt: %w", err)
		}
		return more(tx)
	})
}

// All reads every position of the projection.
func (p Positions) All(ctx context.Context) (map[topics.Partition]pipeline.Position, error) {
	all := make(map[topics.Partition]pipeline.Position)
	err := p.DB.Query(ctx, func(rows *sql.Rows) error {
		var of topics.Partition
		var at pipeline.Position
		if err := rows.Scan(&of.Topic, &of.ID, &at.Next, &at.Log, &at.Mark); err != nil {
			return err
		}
		all[of] = at
		return nil
	}, `SELECT topic, part, `+columns+` FROM positions WHERE projection=$1`, p.Projection)
	if err != nil {
		return nil, fmt.Errorf("read the positions of %s: %w", p.Projection, err)
	}
	return all, nil
}
