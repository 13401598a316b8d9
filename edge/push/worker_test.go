package push_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/edge/push/fcm"
	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/internal/testenv/logtest"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

// clock is a time that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// nobody has a session.
type nobody struct{}

func (nobody) Connected(topics.Namespace, string) bool { return false }

func (nobody) Ready() <-chan struct{} {
	ready := make(chan struct{})
	close(ready)
	return ready
}

// shop is a pusher on a log, a database and a sender of its own, under a clock of its own.
type shop struct {
	*push.Pusher
	t     *testing.T
	clock *clock
	fcm   *testenv.FCM
	inbox *inbox.Inbox
	next  map[topics.Topic]int64
	reg   *prometheus.Registry
	// channel is what the FCM channel was made with.
	channel fcm.Options
}

func credentials(f *testenv.FCM) fcm.Credentials {
	return fcm.Credentials{ProjectID: f.ProjectID, ClientEmail: f.ClientEmail, PrivateKey: f.PrivateKey, Endpoint: f.URL + "/v1",
		TokenURI: f.URL + "/token"}
}

// onBothStores runs a scenario with the jobs in SQLite and in PostgreSQL.
func onBothStores(t *testing.T, scenario func(*testing.T, *shop)) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "inbox.db"))
		if err != nil {
			t.Fatal(err)
		}
		scenario(t, newShop(t, db))
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		db, err := sqldb.OpenPostgres(testenv.Postgres(t))
		if err != nil {
			t.Fatal(err)
		}
		scenario(t, newShop(t, db))
	})
}

func newShop(t *testing.T, db *sqldb.DB) *shop {
	t.Helper()
	quiet := logtest.Quiet()
	t.Cleanup(func() { db.Close() })
	log := logtest.Open(t, logtest.Start(t, pipeline.BrokerOptions{}).Addr, 1)
	s := &shop{t: t, clock: &clock{at: time.Now()}, fcm: testenv.NewFCM(t), next: make(map[topics.Topic]int64), reg: prometheus.NewRegistry()}
	var err error
	if s.inbox, err = inbox.Open(t.Context(), db, time.Hour, quiet); err != nil {
		t.Fatal(err)
	}
	s.channel = fcm.Options{Credentials: credentials(s.fcm), Log: log.Log, Inbox: s.inbox, Producer: log.Producer, Node: "n1", Logger: quiet}
	ch, err := fcm.New(t.Context(), s.channel)
	if err != nil {
		t.Fatal(err)
	}
	s.Pusher, err = push.New(t.Context(), push.Options{DB: db, Log: log.Log, Producer: log.Producer, Presence: nobody{},
		Channels: []push.Channel{ch},
		Settings: push.Settings{TTL: 24 * time.Hour, Rate: 100, Lease: 90 * time.Second}, Node: "n1", Logger: quiet,
		Metrics: push.NewMetrics(s.reg),
		Now:     s.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// batch is the next batch of partition 0 of a topic.
func (s *shop) batch(topic topics.Topic, events []*topics.Event) pipeline.Batch {
	s.t.Helper()
	from := s.next[topic]
	for i, e := range events {
		e.Topic, e.Offset, e.Time = topic, from+int64(i), s.clock.now().UnixMilli()
		if err := topics.Valid(topicstest.Sign(e)); err != nil {
			s.t.Fatal(err)
		}
	}
	s.next[topic] += int64(len(events))
	return pipeline.Batch{Topic: topic, From: from, To: from + int64(len(events)), Events: events}
}

// devices registers a device of each user, under the user's name.
func (s *shop) devices(users ...string) {
	s.t.Helper()
	if _, err := s.inbox.Position(s.t.Context(), topics.Devices.Partition(0)); err != nil {
		s.t.Fatal(err)
	}
	var events []*topics.Event
	for _, u := range users {
		events = append(events, &topics.Event{Key: []byte(topics.UserKey(u)), Meta: topics.Meta{Type: topics.TypeDeviceRegistered},
			Value: topics.Fields("token", u)})
	}
	if err := s.inbox.Apply(s.t.Context(), s.batch(topics.Devices, events)); err != nil {
		s.t.Fatal(err)
	}
}

// notify folds a notification to each user, which makes jobs.
func (s *shop) notify(users ...string) {
	s.t.Helper()
	if _, err := s.Position(s.t.Context(), topics.Notifications.Partition(0)); err != nil {
		s.t.Fatal(err)
	}
	var events []*topics.Event
	for _, u := range users {
		events = append(events, &topics.Event{Key: []byte(topics.UserKey(u)), Meta: topics.Meta{Type: topics.TypeNotification},
			Value: topics.Fields("title", "t", "body", "b", "type", "SYSTEM")})
	}
	if err := s.Apply(s.t.Context(), s.batch(topics.Notifications, events)); err != nil {
		s.t.Fatal(err)
	}
}

// work does the jobs that are due, one after the other, and tells whose they were.
func (s *shop) work(p *push.Pusher) string {
	s.t.Helper()
	jobs, err := p.Due(s.t.Context(), "")
	if err != nil {
		s.t.Fatal(err)
	}
	var whose []string
	for _, j := range jobs {
		whose = append(whose, j.User)
		j.Now(s.t.Context())
	}
	return strings.Join(whose, " ")
}

func (s *shop) counted(outcome string) int {
	s.t.Helper()
	families, err := s.reg.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "outcome" && l.GetValue() == outcome {
					return int(m.GetCounter().GetValue())
				}
			}
		}
	}
	return 0
}

