package projections_test

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// TestPgBouncer: two nodes behind a PgBouncer in transaction mode, with nothing in the URL that says so (case 22): both
// migrate at once, fold, and answer 200 reads side by side.
func TestPgBouncer(t *testing.T) {
	dsn := testenv.PgBouncer(t)
	var nodes [2]*inbox.Inbox
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() {
			db, err := sqldb.OpenPostgres(dsn)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { db.Close() })
			if nodes[i], err = inbox.Open(t.Context(), db, time.Hour, slog.New(slog.DiscardHandler)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	const folds, each = 30, 20
	for i, topic := range []topics.Topic{topics.Notifications, topics.Messages} { // each node has a topic
		wg.Go(func() {
			in := nodes[i]
			for n := range int64(folds) {
				if _, err := in.Position(t.Context(), topic.Partition(0)); err != nil {
					t.Error(err)
					return
				}
				if err := in.Apply(t.Context(), someOf(topic, n*each, each)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for n := range 200 {
		wg.Go(func() {
			in := nodes[n%2]
			for range 3 {
				for name, read := range reads(in) {
					if name == "await" || name == "message" || name == "has" || name == "newest" { // they wait, or find nothing yet
						continue
					}
					if err := read(t.Context()); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if n, err := nodes[1].Unread(t.Context(), "u"); err != nil || n != folds*each {
		t.Errorf("%d unread, %v; want %d", n, err, folds*each)
	}
	list, _, err := nodes[0].Conversations(t.Context(), "u", 5, "")
	if err != nil || len(list) != 1 || list[0].Unread != folds*each {
		t.Errorf("conversations %+v, %v", list, err)
	}
}

// someOf is a batch of n events from an offset on: to u, and of u's conversation with v.
func someOf(topic topics.Topic, from, n int64) pipeline.Batch {
	b := pipeline.Batch{Topic: topic, From: from, To: from + n}
	for at := from; at < from+n; at++ {
		e := &topics.Event{Key: []byte("user:u"), Meta: topics.Meta{Type: topics.TypeNotification},
			Value: topics.Fields("title", fmt.Sprint(at), "body", "b", "type", "SYSTEM")}
		if topic == topics.Messages {
			e = topics.Draft{ReceiverID: "u", Content: fmt.Sprint(at), ClientMessageID: fmt.Sprint(at)}.Message("v", "")
		}
		e.Topic, e.Offset, e.Time = topic, at, 1764583200000+at
		b.Events = append(b.Events, e)
	}
	return b
}

// BenchmarkFoldPostgres compares pgx's ways to run a statement, by what they cost a fold of 20 messages.
func BenchmarkFoldPostgres(b *testing.B) {
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec"} {
		b.Run(mode, func(b *testing.B) {
			db, err := sqldb.OpenPostgres(testenv.Postgres(b) + "&default_query_exec_mode=" + mode)
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			in, err := inbox.Open(b.Context(), db, time.Hour, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := in.Position(b.Context(), topics.Messages.Partition(0)); err != nil {
				b.Fatal(err)
			}
			n := int64(0)
			for b.Loop() {
				if err := in.Apply(b.Context(), someOf(topics.Messages, n, 20)); err != nil {
					b.Fatal(err)
				}
				n += 20
			}
		})
	}
}
