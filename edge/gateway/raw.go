package gateway

import (
	"encoding/json"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/internal/apierr"
)

// serveRaw runs the session of a bare WebSocket client.
func (g *Gateway) serveRaw(c *wire.Conn, s *client, back session.Comeback) {
	s.Out = c
	greet := func() { g.o.Live.Greet(s.Session, back, func() {}) }
	g.o.Server.Serve(c, func(now time.Time) { g.o.Sessions.Expire(s.Session, now) }, greet, func(kind int, message []byte) {
		if kind != websocket.TextMessage {
			s.Fail(&apierr.Error{Code: apierr.CodeBadFrame, Message: `send text frames like {"event":"…","data":{…}}`})
			return
		}
		cmd, err := parseRaw(message)
		if err != nil {
			s.Fail(err)
			return
		}
		g.handle(s, cmd)
	})
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
