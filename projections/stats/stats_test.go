package stats_test

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

func TestMain(m *testing.M) { testenv.Exit(m) }

type store interface {
	pipeline.Sink
	Counts(ctx context.Context, users []string) (map[string]stats.Counts, error)
	Reached(ctx context.Context, ends topics.Ends) (bool, error)
}

// TestStats runs one suite on both stores.
func TestStats(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		testStats(t, func(t *testing.T) store {
			db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "s.db"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			s, err := stats.OpenSQLite(t.Context(), db)
			if err != nil {
				t.Fatal(err)
			}
			return s
		})
	})
	t.Run("clickhouse", func(t *testing.T) {
		testStats(t, func(t *testing.T) store {
			s, err := stats.OpenClickHouse(t.Context(), testenv.ClickHouse(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return s
		})
	})
}

func event(t topics.Topic, partition int32, offset int64, key, typ string, fields ...any) *topics.Event {
	return topicstest.Sign(&topics.Event{Topic: t, Partition: partition, Offset: offset, Time: 1764583200000 + offset, Key: []byte(key),
		Meta:  topics.Meta{Type: typ},
		Value: topics.Fields(fields...)})
}

func batch(events ...*topics.Event) pipeline.Batch {
	first, last := events[0], events[len(events)-1]
	return pipeline.Batch{Topic: first.Topic, Partition: first.Partition, From: first.Offset, To: last.Offset + 1, Events: events}
}

func testStats(t *testing.T, open func(*testing.T) store) {
	t.Run("counts", func(t *testing.T) {
		s := open(t)
		for _, topic := range stats.Topics() {
			for p := range int32(2) {
				if at, err := s.Position(t.Context(), topic.Partition(p)); err != nil || at != (pipeline.Position{}) {
					t.Fatalf("a new store stands at %v, %v", at, err)
				}
			}
		}
		duplicate := event(topics.Messages, 0, 2, "dm:a:b", topics.TypeMessage, "senderId", "a", "receiverId", "b", "content", "x")
		duplicate.Duplicate = true
		batches := []pipeline.Batch{
			batch(event(topics.Messages, 0, 0, "dm:a:b", topics.TypeMessage, "senderId", "a", "receiverId", "b", "content", "x"),
				event(topics.Messages, 0, 1, "dm:a:a", topics.TypeMessage, "senderId", "a", "receiverId", "a", "content", "x"),
				duplicate,
				event(topics.Messages, 0, 3, "dm:a:b", topics.TypeMessageRead, "messageId", "1", "userId", "b")),
			batch(event(topics.Notifications, 1, 0, "user:a", topics.TypeNotification, "title", "t", "body", "", "type", "CONNECTION_ACCEPTED"),
				event(topics.Notifications, 1, 1, "user:a", topics.TypeNotification, "title", "t", "body", "", "type", "SYSTEM"),
				event(topics.Notifications, 1, 2, "user:a", topics.TypeActivity, "type", "post_created", "userId", "a", "message", ""),
				event(topics.Notifications, 1, 3, "user:a", topics.TypeActivity, "type", "other", "userId", "a", "message", "")),
			batch(event(topics.Broadcasts, 0, 0, "all", topics.TypeAnnouncement, "title", "t", "body", "")),
		}
		var wg sync.WaitGroup
		for _, b := range batches { // workers of different partitions apply at the same time
			wg.Go(func() {
				if err := s.Apply(t.Context(), b); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got, err := s.Counts(t.Context(), []string{"a", "b", "nobody"})
		if err != nil {
			t.Fatal(err)
		}
		for user, want := range map[string]stats.Counts{"a": {Connections: 1, Messages: 2, Posts: 1}, "b": {Messages: 1}, "nobody": {}} {
			if got[user] != want {
				t.Errorf("counts of %s: %+v, want %+v", user, got[user], want)
			}
		}
		for _, b := range batches {
			if at, err := s.Position(t.Context(), b.Of()); err != nil || at != b.After() {
				t.Errorf("position of %s: %v, %v; want %v", b.Of(), at, err, b.After())
			}
			if ok, err := s.Reached(t.Context(), topics.Ends{b.Of(): b.To}); err != nil || !ok {
				t.Errorf("Reached(%d) = %v, %v", b.To, ok, err)
			}
			if ok, err := s.Reached(t.Context(), topics.Ends{b.Of(): b.To + 1}); err != nil || ok {
				t.Errorf("Reached(%d) = %v, %v", b.To+1, ok, err)
			}
		}
	})
	// After a crash between rows and position the batch comes again; it must not count twice. Where the store moves both
	// at once it refuses.
	t.Run("a batch twice", func(t *testing.T) {
		s := open(t)
		b := batch(event(topics.Messages, 0, 0, "dm:a:b", topics.TypeMessage, "senderId", "a", "receiverId", "b", "content", "x"))
		if _, err := s.Position(t.Context(), b.Of()); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_ = s.Apply(t.Context(), b)
		}
		got, err := s.Counts(t.Context(), []string{"a"})
		if err != nil || got["a"].Messages != 1 {
			t.Errorf("counts %+v, %v; want one message", got["a"], err)
		}
	})
}
