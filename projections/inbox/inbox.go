// Package inbox is the relational projection: notifications, announcements, messages, their read state, device tokens,
// and the feed that resume reads. It runs on SQLite and on PostgreSQL. It never writes to the log.
package inbox

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Inbox folds events into tables and answers queries on them. It is safe for concurrent use.
type Inbox struct {
	db        *sqldb.DB
	positions sqldb.Positions
	log       *slog.Logger
	// retention is how long the feed is kept, in record time.
	retention time.Duration
}

// Topics are those the inbox is folded from.
func Topics() []topics.Topic {
	return []topics.Topic{topics.Messages, topics.Notifications, topics.Broadcasts, topics.Devices}
}

// Open prepares the tables. The caller closes db.
func Open(ctx context.Context, db *sqldb.DB, feedRetention time.Duration, log *slog.Logger) (*Inbox, error) {
	i := &Inbox{db: db, positions: sqldb.Positions{DB: db, Projection: "inbox"}, log: log, retention: feedRetention}
	if err := db.Migrate(ctx, "inbox", migrations); err != nil {
		return nil, fmt.Errorf("inbox: %w", err)
	}
	return i, nil
}

// Ping answers whether the database can be reached.
func (i *Inbox) Ping(ctx context.Context) error { return i.db.Read.PingContext(ctx) }

// Position is the next offset to fold (pipeline.Sink).
func (i *Inbox) Position(ctx context.Context, t topics.Topic, p int32) (int64, error) {
	return i.positions.Next(ctx, t, p)
}

// Reset empties the inbox: it is folded anew from the log's beginning.
func (i *Inbox) Reset(ctx context.Context) error {
	return i.positions.Reset(ctx, "notifications", "announcements", "announcement_states", "marks", "messages", "conversations", "devices", "feed", "feed_trimmed")
}

// Await returns once the inbox has folded everything below ends (partition → offset) of a topic.
func (i *Inbox) Await(ctx context.Context, t topics.Topic, ends map[int32]int64) error {
	return i.positions.Await(ctx, t, ends)
}

// Apply folds a batch (pipeline.Sink): inserts first and in bulk, then what changes rows, in log order. Changes concern
// only rows that stand earlier in the same partition, so the outcome does not depend on where batches are cut.
func (i *Inbox) Apply(ctx context.Context, b pipeline.Batch) error {
	var f fold
	for e := range b.Live {
		f.add(e)
	}
	f.touchConversations()
	return i.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := i.positions.Move(ctx, tx, b.Topic, b.Partition, b.From, b.To); err != nil {
			return err
		}
		for n, t := range tables {
			if err := i.db.Insert(ctx, tx, t, f.rows[n]); err != nil {
				return err
			}
		}
		for _, c := range f.changes {
			if _, err := tx.ExecContext(ctx, c.statement, c.args...); err != nil {
				return fmt.Errorf("change: %w", err)
			}
		}
		return nil
	})
}

const (
	intoNotifications = iota
	intoAnnouncements
	intoMessages
	intoFeed
)

var tables = [...]sqldb.Table{
	intoNotifications: {Name: "notifications", Columns: []string{"user_id text", "id text", "part bigint", "pos bigint", "at bigint", "value bytea"}},
	intoAnnouncements: {Name: "announcements", Columns: []string{"id text", "part bigint", "pos bigint", "at bigint", "value bytea"}},
	intoMessages: {Name: "messages", Columns: []string{"id text", "conversation text", "sender text", "receiver text",
		"part bigint", "pos bigint", "at bigint", "value bytea"}},
	intoFeed: {Name: "feed", Columns: []string{"audience text", "topic text", "part bigint", "pos bigint", "at bigint",
		"type text", "id text", "value bytea"}},
}

// fold collects what a batch does to the tables.
type fold struct {
	rows    [len(tables)][][]any
	changes []change
	last    map[string]*topics.Event // by conversation: the batch's last message
}

type change struct {
	statement string
	args      []any
}

func (f *fold) insert(table int, row ...any) { f.rows[table] = append(f.rows[table], row) }

func (f *fold) change(statement string, args ...any) {
	f.changes = append(f.changes, change{statement, args})
}

func (f *fold) add(e *topics.Event) {
	part := int64(e.Partition)
	switch e.Type {
	case topics.Message:
		id, data := e.EventID(), e.Data(true)
		f.insert(intoMessages, id, string(e.Key), e.Body.Text("senderId"), e.Body.Text("receiverId"), part, e.Offset, e.Time, data)
		f.feed(e, id, data)
		if f.last == nil {
			f.last = make(map[string]*topics.Event)
		}
		f.last[string(e.Key)] = e
	case topics.MessageRead:
		which := `id=$2`
		if string(e.Body.Raw("upTo")) == "true" {
			which = `pos<=(SELECT pos FROM messages WHERE id=$2 AND conversation=$3 AND pos<$5)`
		}
		f.change(`UPDATE messages SET read_at=$1 WHERE `+which+` AND conversation=$3 AND receiver=$4 AND pos<$5 AND read_at IS NULL`,
			e.Time, e.Body.Text("messageId"), string(e.Key), e.Body.Text("userId"), e.Offset)
		f.feed(e, "", e.Data(false))
	case topics.Notification, topics.Activity, topics.Announcement:
		f.addNotice(e, part)
	case topics.NotificationRead:
		f.mark(e, "read_at", "read_to")
	case topics.NotificationDeleted:
		f.mark(e, "deleted_at", "deleted_to")
	case topics.DeviceRegistered:
		f.device(e, e.Body.Text("token"), e.Body.Text("platform"), 1)
	case topics.DeviceUnregistered:
		f.unregister(e, part)
	}
}

