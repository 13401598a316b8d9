package edge

import (
	"encoding/json"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/apierr"
)

// serveRaw runs the session of a bare WebSocket client.
func (e *Edge) serveRaw(c *conn, s *session, offset string) {
	s.out = c
	greet := func() { e.greet(s, greeting(s.namespace), comeback{offset: offset}, func() {}) }
	e.serve(c, c, e.checkRaw(c, s), greet, func(kind int, message []byte) {
		if kind != websocket.TextMessage {
			s.fail(&apierr.Error{Code: apierr.CodeBadFrame, Message: `send text frames like {"event":"…","data":{…}}`})
			return
		}
		cmd, err := parseRaw(message)
		if err != nil {
			s.fail(err)
			return
		}
		e.handle(s, cmd)
	})
}

// checkRaw is what is due for a bare client (schedule).
func (e *Edge) checkRaw(c *conn, s *session) func(now time.Time) time.Time {
	return func(now time.Time) time.Time {
		if c.heart.due(now, e.o.PingInterval) {
			c.send(appendFrame(nil, bitFinal|opPing, nil))
		}
		e.expire(s, now)
		return c.heart.next
	}
}

// maxAck bounds the id of an acknowledgement, in bytes.
const maxAck = 256

// parseRaw reads a frame of a raw client. Members it does not know are ignored.
func parseRaw(message []byte) (command, *apierr.Error) {
	var f struct {
		Event *string         `json:"event"`
		Data  json.RawMessage `json:"data"`
		ID    json.RawMessage `json:"id"`
	}
	if err := json.Unmarshal(message, &f); err != nil || f.Event == nil || len(message) == 0 {
		return command{}, &apierr.Error{Code: apierr.CodeBadFrame, Message: `a frame must be a JSON object like {"event":"…","data":{…}}`}
	}
	ack := string(f.ID)
	if len(ack) > maxAck || ack != "" && (ack[0] == '{' || ack[0] == '[') {
		return command{}, &apierr.Error{Code: apierr.CodeBadFrame, Message: "a frame's id must be a short string or a number"}
	}
	return command{event: *f.Event, data: f.Data, ack: ack}, nil
}
