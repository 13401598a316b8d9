// Package projections_test holds what every store has to pass.
package projections_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/keys"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

func TestMain(m *testing.M) { testenv.Exit(m) }

// TestLargestValues folds every field of every type at the largest value that the schema lets in, on every store: what is
// valid must be stored and indexed. The events are made of the schema; a new field is tested by being there.
func TestLargestValues(t *testing.T) {
	made, err := topicstest.Largest(7)
	if err != nil {
		t.Fatal(err)
	}
	log := make(map[topics.Topic][]*topics.Event)
	for _, e := range made {
		e.Offset = int64(len(log[e.Topic]))
		e.Time = 1764583200000 + e.Offset
		log[e.Topic] = append(log[e.Topic], e)
	}
	for name, open := range map[string]func(*testing.T) *sqldb.DB{"sqlite": openSQLite, "postgres": openPostgres} {
		t.Run("inbox/"+name, func(t *testing.T) {
			in, err := inbox.Open(t.Context(), open(t), time.Hour, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			foldAll(t, in, inbox.Topics(), log)
			readInbox(t, in, log)
		})
	}
	for name, open := range map[string]func(*testing.T) *sqldb.DB{"sqlite": openSQLite, "postgres": openPostgres} {
		t.Run("keys/"+name, func(t *testing.T) {
			d, err := keys.Open(t.Context(), open(t), whole(log))
			if err != nil {
				t.Fatal(err)
			}
			foldAll(t, d, []topics.Topic{topics.Control, topics.Keys}, log)
		})
	}
	var rows [2]uint64
	t.Run("stats/sqlite", func(t *testing.T) {
		db := openSQLite(t)
		s, err := stats.OpenSQLite(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		foldAll(t, s, stats.Topics(), log)
		if err := db.Get(t.Context(), []any{&rows[0]}, `SELECT count(*) FROM events`); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("stats/clickhouse", func(t *testing.T) {
		url := testenv.ClickHouse(t)
		s, err := stats.OpenClickHouse(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		foldAll(t, s, stats.Topics(), log)
		o, err := clickhouse.ParseDSN(url)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := clickhouse.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.QueryRow(t.Context(), `SELECT uniqExact(user_id, type, topic, part, pos) FROM nexus_events`).Scan(&rows[1]); err != nil {
			t.Fatal(err)
		}
		if rows[0] != rows[1] || rows[0] < uint64(len(made)) {
			t.Errorf("%d rows on ClickHouse, %d on SQLite, of %d events", rows[1], rows[0], len(made))
		}
	})
}

// whole is a log that ends behind these events.
type whole map[topics.Topic][]*topics.Event

// Ends is where a topic ends (keys.Log).
func (w whole) Ends(_ context.Context, t topics.Topic) (topics.Ends, error) {
	return topics.Ends{t.Partition(0): int64(len(w[t]))}, nil
}

func openSQLite(t *testing.T) *sqldb.DB {
	db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func openPostgres(t *testing.T) *sqldb.DB {
	db, err := sqldb.OpenPostgres(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// foldAll folds each topic in one batch. Where that fails it folds one by one, to say which event it was.
func foldAll(t *testing.T, s pipeline.Sink, of []topics.Topic, log map[topics.Topic][]*topics.Event) {
	t.Helper()
	for _, topic := range of {
		events := log[topic]
		if len(events) == 0 {
			continue
		}
		if _, err := s.Position(t.Context(), topic.Partition(0)); err != nil {
			t.Fatal(err)
		}
		err := apply(t.Context(), s, topic, events)
		if err == nil {
			continue
		}
		t.Errorf("%s: %v", topic, err)
		for _, e := range events {
			if err := apply(t.Context(), s, topic, []*topics.Event{e}); err != nil {
				t.Errorf("%s with key of %d bytes, value of %d bytes: %v", e.Type, len(e.Key), len(e.Value), err)
				return
			}
		}
	}
}

func apply(ctx context.Context, s pipeline.Sink, topic topics.Topic, events []*topics.Event) error {
	from := events[0].Offset
	return s.Apply(ctx, pipeline.Batch{Topic: topic, From: from, To: from + int64(len(events)), Events: events})
}

// readInbox finds everything again by what it is indexed by.
func readInbox(t *testing.T, in *inbox.Inbox, log map[topics.Topic][]*topics.Event) {
	devices := make(map[string]string)
	for _, e := range log[topics.Devices] {
		if e.Type == topics.TypeDeviceRegistered {
			devices[topics.ReadDevice(e).Token] = e.Audience.A
		}
	}
	for token, user := range devices {
		list, err := in.Devices(t.Context(), user)
		found := false
		for _, d := range list {
			found = found || d.Token == token
		}
		if err != nil || !found {
			t.Errorf("a token of %d bytes is not found again: %v", len(token), err)
		}
	}
	for _, e := range log[topics.Messages] {
		if e.Type != topics.TypeMessage {
			continue
		}
		m, err := in.Message(t.Context(), e.Audience.B, e.NexusID)
		if err != nil || string(m.Value) != string(e.Data()) {
			t.Errorf("a message of %d bytes is not found again: %v", len(e.Value), err)
		}
	}
	for _, topic := range []topics.Topic{topics.Notifications, topics.Broadcasts} {
		for _, e := range log[topic] {
			if err := found(t.Context(), in, e); err != nil {
				t.Errorf("%s of %d bytes is not found again: %v", e.Type, len(e.Value), err)
			}
		}
	}
}

func found(ctx context.Context, in *inbox.Inbox, e *topics.Event) error {
	switch e.Type {
	case topics.TypeNotification, topics.TypeAnnouncement:
		if e.Audience.Kind == topics.Channel {
			break
		}
		return in.HasNotification(ctx, e.Audience.A, e.NexusID)
	case topics.TypeNotificationRead, topics.TypeNotificationDeleted:
		return nil
	}
	list, err := in.Feed(ctx, inbox.Span{Topic: e.Topic, Audiences: []string{string(e.Key)}, From: []int64{e.Offset},
		To: []int64{e.Offset + 1}}, 9, 1<<20)
	if err == nil && (len(list) != 1 || string(list[0].Value) != string(e.Data())) {
		return fmt.Errorf("%d entries in the feed: %w", len(list), sql.ErrNoRows)
	}
	return err
}
