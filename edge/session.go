package edge

import (
	"encoding/json"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nexus/nexus/edge/socketio"
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

// transport carries what is sent to a client. It never blocks; what waits is bounded.
type transport interface {
	// deliver sends what f makes for this transport; s.wire is filled in.
	deliver(f framer, s style)
	// text sends a text to this client alone.
	text(b []byte)
	// close sends what is queued and then ends the transport, with a WebSocket close code where there is such a thing.
	close(code int, reason string)
	// abort ends it at once.
	abort()
	// challenge asks the client for a sign of life; without one within that time the transport ends as lost.
	challenge(within time.Duration)
	// kind is its name; waiting how many bytes are queued; reason why it ended, or would if it ended now.
	kind() string
	waiting() int
	reason() string
}

// life is where a session stands in its life, which goes in one direction:
//
//	new ──▶ admitted ──▶ joined ──▶ gone
//	 └─────────┴──────────────────▶ gone
//
//	new       it asks the log for a slot (slots.take)
//	admitted  it has one; its transport may still be on the way (a raw client's upgrade)
//	joined    events reach it (hub.join)
//	gone      it has left, for whatever reason, and its slot is being released (Edge.dismiss)
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

// session is a user in a namespace, over a connection: a raw client has one, a Socket.IO client up to two.
type session struct {
	id        string
	user      string
	namespace topics.Namespace
	out       transport // nil until there is one
	style     style
	threshold int                      // texts longer than this are deflated where that was negotiated
	identity  atomic.Pointer[Identity] // of the latest token
	frames    *bucketWindow            // of all frames, valid or not; local

	opened time.Time
	m      *metrics

	suspended atomic.Pointer[suspension] // while it is being given what it missed

	// Guarded by hub.mu from the moment on that the hub has it.
	life     life
	doomed   *doom
	pid      string // by which a client claims its state later
	channels map[string]bool
}

func (s *session) expired(now time.Time) bool { return !now.Before(s.identity.Load().Expires) }

func (s *session) mayJoin(channel string) bool {
	allowed := s.identity.Load().Channels
	return allowed == nil || slices.Contains(allowed, channel)
}

func (s *session) protocol() string {
	if s.style.socketIO {
		return "socket.io"
	}
	return "raw"
}

// reason is why the session ends; one whose upgrade failed has no transport.
func (s *session) reason() string {
	if s.out == nil {
		return reasonLost
	}
	return s.out.reason()
}

func (s *session) send(f framer) {
	if p := s.suspended.Load(); p != nil && p.hold(s, f) {
		return
	}
	s.out.deliver(f, s.style)
}

// tell sends an event of this session alone.
func (s *session) tell(event string, data []byte, offset string) {
	s.send(&message{namespace: s.namespace, event: event, data: data, offset: offset, threshold: s.threshold})
}

// fail sends an error event.
func (s *session) fail(err *apierr.Error) { s.tell("error", errorData(err), "") }

func errorData(err *apierr.Error) []byte {
	var retryAfter any
	if err.Code == apierr.CodeRateLimited {
		retryAfter = err.RetryAfter.Milliseconds()
	}
	var retryable any
	if err.Code == apierr.CodeUnavailable {
		retryable = true
	}
	return topics.Fields("code", err.Code, "message", err.Message, "retryAfterMs", retryAfter, "retryable", retryable)
}

// command is an event from a client. ack is the raw id of the acknowledgement it asked for, or empty.
type command struct {
	event string
	data  json.RawMessage
	ack   string
}

// answer acknowledges a command with data, where that was asked for.
func (s *session) answer(c command, data []byte) {
	if c.ack == "" {
		return
	}
	var text []byte
	if s.style.socketIO {
		p := socketio.Packet{Type: socketio.Ack, Namespace: string(s.namespace), ID: c.ack, Data: slices.Concat([]byte("["), data, []byte("]"))}
		text = p.Append(nil)
	} else {
		text = slices.Concat([]byte(`{"event":"ack","id":`), []byte(c.ack), []byte(`,"data":`), data, []byte("}"))
	}
	s.out.text(text)
}

// refuse answers a command with an error: in the acknowledgement where one was asked for, else as an event.
func (s *session) refuse(c command, err *apierr.Error) {
	s.m.failures.WithLabelValues(err.Code).Inc()
	if c.ack == "" {
		s.fail(err)
		return
	}
	s.answer(c, topics.Fields("ok", false, "error", json.RawMessage(errorData(err))))
}

// succeed acknowledges a command whose event the log has.
func (s *session) succeed(c command, r topics.Receipt) {
	var duplicate any
	if r.Duplicate {
		duplicate = true
	}
	s.answer(c, topics.Fields("ok", true, "id", r.ID, "duplicate", duplicate))
}
