// Package inbox is the relational projection: notifications, announcements, messages, their read state, device tokens,
// and the feed that resume reads. It runs on SQLite and on PostgreSQL. It never writes to the log.
package inbox

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
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
	waiters   *sqldb.Waiters
	log       *slog.Logger
	// retention is how long the feed is kept, in record time.
	retention time.Duration
	shift     int64 // sqldb.Positions.Shift
	clocks    clocks
}

// Topics are those the inbox is folded from.
func Topics() []topics.Topic {
	return []topics.Topic{topics.Messages, topics.Notifications, topics.Broadcasts, topics.Devices}
}

// Open prepares the tables. The caller closes db. feedRetention is how far back the feed goes, in record time (FEED_RETENTION): what is
// older is trimmed by Run. An error means that the database cannot be reached, or that its tables cannot be made.
func Open(ctx context.Context, db *sqldb.DB, feedRetention time.Duration, log *slog.Logger) (*Inbox, error) {
	i := &Inbox{db: db, positions: sqldb.Positions{DB: db, Projection: "inbox"}, log: log, retention: feedRetention}
	i.waiters = sqldb.NewWaiters(i.positions.All)
	if err := db.Migrate(ctx, "inbox", migrations, sqldb.Step{File: "0004_device_keys.sql", Run: i.keyDevices}); err != nil {
		return nil, fmt.Errorf("inbox: %w", err)
	}
	var err error
	if i.shift, err = i.positions.Shift(ctx); err != nil {
		return nil, fmt.Errorf("inbox: %w", err)
	}
	return i, nil
}

// Ping answers whether the database can be reached.
func (i *Inbox) Ping(ctx context.Context) error { return i.db.Read.PingContext(ctx) }

// Position is where the inbox stands (pipeline.Sink). A partition that it has never seen begins at 0.
func (i *Inbox) Position(ctx context.Context, of topics.Partition) (pipeline.Position, error) {
	return i.positions.Next(ctx, of)
}

// Reset empties the inbox: it is folded anew from the log's beginning. Nobody may fold meanwhile.
func (i *Inbox) Reset(ctx context.Context) error {
	i.shift = 0
	return i.positions.Reset(ctx, "notifications", "announcements", "announcement_states", "marks", "messages", "conversations", "devices",
		"feed", "feed_trimmed")
}

// Await returns once the inbox, on whichever node, has folded everything below ends. Its errors are those of sqldb.Positions.Await.
func (i *Inbox) Await(ctx context.Context, ends topics.Ends) error {
	return i.waiters.Await(ctx, ends)
}

// Apply folds a batch (pipeline.Sink): inserts first and in bulk, then what changes rows, in log order. Changes concern
// only rows that stand earlier in the log, so the outcome does not depend on where batches are cut.
func (i *Inbox) Apply(ctx context.Context, b pipeline.Batch) error {
	f := fold{shift: i.shift, clock: i.clocks.at(b.Of(), b.From)}
	for e := range b.Live {
		f.add(e)
	}
	err := i.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := i.positions.Move(ctx, tx, b, b.From); err != nil {
			return err
		}
		return f.write(ctx, i.db, tx)
	})
	if err != nil {
		return fmt.Errorf("inbox: fold %s from %d to %d: %w", b.Of(), b.From, b.To, err)
	}
	i.clocks.set(b.Of(), b.To, f.clock)
	return nil
}

const (
	intoNotifications = iota
	intoAnnouncements
	intoMessages
	intoFeed
)

var tables = [...]sqldb.Table{
	intoNotifications: {Name: "notifications", Columns: []string{"user_id text", "id text", "part bigint", "pos bigint", "at bigint",
		"value bytea"}},
	intoAnnouncements: {Name: "announcements", Columns: []string{"id text", "part bigint", "pos bigint", "at bigint", "value bytea"}},
	intoMessages: {Name: "messages", Columns: []string{"id text", "conversation text", "sender text", "receiver text",
		"part bigint", "pos bigint", "at bigint", "value bytea"}},
	intoFeed: {Name: "feed", Columns: []string{"audience text", "topic text", "part bigint", "pos bigint", "at bigint",
		"type text", "id text", "value bytea"}},
}

