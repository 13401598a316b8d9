package edge

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

// What moves a session through its life (see type life): admission, what the log says of it, its token, its end, drain.

const (
	// admitWait bounds how long an admission may take.
	admitWait = 10 * time.Second
	// aliveWait is how long a client may take to show that it lives where its user asks for one connection too many.
	// PING_TIMEOUT, where that is shorter, holds instead.
	aliveWait = 5 * time.Second
)

// admit makes a session of a verified identity, with a slot in the log. Every session admitted must be dismissed. A client
// that comes back and finds no room waits until those of its user's connections that are broken have been found out.
func (e *Edge) admit(ctx context.Context, ns topics.Namespace, id Identity, out transport, back comeback) (*session, *apierr.Error) {
	ctx, cancel := context.WithTimeout(ctx, admitWait)
	defer cancel()
	defer context.AfterFunc(e.admissions, cancel)()
	if !e.Ready() {
		return nil, apierr.Unavailable()
	}
	if wait, ok := e.connects.allow(id.User, time.Now()); !ok {
		return nil, rateLimited(wait)
	}
	s, refusal := e.tryAdmit(ctx, ns, id, out, back)
	if refusal != nil && refusal.Code == apierr.CodeTooManyConnections && back.offset != "" && e.awaitRoom(ctx, userIn{ns, id.User}) {
		return e.tryAdmit(ctx, ns, id, out, back)
	}
	return s, refusal
}

func (e *Edge) tryAdmit(ctx context.Context, ns topics.Namespace, id Identity, out transport, back comeback) (_ *session, refusal *apierr.Error) {
	s := &session{id: randomID(), pid: cmp.Or(back.pid, randomID()), user: id.User, namespace: ns, out: out, m: e.metrics, opened: time.Now(), threshold: e.o.CompressionThreshold,
		frames: newBucketWindow(10*e.o.RateLimit, e.o.RateWindow)}
	s.identity.Store(&id)
	e.hub.expect(s)
	has := false
	defer func() {
		if !has { // also where something panicked
			e.dismiss(s, reasonRefused)
		}
	}()
	verdict, err := e.slots.take(ctx, s, back.channels)
	switch {
	case err != nil:
		e.o.Logger.Warn("a connection is refused: the log does not say whether there is room for it", "err", err)
		refusal = apierr.Unavailable()
	case verdict == presence.Admitted:
		has = e.hub.admit(s)
		return s, nil
	default:
		refusal = e.refusalOf(verdict, s)
	}
	e.o.Logger.Info("session refused", "user", s.user, "namespace", ns, "reason", refusal.Code)
	return nil, refusal
}

func (e *Edge) refusalOf(v presence.Verdict, s *session) *apierr.Error {
	if v == presence.NamespaceFull {
		return &apierr.Error{Code: apierr.CodeUnavailable, Message: "the namespace has as many connections as are allowed; try again later", RetryAfter: 5 * time.Second}
	}
	var opened []string
	for _, x := range e.fold.Sessions(s.user) {
		if x.Namespace == s.namespace && len(opened) < 10 {
			opened = append(opened, topics.FormatTime(x.Since))
		}
	}
	return &apierr.Error{Code: apierr.CodeTooManyConnections, RetryAfter: max(e.aliveWait(), time.Second),
		Message: fmt.Sprintf("this user has as many connections as are allowed in %s, %d (opened %s); close one of them, or try again: one whose client does not answer a ping "+
			"within %s is closed now. With CONNECTION_POLICY=evict-oldest a new connection takes the place of the oldest",
			s.namespace, e.o.Limits.PerUser, strings.Join(opened, ", "), e.aliveWait())}
}

// aliveWait is how long a client may take to answer a challenge.
func (e *Edge) aliveWait() time.Duration { return min(aliveWait, e.o.PingTimeout) }

// challenge has every session of a user here show that its client lives: somebody found no room beside them.
func (e *Edge) challenge(ns topics.Namespace, user string) {
	for _, s := range e.hub.in(ns, user) {
		s.out.challenge(e.aliveWait())
	}
}

