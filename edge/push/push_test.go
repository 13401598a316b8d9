package push_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/edge/push/fcm"
	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// everybody is present, or nobody.
type everybody struct {
	nobody
	here atomic.Bool
}

func (e *everybody) Connected(topics.Namespace, string) bool { return e.here.Load() }

func (s *shop) row() int64 {
	s.t.Helper()
	next, err := s.Row(s.t.Context(), topics.Notifications)
	if err != nil {
		s.t.Fatal(err)
	}
	return next
}

func (s *shop) jobs() (n int) {
	s.t.Helper()
	if err := s.Options().DB.Read.QueryRow(`SELECT count(*) FROM push_jobs`).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// restart makes another pusher on the same database, and reads where it goes on.
func (s *shop) restart() int64 {
	s.t.Helper()
	p, err := push.New(s.t.Context(), *s.Options())
	if err != nil {
		s.t.Fatal(err)
	}
	s.Pusher = p
	at, err := s.Position(s.t.Context(), topics.Notifications.Partition(0))
	if err != nil {
		s.t.Fatal(err)
	}
	return at.Next
}

// The lazy position against a model, over clean ends, crashes, the flush of every second and the partition's coming back: what
// was judged and flushed is never judged again, what is due is never lost and never made twice, and a row is never ahead.
func TestLazyPosition(t *testing.T) {
	db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "inbox.db"))
	if err != nil {
		t.Fatal(err)
	}
	s, here := newShop(t, db), &everybody{}
	s.Options().Presence = here
	s.devices("a")
	s.restart()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var log []bool             // of each event: is it due
	var applied, settled int64 // everything below was judged, and that is stored
	pushed := 0
	apply := func() {
		n := int64(1 + r.IntN(3))
		for int64(len(log)) < applied+n { // a record's verdict is its time's: who is away then
			log = append(log, r.IntN(4) == 0)
		}
		for k := applied; k < applied+n; k++ { // one batch each, so that presence can be what it was
			here.here.Store(!log[k])
			e := &topics.Event{Topic: topics.Notifications, Offset: k, Time: s.clock.now().UnixMilli(), Key: []byte("user:a"),
				Meta:  topics.Meta{Type: topics.TypeNotification},
				Value: topics.Fields("title", "t", "body", "b", "type", "SYSTEM")}
			if err := s.Apply(t.Context(), pipeline.Batch{Topic: topics.Notifications, From: k, To: k + 1, Events: []*topics.Event{e}}); err != nil {
				t.Fatal(err)
			}
			if log[k] {
				pushed, settled = pushed+1, k+1
				log[k] = false // a second time it would be a second job
			}
		}
		applied += n
	}
	for range 400 {
		switch r.IntN(8) {
		default:
			apply()
		case 0:
			s.clock.pass(time.Duration(r.Int64N(int64(2 * push.Lazily))))
		case 1:
			s.Flush(t.Context())
			settled = applied
		case 2: // a clean end
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			s.Keep(ended)
			if next := s.restart(); next != applied {
				t.Fatalf("after a clean end it goes on at %d, want %d", next, applied)
			}
			settled = applied
		case 3: // a crash
			next := s.restart()
			if next < settled || next > applied {
				t.Fatalf("after a crash it goes on at %d; %d to %d were to be stored", next, settled, applied)
			}
			applied = next
		case 4: // the partition goes and comes back
			if at, err := s.Position(t.Context(), topics.Notifications.Partition(0)); err != nil || at.Next != applied {
				t.Fatalf("it comes back at %d, %v; want %d", at.Next, err, applied)
			}
			settled = applied
		}
		if next := s.row(); next < settled || next > applied {
			t.Fatalf("the row stands at %d; %d were stored, %d judged", next, settled, applied)
		}
		if n := s.jobs(); n != pushed {
			t.Fatalf("%d jobs, want %d", n, pushed)
		}
	}
	if pushed == 0 {
		t.Error("nothing was ever due")
	}
}

// A batch that comes after Run has ended its keeping is stored at once.
func TestLastBatch(t *testing.T) {
	onBothStores(t, func(t *testing.T, s *shop) {
		here := &everybody{}
		here.here.Store(true)
		s.Options().Presence = here
		s.devices("a")
		s.restart()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Run(ended); err != nil {
			t.Fatal(err)
		}
		s.notifyMore("a")
		if next := s.row(); next != 1 {
			t.Errorf("the row stands at %d, want 1", next)
		}
	})
}

