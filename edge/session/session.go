package session

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// Identity is what a verified token says.
type Identity struct {
	User            string
	Expires, Issued time.Time // Issued is zero where the token does not say
	TokenID         string    // jti
	// Channels limits what may be subscribed to; nil means no limit.
	Channels []string
}

// life is where a session stands in its life, which goes in one direction:
//
//	new ──▶ admitted ──▶ joined ──▶ gone
//	 └─────────┴──────────────────▶ gone
//
//	new       it asks the log for a slot (slots.take)
//	admitted  it has one; its transport may still be on the way (a raw client's upgrade)
//	joined    events reach it (Hub.Join)
//	gone      it has left, for whatever reason, and its slot is being released (Sessions.Dismiss)
//
// The hub moves it, under the hub's lock: whoever finds it gone has come too late, undoes what it did and leaves the rest to
// who ended it. From the first on it can be found, so that an eviction, a revocation or an expiry that comes before it has
// joined is not lost: it is doomed, and told when it joins.
type life uint8

const (
	lifeNew life = iota
	lifeAdmitted
	lifeJoined
	lifeGone
)

// doom is why a session must end, as its client is told.
type doom struct {
	why    *apierr.Error
	code   int // of the WebSocket's close, with its reason
	reason string
	told   atomic.Bool
}

// Session is a user in a namespace, over a connection: a raw client has one, a Socket.IO client up to two. Sessions.Admit makes it.
type Session struct {
	ID        string
	User      string
	Namespace topics.Namespace
	// Out carries what is sent; nil until there is a transport. It and Style are set before the session joins, and then stay.
	Out   wire.Transport
	Style wire.Style

	threshold int                      // texts longer than this are deflated where that was negotiated
	identity  atomic.Pointer[Identity] // of the latest token
	opened    time.Time
	suspended atomic.Pointer[Suspension] // while it is being given what it missed

	// Guarded by Hub.mu from the moment on that the hub has it.
	life     life
	doomed   *doom
	pid      string // by which a client claims its state later
	channels map[string]bool
}

// PID is what the client claims its state by, should it come back. Who greets the session alone may ask: nobody else changes it.
func (s *Session) PID() string { return s.pid }

// Identity is what the session's latest token says.
func (s *Session) Identity() Identity { return *s.identity.Load() }

// Expired tells whether the latest token has run out.
func (s *Session) Expired(now time.Time) bool { return !now.Before(s.identity.Load().Expires) }

// MayJoin tells whether the latest token allows a channel.
func (s *Session) MayJoin(channel string) bool {
	allowed := s.identity.Load().Channels
	return allowed == nil || slices.Contains(allowed, channel)
}

// Protocol is the client's, as metrics and the event log name it.
func (s *Session) Protocol() string {
	if s.Style.SocketIO {
		return "socket.io"
	}
	return "raw"
}

// Reason is why the session ends; one whose upgrade failed has no transport.
func (s *Session) Reason() string {
	if s.Out == nil {
		return wire.ReasonLost
	}
	return s.Out.Reason()
}

// Send sends what f makes, or holds it back while the session is being given what it missed.
func (s *Session) Send(f wire.Framer) {
	if p := s.suspended.Load(); p != nil && p.hold(f) {
		return
	}
	s.Out.Deliver(f, s.Style)
}

// Fail tells the client what is wrong.
func (s *Session) Fail(err *apierr.Error) {
	s.Send(&wire.Message{Namespace: s.Namespace, Event: topics.EventError, Data: Failure(err).Data(), Threshold: s.threshold})
}

// Failure is an error as clients are told it.
func Failure(err *apierr.Error) topics.Failure {
	f := topics.Failure{Code: err.Code, Message: err.Message, Retryable: err.Code == apierr.CodeUnavailable}
	if err.Code == apierr.CodeRateLimited {
		f.RetryAfterMs = err.RetryAfter.Milliseconds()
	}
	return f
}

// end tells the client, once, why its session ends, and closes.
func (s *Session) end(d *doom) {
	if d.told.Swap(true) {
		return
	}
	s.Fail(d.why)
	s.Out.Close(d.code, d.reason)
}