// awaitRoom waits until a user has room for one connection more, for as long as challenges take.
func (e *Edge) awaitRoom(ctx context.Context, u userIn) bool {
	ctx, cancel := context.WithTimeout(ctx, e.aliveWait()+time.Second)
	defer cancel()
	defer e.room(u) // others who wait look again
	for {
		e.mu.Lock()
		changed := e.rooms[u]
		if changed == nil {
			changed = make(chan struct{})
			e.rooms[u] = changed
		}
		e.mu.Unlock()
		if e.fold.Count(u.namespace, u.user) < e.o.Limits.PerUser {
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
func (e *Edge) room(u userIn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if changed := e.rooms[u]; changed != nil {
		close(changed)
		delete(e.rooms, u)
	}
}

// dismiss ends a session, which gives its slot back; only the first call counts.
func (e *Edge) dismiss(s *session, why string) {
	was := e.hub.leave(s)
	if was == lifeGone {
		return
	}
	e.slots.release(s.id)
	if was != lifeJoined {
		if why != reasonRefused {
			e.o.Logger.Info("session given up before it was open", "session", s.id, "user", s.user, "namespace", s.namespace, "reason", why)
		}
		return
	}
	e.metrics.closed.WithLabelValues(string(s.namespace), why).Inc()
	e.o.Logger.Info("session closed", "session", s.id, "user", s.user, "namespace", s.namespace, "reason", why,
		"seconds", int(time.Since(s.opened).Seconds()))
}

// read is told what this node's presence fold has read (presence.Options.Notify).
func (e *Edge) read(n presence.Notice) {
	e.slots.read(n)
	switch n.Kind {
	case presence.Judged:
		if n.Verdict == presence.UserFull {
			e.challenge(n.Namespace, n.User)
		}
	case presence.Left:
		e.room(userIn{n.Namespace, n.User})
	case presence.Evicted:
		if s := e.hub.find(n.Session); s != nil {
			e.cut(s, evicted(), always)
		}
	case presence.NodeLost:
		if n.Node == e.node { // it was paused, or cut off from the log, for longer than the others' patience
			e.heartbeat()
			e.slots.sayAll()
		}
	case presence.NodeSuperseded:
		if n.Node == e.node {
			e.supersededOnce.Do(func() { close(e.superseded) })
		}
	}
}

func evicted() *doom {
	return &doom{why: &apierr.Error{Code: apierr.CodeTooManyConnections, Message: "a newer connection of this user took the place of this one"},
		code: closeEvicted, reason: "a newer connection took this one's place"}
}

func ofToken(why *apierr.Error) *doom { return &doom{why: why, code: closeToken, reason: why.Message} }

func always() bool { return true }

// cut ends a session, wherever it is in its life, where a reason for that holds; only the first one is told.
func (e *Edge) cut(s *session, d *doom, holds func() bool) {
	if e.hub.doom(s, d, holds) {
		s.end(d)
	}
}

// end tells the client, once, why its session ends, and closes.
func (s *session) end(d *doom) {
	if d.told.Swap(true) {
		return
	}
	s.fail(d.why)
	s.out.close(d.code, d.reason)
}

// expire ends a session whose token has run out.
func (e *Edge) expire(s *session, now time.Time) {
	if s.expired(now) {
		e.cut(s, ofToken(tokenExpired()), func() bool { return s.expired(now) })
	}
}

// Revoke ends the sessions of a user whose tokens are revoked.
func (e *Edge) Revoke(user string) {
	for _, s := range e.hub.ofUser(user) {
		e.cutRevoked(s)
	}
}

func (e *Edge) cutRevoked(s *session) {
	e.cut(s, ofToken(tokenRevoked()), func() bool { return e.o.Revoked(*s.identity.Load()) })
}

// renew gives a session a new token, unless it must end; then it tells why. A token that was revoked after it had been
// verified is found here, or by Revoke, whichever comes later.
func (e *Edge) renew(s *session, id Identity) *apierr.Error {
	if d := e.hub.identify(s, &id); d != nil {
		return d.why
	}
	e.cutRevoked(s)
	if d := e.hub.doomOf(s); d != nil {
		return d.why
	}
	return nil
}

// say has the log show the session's pid and channels.
func (e *Edge) say(s *session) { e.hub.state(s, e.slots.say) }

func tokenRevoked() *apierr.Error {
	return &apierr.Error{Code: apierr.CodeTokenRevoked, Message: "the token has been revoked; connect again with a new one"}
}

func tokenExpired() *apierr.Error {
	return &apierr.Error{Code: apierr.CodeTokenExpired, Message: "the token has expired; connect again with a new one"}
}

func (e *Edge) presenceEvent(typ string, x *slot, more ...any) *topics.Event {
	fields := append([]any{"session", x.session, "node", e.node, "name", e.o.NodeName, "userId", x.user, "namespace", string(x.namespace)}, more...)
	return topics.New(topics.Presence, x.session, topics.Meta{Type: typ, Source: e.source(), ID: topics.NewID()}, topics.Fields(fields...))
}

// Drain stops admitting, ends admissions under way, answers what was sent, closes every session as going away, and waits
// for them and for the log to have taken their ends; no longer than ctx. The clients come back elsewhere.
func (e *Edge) Drain(ctx context.Context) {
	defer e.endWork()
	e.draining.Store(true)
	e.serving.shutdown()
	e.endAdmissions()
	e.unacked.wait(ctx)
	e.typing.close()
	for _, t := range e.transports() {
		t.close(websocket.CloseGoingAway, goingAway)
	}
	if !e.serving.wait(ctx) {
		for _, t := range e.transports() {
			t.abort()
		}
	}
	e.slots.wait(ctx)
}
