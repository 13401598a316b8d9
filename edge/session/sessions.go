package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

// Presence is what the log says of the sessions of all nodes, as this node has read it.
type Presence interface {
	// Sessions lists a user's.
	Sessions(user string) []presence.Session
	// Count is how many a user has in a namespace, Connections how many there are in it.
	Count(ns topics.Namespace, user string) int
	Connections(ns topics.Namespace) int
	// Recall finds the channels of a session that has gone, or goes on elsewhere, by its pid.
	Recall(pid, user string, ns topics.Namespace) (channels []string, known bool)
}

// Options are what sessions need. Zero values are not replaced.
type Options struct {
	Log      Log
	Presence Presence
	Logger   *slog.Logger
	// Metrics takes in what is shown to Prometheus; nil: nothing is.
	Metrics prometheus.Registerer
	// NodeName is the same at every start of this node.
	NodeName string
	// Revoked tells whether a token that was good has been revoked since.
	Revoked func(Identity) bool
	// Limits bound the sessions of a user and of a namespace.
	Limits presence.Limits
	// PingTimeout is how long a client may take to answer a ping.
	PingTimeout time.Duration
	// HeartbeatInterval is how often the node says that it lives, RepeatInterval how often it says its sessions again.
	HeartbeatInterval, RepeatInterval time.Duration
	// CompressionThreshold is above how many bytes a text is compressed.
	CompressionThreshold int
}

// Sessions are those of this node, with what moves them through their life (see type life). It is safe for concurrent use.
type Sessions struct {
	*Hub
	o       Options
	node    string // new at every start
	slots   *slots
	metrics *metrics
	// admissions ends when no session is admitted any more.
	admissions    context.Context
	endAdmissions context.CancelFunc
	// superseded is closed when another process of this node's name has begun: all ignore this one from then on.
	superseded     chan struct{}
	supersededOnce sync.Once

	mu    sync.Mutex
	rooms map[userIn]chan struct{} // closed when a session of the user ends, for those who wait for that
}

// New makes the sessions of a node: none yet.
func New(o Options) *Sessions {
	l := &Sessions{o: o, node: NewID(), superseded: make(chan struct{}), rooms: make(map[userIn]chan struct{})}
	l.metrics = newMetrics(l, o.Metrics)
	l.Hub = newHub(l.metrics.sent)
	l.admissions, l.endAdmissions = context.WithCancel(context.Background())
	l.slots = newSlots(slotOptions{Log: o.Log, Node: l.node, NodeName: o.NodeName, Logger: o.Logger})
	return l
}

// NewID is an id that nobody guesses.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// Source is the ce_source of what this node says of itself.
func (l *Sessions) Source() string { return topics.NodeSource(l.node) }

// Run says in the log that this node lives, and of its sessions what is true, until ctx ends. It ends with an error where
// another process of the node's name has begun.
func (l *Sessions) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return every(ctx, l.o.HeartbeatInterval, l.heartbeat) })
	g.Go(func() error { return every(ctx, retryAfter, l.slots.retry) })
	g.Go(func() error { return every(ctx, l.o.RepeatInterval, l.slots.sayAll) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-l.superseded:
			return fmt.Errorf("another process of NODE_NAME %s has begun, "+
				"this one is ignored by all others and ends: give each live node a name of its own", l.o.NodeName)
		}
	})
	return g.Wait()
}

// every calls fn at once and then at each interval until ctx ends.
func every(ctx context.Context, interval time.Duration, fn func()) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		fn()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (l *Sessions) heartbeat() {
	l.o.Log.TryAppend(topics.Heartbeat{Node: l.node, Name: l.o.NodeName}.Event(), func(err error) {
		if err != nil {
			l.o.Logger.Warn("a heartbeat could not be appended", "err", err)
		}
	})
}

const (
	// admitWait bounds how long an admission may take.
	admitWait = 10 * time.Second
	// aliveWait is how long a client may take to show that it lives where its user asks for one connection too many.
	// PING_TIMEOUT, where that is shorter, holds instead.
	aliveWait = 5 * time.Second
)

// reasonRefused is why a session ended that got no slot, in the event log and in metrics.
const reasonRefused = "refused"

// Comeback is what a client that comes back claims; the zero value: nothing.
type Comeback struct {
	Claims   bool     // it claims an earlier session
	Offset   string   // from which on it has nothing; empty: nothing can be given
	Channels []string // that the session had
	pid      string   // that session's, where it is known
}

// Recall finds the session that a Socket.IO client claims ("Connection state recovery").
func (l *Sessions) Recall(ns topics.Namespace, user, pid, offset string) Comeback {
	if pid == "" {
		return Comeback{}
	}
	channels, known := l.o.Presence.Recall(pid, user, ns)
	if !known || offset == "" {
		return Comeback{Claims: true}
	}
	return Comeback{Claims: true, pid: pid, Offset: offset, Channels: channels}
}