// conversations are moved up by their newest message.
var conversations = sqldb.Table{Name: "conversations",
	Columns: []string{"user_id text", "conversation text", "other text", "last_part bigint", "last_pos bigint", "last_at bigint",
		"last_id text"},
	Conflict: `(user_id, conversation) DO UPDATE SET last_part=excluded.last_part, last_pos=excluded.last_pos, last_at=excluded.last_at,
		last_id=excluded.last_id WHERE ` + earlier("conversations.last_", "excluded.last_at", "excluded.last_part", "excluded.last_pos")}

// earlier is the condition that a row stands earlier in the log than a record does: by its place in the same partition,
// by record time in another one, where its key stood before the topic got more partitions. columns is what stands before
// the row's at, part and pos; the three others are the record's.
func earlier(columns, at, part, pos string) string {
	return fmt.Sprintf("(%[1]spart=%[3]s AND %[1]spos<%[4]s OR %[1]spart<>%[3]s AND (%[1]sat, %[1]spart) < (%[2]s, %[3]s))", columns, at, part,
		pos)
}

// fold collects what a batch does to the tables.
type fold struct {
	shift    int64 // sqldb.Positions.Shift
	clock    int64 // the latest record time so far; 0: not known (clocks)
	late     bool  // the event at hand is, or may be, earlier than one before it
	rows     [len(tables)][][]any
	changes  []change
	messages []*topics.Event
}

// write writes it. The message rows that were not there before move their conversations up.
func (f *fold) write(ctx context.Context, db *sqldb.DB, tx *sql.Tx) error {
	for n, t := range tables {
		if n == intoMessages {
			continue
		}
		if err := db.Insert(ctx, tx, t, f.rows[n]); err != nil {
			return err
		}
	}
	fresh, err := db.InsertNew(ctx, tx, tables[intoMessages], f.rows[intoMessages], "pos")
	if err != nil {
		return err
	}
	if err := db.Insert(ctx, tx, conversations, f.touched(fresh)); err != nil {
		return err
	}
	for _, c := range f.changes {
		if _, err := tx.ExecContext(ctx, c.statement, c.args...); err != nil {
			return fmt.Errorf("%s: %w", c.of, err)
		}
	}
	return nil
}

type change struct {
	of        string // the event's type, for errors
	statement string
	args      []any
}

func (f *fold) insert(table int, row ...any) { f.rows[table] = append(f.rows[table], row) }

func (f *fold) change(e *topics.Event, statement string, args ...any) {
	f.changes = append(f.changes, change{fmt.Sprintf("%s at offset %d", e.Type, e.Offset), statement, args})
}

// pos is where an event stands, as it is stored (sqldb.Positions.Shift).
func (f *fold) pos(e *topics.Event) int64 { return e.Offset + f.shift }

func (f *fold) add(e *topics.Event) {
	part := int64(e.Partition)
	if f.clock == 0 {
		f.clock = e.Time + clockSkew
	}
	f.late, f.clock = e.Time < f.clock, max(f.clock, e.Time)
	switch e.Type {
	case topics.TypeMessage:
		id, data, sender := e.EventID(), e.Data(), e.Actor()
		f.insert(intoMessages, id, string(e.Key), sender, e.Audience.Other(sender), part, f.pos(e), e.Time, data)
		f.feed(e, id, data)
		f.messages = append(f.messages, e)
	case topics.TypeMessageRead:
		read := topics.ReadMessageRead(e)
		// IS TRUE: the row is found by its id alone, never by an index of all that is unread in the conversation.
		which := `id=$4 AND (conversation=$5) IS TRUE AND (receiver=$6) IS TRUE`
		if read.UpTo {
			which = upTo + ` AND conversation=$5 AND receiver=$6`
		}
		f.change(e, `UPDATE messages SET read_at=$1 WHERE `+which+` AND read_at IS NULL AND `+before,
			e.Time, part, f.pos(e), read.MessageID, string(e.Key), read.UserID)
		f.feed(e, "", e.Data())
	case topics.TypeNotification, topics.TypeActivity, topics.TypeAnnouncement:
		f.addNotice(e, part)
	case topics.TypeNotificationRead:
		f.mark(e, "read")
	case topics.TypeNotificationDeleted:
		f.mark(e, "deleted")
	case topics.TypeDeviceRegistered:
		f.device(e, topics.ReadDevice(e))
	case topics.TypeDeviceUnregistered:
		f.unregister(e, part)
	}
}

