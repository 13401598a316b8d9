package inbox

import (
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/nexus/nexus/topics"
)

// ErrNotFound reports that there is no such row, or that it is not the asking user's: the two are not told apart.
var ErrNotFound = errors.New("inbox: not found")

// ErrCursor reports a cursor that was not made here.
var ErrCursor = errors.New("inbox: the cursor is not one that this server gave out")

// Notification is a notification or an announcement as its user sees it.
type Notification struct {
	ID    string
	Value []byte // the JSON object that clients got
	Read  bool
	// Announcement tells that it went to all users.
	Announcement bool
	at           int64
}

// What a user sees, from two tables: his notifications and the announcements, both without what he deleted. $1 is the user; m are
// his marks (marksOf), at most one row.
const (
	marksOf = `WITH m AS MATERIALIZED (SELECT * FROM marks WHERE user_id=$1) `

	visibleNotifications = `SELECT id, value, at, 0 AS announcement, CASE WHEN read_at IS NULL AND NOT ` + coveredRead + ` THEN 0 ELSE 1 END AS seen
		FROM notifications a WHERE user_id=$1 AND deleted_at IS NULL AND NOT ` + coveredDeleted
	visibleAnnouncements = `SELECT id, value, at, 1, CASE WHEN at > COALESCE((SELECT read_to FROM m), -1) AND NOT ` + stateRead + ` THEN 0 ELSE 1 END
		FROM announcements a WHERE NOT ` + stateDeleted

	stateRead    = `EXISTS (SELECT 1 FROM announcement_states s WHERE s.user_id=$1 AND s.id=a.id AND s.read_at IS NOT NULL)`
	stateDeleted = `EXISTS (SELECT 1 FROM announcement_states s WHERE s.user_id=$1 AND s.id=a.id AND s.deleted_at IS NOT NULL)`

	// What a mark covers: what is older, and of its own time what stood before it in the log.
	coveredRead    = `EXISTS (SELECT 1 FROM m WHERE a.at < m.n_read_at OR a.at = m.n_read_at AND (a.part <> m.n_read_part OR a.pos < m.n_read_pos))`
	coveredDeleted = `EXISTS (SELECT 1 FROM m WHERE a.at < m.n_deleted_at
		OR a.at = m.n_deleted_at AND (a.part <> m.n_deleted_part OR a.pos < m.n_deleted_pos))`
)

// from is where a table is read from, in its order of time: one bound, for an index takes one.
func from(compare, mark string) string {
	return ` AND at ` + compare + ` COALESCE((SELECT ` + mark + ` FROM m), -1)`
}

// later is the later one of two marks.
func later(a, b string) string {
	return `CASE WHEN ` + a + ` > ` + b + ` THEN ` + a + ` ELSE ` + b + ` END`
}

// visible is a query of columns on the rows of both tables. rest are further conditions and an order for each table by itself: with
// a limit in it a page costs the page, however much lies behind it.
func visible(columns string, unread bool, rest string) string {
	notifications, announcements := visibleNotifications+from(">=", "n_deleted_at"), visibleAnnouncements+from(">", "deleted_to")
	if unread {
		notifications = visibleNotifications + from(">=", later("n_read_at", "n_deleted_at")) + ` AND read_at IS NULL AND NOT ` + coveredRead
		announcements = visibleAnnouncements + from(">", later("read_to", "deleted_to")) + ` AND NOT ` + stateRead
	}
	return marksOf + `SELECT ` + columns + ` FROM (SELECT * FROM (` + notifications + rest + `) n UNION ALL SELECT * FROM (` + announcements +
		rest + `) o) v`
}

const newestFirst = ` ORDER BY at DESC, id DESC LIMIT `

// Notifications lists a user's notifications and the announcements, newest first: at most limit, after cursor (empty:
// from the newest). next is the cursor of the following page, empty on the last.
func (i *Inbox) Notifications(ctx context.Context, user string, unread bool, limit int, cursor string) (list []Notification, next string,
	err error) {
	page, args := newestFirst+strconv.Itoa(limit+1), []any{user}
	rest := page
	if cursor != "" {
		at, id, err := readCursor(cursor)
		if err != nil {
			return nil, "", err
		}
		rest = ` AND (at, id) < ($2, $3)` + page
		args = append(args, at, id)
	}
	err = i.db.Query(ctx, func(rows *sql.Rows) error {
		var n Notification
		var announcement, seen int
		err := rows.Scan(&n.ID, &n.Value, &n.at, &announcement, &seen)
		n.Announcement, n.Read = announcement == 1, seen == 1
		list = append(list, n)
		return err
	}, visible(`id, value, at, announcement, seen`, unread, rest)+page, args...)
	if err != nil {
		return nil, "", wrap("list notifications", err)
	}
	if len(list) > limit {
		list = list[:limit]
		next = writeCursor(list[limit-1].at, list[limit-1].ID)
	}
	return list, next, nil
}