// FCM's quota is used up (row F25): no node sends anything before the time it names, or a minute where it names none;
// then everything is delivered, once.
func TestQuota(t *testing.T) {
	onBothStores(t, func(t *testing.T, s *shop) {
		other, err := push.New(t.Context(), *s.Options()) // another node on the same database
		if err != nil {
			t.Fatal(err)
		}
		round := map[string]string{"seconds": "30", "minutes": "180", "date": "", "none": ""}
		want := map[string]time.Duration{"seconds": 30 * time.Second, "minutes": 180 * time.Second, "date": 88 * time.Second, "none": time.Minute}
		s.fcm.Answer = func(token string, n int) (int, string, http.Header) {
			h := http.Header{}
			if after := round[token]; after != "" {
				h.Set("Retry-After", after)
			}
			if token == "date" {
				h.Set("Retry-After", time.Now().Add(90*time.Second).UTC().Format(http.TimeFormat)) // to the second
			}
			if _, quota := round[token]; quota && n == 1 {
				return 429, "QUOTA_EXCEEDED", h
			}
			return 0, "", nil
		}
		for name, span := range want {
			bystander, newcomer := "bystander-of-"+name, "newcomer-of-"+name
			s.devices(name, bystander, newcomer)
			s.notify(name)
			s.clock.pass(time.Millisecond) // jobs are claimed in the order of their times
			s.notify(bystander)
			if got := s.work(s.Pusher); got != name+" "+bystander {
				t.Fatalf("%s: claimed %q", name, got)
			}
			s.notify(newcomer)
			s.clock.pass(span - time.Second)
			for _, p := range []*push.Pusher{other, s.Pusher} {
				if got := s.work(p); got != "" {
					t.Errorf("%s: %q came before the time", name, got)
				}
			}
			s.clock.pass(5*time.Second + span/10) // a tenth and a second of jitter, and seconds cut off a date
			if got := strings.Fields(s.work(other)); len(got) != 3 {
				t.Errorf("%s: %q came after the time", name, got)
			}
			for _, token := range []string{name, bystander, newcomer} {
				if n := len(s.fcm.Accepted(token)); n != 1 {
					t.Errorf("%s was accepted %d times, want once", token, n)
				}
			}
		}
		s.clock.pass(time.Hour)
		if got := s.work(s.Pusher); got != "" {
			t.Errorf("%q came again", got)
		}
	})
}

// A day's backlog (row F28): what is too old is dropped and counted, what is not is sent, never faster than the rate.
func TestBacklog(t *testing.T) {
	onBothStores(t, func(t *testing.T, s *shop) {
		const old, fresh = 300, 150
		var late, early []string
		for k := range old {
			late = append(late, fmt.Sprintf("late%d", k))
		}
		for k := range fresh {
			early = append(early, fmt.Sprintf("early%d", k))
		}
		s.devices(append(late, early...)...)
		s.notify(late...)
		s.clock.pass(25 * time.Hour) // push stands still for a day
		s.notify(early...)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-ended })
		testenv.Eventually(t, "all are accepted or given up", func() bool {
			return s.counted(push.WordAccepted)+s.counted(push.WordExpired) >= old+fresh
		})
		if a, e := s.counted(push.WordAccepted), s.counted(push.WordExpired); a != fresh || e != old {
			t.Errorf("accepted %d, expired %d; want %d and %d", a, e, fresh, old)
		}
		sent := s.fcm.Attempts()
		if len(sent) != fresh {
			t.Errorf("%d attempts, want %d", len(sent), fresh)
		}
		// The bucket holds a tenth of a second's worth; what the workers have under way may arrive together.
		for i, from := range sent {
			n := 0
			for _, at := range sent[i:] {
				if at.Sub(from) < time.Second {
					n++
				}
			}
			if most := s.Options().Rate + s.Options().Rate/10 + push.Workers; n > most {
				t.Fatalf("%d sends within a second, at most %d are allowed", n, most)
			}
		}
	})
}