// touched are the rows that move the conversations of a batch up: once each, whatever number of messages came. fresh are
// the places of those that the inbox did not have: one sent again beyond the dedup window does not move its conversation.
func (f *fold) touched(fresh map[int64]bool) (rows [][]any) {
	last := make(map[string]*topics.Event)
	for _, e := range f.messages {
		if fresh[f.pos(e)] {
			last[string(e.Key)] = e
		}
	}
	for _, key := range slices.Sorted(maps.Keys(last)) { // sorted: two writers lock the rows in one order
		e := last[key]
		for _, user := range slices.Compact([]string{e.Audience.A, e.Audience.B}) {
			rows = append(rows, []any{user, key, e.Audience.Other(user), int64(e.Partition), f.pos(e), e.Time, e.EventID()})
		}
	}
	return rows
}

func (f *fold) addNotice(e *topics.Event, part int64) {
	id, data := e.EventID(), e.Data()
	f.feed(e, id, data)
	switch {
	case e.Type == topics.TypeAnnouncement:
		f.insert(intoAnnouncements, id, part, f.pos(e), e.Time, data)
	case e.Type == topics.TypeNotification && e.Audience.Kind == topics.User:
		f.insert(intoNotifications, e.Audience.A, id, part, f.pos(e), e.Time, data)
		if f.late {
			f.change(e, outOfOrder, e.Audience.A, id, part, f.pos(e))
		}
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
		f.insert(intoFeed, a, string(e.Topic), int64(e.Partition), f.pos(e), e.Time, e.Type, id, data)
	}
}

// before is the condition on a row that it stands earlier in the log than the record whose time, partition and offset are
// $1, $2 and $3.
var before = earlier("", "$1", "$2", "$3")

// upTo is the condition on a message that it is the one of id $4 in conversation $5, or stands earlier in the log; that one
// itself must stand earlier than the record.
var upTo = `EXISTS (SELECT 1 FROM messages t WHERE t.id=$4 AND t.conversation=$5 AND ` + earlier("t.", "$1", "$2", "$3") + `
	AND (messages.id=t.id OR ` + earlier("messages.", "t.at", "t.part", "t.pos") + `))`

// mark sets the read or deleted state of one notification or announcement, or of all up to a time. A notification keeps
// its own state; what the user has no notification of is taken for an announcement, which stands in another topic and may
// come later. All up to a time is one row, whatever it covers (decision 0095): for announcements a time alone, for notifications a time
// and the mark's place in the log, since what comes later has not been seen.
func (f *fold) mark(e *topics.Event, state string) {
	column, upTo := state+"_at", state+"_to"
	user, part := e.Audience.A, int64(e.Partition)
	m := topics.ReadNotificationMark(e)
	if id := m.NotificationID; id != "" {
		f.change(e, `UPDATE notifications SET `+column+`=$1 WHERE user_id=$4 AND id=$5 AND `+column+` IS NULL AND `+before, e.Time, part,
			f.pos(e), user, id)
		f.change(e, `INSERT INTO announcement_states (user_id, id, `+column+`)
			SELECT CAST($1 AS TEXT), CAST($2 AS TEXT), CAST($3 AS BIGINT)
			WHERE NOT EXISTS (SELECT 1 FROM notifications WHERE user_id=$1 AND id=$2)
			ON CONFLICT (user_id, id) DO UPDATE SET `+column+`=COALESCE(announcement_states.`+column+`, excluded.`+column+`)`, user, id, e.Time)
		return
	}
	f.change(e, `INSERT INTO marks (user_id, read_to, deleted_to) VALUES ($1,-1,-1) ON CONFLICT DO NOTHING`, user)
	f.change(e, `UPDATE marks SET `+upTo+`=$2 WHERE user_id=$1 AND `+upTo+`<$2`, user, m.UpTo)
	at, place := min(m.UpTo, f.clock), `(n_`+column+`, n_`+state+`_part, n_`+state+`_pos)`
	f.change(e, `UPDATE marks SET `+place+` = ($2, $3, $4) WHERE user_id=$1 AND `+place+` < ($2, $3, $4)`, user, at, part, f.pos(e))
}

