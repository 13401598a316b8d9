package inbox

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// Entry is an event of the feed.
type Entry struct {
	At       topics.Place
	Time     int64 // record time, Unix milliseconds
	Audience string
	Type     string
	Value    []byte // the JSON object that clients receive
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
	s = s.shifted(i.shift)
	query, args := s.where()
	if query == "" {
		return nil, nil
	}
	err = i.db.Query(ctx, func(rows *sql.Rows) error {
		e := Entry{At: s.Topic.Partition(0).At(0)}
		if err := rows.Scan(&e.At.ID, &e.At.Offset, &e.Time, &e.Audience, &e.Type, &e.Value); err != nil {
			return err
		}
		if bytes -= len(e.Value); bytes < 0 || len(list) == entries {
			return ErrTooMuch
		}
		e.At.Offset -= i.shift
		list = append(list, e)
		return nil
	}, `SELECT part, pos, at, audience, type, value FROM feed WHERE `+query+fmt.Sprintf(` ORDER BY part, pos LIMIT %d`, entries+1), args...)
	switch {
	case errors.Is(err, ErrTooMuch):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("inbox: feed: %w", err)
	}
	return list, i.whole(ctx, s) // looked at last: what was trimmed while this read is known by then
}

// shifted is the span as places are stored (sqldb.Positions.Shift).
func (s Span) shifted(by int64) Span {
	s.From, s.To = slices.Clone(s.From), slices.Clone(s.To)
	for p := range s.From {
		s.From[p] += by
		s.To[p] += by
	}
	return s
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
	var in strings.Builder
	for _, a := range s.Audiences {
		in.WriteString("," + arg(a))
	}
	return "topic=" + arg(string(s.Topic)) + " AND audience IN (" + in.String()[1:] + ") AND (" + query[len(" OR "):] + ")", args
}

// whole tells whether nothing of the span has been trimmed.
func (i *Inbox) whole(ctx context.Context, s Span) error {
	err := i.db.Query(ctx, func(rows *sql.Rows) error {
		var part int32
		var next int64
		if err := rows.Scan(&part, &next); err != nil {
			return err
		}
		if int(part) < len(s.From) && s.From[part] < min(next, s.To[part]) {
			return ErrTrimmed
		}
		return nil
	}, `SELECT part, next FROM feed_trimmed WHERE topic=$1`, string(s.Topic))
	if err != nil && !errors.Is(err, ErrTrimmed) {
		return fmt.Errorf("inbox: feed: %w", err)
	}
	return err
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

// trimChunk is how many rows are removed at once: on SQLite nothing else is written meanwhile (2,000 rows take up to 0.14 s).
const trimChunk = 2000

// trimFeed removes what is older than the retention, measured in record time, so that an old log is folded as it was.
func (i *Inbox) trimFeed(ctx context.Context) error {
	var newest sql.NullInt64
	if err := i.db.Get(ctx, []any{&newest}, `SELECT max(at) FROM feed`); err != nil || !newest.Valid {
		return wrap("trim the feed: find the newest row", err)
	}
	oldest := newest.Int64 - i.retention.Milliseconds()
	for {
		n, err := i.trimOnce(ctx, oldest)
		if err != nil || n < trimChunk {
			return wrap("trim the feed", err)
		}
	}
}

// trimOnce removes a chunk and notes, in the same transaction, up to where it removed: nobody is told that there was
// nothing where something has gone.
func (i *Inbox) trimOnce(ctx context.Context, oldest int64) (removed int, err error) {
	old := `rowid IN (SELECT rowid FROM feed WHERE at<$1 ORDER BY at LIMIT %d)`
	if i.db.Postgres() { // rows that another node is removing are skipped; an array, not IN, has each row found by its place
		old = `ctid = ANY (ARRAY(SELECT ctid FROM feed WHERE at<$1 ORDER BY at LIMIT %d FOR UPDATE SKIP LOCKED))`
	}
	err = i.db.Tx(ctx, func(tx *sql.Tx) error {
		removed = 0
		rows, err := tx.QueryContext(ctx, `DELETE FROM feed WHERE `+fmt.Sprintf(old, trimChunk)+` RETURNING topic, part, pos`, oldest)
		if err != nil {
			return fmt.Errorf("remove rows: %w", err)
		}
		defer rows.Close()
		next := make(topics.Ends)
		for rows.Next() {
			var at topics.Place
			if err := rows.Scan(&at.Topic, &at.ID, &at.Offset); err != nil {
				return fmt.Errorf("remove rows: %w", err)
			}
			next.Add(at.Partition, at.Offset+1)
			removed++
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return fmt.Errorf("remove rows: %w", err)
		}
		return i.noteTrimmed(ctx, tx, next)
	})
	return removed, err
}

var trimmed = sqldb.Table{Name: "feed_trimmed", Columns: []string{"topic text", "part bigint", "next bigint"},
	Conflict: `(topic, part) DO UPDATE SET next=excluded.next WHERE feed_trimmed.next < excluded.next`}

func (i *Inbox) noteTrimmed(ctx context.Context, tx *sql.Tx, next topics.Ends) error {
	rows := make([][]any, 0, len(next))
	for of, n := range next {
		rows = append(rows, []any{string(of.Topic), int64(of.ID), n})
	}
	slices.SortFunc(rows, func(a, b []any) int { // two nodes lock the rows in one order
		return cmp.Or(cmp.Compare(a[0].(string), b[0].(string)), cmp.Compare(a[1].(int64), b[1].(int64)))
	})
	return i.db.Insert(ctx, tx, trimmed, rows)
}

// wrap says of an error what was being done; nil stays nil.
func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("inbox: %s: %w", doing, err)
}