// The pause before another attempt: 1 s, doubling to 60 s, half of it at random; or what the server asked for and a little.
func TestWait(t *testing.T) {
	for attempts, full := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 6: 32 * time.Second, 7: time.Minute,
		1000: time.Minute} {
		seen := make(map[time.Duration]bool)
		for range 100 {
			d := push.Wait(0, attempts)
			if d < full/2 || d >= full {
				t.Errorf("attempt %d: %s, want %s to %s", attempts, d, full/2, full)
			}
			seen[d] = true
		}
		if len(seen) < 50 {
			t.Errorf("attempt %d: only %d different pauses", attempts, len(seen))
		}
	}
	if d := push.Wait(10*time.Second, 1); d < 10*time.Second || d >= 12*time.Second {
		t.Errorf("asked for 10 s: %s", d)
	}
}

// unregistering keeps what a channel appends: that devices are gone.
type unregistering struct {
	fcm.Appender
	events []*topics.Event
}

func (u *unregistering) Append(ctx context.Context, e *topics.Event) error {
	u.events = append(u.events, e)
	return u.Appender.Append(ctx, e)
}

// What FCM says to devices that are bad in each way (row F27), from the answer on the wire to the device's end: one never fails
// others, each is counted under its word, and what is gone or set aside is sent nothing again. No token stands in the log.
func TestBadDevices(t *testing.T) {
	onBothStores(t, func(t *testing.T, s *shop) {
		s.fcm.Answer = func(token string, n int) (int, string, http.Header) {
			switch {
			case token == "token-of-dead":
				return http.StatusNotFound, "UNREGISTERED", nil
			case token == "token-of-foreign":
				return http.StatusForbidden, "SENDER_ID_MISMATCH", nil
			case token == "token-of-malformed", token == "token-of-overfed" && n == 1:
				return http.StatusBadRequest, "INVALID_ARGUMENT", nil
			}
			return 0, "", nil
		}
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		gone := &unregistering{Appender: s.channel.Producer}
		s.channel.Producer, s.channel.Logger = gone, logger
		ch, err := fcm.New(t.Context(), s.channel)
		if err != nil {
			t.Fatal(err)
		}
		s.Options().Channels, s.Options().Logger = []push.Channel{ch}, logger
		s.restart()
		users := []string{"dead", "foreign", "malformed", "overfed", "well"}
		var events []*topics.Event
		for _, u := range users {
			events = append(events, &topics.Event{Key: []byte(topics.UserKey(u)), Meta: topics.Meta{Type: topics.TypeDeviceRegistered},
				Value: topics.Fields("token", "token-of-"+u)})
		}
		fold := func(events []*topics.Event) {
			t.Helper()
			if err := s.inbox.Apply(t.Context(), s.batch(topics.Devices, events)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.inbox.Position(t.Context(), topics.Devices.Partition(0)); err != nil {
			t.Fatal(err)
		}
		fold(events)
		s.notifyMore(users...)
		if got := s.work(s.Pusher); len(strings.Fields(got)) != len(users) {
			t.Fatalf("claimed %q", got)
		}
		for _, outcome := range []string{"unregistered", "sender_mismatch", "invalid_token", "invalid_payload", push.WordAccepted} {
			if n := s.counted(outcome); n != 1 {
				t.Errorf("%s was counted %d times", outcome, n)
			}
		}
		if len(gone.events) != 2 {
			t.Fatalf("%d devices are told to be gone, want the dead and the malformed one", len(gone.events))
		}
		fold(gone.events)
		s.notifyMore(users...)
		got := strings.Fields(s.work(s.Pusher))
		if slices.Sort(got); !slices.Equal(got, []string{"overfed", "well"}) {
			t.Errorf("the next push goes to %q", got)
		}
		for user, want := range map[string]int{"dead": 0, "foreign": 0, "malformed": 0, "overfed": 1, "well": 2} {
			if n := len(s.fcm.Accepted("token-of-" + user)); n != want {
				t.Errorf("%s accepted %d pushes, want %d", user, n, want)
			}
		}
		if !strings.Contains(log.String(), "another Firebase project") || strings.Contains(log.String(), "token-of-") {
			t.Errorf("no alarm of a token of another project, or a token, in\n%s", log.String())
		}
	})
}

// Without credentials nothing is sent and no job is made; each push that would have been is told as skipped.
func TestChannelThatIsOff(t *testing.T) {
	onBothStores(t, func(t *testing.T, s *shop) {
		s.channel.Credentials = fcm.Credentials{}
		ch, err := fcm.New(t.Context(), s.channel)
		if err != nil {
			t.Fatal(err)
		}
		s.Options().Channels = []push.Channel{ch}
		s.devices("a", "b")
		s.restart()
		s.notifyMore("a", "b", "without-device")
		if n := s.counted("skipped"); n != 2 || s.On() || s.jobs() != 0 || len(s.fcm.Attempts()) != 0 {
			t.Errorf("%d were skipped, %d jobs made and %d sent; on: %v", n, s.jobs(), len(s.fcm.Attempts()), s.On())
		}
	})
}
