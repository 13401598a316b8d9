package inbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

func TestMain(m *testing.M) { testenv.Exit(m) }

// TestStore runs one suite on both stores.
func TestStore(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { testStore(t, openSQLite) })
	t.Run("postgres", func(t *testing.T) { testStore(t, openPostgres) })
}

// onBothStores runs a test on a new database of each.
func onBothStores(t *testing.T, test func(*testing.T, *sqldb.DB)) {
	t.Run("sqlite", func(t *testing.T) { test(t, openSQLite(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, openPostgres(t)) })
}

func openSQLite(t *testing.T) *sqldb.DB {
	db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "a b.db"))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func openPostgres(t *testing.T) *sqldb.DB {
	db, err := sqldb.OpenPostgres(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// store is an inbox and a partition of each topic to fold into it.
type store struct {
	t    *testing.T
	db   *sqldb.DB
	in   *inbox.Inbox
	next map[topics.Topic]int64
}

func newStore(t *testing.T, db *sqldb.DB) *store {
	t.Helper()
	t.Cleanup(func() { db.Close() })
	s := &store{t: t, db: db, next: make(map[topics.Topic]int64)}
	s.reopen()
	return s
}

// reopen opens the inbox, as a node does when it starts.
func (s *store) reopen() {
	s.t.Helper()
	var err error
	if s.in, err = inbox.Open(s.t.Context(), s.db, time.Hour, slog.New(slog.DiscardHandler)); err != nil {
		s.t.Fatal(err)
	}
}

// fold applies events of a topic as the next batch of partition 0. An event without a time gets offset seconds.
func (s *store) fold(topic topics.Topic, events ...*topics.Event) {
	s.t.Helper()
	if err := s.in.Apply(s.t.Context(), s.batch(topic, events...)); err != nil {
		s.t.Fatal(err)
	}
	s.next[topic] += int64(len(events))
}

func (s *store) batch(topic topics.Topic, events ...*topics.Event) pipeline.Batch {
	s.t.Helper()
	at, err := s.in.Position(s.t.Context(), topic.Partition(0))
	if err != nil {
		s.t.Fatal(err)
	}
	from := at.Next
	for i, e := range events {
		e.Topic, e.Offset = topic, from+int64(i)
		if e.Time == 0 {
			e.Time = 1764583200000 + e.Offset*1000
		}
		if err := topics.Valid(topicstest.Sign(e)); err != nil {
			s.t.Fatal(err)
		}
	}
	return pipeline.Batch{Topic: topic, From: from, To: from + int64(len(events)), Events: events}
}

func event(key, typ string, fields ...any) *topics.Event {
	return &topics.Event{Topic: topics.Notifications, Key: []byte(key), Meta: topics.Meta{Type: typ}, Value: topics.Fields(fields...)}
}

func notification(user, title string) *topics.Event {
	return event(topics.UserKey(user), topics.TypeNotification, "title", title, "body", "b", "type", "SYSTEM")
}

func (s *store) titles(user string, unread bool) string {
	s.t.Helper()
	var out []string
	cursor := ""
	for {
		list, next, err := s.in.Notifications(s.t.Context(), user, unread, 2, cursor)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, n := range list {
			var title string
			_, _ = fmt.Sscanf(string(n.Value), `{"title":%q`, &title)
			out = append(out, title)
		}
		if cursor = next; cursor == "" {
			return strings.Join(out, " ")
		}
	}
}

func (s *store) want(user, all, unread string) {
	s.t.Helper()
	if got := s.titles(user, false); got != all {
		s.t.Errorf("%s sees %q, want %q", user, got, all)
	}
	if got := s.titles(user, true); got != unread {
		s.t.Errorf("unread of %s: %q, want %q", user, got, unread)
	}
	n, err := s.in.Unread(s.t.Context(), user)
	if want := len(strings.Fields(unread)); err != nil || n != want {
		s.t.Errorf("unread count of %s: %d, %v; want %d", user, n, err, want)
	}
}

func testStore(t *testing.T, open func(*testing.T) *sqldb.DB) {
	for name, test := range map[string]func(*testing.T, *store){
		"notifications and read state":     testNotifications,
		"an outbox that repeats":           testOutbox,
		"announcements are joined on read": testAnnouncements,
		"messages":                         testMessages,
		"conversations":                    testConversations,
		"devices":                          testDevices,
		"feed":                             testFeed,
		"bytes are kept":                   testBytes,
		"position and rows move as one":    testPositions,
		"batches do not matter":            testBatches,
		"await":                            testAwait,
		"opened twice":                     testReopen,
	} {
		t.Run(name, func(t *testing.T) { test(t, newStore(t, open(t))) })
	}
}

func testNotifications(t *testing.T, s *store) {
	s.fold(topics.Notifications, notification("a", "1"), notification("a", "2"), notification("b", "other"), notification("a", "3"))
	s.want("a", "3 2 1", "3 2 1")
	s.fold(topics.Notifications, event("user:a", topics.TypeNotificationRead, "notificationId", "n0-1"))
	s.want("a", "3 2 1", "3 1")
	s.fold(topics.Notifications, event("user:b", topics.TypeNotificationRead, "notificationId", "n0-0")) // not b's
	s.want("a", "3 2 1", "3 1")
	s.fold(topics.Notifications, event("user:a", topics.TypeNotificationDeleted, "notificationId", "n0-0"))
	s.want("a", "3 2", "3")
	s.fold(topics.Notifications, notification("a", "4"), event("user:a", topics.TypeNotificationRead, "upTo",
		topics.FormatTime(1764583200000+3000)), notification("a", "5"))
	s.want("a", "5 4 3 2", "5 4")
	s.want("b", "other", "other")
	if err := s.in.HasNotification(t.Context(), "b", "n0-1"); !errors.Is(err, inbox.ErrNotFound) {
		t.Errorf("b sees a notification of a: %v", err)
	}
	if _, _, err := s.in.Notifications(t.Context(), "a", false, 2, "nonsense"); !errors.Is(err, inbox.ErrCursor) {
		t.Errorf("a wrong cursor: %v", err)
	}
	// A duplicate, a stray and what is not valid change nothing.
	dup, stray, bad := notification("a", "dup"), notification("a", "stray"), notification("a", "bad")
	b := s.batch(topics.Notifications, dup, stray, bad)
	dup.Duplicate, stray.Stray = true, true
	b.Events[2] = &topics.Event{Topic: topics.Notifications, Offset: bad.Offset, Key: []byte("user:a"), Value: []byte("garbage")}
	if err := s.in.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	s.want("a", "5 4 3 2", "5 4")
}

// testOutbox: a record with an identity that is appended again, long after the dedup window, is the same row: read stays read.
func testOutbox(t *testing.T, s *store) {
	named := func(e *topics.Event) *topics.Event {
		e.Source, e.ID = "/orders", "order-7"
		return e
	}
	first, again := named(notification("a", "1")), named(notification("a", "1"))
	s.fold(topics.Notifications, first)
	s.fold(topics.Notifications, event("user:a", topics.TypeNotificationRead, "notificationId", first.EventID()), again)
	s.want("a", "1", "")
	s.fold(topics.Notifications, event("user:a", topics.TypeNotificationDeleted, "notificationId", again.EventID()),
		named(notification("a", "1")))
	s.want("a", "", "")
	everybody := func() *topics.Event {
		return named(event(topics.EveryoneKey, topics.TypeAnnouncement, "title", "all", "body", "b"))
	}
	s.fold(topics.Broadcasts, everybody(), everybody())
	s.want("a", "all", "all")
	mail := func() *topics.Event {
		e := chat("a", "b", "hi")
		e.ID = "m-1"
		return e
	}
	s.fold(topics.Messages, mail(), mail())
	if list, _, _, err := s.in.Messages(t.Context(), "a", "b", inbox.Page{Limit: 10}); err != nil || len(list) != 1 {
		t.Errorf("%d messages, %v", len(list), err)
	}
}

func testAnnouncements(t *testing.T, s *store) {
	announce := func(title string) *topics.Event {
		return event(topics.EveryoneKey, topics.TypeAnnouncement, "title", title, "body", "b")
	}
	s.fold(topics.Broadcasts, announce("A"), announce("B"))
	first := notification("a", "1")
	first.Time = 1764583199000
	s.fold(topics.Notifications, first)
	s.want("a", "B A 1", "B A 1")
	s.fold(topics.Notifications, event("user:a", topics.TypeNotificationRead, "notificationId", "b0-0"),
		event("user:a", topics.TypeNotificationDeleted, "notificationId", "b0-1"))
	s.want("a", "A 1", "1")
	s.want("b", "B A", "B A")
	s.fold(topics.Notifications, event("user:b", topics.TypeNotificationRead, "upTo", topics.FormatTime(1764583200000)))
	s.want("b", "B A", "B")
	s.fold(topics.Notifications, event("user:b", topics.TypeNotificationDeleted, "upTo", topics.FormatTime(1764583200000)))
	s.want("b", "B", "B")
	if at, err := s.in.Newest(t.Context(), "b"); err != nil || at != 1764583201000 {
		t.Errorf("Newest = %d, %v", at, err)
	}
}

func chat(from, to, content string) *topics.Event {
	d := topics.Draft{ReceiverID: to, Content: content, ClientMessageID: content}
	return d.Message(from, "")
}

func testMessages(t *testing.T, s *store) {
	one, two := chat("a", "b", "1"), chat("b", "a", "2")
	s.fold(topics.Messages, one, two, chat("a", "c", "elsewhere"), chat("a", "b", "3"))
	contents := func(limit int, cursor string) (string, string) {
		list, next, _, err := s.in.Messages(t.Context(), "b", "a", inbox.Page{Limit: limit, Before: cursor})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, m := range list {
			out = append(out, fmt.Sprint(m.Sender, m.Read))
		}
		return strings.Join(out, " "), next
	}
	got, next := contents(2, "")
	if got != "bfalse afalse" {
		t.Errorf("the latest page: %q", got)
	}
	if got, next = contents(2, next); got != "afalse" || next != "" {
		t.Errorf("the page before: %q %q", got, next)
	}
	s.fold(topics.Messages, event("dm:a:b", topics.TypeMessageRead, "messageId", one.NexusID, "userId", "a"), // the sender cannot
		event("dm:a:b", topics.TypeMessageRead, "messageId", two.NexusID, "userId", "a"),
		event("dm:a:b", topics.TypeMessageRead, "messageId", two.NexusID, "userId", "a"))
	if got, _ := contents(5, ""); got != "afalse btrue afalse" {
		t.Errorf("after the receipt: %q", got)
	}
	// Up to a message: what the user received before it and itself, whoever sent that one; nothing later, nothing elsewhere.
	// What is not there marks nothing.
	four, five, six := chat("b", "a", "4"), chat("a", "b", "5"), chat("b", "a", "6")
	upTo := func(id string) *topics.Event {
		return event("dm:a:b", topics.TypeMessageRead, "messageId", id, "userId", "a", "upTo", true)
	}
	s.fold(topics.Messages, chat("b", "a", "3b"), four, five, six, chat("c", "a", "in another conversation"))
	s.fold(topics.Messages, upTo("none"), upTo(chat("c", "a", "in another conversation").NexusID))
	if got, _ := contents(4, ""); got != "bfalse bfalse afalse bfalse" {
		t.Errorf("after receipts for what is not there: %q", got)
	}
	s.fold(topics.Messages, upTo(five.NexusID), chat("b", "a", "7"), upTo(four.NexusID))
	if got, _ := contents(5, ""); got != "btrue btrue afalse bfalse bfalse" {
		t.Errorf("up to the fifth: %q", got)
	}
	if list, _, err := s.in.Conversations(t.Context(), "a", 9, ""); err != nil || len(list) != 2 || list[0].Unread+10*list[1].Unread != 12 &&
		list[0].Unread+10*list[1].Unread != 21 {
		t.Errorf("conversations %+v, %v; want 2 and 1 unread", list, err)
	}
	// The same event again, after its window: one row for ever.
	s.fold(topics.Messages, chat("a", "b", "1"))
	if got, _ := contents(5, ""); got != "btrue btrue afalse bfalse bfalse" {
		t.Errorf("after a repeat: %q", got)
	}
	if _, err := s.in.Message(t.Context(), "c", one.NexusID); !errors.Is(err, inbox.ErrNotFound) {
		t.Errorf("a stranger finds a message: %v", err)
	}
	if m, err := s.in.Message(t.Context(), "b", one.NexusID); err != nil || m.Receiver != "b" {
		t.Errorf("Message = %+v, %v", m, err)
	}
}

// Conversations: the newest first, with the last message and what is unread; a page stays right while messages arrive,
// and history goes on from a cursor both ways.
func testConversations(t *testing.T, s *store) {
	first := chat("b", "a", "b1")
	s.fold(topics.Messages, first, chat("a", "c", "c1"), chat("d", "a", "d1"), chat("d", "a", "d2"), chat("a", "a", "note"))
	list := func(user string, limit int, cursor string) (string, string) {
		t.Helper()
		got, next, err := s.in.Conversations(t.Context(), user, limit, cursor)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, c := range got {
			var v struct{ Content string }
			if err := json.Unmarshal(c.Last.Value, &v); err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("%s %s %d", c.Other, v.Content, c.Unread))
		}
		return strings.Join(out, ", "), next
	}
	if got, _ := list("a", 9, ""); got != "a note 0, d d2 2, c c1 0, b b1 1" {
		t.Errorf("a's: %s", got)
	}
	if got, _ := list("c", 9, ""); got != "a c1 1" {
		t.Errorf("c's: %s", got)
	}
	page, next := list("a", 2, "")
	s.fold(topics.Messages, chat("b", "a", "b2"), event("dm:a:d", topics.TypeMessageRead, "messageId", chat("d", "a", "d1").NexusID, "userId",
		"a"))
	rest, end := list("a", 2, next) // b has moved up: it is on no later page, and nothing is shown twice
	if page != "a note 0, d d2 2" || rest != "c c1 0" || end != "" {
		t.Errorf("pages %q, %q %q", page, rest, end)
	}
	if got, _ := list("a", 9, ""); got != "b b2 2, a note 0, d d2 1, c c1 0" {
		t.Errorf("a's, later: %s", got)
	}
	s.fold(topics.Messages, chat("b", "a", "b1")) // sent again beyond the window: it is there already, and moves nothing
	if got, _ := list("a", 1, ""); got != "b b2 2" {
		t.Errorf("after a repeat: %s", got)
	}
	older := ""
	walk := func(p inbox.Page) (out []string, newer string) {
		t.Helper()
		got, o, newer, err := s.in.Messages(t.Context(), "a", "b", p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range got {
			out = append(out, m.ID)
		}
		older = o
		return out, newer
	}
	last, newer := walk(inbox.Page{Limit: 1})
	before, _ := walk(inbox.Page{Limit: 1, Before: older})
	if len(before) != 1 || before[0] != first.NexusID || len(last) != 1 || last[0] == first.NexusID {
		t.Errorf("history: %v, before it %v", last, before)
	}
	if got, again := walk(inbox.Page{Limit: 5, After: newer}); len(got) != 0 || again != newer {
		t.Errorf("nothing newer, got %v, cursor %q", got, again)
	}
	s.fold(topics.Messages, chat("b", "a", "b3"), chat("a", "b", "b4"))
	if got, _ := walk(inbox.Page{Limit: 1, After: newer}); len(got) != 1 || got[0] != chat("b", "a", "b3").NexusID {
		t.Errorf("the next newer one: %v", got)
	}
}

func testDevices(t *testing.T, s *store) {
	device := func(user, typ, token string, at int64) *topics.Event {
		var tok any
		if token != "" {
			tok = token
		}
		e := event(topics.UserKey(user), typ, "token", tok)
		e.Time = at
		return e
	}
	tokens := func(user string) string {
		list, err := s.in.Devices(t.Context(), user)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, d := range list {
			out = append(out, d.Token)
		}
		return strings.Join(out, " ")
	}
	s.fold(topics.Devices, device("a", topics.TypeDeviceRegistered, "t1", 10), device("a", topics.TypeDeviceRegistered, "t2", 20))
	s.fold(topics.Devices, device("b", topics.TypeDeviceRegistered, "t1", 30))
	if tokens("a") != "t2" || tokens("b") != "t1" {
		t.Errorf("a token stays with its former user: a %q b %q", tokens("a"), tokens("b"))
	}
	// Read later, but earlier in record time (another partition): it changes nothing.
	s.fold(topics.Devices, device("a", topics.TypeDeviceRegistered, "t1", 25), device("b", topics.TypeDeviceUnregistered, "", 28))
	if tokens("a") != "t2" || tokens("b") != "t1" {
		t.Errorf("an earlier record wins: a %q b %q", tokens("a"), tokens("b"))
	}
	s.fold(topics.Devices, device("a", topics.TypeDeviceUnregistered, "t1", 35)) // not a's any more
	s.fold(topics.Devices, device("a", topics.TypeDeviceUnregistered, "", 40))
	if tokens("a") != "" || tokens("b") != "t1" {
		t.Errorf("after unregistering all of a: a %q b %q", tokens("a"), tokens("b"))
	}
	s.fold(topics.Devices, device("b", topics.TypeDeviceUnregistered, "t1", 50))
	if tokens("b") != "" {
		t.Errorf("b still has %q", tokens("b"))
	}
}

func testFeed(t *testing.T, s *store) {
	s.fold(topics.Messages, chat("a", "b", "1"), chat("b", "c", "2"), chat("a", "b", "3"))
	s.fold(topics.Notifications, notification("a", "n"))
	s.fold(topics.Broadcasts, event(topics.EveryoneKey, topics.TypeAnnouncement, "title", "x", "body", ""),
		event(topics.ChannelKey("c"), topics.TypeActivity, "type", "x", "userId", "u", "message", ""),
		event(topics.ChannelKey("d"), topics.TypeActivity, "type", "y", "userId", "u", "message", ""))
	feed := func(topic topics.Topic, from, to int64, entries, bytes int, audiences ...string) string {
		t.Helper()
		list, err := s.in.Feed(t.Context(), inbox.Span{Topic: topic, Audiences: audiences, From: []int64{from}, To: []int64{to}}, entries, bytes)
		if err != nil {
			return err.Error()
		}
		out := ""
		for _, e := range list {
			if len(e.Value) == 0 || e.At.Topic != topic || e.Time == 0 {
				t.Errorf("%+v", e)
			}
			out += fmt.Sprintf("%s %s %d|", e.Audience, e.Type, e.At.Offset)
		}
		return out
	}
	for _, tc := range []struct{ got, want string }{
		{feed(topics.Messages, 0, 3, 10, 1e6, "user:a"), "user:a message 0|user:a message 2|"},
		{feed(topics.Messages, 0, 3, 10, 1e6, "user:b"), "user:b message 0|user:b message 1|user:b message 2|"},
		{feed(topics.Messages, 1, 2, 10, 1e6, "user:b"), "user:b message 1|"},
		{feed(topics.Messages, 3, 3, 10, 1e6, "user:b"), ""},
		{feed(topics.Messages, 9, 3, 10, 1e6, "user:b"), ""},
		{feed(topics.Messages, 0, 3, 10, 1e6), ""},
		{feed(topics.Messages, 0, 3, 3, 1e6, "user:b"), "user:b message 0|user:b message 1|user:b message 2|"},
		{feed(topics.Messages, 0, 3, 2, 1e6, "user:b"), inbox.ErrTooMuch.Error()},
		{feed(topics.Messages, 0, 3, 10, 100, "user:b"), inbox.ErrTooMuch.Error()},
		{feed(topics.Notifications, 0, 1, 10, 1e6, "user:a"), "user:a notification 0|"},
		{feed(topics.Broadcasts, 0, 3, 10, 1e6, "all", "channel:c"), "all announcement 0|channel:c activity 1|"},
	} {
		if tc.got != tc.want {
			t.Errorf("feed %q, want %q", tc.got, tc.want)
		}
	}
	late := notification("a", "much later") // beyond the feed's retention of an hour
	late.Time = 1764583200000 + 2*time.Hour.Milliseconds()
	s.fold(topics.Notifications, late)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.in.Run(ctx) }()
	testenv.Eventually(t, "the feed is trimmed", func() bool {
		return feed(topics.Notifications, 0, 2, 10, 1e6, "user:a") == inbox.ErrTrimmed.Error()
	})
	cancel()
	<-ended
	for _, tc := range []struct{ got, want string }{
		{feed(topics.Notifications, 1, 2, 10, 1e6, "user:a"), "user:a notification 1|"},
		{feed(topics.Notifications, 0, 2, 10, 1e6, "user:z"), inbox.ErrTrimmed.Error()}, // it cannot be known that there was nothing
		{feed(topics.Messages, 2, 3, 10, 1e6, "user:b"), inbox.ErrTrimmed.Error()},
		{feed(topics.Messages, 3, 3, 10, 1e6, "user:b"), ""},
	} {
		if tc.got != tc.want {
			t.Errorf("after trimming: feed %q, want %q", tc.got, tc.want)
		}
	}
}

// Stores keep what clients got, byte for byte.
func testBytes(t *testing.T, s *store) {
	value := `{"title":"\u00e9 é 😀 ' \" \\","body":"` + "\u2028" + `","type":"SYSTEM","data":{"n":1.0e2, "z":[ ]}}`
	e := &topics.Event{Key: []byte("user:ü"), Meta: topics.Meta{Type: topics.TypeNotification}, Value: []byte(value)}
	s.fold(topics.Notifications, e)
	list, _, err := s.in.Notifications(t.Context(), "ü", false, 5, "")
	if err != nil || len(list) != 1 || string(list[0].Value) != string(e.Data()) {
		t.Errorf("got %v, %v; want %s", list, err, e.Data())
	}
}

func testPositions(t *testing.T, s *store) {
	b := s.batch(topics.Notifications, notification("a", "1"))
	if err := s.in.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := s.in.Apply(t.Context(), b); !errors.Is(err, pipeline.ErrMoved) {
		t.Errorf("the same batch again: %v, want ErrMoved", err)
	}
	ahead := s.batch(topics.Notifications, notification("a", "2"))
	ahead.From++
	if err := s.in.Apply(t.Context(), ahead); !errors.Is(err, pipeline.ErrMoved) {
		t.Errorf("a batch from another position: %v, want ErrMoved", err)
	}
	s.want("a", "1", "1")
	// What fails on the way leaves nothing behind.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.in.Apply(ctx, s.batch(topics.Notifications, notification("a", "2"))); err == nil {
		t.Error("a cancelled batch was applied")
	}
	if at, err := s.in.Position(t.Context(), topics.Notifications.Partition(0)); err != nil || at.Next != 1 {
		t.Errorf("position %v, %v; want 1", at, err)
	}
	s.want("a", "1", "1")
}