// Admit makes a session of a verified identity, with a slot in the log. Every session admitted must be dismissed. A client
// that comes back and finds no room waits until those of its user's connections that are broken have been found out.
func (l *Sessions) Admit(ctx context.Context, ns topics.Namespace, id Identity, out wire.Transport, back Comeback) (*Session,
	*apierr.Error) {
	ctx, cancel := context.WithTimeout(ctx, admitWait)
	defer cancel()
	defer context.AfterFunc(l.admissions, cancel)()
	s, refusal := l.tryAdmit(ctx, ns, id, out, back)
	if refusal != nil && refusal.Code == apierr.CodeTooManyConnections && back.Offset != "" && l.awaitRoom(ctx, userIn{ns, id.User}) {
		return l.tryAdmit(ctx, ns, id, out, back)
	}
	return s, refusal
}

func (l *Sessions) tryAdmit(ctx context.Context, ns topics.Namespace, id Identity, out wire.Transport, back Comeback) (_ *Session,
	refusal *apierr.Error) {
	s := &Session{ID: NewID(), pid: cmp.Or(back.pid, NewID()), User: id.User, Namespace: ns, Out: out, opened: time.Now(),
		threshold: l.o.CompressionThreshold}
	s.identity.Store(&id)
	l.expect(s)
	has := false
	defer func() {
		if !has { // also where something panicked
			l.Dismiss(s, reasonRefused)
		}
	}()
	verdict, err := l.slots.take(ctx, s, back.Channels)
	switch {
	case err != nil:
		l.o.Logger.Warn("a connection is refused: the log does not say whether there is room for it", "err", err)
		refusal = apierr.Unavailable()
	case verdict == presence.Admitted:
		has = l.admit(s)
		return s, nil
	default:
		refusal = l.refusalOf(verdict, s)
	}
	l.o.Logger.Info("session refused", "user", s.User, "namespace", ns, "reason", refusal.Code)
	return nil, refusal
}

func (l *Sessions) refusalOf(v presence.Verdict, s *Session) *apierr.Error {
	if v == presence.NamespaceFull {
		return &apierr.Error{Code: apierr.CodeUnavailable, Message: "the namespace has as many connections as are allowed; try again later",
			RetryAfter: 5 * time.Second}
	}
	var opened []string
	for _, x := range l.o.Presence.Sessions(s.User) {
		if x.Namespace == s.Namespace && len(opened) < 10 {
			opened = append(opened, topics.FormatTime(x.Since))
		}
	}
	return &apierr.Error{Code: apierr.CodeTooManyConnections, RetryAfter: max(l.aliveWait(), time.Second),
		Message: fmt.Sprintf("this user has as many connections as are allowed in %s, %d (opened %s); close one of them, "+
			"or try again: one whose client does not answer a ping "+
			"within %s is closed now. With CONNECTION_POLICY=evict-oldest a new connection takes the place of the oldest",
			s.Namespace, l.o.Limits.PerUser, strings.Join(opened, ", "), l.aliveWait())}
}

// aliveWait is how long a client may take to answer a challenge.
func (l *Sessions) aliveWait() time.Duration { return min(aliveWait, l.o.PingTimeout) }

// challenge has every session of a user here show that its client lives: somebody found no room beside them.
func (l *Sessions) challenge(ns topics.Namespace, user string) {
	for _, s := range l.in(ns, user) {
		s.Out.Challenge(l.aliveWait())
	}
}

