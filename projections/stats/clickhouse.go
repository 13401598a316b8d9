package stats

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// ClickHouse keeps the statistics on a ClickHouse server (18.16 or later). Rows are written before positions, and a row
// that is written again after a crash in between is the same row: ReplacingMergeTree drops it in time, uniqExact never
// counts it twice. It is safe for concurrent use.
type ClickHouse struct {
	conn       driver.Conn
	limits     sqldb.Limits
	linger     time.Duration
	generation int32 // how often the statistics took another log on; fixed by Open
	emptied    bool  // the events are gone and the positions are not; found by Open

	mu      sync.Mutex
	waiting []*commit // batches of the insert to come; its first brings it about
}

type commit struct {
	batch pipeline.Batch
	done  chan error
}

// lingerFor is how long batches of all partitions are gathered: each insert is a part, and a server refuses more than a
// few hundred that it has not merged.
const lingerFor = 250 * time.Millisecond

// OpenClickHouse connects to a URL like clickhouse://user:password@host:9000/database, with the default limits, and
// prepares the tables.
func OpenClickHouse(ctx context.Context, url string) (*ClickHouse, error) {
	return OpenClickHouseWithin(ctx, sqldb.Limits{}, url)
}

// OpenClickHouseWithin is OpenClickHouse with limits: Read for what is read, Tx for all else.
func OpenClickHouseWithin(ctx context.Context, l sqldb.Limits, url string) (*ClickHouse, error) {
	l = l.OrDefault()
	conn, err := connect(url, l)
	if err != nil {
		return nil, err
	}
	c := &ClickHouse{conn: conn, limits: l, linger: lingerFor}
	if err := c.prepare(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// ErrEmptied reports that the positions say that events were counted, and there are none: the table was dropped, emptied or
// not restored. Going on from there would lose them from every count.
var ErrEmptied = errors.New("stats: ClickHouse has the positions of the statistics, and table nexus_events is empty or was dropped: " +
	"stop all nodes and run nexus rebuild stats")

// prepare makes the tables, takes the positions of an earlier version over, and finds the generation.
func (c *ClickHouse) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.limits.Tx)
	defer cancel()
	for _, t := range schema {
		if err := c.conn.Exec(ctx, t); err != nil {
			return fmt.Errorf("stats: make the tables: %w", err)
		}
	}
	all, err := c.positions(ctx)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		if err := c.takeOver(ctx); err != nil {
			return err
		}
		if all, err = c.positions(ctx); err != nil {
			return err
		}
	}
	counted := false
	for _, at := range all {
		c.generation = max(c.generation, at.number)
		counted = counted || at.Next > 0
	}
	var rows uint64
	if err := c.conn.QueryRow(ctx, `SELECT count() FROM (SELECT pos FROM nexus_events LIMIT 1)`).Scan(&rows); err != nil {
		return fmt.Errorf("stats: look for events: %w", err)
	}
	c.emptied = counted && rows == 0
	return nil
}

// Adopt takes another log on: what is counted stays, and counting goes on from these positions, in a new generation. Nobody
// may be folding. The other positions are written once more, in the new generation, so that all have the same.
func (c *ClickHouse) Adopt(ctx context.Context, to map[topics.Partition]pipeline.Position) error {
	ctx, cancel := context.WithTimeout(ctx, c.limits.Tx)
	defer cancel()
	all, err := c.positions(ctx)
	if err != nil {
		return err
	}
	positions, err := c.conn.PrepareBatch(ctx, insertPositions)
	if err != nil {
		return fmt.Errorf("stats: adopt: %w", err)
	}
	for of, at := range to {
		all[of] = generation{Position: at}
	}
	for of, at := range all {
		if err := positions.Append(string(of.Topic), of.ID, c.generation+1, at.Next, at.Log, at.Mark); err != nil {
			return errors.Join(fmt.Errorf("stats: adopt: %w", err), positions.Abort())
		}
	}
	if err := positions.Send(); err != nil {
		return fmt.Errorf("stats: adopt: %w", err)
	}
	c.generation++
	return nil
}

