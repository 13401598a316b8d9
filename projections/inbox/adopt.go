package inbox

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// Adopt takes another log on: what the inbox has stays, before everything that the log brings, and folding goes on from
// these positions. Nobody may fold meanwhile; the inbox must be opened anew afterwards.
//
// Two things must not be taken for one: an event of the former log and one of this log at the same place. So ids that were
// made of a place get a suffix, and nobody resumes across the change.
func (i *Inbox) Adopt(ctx context.Context, to map[topics.Partition]pipeline.Position) error {
	former := i.shift
	return i.positions.Adopt(ctx, to, func(tx *sql.Tx) error {
		from := make(map[topics.Topic]topics.Ends)
		for of, at := range to {
			if from[of.Topic] == nil {
				from[of.Topic] = make(topics.Ends)
			}
			from[of.Topic][of] = at.Next
		}
		for t, ends := range from {
			if err := renameTopic(ctx, tx, t, ends); err != nil {
				return err
			}
		}
		return i.trimBefore(ctx, tx, former+1<<sqldb.GenerationBits)
	})
}

// trimBefore notes that the feed has nothing from before the positions.
func (i *Inbox) trimBefore(ctx context.Context, tx *sql.Tx, shift int64) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO feed_trimmed (topic, part, next)
		SELECT topic, part, next+CAST($1 AS BIGINT) FROM positions WHERE projection=$2
		ON CONFLICT (topic, part) DO UPDATE SET next=excluded.next`, shift, i.positions.Projection)
	if err != nil {
		return fmt.Errorf("adopt: note where the feed begins: %w", err)
	}
	return nil
}

// placeTables have rows whose id may be made of their place, by topic.
var placeTables = map[topics.Topic]string{topics.Notifications: "notifications", topics.Broadcasts: "announcements",
	topics.Messages: "messages"}

// renamePage is how many rows renamePlaces has in memory at once.
const renamePage = 2_000

// placed is a row whose id may be made of its place.
type placed struct {
	id    string
	pos   int64
	value []byte
}

// renameTopic is renamePlaces for partitions of a topic. No index of ours is by place; the one that is made here serves
// them all, and is gone with the transaction.
func renameTopic(ctx context.Context, tx *sql.Tx, t topics.Topic, from topics.Ends) error {
	table := placeTables[t]
	if table == "" {
		return nil
	}
	if _, err := tx.ExecContext(ctx, `CREATE INDEX `+table+`_adopt ON `+table+` (part, pos, id)`); err != nil {
		return fmt.Errorf("adopt: index %s: %w", table, err)
	}
	for of, next := range from {
		if err := renamePlaces(ctx, tx, of, table, next); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `DROP INDEX `+table+`_adopt`); err != nil {
		return fmt.Errorf("adopt: index %s: %w", table, err)
	}
	return nil
}

// renamePlaces gives a suffix to the ids that were made of places from an offset on: this log has, or will have, other
// events there. Rows of every generation are looked at: those of a topic that went on in its log when others did not kept
// their ids then.
func renamePlaces(ctx context.Context, tx *sql.Tx, of topics.Partition, table string, from int64) error {
	for last := (placed{pos: -1}); ; {
		page, err := readPlaced(ctx, tx, table, of.ID, from, last)
		if err != nil {
			return fmt.Errorf("adopt: read %s: %w", table, err)
		}
		for _, r := range page {
			if r.id != (&topics.Event{Topic: of.Topic, Partition: of.ID, Offset: r.pos % (1 << sqldb.GenerationBits)}).EventID() {
				continue
			}
			if err := rename(ctx, tx, of, table, r.pos, r.id, fmt.Sprintf("%s~%d", r.id, r.pos>>sqldb.GenerationBits), r.value); err != nil {
				return fmt.Errorf("adopt: give %s another id: %w", table, err)
			}
		}
		if len(page) < renamePage {
			return nil
		}
		last = page[len(page)-1]
	}
}

// readPlaced reads the next rows of a partition, in the order of their places, whose offsets are at least from.
func readPlaced(ctx context.Context, tx *sql.Tx, table string, part int32, from int64, last placed) (page []placed, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT id, pos, value FROM `+table+` WHERE part=$1 AND (pos, id)>(CAST($2 AS BIGINT), CAST($3 AS TEXT))
		AND pos % CAST($4 AS BIGINT)>=$5 ORDER BY pos, id LIMIT $6`, int64(part), last.pos, last.id, int64(1)<<sqldb.GenerationBits, from,
		renamePage)
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var r placed
		if err := rows.Scan(&r.id, &r.pos, &r.value); err != nil {
			return nil, errors.Join(err, rows.Close()) //nolint:sqlclosecheck // its error counts, in a transaction
		}
		page = append(page, r)
	}
	return page, errors.Join(rows.Err(), rows.Close())
}

// rename gives a row another id, also in the object that clients get, where it was spliced in last.
func rename(ctx context.Context, tx *sql.Tx, of topics.Partition, table string, pos int64, id, to string, value []byte) error {
	old, fresh := []byte(`"id":"`+id+`"`), []byte(`"id":"`+to+`"`)
	if at := bytes.LastIndex(value, old); at >= 0 {
		value = append(append(bytes.Clone(value[:at]), fresh...), value[at+len(old):]...)
	}
	statements := []string{`UPDATE ` + table + ` SET id=$1, value=$2 WHERE part=$3 AND pos=$4 AND id=$5`}
	args := [][]any{{to, value, int64(of.ID), pos, id}}
	switch of.Topic {
	case topics.Messages:
		statements, args = append(statements, `UPDATE conversations SET last_id=$1 WHERE last_id=$2`), append(args, []any{to, id})
	case topics.Broadcasts:
		statements, args = append(statements, `UPDATE announcement_states SET id=$1 WHERE id=$2`), append(args, []any{to, id})
	}
	for n, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement, args[n]...); err != nil {
			return err
		}
	}
	return nil
}