// fewUnread is how many unread a count reads by its indexes alone, from the newest on. Where there are more all of them are counted.
const fewUnread = 1000

// Unread counts a user's unread notifications and announcements.
func (i *Inbox) Unread(ctx context.Context, user string) (n int, err error) {
	err = i.db.Get(ctx, []any{&n}, visible(`count(*)`, true, newestFirst+strconv.Itoa(fewUnread+1)), user)
	if err == nil && n > fewUnread {
		err = i.db.Get(ctx, []any{&n}, visible(`count(*)`, true, ""), user)
	}
	return n, wrap("count unread", err)
}

// Newest is the record time, in Unix milliseconds, of the newest thing that Notifications would list; ErrNotFound where
// there is none.
func (i *Inbox) Newest(ctx context.Context, user string) (int64, error) {
	var at sql.NullInt64
	if err := i.db.Get(ctx, []any{&at}, visible(`max(at)`, false, newestFirst+`1`), user); err != nil {
		return 0, wrap("newest", err)
	}
	if !at.Valid {
		return 0, ErrNotFound
	}
	return at.Int64, nil
}

// HasNotification tells whether the user has this notification, or it is an announcement: nil or ErrNotFound.
func (i *Inbox) HasNotification(ctx context.Context, user, id string) error {
	var n int
	err := i.db.Get(ctx, []any{&n}, visible(`count(*)`, false, ` AND id=$2`), user, id)
	if err == nil && n == 0 {
		return ErrNotFound
	}
	return wrap("find notification", err)
}

// Message is a chat message as its two participants see it.
type Message struct {
	ID, Sender, Receiver string
	Value                []byte
	Read                 bool
	part, pos            int64
}

// cursor is the message's place.
func (m Message) cursor() string { return writeCursor(m.pos, strconv.FormatInt(m.part, 10)) }

// Page says which part of a list is wanted: at most Limit items before or after a cursor, or the newest.
type Page struct {
	Limit         int
	Before, After string // at most one of them
}

// Messages lists the conversation of two users, always in log order. older and newer are the cursors of what lies before
// and after the page; older is empty where there is nothing, newer is the page's own end, to ask from later. Cursors
// are places in the log: they stay good while messages arrive.
func (i *Inbox) Messages(ctx context.Context, a, b string, p Page) (list []Message, older, newer string, err error) {
	key, forward := topics.ConversationKey(a, b), p.After != ""
	stretches, err := i.stretches(ctx, key, forward)
	if err != nil {
		return nil, "", "", wrap("list messages", err)
	}
	if cursor := p.Before + p.After; cursor != "" {
		if stretches, err = cut(stretches, cursor, forward); err != nil {
			return nil, "", "", err
		}
	}
	for _, s := range stretches {
		if len(list) > p.Limit {
			break
		}
		if list, err = i.appendMessages(ctx, list, key, s, forward, p.Limit+1-len(list)); err != nil {
			return nil, "", "", wrap("list messages", err)
		}
	}
	more := len(list) > p.Limit
	list = list[:min(len(list), p.Limit)]
	if !forward {
		slices.Reverse(list)
	}
	newer = p.After
	if len(list) > 0 {
		newer = list[len(list)-1].cursor()
		if more || forward {
			older = list[0].cursor()
		}
	}
	return list, older, newer, nil
}

// stretch is the part of a conversation that stands in one partition. There is one, unless the topic got more partitions
// and the key moved. bound is where reading begins, exclusively; -1: at its end.
type stretch struct{ part, bound int64 }

// stretches lists a conversation's, the oldest first where forward, else the newest first: each begins after the end of
// the one before it. It takes a look-up or two for each partition, whatever the length of the conversation.
func (i *Inbox) stretches(ctx context.Context, key string, forward bool) (list []stretch, err error) {
	err = i.db.Query(ctx, func(rows *sql.Rows) error {
		s := stretch{bound: -1}
		err := rows.Scan(&s.part)
		list = append(list, s)
		return err
	}, `WITH RECURSIVE p(part) AS (
			SELECT min(part) FROM messages WHERE conversation=$1
			UNION ALL SELECT (SELECT min(part) FROM messages WHERE conversation=$1 AND part>p.part) FROM p WHERE p.part IS NOT NULL)
		SELECT part FROM p WHERE part IS NOT NULL
		ORDER BY (SELECT at FROM messages m WHERE m.conversation=$1 AND m.part=p.part ORDER BY m.pos LIMIT 1), part`, key)
	if !forward {
		slices.Reverse(list)
	}
	return list, err
}