// takeOver copies the positions of table nexus_positions, which earlier versions kept, without the log that they are of.
func (c *ClickHouse) takeOver(ctx context.Context) error {
	var n uint64
	err := c.conn.QueryRow(ctx, `SELECT count() FROM system.tables WHERE database=currentDatabase() AND name='nexus_positions'`).Scan(&n)
	if err == nil && n > 0 {
		err = c.conn.Exec(ctx, `INSERT INTO nexus_offsets SELECT topic, part, 0, max(next), '', 0 FROM nexus_positions GROUP BY topic, part`)
	}
	if err == nil && n > 0 {
		err = c.conn.Exec(ctx, `DROP TABLE nexus_positions`) // else a reset of nexus_offsets would bring them back
	}
	if err != nil {
		return fmt.Errorf("stats: take the positions of an earlier version over: %w", err)
	}
	return nil
}

// Close releases the connections.
func (c *ClickHouse) Close() error { return c.conn.Close() }

// Ping answers whether the server can be reached.
func (c *ClickHouse) Ping(ctx context.Context) error { return c.conn.Ping(ctx) }

// Position is where the statistics stand (pipeline.Sink). Rows of an insert whose position was not written are written
// again.
func (c *ClickHouse) Position(ctx context.Context, of topics.Partition) (pipeline.Position, error) {
	if c.emptied {
		return pipeline.Position{}, ErrEmptied
	}
	all, err := c.positions(ctx)
	return all[of].Position, err
}

// generation is a position and how often the statistics had taken another log on by then.
type generation struct {
	number int32
	pipeline.Position
}

// positions reads all of them, of the latest generation each.
func (c *ClickHouse) positions(ctx context.Context) (map[topics.Partition]generation, error) {
	ctx, cancel := context.WithTimeout(ctx, c.limits.Read)
	defer cancel()
	rows, err := c.conn.Query(ctx, selectPositions)
	if err != nil {
		return nil, fmt.Errorf("stats: positions: %w", err)
	}
	defer rows.Close()
	all := make(map[topics.Partition]generation)
	for rows.Next() {
		var t string
		var p int32
		var g generation
		if err := rows.Scan(&t, &p, &g.number, &g.Next, &g.Log, &g.Mark); err != nil {
			return nil, fmt.Errorf("stats: positions: %w", err)
		}
		of := topics.Topic(t).Partition(p)
		if old, known := all[of]; !known || old.number < g.number {
			all[of] = g
		}
	}
	return all, rows.Err()
}

// Reset empties the statistics: they are folded anew from the log's beginning. Nobody must be folding: positions have no
// compare-and-set. They go first: cut off in between, the rows that are left are written again and stay the same.
func (c *ClickHouse) Reset(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resetLimit)
	defer cancel()
	c.generation = 0
	for _, table := range []string{"nexus_offsets", "nexus_events"} {
		if err := c.conn.Exec(ctx, `TRUNCATE TABLE `+table); err != nil {
			return fmt.Errorf("stats: empty table %s: %w", table, err)
		}
	}
	c.emptied = false
	return nil
}

// resetLimit is for emptying tables of any size.
const resetLimit = 10 * time.Minute

// Reached tells whether everything below ends is counted.
func (c *ClickHouse) Reached(ctx context.Context, ends topics.Ends) (bool, error) {
	all, err := c.positions(ctx)
	if err != nil {
		return false, err
	}
	for of, end := range ends {
		if all[of].Next < end {
			return false, nil
		}
	}
	return true, nil
}

// Apply folds a batch (pipeline.Sink), together with those that come within the linger from other partitions.
func (c *ClickHouse) Apply(ctx context.Context, b pipeline.Batch) error {
	mine := &commit{batch: b, done: make(chan error, 1)}
	c.mu.Lock()
	c.waiting = append(c.waiting, mine)
	first := len(c.waiting) == 1
	c.mu.Unlock()
	if first {
		c.gather(ctx)
	}
	select {
	case err := <-mine.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *ClickHouse) gather(ctx context.Context) {
	t := time.NewTimer(c.linger)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done(): // the others must not wait for one that ends
	}
	c.mu.Lock()
	all := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	err := c.insert(ctx, all)
	if pipeline.IsPermanent(err) && len(all) > 1 { // one of them is to blame: each gets its own answer
		for _, w := range all {
			w.done <- c.insert(ctx, []*commit{w})
		}
		return
	}
	for _, w := range all {
		w.done <- err
	}
}

