package wire

import (
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/apierr"
)

// Transport carries what is sent to a client. It never blocks; what waits is bounded.
type Transport interface {
	// Deliver sends what f makes for this transport; s.wire is filled in.
	Deliver(f Framer, s Style)
	// Text sends a text to this client alone.
	Text(b []byte)
	// Close sends what is queued and then ends the transport, with a WebSocket close code where there is such a thing.
	Close(code int, reason string)
	// Abort ends it at once.
	Abort()
	// Challenge asks the client for a sign of life; without one within that time the transport ends as lost.
	Challenge(within time.Duration)
	// Kind is its name; waiting how many bytes are queued; reason why it ended, or would if it ended now.
	Kind() string
	Waiting() int
	Reason() string
}

// Why a transport ended, in the event log and in metrics; reasonOf has the others.
const (
	ReasonClient   = "client"   // the client said goodbye
	ReasonLost     = "lost"     // it was silent, or its connection broke
	reasonInternal = "internal" // a fault of ours
)

// reasonOf names a close code of this server's.
func reasonOf(code int) string {
	switch code {
	case apierr.CloseToken:
		return "token"
	case apierr.CloseTooSlow:
		return "too_slow"
	case apierr.CloseEvicted:
		return "evicted"
	case websocket.CloseGoingAway:
		return "going_away"
	case websocket.CloseProtocolError:
		return "protocol"
	case websocket.CloseInvalidFramePayloadData:
		return "not_utf8"
	case websocket.CloseMessageTooBig:
		return "too_large"
	case websocket.CloseInternalServerErr:
		return reasonInternal
	case websocket.CloseNormalClosure:
		return "idle"
	}
	return ReasonClient
}

// Style is how a session wants its frames; frames are built once for each style that occurs.
type Style struct {
	SocketIO  bool // Socket.IO packets; else {"event":…,"data":…}
	Offsets   bool // the client is told where it stands: beside each event of the feed, or by a mark
	Canonical bool // without the guide's second names
	wire      wire // filled in by the transport
}

// wire is how a text is put on a transport.
type wire uint8

const (
	wirePlain   wire = iota // a WebSocket frame
	wireDeflate             // the same; permessage-deflate was negotiated (RFC 7692)
	wirePolling             // a packet of an Engine.IO payload
	wires
)

const styles = 8 * int(wires)

func (s Style) index() int {
	i := 8 * int(s.wire)
	for n, on := range [...]bool{s.SocketIO, s.Offsets, s.Canonical} {
		if on {
			i |= 1 << n
		}
	}
	return i
}

// Framer makes the bytes of something to send, once for each style.
type Framer interface {
	Frame(s Style) []byte
	// Mark tells a Socket.IO client where it stands after that; none for what is not resumed, and for bare clients,
	// whose events carry their offsets.
	Mark(s Style) Mark
}
