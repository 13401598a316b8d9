package stats_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

func openClickHouse(t *testing.T, url string) *stats.ClickHouse {
	t.Helper()
	s, err := stats.OpenClickHouseWithin(t.Context(), sqldb.Limits{Tx: 2 * time.Second, Read: time.Second, Dial: time.Second}, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// operator is a connection of somebody else's.
func operator(t *testing.T, url string) driver.Conn {
	t.Helper()
	o, err := clickhouse.ParseDSN(url)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := clickhouse.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func message(partition int32, offset int64) *topics.Event {
	return event(topics.Messages, partition, offset, "dm:a:b", topics.TypeMessage, "senderId", "a", "receiverId", "b", "content", "x")
}

// TestEmptiedClickHouse: the events are dropped or emptied under positions that stay (case 23c). That is told, with the way
// out, before anything is folded; after the way out counting begins anew.
func TestEmptiedClickHouse(t *testing.T) {
	for _, statement := range []string{"DROP TABLE nexus_events", "TRUNCATE TABLE nexus_events"} {
		t.Run(statement, func(t *testing.T) {
			url := testenv.ClickHouse(t)
			s := openClickHouse(t, url)
			if err := s.Apply(t.Context(), batch(message(0, 0))); err != nil {
				t.Fatal(err)
			}
			if again := openClickHouse(t, url); position(t, again) != nil {
				t.Fatalf("opened again: %v", position(t, again))
			}
			if err := operator(t, url).Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
			s = openClickHouse(t, url)
			if err := position(t, s); !errors.Is(err, stats.ErrEmptied) || !strings.Contains(err.Error(), "nexus rebuild stats") {
				t.Fatalf("position: %v", err)
			}
			if err := s.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := position(t, s); err != nil {
				t.Fatalf("after the reset: %v", err)
			}
			if err := s.Apply(t.Context(), batch(message(0, 0))); err != nil {
				t.Fatal(err)
			}
			counts, err := s.Counts(t.Context(), []string{"a"})
			if err != nil || counts["a"].Messages != 1 {
				t.Errorf("after the rebuild: %+v, %v", counts, err)
			}
		})
	}
}

func position(t *testing.T, s *stats.ClickHouse) error {
	_, err := s.Position(t.Context(), topics.Messages.Partition(0))
	return err
}

// TestClickHouseErrorClasses: a value that a column cannot have is permanent, for its own batch alone, however many are
// gathered into one insert; a missing table may come back.
func TestClickHouseErrorClasses(t *testing.T) {
	url := testenv.ClickHouse(t)
	s := openClickHouse(t, url)
	bad := message(1, 0)
	bad.Time = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli() // DateTime ends in 2106
	errs := make([]error, 3)
	var wg sync.WaitGroup
	for i, b := range []pipeline.Batch{batch(message(0, 0)), batch(bad), batch(message(2, 0))} {
		wg.Go(func() { errs[i] = s.Apply(t.Context(), b) })
	}
	wg.Wait()
	if errs[0] != nil || errs[2] != nil {
		t.Errorf("batches beside the bad one: %v, %v", errs[0], errs[2])
	}
	if !pipeline.IsPermanent(errs[1]) || !strings.Contains(fmt.Sprint(errs[1]), "messages/1 at offset 0") {
		t.Errorf("a bad value: %v", errs[1])
	}
	if at, err := s.Position(t.Context(), topics.Messages.Partition(1)); err != nil || at.Next != 0 {
		t.Errorf("the bad batch's position is %d, %v", at.Next, err)
	}
	if err := operator(t, url).Exec(t.Context(), "DROP TABLE nexus_events"); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(t.Context(), batch(message(0, 1))); err == nil || pipeline.IsPermanent(err) {
		t.Errorf("without its table: permanent=%v %v", pipeline.IsPermanent(err), err)
	}
}

// TestSilentClickHouse: nothing waits for a ClickHouse that has gone silent longer than the limits, and counting goes on
// once new connections pass.
func TestSilentClickHouse(t *testing.T) {
	direct := testenv.ClickHouse(t)
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	proxy := testenv.NewProxy(t, u.Host)
	u.Host = proxy.Addr
	s := openClickHouse(t, u.String())
	if err := s.Apply(t.Context(), batch(message(0, 0))); err != nil {
		t.Fatal(err)
	}
	proxy.Swallow()
	ends(t, "apply", func(ctx context.Context) error { return s.Apply(ctx, batch(message(0, 1))) })
	for n := int64(1); ; n++ {
		if err := s.Apply(t.Context(), batch(message(0, n))); err == nil {
			break
		}
		if n > 10 { // of each connection that there was, one try at most
			t.Fatal("new connections pass, and it does not go on")
		}
	}
	proxy.Silence()
	var silent sync.WaitGroup // all at once: it takes as long as the slowest, and none may wait for another
	endsWithAnError := func(name string, do func(context.Context) error) {
		silent.Go(func() { t.Helper(); ends(t, name, do) })
	}
	endsWithAnError("counts", func(ctx context.Context) error { _, err := s.Counts(ctx, []string{"a"}); return err })
	endsWithAnError("reached", func(ctx context.Context) error {
		_, err := s.Reached(ctx, topics.Ends{topics.Messages.Partition(0): 1})
		return err
	})
	endsWithAnError("position", func(ctx context.Context) error { _, err := s.Position(ctx, topics.Messages.Partition(0)); return err })
	endsWithAnError("apply", func(ctx context.Context) error { return s.Apply(ctx, batch(message(0, 2))) })
	endsWithAnError("open", func(ctx context.Context) error {
		_, err := stats.OpenClickHouseWithin(ctx, sqldb.Limits{Tx: time.Second, Dial: time.Second}, u.String())
		return err
	})
	endsWithAnError("ping", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		return s.Ping(ctx)
	})
	silent.Wait()
}

// ends runs what must end with an error although its caller has set no deadline.
func ends(t *testing.T, name string, do func(context.Context) error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- do(context.WithoutCancel(t.Context())) }()
	select {
	case err := <-ended:
		if err == nil {
			t.Errorf("%s: no error while ClickHouse is silent", name)
		}
	case <-time.After(15 * time.Second):
		t.Errorf("%s hangs", name)
	}
}

// TestClickHousePasswordsStayOut: whatever is wrong with CLICKHOUSE_URL, no error repeats a piece of the password.
func TestClickHousePasswordsStayOut(t *testing.T) {
	at, database, _ := strings.Cut(strings.TrimPrefix(testenv.ClickHouse(t), "clickhouse://"), "/")
	for _, password := range []string{"hunter2@home", "hunter2:home", "12/hunter2@home", "12?hunter2=home", "12#hunter2", "hunter2%home",
		"hunter2%41home",
		"hunter2 home", "@hunter2@", "/hunter2"} {
		for _, written := range []string{password, url.QueryEscape(password), url.PathEscape(password)} {
			for name, dsn := range map[string]string{
				"dial":     "clickhouse://default:" + written + "@127.0.0.1:1/" + database,
				"auth":     "clickhouse://default:" + written + "@" + at + "/" + database,
				"database": "clickhouse://default:" + written + "@" + at + "/nowhere",
				"lookup":   "clickhouse://default:" + written + "@no-such-host.invalid:9000/x",
				"port":     "clickhouse://default:" + written + "@127.0.0.1:x/x",
				"query":    "clickhouse://127.0.0.1:1/x?username=default&password=" + written,
				"timeout":  "clickhouse://default:" + written + "@" + at + "/x?dial_timeout=soon",
			} {
				s, err := stats.OpenClickHouse(t.Context(), dsn)
				if err == nil {
					s.Close()
					t.Errorf("%s: %q works", name, dsn)
					continue
				}
				for _, piece := range []string{"hunter2", "home"} {
					if strings.Contains(err.Error(), piece) {
						t.Errorf("%s: the error of %q has %q: %v", name, dsn, piece, err)
					}
				}
			}
		}
	}
}
