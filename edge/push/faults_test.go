package push

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

// absent are users of whom none has a session.
type absent struct{}

func (absent) Connected(topics.Namespace, string) bool { return false }

func (absent) Ready() <-chan struct{} {
	ready := make(chan struct{})
	close(ready)
	return ready
}

// scripted is a channel to some devices of some users. A test says what its service answers, and for how long it hangs: nil and
// true is for ever.
type scripted struct {
	script func(target string) (answer *Response, hangs bool)

	mu        sync.Mutex
	devices   map[string][]string // by user
	accepted  map[string]int      // by target
	now, most int                 // attempts under way, and the most there ever were
}

func (*scripted) Name() string    { return "scripted" }
func (*scripted) On() bool        { return true }
func (*scripted) Fit(n Note) Note { return n }

func (c *scripted) Targets(context.Context, []string) (map[string][]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.devices), nil
}

func (c *scripted) Send(ctx context.Context, target string, _ Note, _ time.Duration) Response {
	c.mu.Lock()
	c.now++
	c.most = max(c.most, c.now)
	answer, hangs := c.script(target)
	c.mu.Unlock()
	if hangs {
		<-ctx.Done()
		answer = &Response{Kind: Retry, Err: ctx.Err()}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now--
	if answer != nil {
		return *answer
	}
	c.accepted[target]++
	return Response{Kind: Accepted}
}

func (c *scripted) Forget(_ context.Context, user, target string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.devices[user] = slices.DeleteFunc(slices.Clone(c.devices[user]), func(t string) bool { return t == target })
	return nil
}

// total is how many pushes were accepted, and how many by a single device at most.
func (c *scripted) total() (all, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.accepted {
		all, most = all+n, max(most, n)
	}
	return all, most
}

// outcomes counts what became of pushes. It is safe for concurrent use.
type outcomes struct {
	mu sync.Mutex
	n  map[string]int
}

func (o *outcomes) Post(e *topics.Event, _ func(error)) {
	if err := topics.Valid(e); err != nil {
		panic(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n[topics.ReadDelivery(e).Outcome]++
}

func (o *outcomes) of(outcome string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.n[outcome]
}

// bubble is a pusher that runs in a bubble of testing/synctest: hours pass in a moment.
type bubble struct {
	*Pusher
	t      *testing.T
	db     *sqldb.DB
	became *outcomes
	next   int64
}

// newBubble starts a pusher, which ends with the test.
func newBubble(t *testing.T, ttl time.Duration, ch Channel) *bubble {
	t.Helper()
	db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "inbox.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	quiet := slog.New(slog.DiscardHandler)
	if _, err := inbox.Open(t.Context(), db, time.Hour, quiet); err != nil { // whose tables the first migrations look at
		t.Fatal(err)
	}
	b := &bubble{t: t, db: db, became: &outcomes{n: make(map[string]int)}}
	if b.Pusher, err = New(t.Context(), Options{DB: db, Log: nowhere{}, Producer: b.became, Presence: absent{}, Channels: []Channel{ch},
		Node: "n1", Logger: quiet, Settings: Settings{TTL: ttl, Rate: 1000, Lease: 90 * time.Second}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Position(t.Context(), topics.Notifications.Partition(0)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return b
}

// notify folds a notification to each user.
func (b *bubble) notify(users ...string) {
	b.t.Helper()
	var events []*topics.Event
	for i, u := range users {
		e := &topics.Event{Topic: topics.Notifications, Offset: b.next + int64(i), Time: time.Now().UnixMilli(), Key: []byte(topics.UserKey(u)),
			Meta: topics.Meta{Type: topics.TypeNotification}, Value: topics.Fields("title", "t", "body", "b", "type", "SYSTEM")}
		if err := topics.Valid(topicstest.Sign(e)); err != nil {
			b.t.Fatal(err)
		}
		events = append(events, e)
	}
	to := b.next + int64(len(events))
	if err := b.Apply(b.t.Context(), pipeline.Batch{Topic: topics.Notifications, From: b.next, To: to, Events: events}); err != nil {
		b.t.Fatal(err)
	}
	b.next = to
}

func (b *bubble) jobs() (n int) {
	b.t.Helper()
	if err := b.db.Read.QueryRow(`SELECT count(*) FROM push_jobs`).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// done returns once no job is left, and tells how long that took, in the bubble's time.
func (b *bubble) done(within time.Duration) time.Duration {
	b.t.Helper()
	begin := time.Now()
	for b.jobs() > 0 {
		if time.Since(begin) > within {
			b.t.Fatalf("%d jobs are left after %s", b.jobs(), within)
		}
		time.Sleep(time.Second)
	}
	return time.Since(begin)
}

// A service fails three of ten attempts for a while, in every way there is, at 150 devices (row F26): the log's positions go on, few
// attempts are under way at once, and after the cure everything is accepted, once. Then one device of all is bad, in each way a
// device can be (row F27): the others have theirs.
func TestFaults(t *testing.T) {
	const users, each = 25, 6
	synctest.Test(t, func(t *testing.T) {
		ch := &scripted{devices: make(map[string][]string), accepted: make(map[string]int)}
		var list []string
		for u := range users {
			user := fmt.Sprintf("u%d", u)
			list = append(list, user)
			for d := range each {
				ch.devices[user] = append(ch.devices[user], fmt.Sprintf("%s-%d", user, d))
			}
		}
		fault := errors.New("as told")
		ways := []*Response{{Kind: Retry, Err: fault}, {Kind: Retry, After: 7 * time.Second, Err: fault}, nil} // the last hangs
		attempts, faults, cured := 0, make([]int, len(ways)), false
		ch.script = func(string) (*Response, bool) {
			if attempts++; attempts <= 2*workers { // so many that all workers have one
				return nil, true
			}
			if cured || attempts%10 >= 3 {
				return nil, false
			}
			way := (attempts/10*3 + attempts%10) % len(ways)
			faults[way]++
			cured = slices.Min(faults) >= 10
			return ways[way], ways[way] == nil
		}
		b := newBubble(t, 24*time.Hour, ch)
		b.notify(list...)
		if at, err := b.positions.Peek(t.Context(), topics.Notifications.Partition(0)); err != nil || at.Next != users || b.jobs() == 0 {
			t.Errorf("the position is %d, %v, with %d jobs; want %d, and jobs that wait", at.Next, err, b.jobs(), users)
		}
		for round := 1; ; round++ {
			t.Logf("faults %v, all done within %s", faults, b.done(time.Hour))
			if all, most := ch.total(); all != round*users*each || most != round {
				t.Fatalf("%d were accepted, by one device %d; want %d and %d", all, most, round*users*each, round)
			}
			if cured {
				break
			}
			b.notify(list...)
		}
		if ch.most != workers {
			t.Errorf("%d attempts at once, want %d", ch.most, workers)
		}
		before, _ := ch.total()
		live := users * each
		for k, bad := range []struct {
			Response
			left, used int // devices the user has after that, and those of them that are still used
		}{
			{Response{Kind: Dead, Outcome: "unregistered"}, each - 1, each - 1},
			{Response{Kind: SetAside, Outcome: "sender_mismatch"}, each, each - 1},
			{Response{Kind: Refused, Outcome: "invalid_payload"}, each, each},
		} {
			user := list[k]
			worst := ch.devices[user][0]
			ch.script = func(target string) (*Response, bool) {
				if target == worst {
					return &bad.Response, false
				}
				return nil, false
			}
			b.notify(list...)
			b.done(time.Minute)
			before += live - 1
			if all, _ := ch.total(); all != before {
				t.Errorf("%s: %d were accepted, want %d", bad.Outcome, all, before)
			}
			if n := b.became.of(bad.Outcome); n != 1 {
				t.Errorf("%s was told %d times", bad.Outcome, n)
			}
			if n := len(ch.devices[user]); n != bad.left {
				t.Errorf("%s: the user has %d devices, want %d", bad.Outcome, n, bad.left)
			}
			live -= each - bad.used
		}
		if n := b.became.of(accepted); n != before {
			t.Errorf("%d are told as accepted, want %d", n, before)
		}
	})
}

// What a service does not take before it is too old is given up, and told once (row F28).
func TestGivenUp(t *testing.T) {
	const ttl = 5 * time.Minute
	synctest.Test(t, func(t *testing.T) {
		ch := &scripted{devices: map[string][]string{"a": {"phone"}}, accepted: make(map[string]int)}
		attempts := 0
		ch.script = func(string) (*Response, bool) {
			attempts++
			return &Response{Kind: Retry, Err: errors.New("away")}, false
		}
		b := newBubble(t, ttl, ch)
		b.notify("a")
		if took := b.done(ttl + 2*time.Minute); took < ttl {
			t.Errorf("given up after %s", took)
		}
		if n := b.became.of(expired); n != 1 || attempts < 10 || attempts > 20 {
			t.Errorf("told %d times, after %d attempts", n, attempts)
		}
	})
}