// A partition that falls quiet is stored while the node runs: a crash hours later does not judge anew (B8).
func TestQuietPosition(t *testing.T) {
	onBothStores(t, func(t *testing.T, s *shop) {
		here := &everybody{}
		here.here.Store(true)
		s.Options().Presence = here
		s.devices("a")
		s.restart()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-ended })
		s.notifyMore("a") // the shop's clock stands still: no batch finds the row too old
		testenv.Eventually(t, "the row is moved", func() bool { return s.row() == 1 })
	})
}

// notifyMore folds notifications as the next batch, as it is when the consumer is under way.
func (s *shop) notifyMore(users ...string) {
	s.t.Helper()
	var events []*topics.Event
	for _, u := range users {
		events = append(events, &topics.Event{Key: []byte(topics.UserKey(u)), Meta: topics.Meta{Type: topics.TypeNotification},
			Value: topics.Fields("title", "t", "body", "b", "type", "SYSTEM")})
	}
	if err := s.Apply(s.t.Context(), s.batch(topics.Notifications, events)); err != nil {
		s.t.Fatal(err)
	}
}

// A node that ends amid a backlog leaves no job leased: another one takes all of them at once.
func TestClaimsAreGivenBack(t *testing.T) {
	onBothStores(t, func(t *testing.T, s *shop) {
		users := make([]string, 60)
		for k := range users {
			users[k] = fmt.Sprint("u", k)
		}
		s.devices(users...)
		s.notify(users...)
		s.fcm.Answer = func(string, int) (int, string, http.Header) { return testenv.Hang, "", nil }
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		// As many as the rate's bucket holds are on their way, which do not end.
		testenv.Eventually(t, "pushes are under way", func() bool { return len(s.fcm.Attempts()) >= s.Options().Rate/10 })
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		var leased, attempted int
		if err := s.Options().DB.Read.QueryRow(`SELECT count(*) FROM push_jobs WHERE lease<>0 OR due>$1`,
			s.clock.now().UnixMilli()).Scan(&leased); err != nil {
			t.Fatal(err)
		}
		if err := s.Options().DB.Read.QueryRow(`SELECT count(*) FROM push_jobs WHERE attempts<>0`).Scan(&attempted); err != nil {
			t.Fatal(err)
		}
		if n := s.jobs(); leased != 0 || attempted != 0 || n != len(users) {
			t.Errorf("%d jobs are leased or put off, %d count an attempt, %d are there; want 0, 0 and %d", leased, attempted, n, len(users))
		}
	})
}

// An inbox that does not come to the end of devices (a transaction marker stands there, or it is behind) is waited for once,
// not by every batch; newer devices are waited for.
func TestDevicesAreAwaitedOnce(t *testing.T) {
	db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "inbox.db"))
	if err != nil {
		t.Fatal(err)
	}
	s := newShop(t, db)
	s.devices("a")
	waits := &counting{Inbox: s.inbox}
	s.channel.Inbox = waits
	ch, err := fcm.New(t.Context(), s.channel)
	if err != nil {
		t.Fatal(err)
	}
	s.Options().Channels = []push.Channel{ch}
	s.restart()
	register := func() { // in the log, and not in the inbox
		e := topics.New(topics.Devices, "user:a", topics.Meta{Type: topics.TypeDeviceRegistered, Source: "/users/a"}, topics.Fields("token", "b"))
		if err := s.channel.Producer.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	register() // the inbox's position is past this one
	for _, want := range []int{1, 2} {
		register()
		for range 3 {
			s.next[topics.Devices] = 0
			s.notifyMore("a")
		}
		if waits.vain != want {
			t.Errorf("waited in vain %d times, want %d", waits.vain, want)
		}
	}
	if n := s.jobs(); n != 6 {
		t.Errorf("%d jobs, want 6", n)
	}
}

// counting counts the waits that were in vain.
type counting struct {
	fcm.Inbox
	vain int
}

func (c *counting) Await(ctx context.Context, ends topics.Ends) error {
	err := c.Inbox.Await(ctx, ends)
	if err != nil {
		c.vain++
	}
	return err
}

// A job that this build cannot read is dropped, and holds up no other.
func TestUnreadableJob(t *testing.T) {
	onBothStores(t, func(t *testing.T, s *shop) {
		s.devices("a", "b")
		s.notify("a", "b")
		if err := s.Options().DB.Tx(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec(`UPDATE push_jobs SET note=$1 WHERE user_id='a'`, []byte("{"))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-ended })
		testenv.Eventually(t, "no job is left", func() bool { return s.jobs() == 0 })
		if n := len(s.fcm.Accepted("b")); n != 1 {
			t.Errorf("the other was accepted %d times", n)
		}
	})
}
