package topics

// Heartbeat says that a node lives.
type Heartbeat struct {
	// Node is new at every start, Name the same.
	Node, Name string
}

// TypeNodeHeartbeat is a Heartbeat.
const TypeNodeHeartbeat = "node.heartbeat"

var heartbeatKind = Kind{
	Type: TypeNodeHeartbeat, Doc: "a node lives",
	In: []In{{Topic: Presence, Keys: []AudienceKind{NoAudience}}},
	Fields: []Field{
		{Name: "node", Required: true, Bytes: notEmpty, Doc: "the node's id, new at every start"},
		{Name: "name", Required: true, Bytes: notEmpty, Doc: "the node's name, the same at every start"},
		timestamp},
	Sender: byMemberNode,
}

// ReadHeartbeat reads the node of a valid event of topic presence, of whatever kind.
func ReadHeartbeat(e *Event) Heartbeat {
	return Heartbeat{Node: e.body.Text("node"), Name: e.body.Text("name")}
}

// Event makes the event.
func (h Heartbeat) Event() *Event {
	return New(Presence, h.Node, Meta{Type: TypeNodeHeartbeat, Source: NodeSource(h.Node), ID: NewID()},
		Fields("node", h.Node, "name", h.Name))
}