// cut leaves out what a cursor has passed. A cursor of an earlier version does not name its partition: it was the newest.
func cut(list []stretch, cursor string, forward bool) ([]stretch, error) {
	pos, text, err := readCursor(cursor)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, nil
	}
	part := list[0].part
	if forward {
		part = list[len(list)-1].part
	}
	if text != "" {
		if part, err = strconv.ParseInt(text, 10, 64); err != nil {
			return nil, ErrCursor
		}
	}
	if n := slices.IndexFunc(list, func(s stretch) bool { return s.part == part }); n >= 0 {
		list = list[n:]
		list[0].bound = pos
	}
	return list, nil
}

// appendMessages reads at most limit messages of a stretch.
func (i *Inbox) appendMessages(ctx context.Context, list []Message, key string, s stretch, forward bool, limit int) ([]Message, error) {
	query, args := `SELECT id, sender, receiver, value, read_at, part, pos FROM messages WHERE conversation=$1 AND part=$2`, []any{key, s.part}
	compare, order := "<", "DESC"
	if forward {
		compare, order = ">", "ASC"
	}
	if s.bound >= 0 {
		query += ` AND pos` + compare + `$3`
		args = append(args, s.bound)
	}
	err := i.db.Query(ctx, func(rows *sql.Rows) error {
		m, err := scanMessage(rows)
		list = append(list, m)
		return err
	}, query+` ORDER BY pos `+order+` LIMIT `+strconv.Itoa(limit), args...)
	return list, err
}

// Conversation is one of a user's conversations.
type Conversation struct {
	Other  string // the other participant
	Last   Message
	Unread int
	at     int64
	key    string
}

// Conversations lists a user's conversations, that with the newest message first: at most limit, after cursor.
func (i *Inbox) Conversations(ctx context.Context, user string, limit int, cursor string) (list []Conversation, next string, err error) {
	query, args := `SELECT c.other, c.conversation, c.last_at, m.id, m.sender, m.receiver, m.value, m.read_at, m.pos,
		(SELECT count(*) FROM messages u WHERE u.conversation=c.conversation AND u.receiver=$1 AND u.read_at IS NULL AND u.sender<>$1)
		FROM conversations c JOIN messages m ON m.id=c.last_id WHERE c.user_id=$1`, []any{user}
	if cursor != "" {
		at, key, err := readCursor(cursor)
		if err != nil {
			return nil, "", err
		}
		query += ` AND (c.last_at < $2 OR c.last_at = $2 AND c.conversation < $3)`
		args = append(args, at, key)
	}
	query += ` ORDER BY c.last_at DESC, c.conversation DESC LIMIT ` + strconv.Itoa(limit+1)
	err = i.db.Query(ctx, func(rows *sql.Rows) error {
		var c Conversation
		var read sql.NullInt64
		m := &c.Last
		err := rows.Scan(&c.Other, &c.key, &c.at, &m.ID, &m.Sender, &m.Receiver, &m.Value, &read, &m.pos, &c.Unread)
		m.Read = read.Valid
		list = append(list, c)
		return err
	}, query, args...)
	if err != nil {
		return nil, "", wrap("list conversations", err)
	}
	if len(list) > limit {
		list = list[:limit]
		next = writeCursor(list[limit-1].at, list[limit-1].key)
	}
	return list, next, nil
}

// Message finds a message by its id; ErrNotFound where user is not one of its two participants.
func (i *Inbox) Message(ctx context.Context, user, id string) (Message, error) {
	ctx, cancel := i.db.Reading(ctx)
	defer cancel()
	m, err := scanMessage(i.db.Read.QueryRowContext(ctx,
		`SELECT id, sender, receiver, value, read_at, part, pos FROM messages WHERE id=$1 AND (sender=$2 OR receiver=$2)`, id, user))
	if errors.Is(err, sql.ErrNoRows) {
		return Message{}, ErrNotFound
	}
	return m, wrap("read message", err)
}

func scanMessage(row interface{ Scan(...any) error }) (m Message, err error) {
	var read sql.NullInt64
	err = row.Scan(&m.ID, &m.Sender, &m.Receiver, &m.Value, &read, &m.part, &m.pos)
	m.Read = read.Valid
	return m, err
}

// Device is a registered device token.
type Device struct{ Token, Platform string }

// Devices lists a user's registered device tokens.
func (i *Inbox) Devices(ctx context.Context, user string) (list []Device, err error) {
	err = i.db.Query(ctx, func(rows *sql.Rows) error {
		var d Device
		err := rows.Scan(&d.Token, &d.Platform)
		list = append(list, d)
		return err
	}, `SELECT token, platform FROM registered_devices WHERE user_id=$1 ORDER BY token`, user)
	return list, wrap("list devices", err)
}

func writeCursor(n int64, id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(n, 10) + " " + id))
}

func readCursor(cursor string) (int64, string, error) {
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	number, id, ok := strings.Cut(string(b), " ")
	n, parseErr := strconv.ParseInt(number, 10, 64)
	if err != nil || !ok || parseErr != nil {
		return 0, "", ErrCursor
	}
	return n, id, nil
}