// The tables depend on the log alone, not on where batches are cut.
func testBatches(t *testing.T, s *store) {
	r := rand.New(rand.NewPCG(1, 2))
	history := func() []*topics.Event {
		r := rand.New(rand.NewPCG(3, 4))
		var out []*topics.Event
		for i := range 200 {
			user := string(rune('a' + r.IntN(3)))
			switch id := fmt.Sprintf("n0-%d", r.IntN(i+20)); r.IntN(5) {
			case 0:
				out = append(out, event(topics.UserKey(user), topics.TypeNotificationRead, "notificationId", id))
			case 1:
				out = append(out, event(topics.UserKey(user), topics.TypeNotificationDeleted, "notificationId", id))
			case 2:
				out = append(out, event(topics.UserKey(user), topics.TypeNotificationRead, "upTo",
					topics.FormatTime(1764583200000+int64(r.IntN(220))*1000)))
			default:
				out = append(out, notification(user, fmt.Sprint(i)))
			}
		}
		return out
	}
	file, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "reference.db"))
	if err != nil {
		t.Fatal(err)
	}
	reference := newStore(t, file)
	for rest, single := history(), history(); len(rest) > 0; {
		n := min(len(rest), 1+r.IntN(40))
		s.fold(topics.Notifications, rest[:n]...)
		for _, e := range single[:n] {
			reference.fold(topics.Notifications, e)
		}
		rest, single = rest[n:], single[n:]
		for _, user := range []string{"a", "b", "c"} { // what a later upTo would hide must be seen now
			s.want(user, reference.titles(user, false), reference.titles(user, true))
		}
	}
}

