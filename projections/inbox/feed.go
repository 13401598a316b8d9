package inbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/nexus/nexus/topics"
)

// Entry is an event of the feed.
type Entry struct {
	Topic     topics.Topic
	Partition int32
	Offset    int64
	Time      int64 // record time, Unix milliseconds
	Audience  string
	Type      string
	Value     []byte // the JSON object that clients receive
}

// Why the feed does not have all that was asked for.
var (
	ErrTrimmed = errors.New("inbox: the feed does not go back that far")
	ErrTooMuch = errors.New("inbox: more of the feed was asked for than is given at once")
)

// Span is what is asked for of a topic: from each partition's From up to To, whose indexes are partitions.
type Span struct {
	Topic     topics.Topic
	Audiences []string // record keys; a conversation's events stand under user:<id> of its two
	From, To  []int64
}

// Feed reads the feed, each partition in order. It gives all or nothing: ErrTrimmed where events may be gone, ErrTooMuch
// beyond entries events or bytes bytes. Await first: it does not look whether the feed has come so far.
func (i *Inbox) Feed(ctx context.Context, s Span, entries, bytes int) (list []Entry, err error) {
	query, args := s.where()
	if query == "" {
		return nil, nil
	}
	rows, err := i.db.Read.QueryContext(ctx, `SELECT part, pos, at, audience, type, value FROM feed WHERE `+query+
		fmt.Sprintf(` ORDER BY part, pos LIMIT %d`, entries+1), args...)
	if err != nil {
		return nil, fmt.Errorf("inbox: feed: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		e := Entry{Topic: s.Topic}
		if err := rows.Scan(&e.Partition, &e.Offset, &e.Time, &e.Audience, &e.Type, &e.Value); err != nil {
			return nil, fmt.Errorf("inbox: feed: %w", err)
		}
		if bytes -= len(e.Value); bytes < 0 || len(list) == entries {
			return nil, ErrTooMuch
		}
		list = append(list, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("inbox: feed: %w", err)
	}
	return list, i.whole(ctx, s) // looked at last: what was trimmed while this read is known by then
}

// where is the condition of the span, or nothing where it is empty.
func (s Span) where() (query string, args []any) {
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	for p, from := range s.From {
		if from < s.To[p] {
			query += " OR part=" + arg(int64(p)) + " AND pos>=" + arg(from) + " AND pos<" + arg(s.To[p])
		}
	}
	if query == "" || len(s.Audiences) == 0 {
		return "", nil
	}
	in := ""
	for _, a := range s.Audiences {
		in += "," + arg(a)
	}
	return "topic=" + arg(string(s.Topic)) + " AND audience IN (" + in[1:] + ") AND (" + query[len(" OR "):] + ")", args
}

// whole tells whether nothing of the span has been trimmed.
func (i *Inbox) whole(ctx context.Context, s Span) error {
	rows, err := i.db.Read.QueryContext(ctx, `SELECT part, next FROM feed_trimmed WHERE topic=$1`, string(s.Topic))
	if err != nil {
		return fmt.Errorf("inbox: feed: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var part int32
		var next int64
		if err := rows.Scan(&part, &next); err != nil {
			return fmt.Errorf("inbox: feed: %w", err)
		}
		if int(part) < len(s.From) && s.From[part] < min(next, s.To[part]) {
			return ErrTrimmed
		}
	}
	return rows.Err()
}

// Run trims the feed until ctx ends.
func (i *Inbox) Run(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Minute)
	defer tick.Stop()
	for {
		if err := i.trimFeed(ctx); err != nil && ctx.Err() == nil {
			i.log.Warn("the feed could not be trimmed", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// trimFeed measures age in record time, so that an old log is folded as it was. It notes up to where it trimmed: nobody
// is told that there was nothing where something has gone.
func (i *Inbox) trimFeed(ctx context.Context) error {
	return i.db.Tx(ctx, func(tx *sql.Tx) error {
		var newest sql.NullInt64
		if err := tx.QueryRowContext(ctx, `SELECT max(at) FROM feed`).Scan(&newest); err != nil || !newest.Valid {
			return err
		}
		oldest := newest.Int64 - i.retention.Milliseconds()
		if _, err := tx.ExecContext(ctx, `INSERT INTO feed_trimmed (topic, part, next)
			SELECT topic, part, max(pos)+1 FROM feed WHERE at < $1 GROUP BY topic, part
			ON CONFLICT (topic, part) DO UPDATE SET next=excluded.next WHERE feed_trimmed.next < excluded.next`, oldest); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM feed WHERE at < $1`, oldest)
		return err
	})
}