// awaitRoom waits until a user has room for one connection more, for as long as challenges take.
func (l *Sessions) awaitRoom(ctx context.Context, u userIn) bool {
	ctx, cancel := context.WithTimeout(ctx, l.aliveWait()+time.Second)
	defer cancel()
	defer l.room(u) // others who wait look again
	for {
		l.mu.Lock()
		changed := l.rooms[u]
		if changed == nil {
			changed = make(chan struct{})
			l.rooms[u] = changed
		}
		l.mu.Unlock()
		if l.o.Presence.Count(u.namespace, u.user) < l.o.Limits.PerUser {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// room wakes those who wait for a user's room.
func (l *Sessions) room(u userIn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if changed := l.rooms[u]; changed != nil {
		close(changed)
		delete(l.rooms, u)
	}
}

// Open notes that a session has joined; it ends at once where it must (its token was verified before it could be found).
func (l *Sessions) Open(s *Session) {
	l.metrics.opened.WithLabelValues(string(s.Namespace)).Inc()
	l.o.Logger.Info("session opened", "session", s.ID, "user", s.User, "namespace", s.Namespace, "protocol", s.Protocol(), "transport",
		s.Out.Kind())
	l.cutRevoked(s)
	if d := l.doomOf(s); d != nil {
		s.end(d)
	}
}

// Dismiss ends a session, which gives its slot back; only the first call counts.
func (l *Sessions) Dismiss(s *Session, why string) {
	was := l.leave(s)
	if was == lifeGone {
		return
	}
	l.slots.release(s.ID)
	if was != lifeJoined {
		if why != reasonRefused {
			l.o.Logger.Info("session given up before it was open", "session", s.ID, "user", s.User, "namespace", s.Namespace, "reason", why)
		}
		return
	}
	l.metrics.closed.WithLabelValues(string(s.Namespace), why).Inc()
	l.o.Logger.Info("session closed", "session", s.ID, "user", s.User, "namespace", s.Namespace, "reason", why,
		"seconds", int(time.Since(s.opened).Seconds()))
}

// Notice is told what this node's presence fold has read (presence.Options.Notify).
func (l *Sessions) Notice(n presence.Notice) {
	l.slots.read(n)
	switch n.Kind {
	case presence.Judged:
		if n.Verdict == presence.UserFull {
			l.challenge(n.Namespace, n.User)
		}
	case presence.Left:
		l.room(userIn{n.Namespace, n.User})
	case presence.Evicted:
		if s := l.find(n.Session); s != nil {
			l.cut(s, evicted(), always)
		}
	case presence.NodeLost:
		if n.Node == l.node { // it was paused, or cut off from the log, for longer than the others' patience
			l.heartbeat()
			l.slots.sayAll()
		}
	case presence.NodeSuperseded:
		if n.Node == l.node {
			l.supersededOnce.Do(func() { close(l.superseded) })
		}
	}
}

func evicted() *doom {
	return &doom{why: &apierr.Error{Code: apierr.CodeTooManyConnections,
		Message: "a newer connection of this user took the place of this one"},
		code: apierr.CloseEvicted, reason: "a newer connection took this one's place"}
}

func ofToken(why *apierr.Error) *doom {
	return &doom{why: why, code: apierr.CloseToken, reason: why.Message}
}

func always() bool { return true }

// cut ends a session, wherever it is in its life, where a reason for that holds; only the first one is told.
func (l *Sessions) cut(s *Session, d *doom, holds func() bool) {
	if l.doom(s, d, holds) {
		s.end(d)
	}
}

// Expire ends a session whose token has run out.
func (l *Sessions) Expire(s *Session, now time.Time) {
	if s.Expired(now) {
		l.cut(s, ofToken(TokenExpired()), func() bool { return s.Expired(now) })
	}
}

// Revoke ends the sessions of a user whose tokens are revoked.
func (l *Sessions) Revoke(user string) {
	for _, s := range l.OfUser(user) {
		l.cutRevoked(s)
	}
}

func (l *Sessions) cutRevoked(s *Session) {
	l.cut(s, ofToken(tokenRevoked()), func() bool { return l.o.Revoked(s.Identity()) })
}

// Renew gives a session a new token, unless it must end; then it tells why. A token that was revoked after it had been
// verified is found here, or by Revoke, whichever comes later.
func (l *Sessions) Renew(s *Session, id Identity) *apierr.Error {
	if d := l.identify(s, &id); d != nil {
		return d.why
	}
	l.cutRevoked(s)
	if d := l.doomOf(s); d != nil {
		return d.why
	}
	return nil
}

// Forget makes the session one that has nothing of an earlier one: no channels, and another pid.
func (l *Sessions) Forget(s *Session) {
	for _, name := range l.ChannelsOf(s) {
		l.Unsubscribe(s, name)
	}
	l.renew(s, NewID())
	l.Say(s)
}

// Say has the log show the session's pid and channels.
func (l *Sessions) Say(s *Session) { l.state(s, l.slots.say) }

func tokenRevoked() *apierr.Error {
	return &apierr.Error{Code: apierr.CodeTokenRevoked, Message: "the token has been revoked; connect again with a new one"}
}

// TokenExpired is what a client is told whose token has run out.
func TokenExpired() *apierr.Error {
	return &apierr.Error{Code: apierr.CodeTokenExpired, Message: "the token has expired; connect again with a new one"}
}

// Shutdown admits no session any more, and ends the admissions under way.
func (l *Sessions) Shutdown() { l.endAdmissions() }

// Wait returns once every session has gone and the log has taken its end, or when ctx ends.
func (l *Sessions) Wait(ctx context.Context) { l.slots.wait(ctx) }

// Counts are how many sessions have joined and how many are about to, how many users wait for room, how many slots there are
// and of how many of them the log does not show yet what it should.
type Counts struct{ Joined, Coming, Waiting, Slots, Unsettled int }

// Counts tells what there is.
func (l *Sessions) Counts() (c Counts) {
	c.Slots, c.Unsettled = l.slots.counts()
	l.mu.Lock()
	c.Waiting = len(l.rooms)
	l.mu.Unlock()
	c.Joined, c.Coming = l.sizes()
	return c
}