func testAwait(t *testing.T, s *store) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := s.in.Await(ctx, topics.Ends{topics.Messages.Partition(0): 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Await of what is not there: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- s.in.Await(t.Context(), topics.Ends{topics.Messages.Partition(0): 1}) }()
	s.fold(topics.Messages, chat("a", "b", "1"))
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func testReopen(t *testing.T, s *store) {
	s.fold(topics.Notifications, notification("a", "1"))
	again, err := inbox.Open(t.Context(), s.db, time.Hour, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.in = again
	s.fold(topics.Notifications, notification("a", "2"))
	s.want("a", "2 1", "2 1")
}

func BenchmarkApply(b *testing.B) {
	db, err := sqldb.OpenSQLite(filepath.Join(b.TempDir(), "b.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	in, err := inbox.Open(b.Context(), db, time.Hour, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := in.Position(b.Context(), topics.Notifications.Partition(0)); err != nil {
		b.Fatal(err)
	}
	const batch = 1000
	b.ReportAllocs()
	n := int64(0)
	for b.Loop() {
		events := make([]*topics.Event, batch)
		for i := range events {
			events[i] = notification(fmt.Sprint("u", i%100), "t")
			events[i].Offset, events[i].Time = n+int64(i), n
		}
		if err := in.Apply(b.Context(), pipeline.Batch{Topic: topics.Notifications, From: n, To: n + batch, Events: events}); err != nil {
			b.Fatal(err)
		}
		n += batch
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}