// outOfOrder lifts a notification that came after a mark and has an earlier time to the mark's time, so that the mark does not cover
// what its user cannot have seen. Times step back where a partition's new leader has a clock that is behind.
var outOfOrder = `UPDATE notifications SET at=COALESCE((SELECT ` + later("n_read_at", "n_deleted_at") + ` FROM marks WHERE user_id=$1), at)
	WHERE user_id=$1 AND id=$2 AND part=$3 AND pos=$4 AND EXISTS (SELECT 1 FROM marks m WHERE m.user_id=$1
		AND (at < n_read_at AND part=n_read_part AND pos > n_read_pos OR at < n_deleted_at AND part=n_deleted_part AND pos > n_deleted_pos))`

// device notes that a user registered a token. There is a row for each user who ever did: their records stand in different
// partitions, and the outcome must not depend on which is read first. The token is his who registered it last, as long as his
// own last record on it is a registration (view registered_devices).
func (f *fold) device(e *topics.Event, d topics.Device) {
	f.change(e, `INSERT INTO devices (hash, user_id, token, platform, registered, at, part, pos, reg_at, reg_part, reg_pos)
		VALUES ($1,$2,$3,$4,1,$5,$6,$7,$5,$6,$7)
		ON CONFLICT (hash, user_id) DO UPDATE SET platform=excluded.platform, registered=1, at=excluded.at, part=excluded.part, pos=excluded.pos,
			reg_at=excluded.reg_at, reg_part=excluded.reg_part, reg_pos=excluded.reg_pos
		WHERE (devices.at, devices.part, devices.pos) < (excluded.at, excluded.part, excluded.pos)`,
		topics.DeviceKey(d.Token), e.Audience.A, d.Token, d.Platform, e.Time, int64(e.Partition), f.pos(e))
}

func (f *fold) unregister(e *topics.Event, part int64) {
	where := `user_id=$1 AND (at, part, pos) < ($2, $3, $4)`
	args := []any{e.Audience.A, e.Time, part, f.pos(e)}
	if token := topics.ReadDevice(e).Token; token != "" {
		where += ` AND hash=$5`
		args = append(args, topics.DeviceKey(token))
	}
	f.change(e, `UPDATE devices SET registered=0, at=$2, part=$3, pos=$4 WHERE `+where, args...)
}

// devicesTable is filled by keyDevices; the fold writes it one by one.
var devicesTable = sqldb.Table{Name: "devices", Columns: []string{"hash text", "token text", "user_id text", "platform text",
	"registered bigint", "at bigint", "part bigint", "pos bigint"}}

// keyDevices carries the devices of an earlier version over, to be found by the hash of their token.
func (i *Inbox) keyDevices(ctx context.Context, tx *sql.Tx) error {
	const chunk = 1000
	for last := ""; ; {
		rows, err := tx.QueryContext(ctx, `SELECT token, user_id, platform, registered, at, part, pos FROM devices_by_token
			WHERE token>$1 ORDER BY token LIMIT `+strconv.Itoa(chunk), last)
		if err != nil {
			return fmt.Errorf("read devices: %w", err)
		}
		var list [][]any
		for rows.Next() {
			var token, user, platform string
			var registered, at, part, pos int64
			if err := rows.Scan(&token, &user, &platform, &registered, &at, &part, &pos); err != nil {
				return errors.Join(fmt.Errorf("read devices: %w", err), rows.Close()) //nolint:sqlclosecheck // before the next statement
			}
			list = append(list, []any{topics.DeviceKey(token), token, user, platform, registered, at, part, pos})
			last = token
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return fmt.Errorf("read devices: %w", err)
		}
		if err := i.db.Insert(ctx, tx, devicesTable, list); err != nil {
			return err
		}
		if len(list) < chunk {
			_, err := tx.ExecContext(ctx, `DROP TABLE devices_by_token`)
			return err
		}
	}
}
