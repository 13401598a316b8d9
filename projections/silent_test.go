package projections_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// short limits make the tests of faults short; patience bounds what must end by them.
var short = sqldb.Limits{Tx: 2 * time.Second, Read: 500 * time.Millisecond, Dial: time.Second}

const patience = 15 * time.Second

// behindProxy is a PostgreSQL database, and its URL through a proxy.
func behindProxy(t *testing.T) (*testenv.Proxy, string) {
	t.Helper()
	u, err := url.Parse(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	p := testenv.NewProxy(t, u.Host)
	u.Host = p.Addr
	return p, u.String()
}

func openInbox(t *testing.T, dsn string) (*sqldb.DB, *inbox.Inbox) {
	t.Helper()
	db, err := short.OpenPostgres(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	in, err := inbox.Open(t.Context(), db, time.Hour, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return db, in
}

// reads are all that clients wait for.
func reads(in *inbox.Inbox) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"notifications": func(ctx context.Context) error { _, _, err := in.Notifications(ctx, "u", false, 5, ""); return err },
		"unread":        func(ctx context.Context) error { _, err := in.Unread(ctx, "u"); return err },
		"newest":        func(ctx context.Context) error { _, err := in.Newest(ctx, "u"); return err },
		"has":           func(ctx context.Context) error { return in.HasNotification(ctx, "u", "x") },
		"messages": func(ctx context.Context) error {
			_, _, _, err := in.Messages(ctx, "u", "v", inbox.Page{Limit: 5})
			return err
		},
		"conversations": func(ctx context.Context) error { _, _, err := in.Conversations(ctx, "u", 5, ""); return err },
		"message":       func(ctx context.Context) error { _, err := in.Message(ctx, "u", "x"); return err },
		"devices":       func(ctx context.Context) error { _, err := in.Devices(ctx, "u"); return err },
		"feed": func(ctx context.Context) error {
			_, err := in.Feed(ctx, inbox.Span{Topic: topics.Messages, Audiences: []string{"user:u"}, From: []int64{0}, To: []int64{9}}, 9, 1<<20)
			return err
		},
		"position": func(ctx context.Context) error { _, err := in.Position(ctx, topics.Messages.Partition(0)); return err },
		"await": func(ctx context.Context) error {
			return in.Await(ctx, topics.Ends{topics.Messages.Partition(0): 1 << 40})
		},
	}
}

// ends runs what must not hang although its caller has set no deadline.
func ends(t *testing.T, name string, do func(context.Context) error) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- do(context.WithoutCancel(t.Context())) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		err := fmt.Errorf("%s hangs", name)
		t.Error(err)
		return err
	}
}

func endsWithAnError(t *testing.T, name string, do func(context.Context) error) {
	t.Helper()
	if err := ends(t, name, do); err == nil || errors.Is(err, inbox.ErrNotFound) {
		t.Errorf("%s: no error (%v) while the database is silent", name, err)
	}
}

func fold(ctx context.Context, in *inbox.Inbox, n int64) error {
	at, err := in.Position(ctx, topics.Notifications.Partition(0))
	if err != nil {
		return err
	}
	e := &topics.Event{Topic: topics.Notifications, Offset: at.Next, Time: 1764583200000 + at.Next, Key: []byte("user:u"),
		Meta:  topics.Meta{Type: topics.TypeNotification},
		Value: topics.Fields("title", fmt.Sprint(n), "body", "b", "type", "SYSTEM")}
	return in.Apply(ctx, pipeline.Batch{Topic: topics.Notifications, From: at.Next, To: at.Next + 1, Events: []*topics.Event{e}})
}

