package session

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

// slots are what this node says in the log about its sessions, one slot for each. Connections are counted over all nodes
// from the log alone, so what the log shows in the end must be true: a slot keeps saying what it has to say until this
// node's own presence fold has read it.
//
//	asking ──▶ held ──▶ gone ──▶ forgotten
//	   └─▶ lost ───────▶┘
//
// asking: connected is appended, the verdict is awaited. held: the fold admitted it; where the log shows another pid or
// other channels than the session has, it is said again. lost: the fold refused it or gave it to another session; nothing
// is said of it. gone: the session has ended; disconnected is appended until the fold has read one after every connected.
// forgotten: nothing is kept. Where a connected of a forgotten one is read after all (its append failed for us and
// reached the log later), the slot is back as gone.
//
// Each slot has at most one append under way, so its records stand in the log in the order in which they were made.
// What is not read is appended again, by run; maxUnanswered bounds how much waits for the log at once. So what is kept is
// bounded by the sessions that this node had, and a log that comes back is not met by a storm.
type slots struct {
	o slotOptions

	mu         sync.Mutex
	all        map[string]*slot // by session
	unsettled  map[*slot]bool   // the log does not show yet what it should
	queue      []*slot          // to be appended once there is room; in order
	unanswered int              // appends under way
	live       int              // slots that are not gone
	quiet      chan struct{}    // closed once nothing is left to be said and no slot is live; nil: nobody waits for that
	failed     int              // appends, since told was last logged
	err        error            // of the last of them
	toldAt     time.Time
}

// slotOptions are what slots need.
type slotOptions struct {
	Log            Log
	Node, NodeName string // the id of this boot, and what is the same at every one
	Logger         *slog.Logger
}

// Log takes what the node says of itself. done is called once, within a bounded time, on another goroutine.
type Log interface {
	TryAppend(ev *topics.Event, done func(error))
}

type phase uint8

const (
	slotAsking phase = iota
	slotHeld
	slotLost
	slotGone
)

// slot is guarded by slots.mu.
type slot struct {
	session, user string
	namespace     topics.Namespace

	phase    phase
	pid      string   // as the session has it
	channels []string // as the session has them, sorted

	answer chan answer // of capacity 1: what comes of asking
	logged bool        // an append of connected was answered well

	shows         shows // what the log's latest record of it says, as the fold has read it
	shownPID      string
	shownChannels []string

	repeat  bool      // it is to be said again, whatever the log shows
	version int       // counts changes of what is to be said
	busy    bool      // an append is under way
	queued  bool      // it stands in the queue
	due     time.Time // not to be appended again before
}

type shows uint8

const (
	showsNothing shows = iota
	showsSession
	showsEnd
)

// answer is what comes of asking for a slot.
type answer struct {
	verdict presence.Verdict
	err     error // the log did not take it
}

const (
	// maxUnanswered bounds the appends of slots that wait for the log. The producer's queue, which clients' events share,
	// has fifty times that.
	maxUnanswered = 1000
	// retryAfter is how long a slot waits after an append that failed.
	retryAfter = time.Second
	// readWait is how long a record that the log took may stay unread by this node's fold before it is appended again.
	readWait = 10 * time.Second
	// slotWait bounds how long a handshake waits for this node to read what it has appended.
	slotWait = 5 * time.Second
	// tellEvery is how often failing appends are logged.
	tellEvery = 10 * time.Second
)

func newSlots(o slotOptions) *slots {
	return &slots{o: o, all: make(map[string]*slot), unsettled: make(map[*slot]bool)}
}

var errSlotWait = errors.New("session: the log does not show the connection in time")

// take asks for a session's slot and waits for what the log says to that. Whatever comes of it, the slot is to be released.
func (l *slots) take(ctx context.Context, s *Session, channels []string) (presence.Verdict, error) {
	x := &slot{session: s.ID, user: s.User, namespace: s.Namespace, pid: s.pid, channels: slices.Sorted(slices.Values(channels)),
		answer: make(chan answer, 1)}
	x.channels = append([]string{}, x.channels...) // a list, also where it is empty
	l.mu.Lock()
	l.all[x.session] = x
	l.live++
	l.append(x)
	l.mu.Unlock()
	t := time.NewTimer(slotWait)
	defer t.Stop()
	select {
	case a := <-x.answer:
		return a.verdict, a.err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-t.C:
		return 0, errSlotWait
	}
}

// release gives a session's slot back, for certain.
func (l *slots) release(session string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.all[session]; x != nil && x.phase != slotGone {
		x.phase = slotGone
		l.live--
		l.changed(x)
	}
}

// say has the log show a session's pid and channels.
func (l *slots) say(session, pid string, channels []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.all[session]
	if x == nil || x.phase == slotGone || x.pid == pid && slices.Equal(x.channels, channels) {
		return
	}
	x.pid, x.channels = pid, channels
	l.changed(x)
}

// sayAll says again which sessions live: a fold reads only the last minutes.
func (l *slots) sayAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.all {
		if x.phase == slotHeld {
			x.repeat = true
			l.changed(x)
		}
	}
}

