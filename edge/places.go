package edge

import (
	"context"
	"time"

	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

// placeWait bounds how long a handshake waits for this node to read what it has appended.
const placeWait = 5 * time.Second

// takePlace appends that the session is here and waits for what the log says to that: places are counted over all nodes.
func (e *Edge) takePlace(ctx context.Context, s *session, channels []string) *topics.Error {
	verdict := e.verdicts.Expect(s.id)
	defer e.verdicts.Forget(s.id)
	if err := e.o.Producer.Append(ctx, e.presenceEvent(topics.Connected, s, "pid", s.pid, "channels", append([]string{}, channels...))); err != nil {
		e.o.Logger.Warn("a connection is refused: its presence could not be appended", "err", err)
		return topics.Unavailable()
	}
	t := time.NewTimer(placeWait)
	defer t.Stop()
	select {
	case v := <-verdict:
		return refusalOf(v)
	case <-ctx.Done():
	case <-t.C:
		e.o.Logger.Warn("a connection is refused: the log does not show its presence")
	}
	return topics.Unavailable()
}

func refusalOf(v presence.Verdict) *topics.Error {
	switch v {
	case presence.UserFull:
		return &topics.Error{Code: topics.CodeTooManyConnections, Message: "this user has as many connections as are allowed; close one of them", RetryAfter: 5 * time.Second}
	case presence.NamespaceFull:
		return &topics.Error{Code: topics.CodeUnavailable, Message: "the namespace has as many connections as are allowed; try again later", RetryAfter: 5 * time.Second}
	}
	return nil
}

// evicted ends a session whose user took its place with a newer one.
func (e *Edge) evicted(session string) {
	if s := e.hub.find(session); s != nil {
		e.evict(s)
	}
}

func (e *Edge) evict(s *session) {
	s.fail(&topics.Error{Code: topics.CodeTooManyConnections, Message: "a newer connection of this user took the place of this one"})
	s.out.close(closeEvicted, "a newer connection took this one's place")
}
