package topics

import "encoding/json"

// Session is a client's session as its node says it in topic presence.
type Session struct {
	// ID is the session's. Node is the id of the boot that serves it, Name the same node's at every start.
	ID, Node, Name string
	UserID         string
	Namespace      Namespace
	// PID is what the client may claim the session's state by later; may be empty.
	PID string
	// Repeated: it is said again of a session that lives.
	Repeated bool
	// Channels are those that it is subscribed to.
	Channels []string
}

// The types of a Session's events.
const (
	TypeConnected       = "presence.connected"
	TypeDisconnected    = "presence.disconnected"
	TypeSessionChannels = "session.channels"
)

var (
	connectedKind    = sessionKind(TypeConnected, "a session asks for a slot, or its node says again that it lives")
	disconnectedKind = sessionKind(TypeDisconnected, "a session has ended, or was refused")
	channelsKind     = sessionKind(TypeSessionChannels, "a session's channels have changed")
)

func sessionKind(typ, doc string) Kind {
	return Kind{
		Type: typ, Doc: doc,
		In: []In{{Topic: Presence, Keys: []AudienceKind{NoAudience}}},
		Fields: []Field{
			{Name: "session", Required: true, Bytes: notEmpty, Doc: "the session's id"},
			{Name: "node", Required: true, Bytes: notEmpty, Doc: "the node's id, new at every start"},
			{Name: "name", Required: true, Bytes: notEmpty, Doc: "the node's name, the same at every start"},
			{Name: "userId", Required: true, Format: UserID, Doc: "whose session it is"},
			{Name: "namespace", Required: true, Enum: []string{string(Dashboard), string(Messaging)}, Doc: "where it is"},
			{Name: "pid", Doc: "by which the client may claim the session's state later"},
			{Name: "repeated", Kind: ABool, Doc: "true: it is said again"},
			{Name: "channels", Kind: AnArray, Of: AString, Doc: "what it is subscribed to"},
			timestamp},
		Sender: byMemberNode, Actor: "userId", Detail: "namespace",
	}
}

// ReadSession reads a valid event.
func ReadSession(e *Event) Session {
	b := e.body
	s := Session{ID: b.Text("session"), Node: b.Text("node"), Name: b.Text("name"), UserID: b.Text("userId"),
		Namespace: Namespace(b.Text("namespace")), PID: b.Text("pid"), Repeated: b.Has("repeated")}
	_ = json.Unmarshal(b.Raw("channels"), &s.Channels) // absent: none
	return s
}

// Connected makes the event that asks for a slot or says the session again.
func (s Session) Connected() *Event { return s.event(TypeConnected) }

// Disconnected makes the event of the session's end.
func (s Session) Disconnected() *Event { return s.event(TypeDisconnected) }

// ChannelsChanged makes the event that the session's channels are others now.
func (s Session) ChannelsChanged() *Event { return s.event(TypeSessionChannels) }

func (s Session) event(typ string) *Event {
	var channels any
	if s.Channels != nil {
		channels = s.Channels
	}
	return New(Presence, s.ID, Meta{Type: typ, Source: NodeSource(s.Node), ID: NewID()},
		Fields("session", s.ID, "node", s.Node, "name", s.Name, "userId", s.UserID, "namespace", string(s.Namespace),
			"pid", orNil(nonZero(s.PID)), "repeated", orNil(nonZero(s.Repeated)), "channels", channels))
}