// read notes what this node's fold has read.
func (l *slots) read(n presence.Notice) {
	if n.Node != l.o.Node {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.all[n.Session]
	if x == nil {
		l.readForgotten(n)
		return
	}
	switch n.Kind {
	case presence.Judged:
		l.judged(x, n.Verdict)
	case presence.Said:
		x.shows, x.shownPID, x.shownChannels = showsSession, n.PID, n.Channels
	case presence.Left:
		x.shows = showsEnd
	case presence.Evicted:
		if x.phase != slotGone {
			x.phase = slotLost
		}
	}
	if !l.settle(x) && x.phase == slotHeld && x.shows == showsEnd {
		l.changed(x)
	}
}

func (l *slots) judged(x *slot, v presence.Verdict) {
	x.shows = showsSession // whatever the verdict, its end must follow
	if x.phase != slotAsking {
		return
	}
	x.phase = slotLost
	if v == presence.Admitted {
		x.phase = slotHeld
	}
	x.answer <- answer{verdict: v}
}

// readForgotten gives a slot of nobody's back.
func (l *slots) readForgotten(n presence.Notice) {
	if n.Kind != presence.Said && n.Kind != presence.Judged {
		return
	}
	x := &slot{session: n.Session, user: n.User, namespace: n.Namespace, phase: slotGone, shows: showsSession}
	l.all[x.session] = x
	l.changed(x)
}

// changed has a slot appended soon: what is to be said of it is another than before. l.mu is held, here and below.
func (l *slots) changed(x *slot) {
	x.version++
	if !l.settle(x) {
		l.enqueue(x)
	}
}

// settle tells whether the log shows what it should, and forgets a slot of which nothing is left to say.
func (l *slots) settle(x *slot) bool {
	settled := false
	switch x.phase {
	case slotAsking, slotLost:
		settled = true
	case slotHeld:
		settled = !x.repeat && x.shows == showsSession && x.shownPID == x.pid && slices.Equal(x.shownChannels, x.channels)
	case slotGone:
		settled = x.shows == showsEnd || x.shows == showsNothing && !x.logged && !x.busy
	}
	if !settled {
		l.unsettled[x] = true
		return false
	}
	delete(l.unsettled, x)
	if x.phase == slotGone && !x.busy {
		delete(l.all, x.session)
	}
	l.tellQuiet()
	return true
}

func (l *slots) enqueue(x *slot) {
	if x.busy || x.queued {
		return // its time comes with the answer, or with its turn
	}
	x.queued = true
	l.queue = append(l.queue, x)
	l.pump()
}

// pump appends what waits for room.
func (l *slots) pump() {
	for len(l.queue) > 0 && l.unanswered < maxUnanswered {
		x := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		x.queued = false
		if !l.settle(x) {
			l.append(x)
		}
	}
	if len(l.queue) == 0 {
		l.queue = nil
	}
}

func (l *slots) append(x *slot) {
	version, ev := x.version, l.event(x)
	x.busy = true
	l.unanswered++
	l.o.Log.TryAppend(ev, func(err error) { l.answered(x, ev.Type, version, err) })
}

// event is what a slot has to say.
func (l *slots) event(x *slot) *topics.Event {
	said := topics.Session{ID: x.session, Node: l.o.Node, Name: l.o.NodeName, UserID: x.user, Namespace: x.namespace}
	if x.phase == slotGone {
		return said.Disconnected()
	}
	said.PID, said.Channels = x.pid, x.channels
	switch {
	case x.phase == slotAsking:
		return said.Connected()
	case !x.repeat && x.shows == showsSession:
		return said.ChannelsChanged()
	}
	said.Repeated = true
	return said.Connected()
}

// answered notes what came of an append.
func (l *slots) answered(x *slot, typ string, version int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unanswered--
	x.busy = false
	wait := readWait
	switch {
	case err != nil:
		wait = retryAfter
		l.failed, l.err = l.failed+1, err
		if x.phase == slotAsking && x.shows == showsNothing {
			x.phase = slotLost
			x.answer <- answer{err: err}
		}
	case typ == topics.TypeConnected:
		x.logged, x.repeat = true, x.repeat && version != x.version
	}
	x.due = time.Now().Add(wait)
	if !l.settle(x) && (err == nil && version != x.version) {
		l.enqueue(x)
	}
	l.pump()
	l.tellQuiet()
}

// retry appends again what the log does not show; run it every retryAfter.
func (l *slots) retry() {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for x := range l.unsettled {
		if !now.Before(x.due) {
			l.enqueue(x)
		}
	}
	if l.failed > 0 && now.Sub(l.toldAt) >= tellEvery {
		l.o.Logger.Warn("the presence of sessions could not be appended, it is tried again", "failed", l.failed, "waiting", len(l.unsettled),
			"err", l.err)
		l.failed, l.toldAt = 0, now
	}
}

// wait returns once every session has gone and the log has taken its end, or when ctx ends.
func (l *slots) wait(ctx context.Context) {
	l.mu.Lock()
	if l.isQuiet() {
		l.mu.Unlock()
		return
	}
	if l.quiet == nil {
		l.quiet = make(chan struct{})
	}
	quiet := l.quiet
	l.mu.Unlock()
	select {
	case <-quiet:
	case <-ctx.Done():
	}
}

func (l *slots) isQuiet() bool { return l.live == 0 && l.unanswered == 0 && len(l.queue) == 0 }

func (l *slots) tellQuiet() {
	if l.quiet != nil && l.isQuiet() {
		close(l.quiet)
		l.quiet = nil
	}
}

// counts are how many slots there are, and of how many the log does not show yet what it should.
func (l *slots) counts() (all, unsettled int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all), len(l.unsettled)
}
