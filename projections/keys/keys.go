// Package keys is the directory of devices' keys for end-to-end encryption: which devices a user has, their identity keys, and
// their one-time keys, each of which is handed out once. It lives in the inbox's database, and is folded from the log alone: the
// first key.taken that names a one-time key has it.
package keys

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Bounds of what is kept. What is published beyond them is left out.
const (
	// MaxDevices is how many devices of a user may have keys.
	MaxDevices = 10
	// maxLeft is how many one-time keys of a device may wait to be handed out.
	maxLeft = 500
)

// Log says where a topic ends: the offset after the last record of each partition. A pipeline.Log is one.
type Log interface {
	Ends(ctx context.Context, t topics.Topic) (topics.Ends, error)
}

// Directory folds keys' events into tables and answers queries on them. It is safe for concurrent use; a pipeline.Consumer of
// any node that shares the database feeds it.
type Directory struct {
	db        *sqldb.DB
	positions sqldb.Positions
	waiters   *sqldb.Waiters
	log       Log
}

// Topics are those that the directory is folded from. Earlier versions appended keys' events to control.
func Topics() []topics.Topic { return []topics.Topic{topics.Keys, topics.Control} }

// Open prepares the tables. The caller closes db.
func Open(ctx context.Context, db *sqldb.DB, log Log) (*Directory, error) {
	if err := db.Migrate(ctx, "keys", migrations); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	positions := sqldb.Positions{DB: db, Projection: "keys"}
	return &Directory{db: db, positions: positions, waiters: sqldb.NewWaiters(positions.All), log: log}, nil
}

// Ping answers whether the database can be reached.
func (d *Directory) Ping(ctx context.Context) error { return d.db.Read.PingContext(ctx) }

// Position is where the directory stands (pipeline.Sink).
func (d *Directory) Position(ctx context.Context, of topics.Partition) (pipeline.Position, error) {
	return d.positions.Next(ctx, of)
}

// Reset empties the directory: it is folded anew from the log's beginning.
func (d *Directory) Reset(ctx context.Context) error {
	return d.positions.Reset(ctx, "prekeys", "key_devices")
}

// Adopt takes another log on: devices and keys stay, those that were handed out too, and folding goes on from these positions. No row
// has a place in the log, so nothing else changes.
func (d *Directory) Adopt(ctx context.Context, to map[topics.Partition]pipeline.Position) error {
	return d.positions.Adopt(ctx, to, func(*sql.Tx) error { return nil })
}

// Apply folds a batch (pipeline.Sink), event by event: what an event does depends on those before it. A user's events stand in one
// partition, so nobody else changes his rows meanwhile.
func (d *Directory) Apply(ctx context.Context, b pipeline.Batch) error {
	err := d.inTurn(ctx, b)
	if err == nil {
		err = d.db.Tx(ctx, func(tx *sql.Tx) error {
			if err := d.positions.Move(ctx, tx, b, b.From); err != nil {
				return err
			}
			return fold{d.db, tx}.all(ctx, b)
		})
	}
	if err != nil {
		return fmt.Errorf("keys: fold %s from %d to %d: %w", b.Of(), b.From, b.To, err)
	}
	return nil
}

// turnWait is how long Apply waits for control to be folded before it fails and is tried again: then readiness and log tell of it.
const turnWait = 5 * time.Second

// inTurn holds the beginning of topic keys back until control, where a user's older events stand, has been folded to its end. Who
// folds control, this worker's neighbour or another node, shows in the database. It costs nothing afterwards.
func (d *Directory) inTurn(ctx context.Context, b pipeline.Batch) error {
	if b.Topic != topics.Keys || b.From > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, turnWait)
	defer cancel()
	ends, err := d.log.Ends(ctx, topics.Control)
	if err == nil {
		err = d.waiters.Await(ctx, ends)
	}
	if err != nil {
		return fmt.Errorf("wait until topic %s is folded, which has what is older: %w", topics.Control, err)
	}
	return nil
}