// touchConversations moves the conversations of a batch up: once each, whatever number of messages came. A message that
// the inbox has already, sent again beyond the dedup window, does not move one.
func (f *fold) touchConversations() {
	for _, key := range slices.Sorted(maps.Keys(f.last)) {
		e := f.last[key]
		for _, user := range slices.Compact([]string{e.Audience.A, e.Audience.B}) {
			f.change(`INSERT INTO conversations (user_id, conversation, other, last_pos, last_at, last_id)
				SELECT $1, conversation, $2, pos, at, id FROM messages WHERE conversation=$3 AND pos<=$4 ORDER BY pos DESC LIMIT 1
				ON CONFLICT (user_id, conversation) DO UPDATE SET last_pos=excluded.last_pos, last_at=excluded.last_at, last_id=excluded.last_id
				WHERE conversations.last_pos < excluded.last_pos`, user, e.Audience.Other(user), key, e.Offset)
		}
	}
}

func (f *fold) addNotice(e *topics.Event, part int64) {
	id, data := e.EventID(), e.Data(true)
	f.feed(e, id, data)
	switch {
	case e.Type == topics.Announcement:
		f.insert(intoAnnouncements, id, part, e.Offset, e.Time, data)
	case e.Type == topics.Notification && e.Audience.Kind == topics.User:
		f.insert(intoNotifications, e.Audience.A, id, part, e.Offset, e.Time, data)
	}
}

// feed adds a row for each audience; a conversation's record is one for each of the two.
func (f *fold) feed(e *topics.Event, id string, data []byte) {
	audiences := []string{string(e.Key)}
	if a := e.Audience; a.Kind == topics.Conversation {
		audiences = []string{topics.UserKey(a.A)}
		if a.A != a.B {
			audiences = append(audiences, topics.UserKey(a.B))
		}
	}
	for _, a := range audiences {
		f.insert(intoFeed, a, string(e.Topic), int64(e.Partition), e.Offset, e.Time, e.Type, id, data)
	}
}

// mark sets the read or deleted state of one notification or announcement, or of all up to a time.
func (f *fold) mark(e *topics.Event, column, upTo string) {
	user := e.Audience.A
	if id := e.Body.Text("notificationId"); id != "" {
		f.change(`UPDATE notifications SET `+column+`=$1 WHERE user_id=$2 AND id=$3 AND pos<$4 AND `+column+` IS NULL`, e.Time, user, id, e.Offset)
		f.change(`INSERT INTO announcement_states (user_id, id, `+column+`) VALUES ($1,$2,$3)
			ON CONFLICT (user_id, id) DO UPDATE SET `+column+`=COALESCE(announcement_states.`+column+`, excluded.`+column+`)`, user, id, e.Time)
		return
	}
	t, _ := time.Parse(time.RFC3339Nano, e.Body.Text("upTo"))
	ms := t.UnixMilli()
	f.change(`UPDATE notifications SET `+column+`=$1 WHERE user_id=$2 AND at<=$3 AND pos<$4 AND `+column+` IS NULL`, e.Time, user, ms, e.Offset)
	f.change(`INSERT INTO marks (user_id, read_to, deleted_to) VALUES ($1,-1,-1) ON CONFLICT DO NOTHING`, user)
	f.change(`UPDATE marks SET `+upTo+`=$1 WHERE user_id=$2 AND `+upTo+`<$3`, ms, user, ms)
}

// device writes a token's row unless a later record has: a token moves between users, whose records stand in different
// partitions, so the greatest (time, partition, offset) wins.
func (f *fold) device(e *topics.Event, token, platform string, registered int64) {
	f.change(`INSERT INTO devices (token, user_id, platform, registered, at, part, pos) VALUES ($1,$2,$3,$4,$5,$6,$7)
		ON CONFLICT (token) DO UPDATE SET user_id=excluded.user_id, platform=excluded.platform, registered=excluded.registered,
			at=excluded.at, part=excluded.part, pos=excluded.pos
		WHERE (devices.at, devices.part, devices.pos) < (excluded.at, excluded.part, excluded.pos)`,
		token, e.Audience.A, platform, registered, e.Time, int64(e.Partition), e.Offset)
}

func (f *fold) unregister(e *topics.Event, part int64) {
	where := `user_id=$1 AND (at, part, pos) < ($2, $3, $4)`
	args := []any{e.Audience.A, e.Time, part, e.Offset}
	if token := e.Body.Text("token"); token != "" {
		where += ` AND token=$5`
		args = append(args, token)
	}
	f.change(`UPDATE devices SET registered=0, at=$2, part=$3, pos=$4 WHERE `+where, args...)
}