// insertLimit bounds an insert, which goes on when the node ends: its batches are half written otherwise.
const insertLimit = 10 * time.Second

func (c *ClickHouse) insert(ctx context.Context, all []*commit) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(insertLimit, c.limits.Tx))
	defer cancel()
	if err := c.insertEvents(ctx, all); err != nil {
		return classify(err)
	}
	positions, err := c.conn.PrepareBatch(ctx, insertPositions)
	if err != nil {
		return fmt.Errorf("stats: insert positions: %w", err)
	}
	for _, w := range all {
		if err := positions.Append(string(w.batch.Topic), w.batch.Partition, c.generation, w.batch.To, w.batch.Log, w.batch.Mark); err != nil {
			return errors.Join(fmt.Errorf("stats: insert positions: %w", err), positions.Abort())
		}
	}
	if err := positions.Send(); err != nil {
		return fmt.Errorf("stats: insert positions: %w", err)
	}
	return nil
}

func (c *ClickHouse) insertEvents(ctx context.Context, all []*commit) error {
	// A failed Send releases the batch, so each attempt builds its own.
	events, err := c.conn.PrepareBatch(ctx, insertEvents)
	if err != nil {
		return fmt.Errorf("stats: insert events: %w", err)
	}
	shift := int64(c.generation) << sqldb.GenerationBits // as sqldb.Positions.Shift
	for _, w := range all {
		for _, r := range rowsOf(w.batch) {
			err := checkTime(r.at)
			if err == nil {
				err = events.Append(r.user, r.typ, r.topic, r.part, r.pos+shift, time.UnixMilli(r.at).UTC(), r.detail,
					r.refTopic, r.refPart, r.refPos+shift, r.sessions, r.delay)
			}
			if err != nil { // a value that the column cannot have
				_ = events.Abort() // where Append failed it has done so
				return pipeline.Permanent(fmt.Errorf("stats: insert events of %s at offset %d: %w", w.batch.Of(), r.pos, err))
			}
		}
	}
	if err := send(events); err != nil {
		return fmt.Errorf("stats: insert events: %w", err)
	}
	return nil
}

// checkTime refuses a record time that a DateTime, which is 32 bits of seconds, cannot have: the driver would write another.
func checkTime(ms int64) error {
	if ms < 0 || ms/1000 > math.MaxUint32 {
		return errors.New("the record time is not between 1970 and 2106")
	}
	return nil
}

// send sends a batch, or gives an empty one up: that would only cost a part.
func send(b driver.Batch) error {
	if b.Rows() == 0 {
		return b.Abort()
	}
	return b.Send()
}

// Counts answers for each of the users; one without events has zeros.
func (c *ClickHouse) Counts(ctx context.Context, users []string) (map[string]Counts, error) {
	out := make(map[string]Counts, len(users))
	set := clickhouse.GroupSet{Value: make([]any, 0, len(users))} // an array would be one value to 18.16
	for _, u := range users {
		out[u] = Counts{}
		set.Value = append(set.Value, u)
	}
	ctx, cancel := context.WithTimeout(ctx, c.limits.Read)
	defer cancel()
	rows, err := c.conn.Query(ctx, selectCounts, set)
	if err != nil {
		return nil, fmt.Errorf("stats: counts: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var user string
		var connections, messages, posts uint64
		if err := rows.Scan(&user, &connections, &messages, &posts); err != nil {
			return nil, fmt.Errorf("stats: counts: %w", err)
		}
		out[user] = Counts{Connections: int64(connections), Messages: int64(messages), Posts: int64(posts)}
	}
	return out, rows.Err()
}
