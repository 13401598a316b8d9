package gateway

import (
	"encoding/json"
	"slices"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/edge/wire/socketio"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// client is a session with what it says.
type client struct {
	*session.Session
	g      *Gateway
	frames *SlidingWindow // of all frames, valid or not; this node's
}

func (g *Gateway) newClient(s *session.Session) *client {
	return &client{s, g, NewSlidingWindow(10*g.o.RateLimit, g.o.RateWindow)}
}

// command is what a client says.
type command struct {
	event string
	data  json.RawMessage
	ack   string // the raw id of the acknowledgement it asked for, or empty

	says    topics.Command // what is known of the event
	unknown []string       // members of data that are not known
}

// answer acknowledges a command with data, where that was asked for.
func (s *client) answer(c *command, data []byte) {
	if c.ack == "" {
		return
	}
	var text []byte
	if s.Style.SocketIO {
		p := socketio.Packet{Type: socketio.Ack, Namespace: string(s.Namespace), ID: c.ack, Data: slices.Concat([]byte("["), data, []byte("]"))}
		text = p.Append(nil)
	} else {
		text = slices.Concat([]byte(`{"event":"`+topics.EventAck+`","id":`), []byte(c.ack), []byte(`,"data":`), data, []byte("}"))
	}
	s.Out.Text(text)
}

// succeed acknowledges a command that was carried out, with what of it had no effect.
func (s *client) succeed(c *command, data []byte) { s.answer(c, topics.Ignored(data, c.unknown)) }

// refuse answers a command with an error: in the acknowledgement where one was asked for, else as an event. Where the payload is
// to blame, members that are not known are told: they are most likely what was meant.
func (s *client) refuse(c *command, err *apierr.Error) {
	s.g.metrics.failures.WithLabelValues(err.Code).Inc()
	if err.Code == apierr.CodeInvalidPayload && len(c.unknown) > 0 {
		err = apierr.Invalid(err.Message + "; not known is " + quoted(c.unknown) + ", known are " + quoted(memberNames(c.says.Fields)))
	}
	if c.ack == "" {
		s.Fail(err)
		return
	}
	s.answer(c, topics.RefusedData(session.Failure(err)))
}

func memberNames(fields []topics.Field) (names []string) {
	for _, f := range fields {
		names = append(names, f.Name)
	}
	return names
}