// TestSilentConnections: the connections to PostgreSQL fall silent, one of them inside a transaction that holds the
// position's row; new ones pass (case 21). Everything ends, and the inbox goes on.
func TestSilentConnections(t *testing.T) {
	proxy, dsn := behindProxy(t)
	db, in := openInbox(t, dsn)
	if err := fold(t.Context(), in, 0); err != nil {
		t.Fatal(err)
	}
	locked, ended := make(chan struct{}), make(chan error, 1)
	swallowed := make(chan struct{})
	go func() {
		ended <- db.Tx(context.WithoutCancel(t.Context()), func(tx *sql.Tx) error {
			if _, err := tx.Exec(`UPDATE positions SET next=next`); err != nil {
				return err
			}
			close(locked)
			<-swallowed
			_, err := tx.Exec(`SELECT 1`) // not its context: the transaction's end holds for it too
			return err
		})
	}()
	<-locked
	proxy.Swallow()
	close(swallowed)
	deadline := time.After(patience)
	for n := int64(1); ; n++ {
		again := make(chan error, 1)
		go func() { again <- fold(context.WithoutCancel(t.Context()), in, n) }()
		select {
		case err := <-again:
			if err == nil {
				select {
				case err := <-ended:
					if err == nil || !strings.Contains(err.Error(), "longer than") {
						t.Errorf("the transaction on a silent connection: %v", err)
					}
				case <-deadline:
					t.Error("the transaction on a silent connection hangs")
				}
				return
			}
			t.Logf("not yet: %v", err)
		case <-deadline:
			t.Fatal("the inbox stands still")
		}
	}
}

// TestSilentServer: nothing answers at all, neither old connections nor new ones, as with a server that was stopped.
func TestSilentServer(t *testing.T) {
	proxy, dsn := behindProxy(t)
	db, in := openInbox(t, dsn)
	proxy.Silence()
	var silent sync.WaitGroup // all at once: it takes no longer than the slowest, and none may wait for another
	defer silent.Wait()
	for name, read := range reads(in) {
		silent.Go(func() { endsWithAnError(t, name, read) })
	}
	endsWithAnError(t, "fold", func(ctx context.Context) error {
		return in.Apply(ctx, pipeline.Batch{Topic: topics.Notifications, From: 0, To: 1})
	})
	endsWithAnError(t, "a statement outside of a transaction", func(ctx context.Context) error {
		_, err := db.Write.ExecContext(ctx, `SELECT 1`)
		return err
	})
	endsWithAnError(t, "ping", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		return in.Ping(ctx)
	})
}

// TestStatementsAreBounded: a statement on a connection that has fallen silent ends although its caller set no deadline, as
// the statements of other packages do.
func TestStatementsAreBounded(t *testing.T) {
	proxy, dsn := behindProxy(t)
	for name, do := range map[string]func(context.Context, *sql.DB) error{
		"exec": func(ctx context.Context, db *sql.DB) error { _, err := db.ExecContext(ctx, `SELECT 1`); return err },
		"query": func(ctx context.Context, db *sql.DB) error {
			rows, err := db.QueryContext(ctx, `SELECT 1`)
			if err == nil {
				rows.Close()
			}
			return err
		},
		"begin": func(ctx context.Context, db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			if err == nil {
				_ = tx.Rollback()
			}
			return err
		},
	} {
		db, err := short.OpenPostgres(dsn)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the connection that it will use; the second time it was asked whether it lives
			if _, err := db.Write.ExecContext(t.Context(), `SELECT 1`); err != nil {
				t.Fatal(err)
			}
		}
		proxy.Swallow()
		// An error, or success on a new connection where it was idle for a second.
		t.Logf("%s: %v", name, ends(t, name, func(ctx context.Context) error { return do(ctx, db.Write) }))
		db.Close()
	}
}

// TestLockedTables: somebody holds every table (case 20c). Reads answer in time, and a fold that waits ends as well.
func TestLockedTables(t *testing.T) {
	dsn := testenv.Postgres(t)
	_, in := openInbox(t, dsn)
	other, err := sqldb.OpenPostgres(dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	err = other.Tx(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(t.Context(),
			`LOCK TABLE notifications, announcements, messages, conversations, devices, feed, positions`); err != nil {
			return err
		}
		var waiting sync.WaitGroup
		defer waiting.Wait()
		for name, read := range reads(in) {
			waiting.Go(func() { endsWithAnError(t, name, read) })
		}
		endsWithAnError(t, "fold", func(ctx context.Context) error {
			return in.Apply(ctx, pipeline.Batch{Topic: topics.Notifications, From: 0, To: 1})
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := fold(t.Context(), in, 0); err != nil {
		t.Errorf("after the lock: %v", err)
	}
}
