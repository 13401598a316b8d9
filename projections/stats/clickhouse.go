package stats

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// ClickHouse keeps the statistics on a ClickHouse server (18.16 or later). Rows are written before positions, and a row
// that is written again after a crash in between is the same row: ReplacingMergeTree drops it in time, uniqExact never
// counts it twice. It is safe for concurrent use.
type ClickHouse struct {
	conn   driver.Conn
	linger time.Duration

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

// OpenClickHouse connects to a URL like clickhouse://user:password@host:9000/database and prepares the tables.
func OpenClickHouse(ctx context.Context, url string) (*ClickHouse, error) {
	o, err := clickhouse.ParseDSN(url)
	if err != nil {
		return nil, errors.New("CLICKHOUSE_URL is not a URL like clickhouse://user:password@host:9000/database")
	}
	o.DialTimeout, o.ReadTimeout = 3*time.Second, 10*time.Second
	conn, err := clickhouse.Open(o)
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	c := &ClickHouse{conn: conn, linger: lingerFor}
	for _, t := range schema {
		if err := conn.Exec(ctx, t); err != nil {
			conn.Close()
			return nil, fmt.Errorf("stats: make the tables: %w", err)
		}
	}
	return c, nil
}

// Close releases the connections.
func (c *ClickHouse) Close() error { return c.conn.Close() }

// Ping answers whether the server can be reached.
func (c *ClickHouse) Ping(ctx context.Context) error { return c.conn.Ping(ctx) }

// Position is the next offset to fold (pipeline.Sink). Rows of an insert whose position was not written are written
// again.
func (c *ClickHouse) Position(ctx context.Context, t topics.Topic, p int32) (next int64, err error) {
	err = c.conn.QueryRow(ctx, `SELECT max(next) FROM nexus_positions WHERE topic=? AND part=?`, string(t), p).Scan(&next)
	if err != nil {
		return 0, fmt.Errorf("stats: position of %s/%d: %w", t, p, err)
	}
	return next, nil
}

// Reset empties the statistics: they are folded anew from the log's beginning. Nobody must be folding: positions have no
// compare-and-set. They go first: cut off in between, the rows that are left are written again and stay the same.
func (c *ClickHouse) Reset(ctx context.Context) error {
	for _, table := range []string{"nexus_positions", "nexus_events"} {
		if err := c.conn.Exec(ctx, `TRUNCATE TABLE `+table); err != nil {
			return fmt.Errorf("stats: empty table %s: %w", table, err)
		}
	}
	return nil
}

// Reached tells whether everything below ends is counted.
func (c *ClickHouse) Reached(ctx context.Context, ends Ends) (bool, error) {
	rows, err := c.conn.Query(ctx, selectPositions)
	if err != nil {
		return false, fmt.Errorf("stats: positions: %w", err)
	}
	defer rows.Close()
	positions := make(Ends)
	for rows.Next() {
		var t string
		var p int32
		var next int64
		if err := rows.Scan(&t, &p, &next); err != nil {
			return false, fmt.Errorf("stats: positions: %w", err)
		}
		positions.Add(topics.Topic(t), p, next)
	}
	return ends.reached(positions), rows.Err()
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
	insert, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := c.insert(insert, all)
	for _, w := range all {
		w.done <- err
	}
}

func (c *ClickHouse) insert(ctx context.Context, all []*commit) error {
	// A failed Send releases the batch, so each attempt builds its own.
	events, err := c.conn.PrepareBatch(ctx, insertEvents)
	if err != nil {
		return fmt.Errorf("stats: insert events: %w", err)
	}
	for _, w := range all {
		for _, r := range rowsOf(w.batch) {
			if err := events.Append(r.user, r.typ, r.topic, r.part, r.pos, time.UnixMilli(r.at).UTC(), r.detail,
				r.refTopic, r.refPart, r.refPos, r.sessions, r.delay); err != nil {
				return errors.Join(fmt.Errorf("stats: insert events: %w", err), events.Abort())
			}
		}
	}
	if err := send(events); err != nil {
		return fmt.Errorf("stats: insert events: %w", err)
	}
	positions, err := c.conn.PrepareBatch(ctx, insertPositions)
	if err != nil {
		return fmt.Errorf("stats: insert positions: %w", err)
	}
	for _, w := range all {
		if err := positions.Append(string(w.batch.Topic), w.batch.Partition, w.batch.To); err != nil {
			return errors.Join(fmt.Errorf("stats: insert positions: %w", err), positions.Abort())
		}
	}
	if err := positions.Send(); err != nil {
		return fmt.Errorf("stats: insert positions: %w", err)
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
		out[user] = Counts{int64(connections), int64(messages), int64(posts)}
	}
	return out, rows.Err()
}
