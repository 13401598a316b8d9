package inbox

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

// onEach runs a test on an inbox in each database.
func onEach(t *testing.T, test func(*testing.T, *Inbox)) {
	run := func(t *testing.T, db *sqldb.DB, err error) {
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		in, err := Open(t.Context(), db, time.Hour, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		test(t, in)
	}
	t.Run("sqlite", func(t *testing.T) {
		db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "i.db"))
		run(t, db, err)
	})
	t.Run("postgres", func(t *testing.T) {
		db, err := sqldb.OpenPostgres(testenv.Postgres(t))
		run(t, db, err)
	})
}

const someTime = 1764583200000

// apply applies events as the next batch of a partition, at a second of record time.
func apply(t *testing.T, in *Inbox, topic topics.Topic, part int32, second int64, events ...*topics.Event) {
	t.Helper()
	at, err := in.Position(t.Context(), topic.Partition(part))
	if err != nil {
		t.Fatal(err)
	}
	for n, e := range events {
		e.Topic, e.Partition, e.Offset, e.Time = topic, part, at.Next+int64(n), someTime+1000*second
		if err := topics.Valid(topicstest.Sign(e)); err != nil {
			t.Fatal(err)
		}
	}
	b := pipeline.Batch{Topic: topic, Partition: part, From: at.Next, To: at.Next + int64(len(events)), Events: events}
	if err := in.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

// named makes ids of an event's names, random ones as Nexus mints them.
type named map[string]string

func (n named) id(name string) string {
	if n[name] == "" {
		n[name] = topics.NewID()
	}
	return n[name]
}

func (n named) meta(name, typ string) topics.Meta {
	return topics.Meta{Type: typ, ID: n.id(name), NexusID: n.id(name)}
}

func (n named) notice(user, name string) *topics.Event {
	return &topics.Event{Key: []byte(topics.UserKey(user)), Meta: n.meta(name, topics.TypeNotification),
		Value: topics.Fields("id", n.id(name), "title", name, "body", "b", "type", "SYSTEM")}
}

func marking(user, typ string, fields ...any) *topics.Event {
	return &topics.Event{Key: []byte(topics.UserKey(user)), Meta: topics.Meta{Type: typ}, Value: topics.Fields(fields...)}
}

func chatting(n int) []*topics.Event {
	list := make([]*topics.Event, n)
	for i := range list {
		list[i] = topics.Draft{ReceiverID: "b", Content: "x"}.Message("a", "")
	}
	return list
}

// TestCostOfAMessage: what a message and its receipt cost does not depend on how long the conversation is (B11). PostgreSQL
// counts the pages that it touches; SQLite tells its plan.
func TestCostOfAMessage(t *testing.T) {
	onEach(t, func(t *testing.T, in *Inbox) {
		if !in.db.Postgres() {
			var f fold
			for _, e := range append(chatting(2), marking("a", topics.TypeNotificationRead, "notificationId", "x"),
				marking("a", topics.TypeNotificationDeleted, "notificationId", "x"),
				&topics.Event{Topic: topics.Messages, Key: []byte("dm:a:b"), Meta: topics.Meta{Type: topics.TypeMessageRead},
					Value: topics.Fields("messageId", "x", "userId", "b")}) {
				if e.Topic == "" {
					e.Topic = topics.Notifications
				}
				if err := topics.Valid(topicstest.Sign(e)); err != nil {
					t.Fatal(err)
				}
				f.add(e)
			}
			for _, c := range f.changes {
				explain(t, in, c)
			}
			return
		}
		pages := testenv.Pages(t, in.db.Write, "messages", "conversations")
		cost := func() int64 {
			apply(t, in, topics.Messages, 0, 1, chatting(1)...)
			before := pages()
			one := chatting(1)
			apply(t, in, topics.Messages, 0, 2, one...)
			apply(t, in, topics.Messages, 0, 3, &topics.Event{Key: []byte("dm:a:b"), Meta: topics.Meta{Type: topics.TypeMessageRead},
				Value: topics.Fields("messageId", one[0].NexusID, "userId", "b")})
			return pages() - before
		}
		short := cost()
		for range 10 {
			apply(t, in, topics.Messages, 0, 0, chatting(1000)...)
		}
		if long := cost(); long > 2*short+20 || short == 0 {
			t.Errorf("a message and its receipt touch %d pages in a conversation of 10,000, %d in one of 3", long, short)
		} else {
			t.Logf("%d pages, then %d", short, long)
		}
	})
}

// explain fails where SQLite would read a whole table or sort.
func explain(t *testing.T, in *Inbox, c change) {
	t.Helper()
	for _, step := range plan(t, in, c.statement, c.args...) {
		if strings.HasPrefix(step, "SCAN ") && step != "SCAN CONSTANT ROW" || strings.Contains(step, "TEMP B-TREE") {
			t.Errorf("%s: %s", c.of, step)
		}
	}
}

// plan is what SQLite would do for a statement.
func plan(t *testing.T, in *Inbox, statement string, args ...any) (steps []string) {
	t.Helper()
	err := in.db.Query(t.Context(), func(rows *sql.Rows) error {
		var id, parent, unused int
		var step string
		err := rows.Scan(&id, &parent, &unused, &step)
		steps = append(steps, step)
		return err
	}, `EXPLAIN QUERY PLAN `+statement, args...)
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

// TestMovedKeys: a topic got more partitions, and a user's key stands in another one since. Marks and receipts that come
// there apply to what stood in the old one, and only to what is older (B3).
func TestMovedKeys(t *testing.T) {
	onEach(t, func(t *testing.T, in *Inbox) {
		ids := make(named)
		const before, after = 1, 0 // offsets begin anew: they are lower than those in the old partition
		for range 3 {
			apply(t, in, topics.Notifications, before, 0, ids.notice("other", topics.NewID()))
			apply(t, in, topics.Messages, before, 0, topics.Draft{ReceiverID: "y", Content: topics.NewID()}.Message("x", ""))
		}
		apply(t, in, topics.Notifications, before, 1, ids.notice("u", "1"), ids.notice("u", "2"), ids.notice("u", "3"), ids.notice("u", "4"))
		apply(t, in, topics.Notifications, after, 5, marking("u", topics.TypeNotificationRead, "notificationId", ids.id("1")),
			marking("u", topics.TypeNotificationDeleted, "notificationId", ids.id("2")))
		want := func(what string) {
			t.Helper()
			list, _, err := in.Notifications(t.Context(), "u", false, 9, "")
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, n := range list {
				var v struct{ Title string }
				if err := json.Unmarshal(n.Value, &v); err != nil {
					t.Fatal(err)
				}
				got += fmt.Sprintf("%s=%v ", v.Title, n.Read)
			}
			if got != what {
				t.Errorf("%q, want %q", got, what)
			}
		}
		want("4=false 3=false 1=true ")
		apply(t, in, topics.Notifications, after, 6, marking("u", topics.TypeNotificationRead, "upTo", topics.FormatTime(someTime+1000)))
		want("4=true 3=true 1=true ")
		// A late record of the old partition that is younger than the mark stays as it is.
		apply(t, in, topics.Notifications, before, 9, ids.notice("u", "5"))
		apply(t, in, topics.Notifications, after, 7, marking("u", topics.TypeNotificationRead, "notificationId", ids.id("5")))
		want("5=false 4=true 3=true 1=true ")

		old := topics.Draft{ReceiverID: "b", Content: "old"}.Message("a", "")
		fresh := topics.Draft{ReceiverID: "b", Content: "new"}.Message("a", "")
		apply(t, in, topics.Messages, before, 1, old)
		apply(t, in, topics.Messages, after, 5, fresh)
		apply(t, in, topics.Messages, after, 6, &topics.Event{Key: []byte("dm:a:b"), Meta: topics.Meta{Type: topics.TypeMessageRead},
			Value: topics.Fields("messageId", old.NexusID, "userId", "b")})
		list, _, err := in.Conversations(t.Context(), "b", 9, "")
		if err != nil || len(list) != 1 || list[0].Last.ID != fresh.NexusID || list[0].Unread != 1 {
			t.Errorf("the conversation stands at %+v, %v; want the message of the new partition, and the old one read", list, err)
		}
	})
}

// TestMovedConversation: a conversation stands in two partitions, of which the newer has the smaller number and offsets that
// begin anew. It is read in order, page by page, both ways.
func TestMovedConversation(t *testing.T) {
	onEach(t, func(t *testing.T, in *Inbox) {
		var want []string
		for n, part := range []int32{5, 5, 5, 2, 2, 2, 2} {
			e := topics.Draft{ReceiverID: "b", Content: fmt.Sprint(n)}.Message("a", "")
			want = append(want, e.NexusID)
			apply(t, in, topics.Messages, part, int64(n), e)
		}
		for limit := 1; limit <= 8; limit++ {
			var back, on []string
			cursor := ""
			for {
				list, older, _, err := in.Messages(t.Context(), "a", "b", Page{Limit: limit, Before: cursor})
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range slices.Backward(list) {
					back = append(back, l.ID)
				}
				if cursor = older; cursor == "" {
					break
				}
			}
			slices.Reverse(back)
			if !slices.Equal(back, want) {
				t.Fatalf("backwards by %d: %v, want %v", limit, back, want)
			}
			cursor = writeCursor(-1, "5")
			for len(on) < len(want) {
				list, _, newer, err := in.Messages(t.Context(), "a", "b", Page{Limit: limit, After: cursor})
				if err != nil || len(list) == 0 {
					t.Fatalf("forwards by %d: %d messages, %v", limit, len(list), err)
				}
				for _, m := range list {
					on = append(on, m.ID)
				}
				cursor = newer
			}
			if !slices.Equal(on, want) {
				t.Fatalf("forwards by %d: %v, want %v", limit, on, want)
			}
		}
	})
}

// TestStatesAreAnnouncements: reading or deleting a notification leaves no row of states (B20). An announcement's state
// is kept whether the announcement is folded before or after.
func TestStatesAreAnnouncements(t *testing.T) {
	onEach(t, func(t *testing.T, in *Inbox) {
		ids := make(named)
		announcement := func(name string) *topics.Event {
			return &topics.Event{Key: []byte("all"), Meta: ids.meta(name, topics.TypeAnnouncement),
				Value: topics.Fields("id", ids.id(name), "title", name, "body", "b")}
		}
		apply(t, in, topics.Notifications, 0, 1, ids.notice("u", "n1"), ids.notice("u", "n2"))
		apply(t, in, topics.Notifications, 0, 2, ids.notice("u", "n3"), marking("u", topics.TypeNotificationRead, "notificationId", ids.id("n1")),
			marking("u", topics.TypeNotificationDeleted, "notificationId", ids.id("n2")),
			marking("u", topics.TypeNotificationRead, "notificationId", ids.id("n3")))
		states := func(want int) {
			t.Helper()
			var n int
			if err := in.db.Get(t.Context(), []any{&n}, `SELECT count(*) FROM announcement_states`); err != nil || n != want {
				t.Errorf("%d rows of states, %v; want %d", n, err, want)
			}
		}
		states(0)
		apply(t, in, topics.Broadcasts, 0, 3, announcement("early"))
		apply(t, in, topics.Notifications, 0, 4, marking("u", topics.TypeNotificationRead, "notificationId", ids.id("early")),
			marking("u", topics.TypeNotificationRead, "notificationId", ids.id("late")),
			marking("u", topics.TypeNotificationDeleted, "notificationId", ids.id("late2")))
		apply(t, in, topics.Broadcasts, 0, 3, announcement("late"), announcement("late2"))
		states(3)
		if n, err := in.Unread(t.Context(), "u"); err != nil || n != 0 {
			t.Errorf("%d unread, %v", n, err)
		}
		if n, err := in.Unread(t.Context(), "v"); err != nil || n != 3 {
			t.Errorf("%d unread of another user, %v", n, err)
		}
	})
}

// TestTrimFeed: while the feed is trimmed, old rows come in (a rebuild). Whatever has gone is noted, and what is young stays,
// over more rows than one step removes.
func TestTrimFeed(t *testing.T) {
	onEach(t, func(t *testing.T, in *Inbox) {
		ids := make(named)
		apply(t, in, topics.Notifications, 1, 100_000, ids.notice("u", "young"))
		const batches, each = 12, 300
		folded := make(chan struct{})
		go func() {
			defer close(folded)
			for range batches {
				old := make([]*topics.Event, each)
				for i := range old {
					old[i] = make(named).notice("u", "old")
				}
				apply(t, in, topics.Notifications, 0, 1, old...)
			}
		}()
		defer func() { <-folded }()
		gone := func() {
			t.Helper()
			var missing int64
			err := in.db.Get(t.Context(), []any{&missing},
				`SELECT COALESCE((SELECT next FROM positions WHERE projection='inbox' AND topic='notifications' AND part=0), 0)
				- (SELECT count(*) FROM feed WHERE part=0
					AND pos >= COALESCE((SELECT next FROM feed_trimmed WHERE topic='notifications' AND part=0), 0))
				- COALESCE((SELECT next FROM feed_trimmed WHERE topic='notifications' AND part=0), 0)`)
			if err != nil || missing != 0 {
				t.Fatalf("%d rows are gone that nothing was noted of, %v", missing, err)
			}
		}
		for done := false; !done; {
			select {
			case <-folded:
				done = true
			default:
			}
			if err := in.trimFeed(t.Context()); err != nil {
				t.Fatal(err)
			}
			gone()
		}
		var left int
		if err := in.db.Get(t.Context(), []any{&left}, `SELECT count(*) FROM feed`); err != nil || left != 1 {
			t.Errorf("%d rows are left, %v; want the young one", left, err)
		}
	})
}

// TestCostOfAPage: a page of the inbox, the count and the newest cost no more where the user has ten times the history, and there
// are ten times the announcements. PostgreSQL tells the pages that it touches; SQLite its plan.
func TestCostOfAPage(t *testing.T) {
	onEach(t, func(t *testing.T, in *Inbox) {
		grow := func(user string, from, to, unread int) {
			t.Helper()
			numbers := fmt.Sprintf("WITH RECURSIVE g(n) AS (SELECT %d UNION ALL SELECT n+1 FROM g WHERE n<%d) ", from, to-1)
			for _, statement := range []string{
				fmt.Sprintf(`INSERT INTO notifications (user_id, id, part, pos, at, value, read_at) %s
					SELECT '%s', 'n' || n, 0, n, n, $1, CASE WHEN n<%d THEN 1 END FROM g`, numbers, user, to-unread),
				`INSERT INTO announcements (id, part, pos, at, value) ` + numbers + `SELECT 'a' || n, 0, n, n, $1 FROM g WHERE true
					ON CONFLICT DO NOTHING`,
			} {
				if _, err := in.db.Write.ExecContext(t.Context(), statement, []byte(`{"title":"t","body":"b"}`)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := in.db.Write.ExecContext(t.Context(), `ANALYZE`); err != nil {
				t.Fatal(err)
			}
		}
		middle := func(n int) string { return writeCursor(int64(n/2), "n") }
		if !in.db.Postgres() {
			grow("u", 0, 10, 3)
			for _, rest := range []string{``, newestFirst + `50`, ` AND (at, id) < ($2, $3)` + newestFirst + `50`, ` AND id=$2`} {
				args := []any{"u", 5, "n"}[:1+strings.Count(rest, "$")]
				noScan(t, in, visible(`*`, true, rest), args...)
				noScan(t, in, visible(`*`, false, rest), args...)
			}
			return
		}
		pages := testenv.Pages(t, in.db.Write, "notifications", "announcements", "announcement_states", "marks")
		// What each question costs. All but the last three of each table are read, by one mark.
		costs := func(user string, n int) map[string]int64 {
			found := make(map[string]int64)
			for what, ask := range map[string]func() error{
				"first page":  func() error { _, _, err := in.Notifications(t.Context(), user, false, 50, ""); return err },
				"unread page": func() error { _, _, err := in.Notifications(t.Context(), user, true, 50, ""); return err },
				"deep page":   func() error { _, _, err := in.Notifications(t.Context(), user, false, 50, middle(n)); return err },
				"count":       func() error { _, err := in.Unread(t.Context(), user); return err },
				"newest":      func() error { _, err := in.Newest(t.Context(), user); return err },
				"one":         func() error { return in.HasNotification(t.Context(), user, "n7") },
			} {
				before := pages()
				if err := ask(); err != nil {
					t.Fatal(what, err)
				}
				found[what] = pages() - before
			}
			return found
		}
		const few, many = 3_000, 30_000
		sizes := func(had, n int) map[string]int64 {
			grow("u", had, n, n)
			before := pages()
			apply(t, in, topics.Notifications, 0, 1, marking("u", topics.TypeNotificationRead, "upTo", topics.FormatTime(int64(n-4))))
			all := pages() - before
			found := costs("u", n)
			found["read all"] = all
			return found
		}
		grow("v", 0, few, few) // has read nothing
		if n, err := in.Unread(t.Context(), "v"); n != 2*few || err != nil {
			t.Errorf("%d are unread, %v; want %d", n, err, 2*few)
		}
		small := sizes(0, few)
		for what, large := range sizes(few, many) {
			t.Logf("%s: %d pages, then %d", what, small[what], large)
			if large > 40 && large > small[what]+10 {
				t.Errorf("%s: %d pages with %d in the inbox, %d with %d", what, small[what], few, large, many)
			}
		}
	})
}

// TestMarksAgainstModel: what one and all are marked, read and deleted, is what the definition says: a mark covers what stood before it
// in the log and is no later than its time. Times repeat and step back, and the inbox is opened again in between.
func TestMarksAgainstModel(t *testing.T) {
	onEach(t, func(t *testing.T, in *Inbox) {
		ahead := make(named)
		apply(t, in, topics.Notifications, 1, 1, ahead.notice("u", "before"), marking("u", topics.TypeNotificationRead, "upTo",
			topics.FormatTime(someTime+1e9)), ahead.notice("u", "after"))
		if n, err := in.Unread(t.Context(), "u"); n != 1 || err != nil {
			t.Errorf("a mark of a time to come: %d are unread, %v; want what came after it", n, err)
		}
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		type row struct {
			name          string
			at            int64
			read, deleted bool
		}
		model, marked, ids, second := map[string][]*row{}, map[string]int64{}, make(named), int64(100)
		for step := range 300 {
			user := string(rune('a' + r.IntN(2)))
			second += int64(r.IntN(4) - 1) // mostly on, at times back
			state := func(x *row) *bool { return &x.read }
			typ := topics.TypeNotificationRead
			if r.IntN(4) == 0 {
				state, typ = func(x *row) *bool { return &x.deleted }, topics.TypeNotificationDeleted
			}
			switch r.IntN(8) {
			case 0:
				to := second - int64(r.IntN(10))
				marked[user] = max(marked[user], to)
				apply(t, in, topics.Notifications, 0, second, marking(user, typ, "upTo", topics.FormatTime(someTime+1000*to)))
				for _, x := range model[user] {
					*state(x) = *state(x) || x.at <= to
				}
			case 1:
				if len(model[user]) == 0 {
					continue
				}
				x := model[user][r.IntN(len(model[user]))]
				apply(t, in, topics.Notifications, 0, second, marking(user, typ, "notificationId", ids.id(x.name)))
				*state(x) = true
			case 2:
				again, err := Open(t.Context(), in.db, time.Hour, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				in = again
			default:
				x := &row{name: fmt.Sprint(step), at: max(second, marked[user])} // no older than what was marked before it
				apply(t, in, topics.Notifications, 0, second, ids.notice(user, x.name))
				model[user] = append(model[user], x)
			}
			var want, got []string
			for _, x := range model[user] {
				if !x.deleted {
					want = append(want, fmt.Sprint(ids.id(x.name), x.read))
				}
			}
			list, _, err := in.Notifications(t.Context(), user, false, 1000, "")
			if err != nil {
				t.Fatal(err)
			}
			unread := 0
			for _, n := range list {
				got = append(got, fmt.Sprint(n.ID, n.Read))
				if !n.Read {
					unread++
				}
			}
			slices.Sort(want)
			slices.Sort(got)
			if n, err := in.Unread(t.Context(), user); !slices.Equal(got, want) || err != nil || n != unread {
				t.Fatalf("step %d: %s has %v, %d unread (%v), want %v", step, user, got, n, err, want)
			}
		}
	})
}

// noScan fails where SQLite would read a whole table or index.
func noScan(t *testing.T, in *Inbox, query string, args ...any) {
	t.Helper()
	for _, step := range plan(t, in, query, args...) {
		if strings.HasPrefix(step, "SCAN a") || strings.HasPrefix(step, "SCAN s") {
			t.Errorf("%s: %s", query, step)
		}
	}
}
