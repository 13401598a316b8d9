package topics

import (
	"encoding/json"
	"strconv"
)

// Delivery says what became of an event on its way to a user.
type Delivery struct {
	// Event is the type of the event delivered, At is where it stands.
	Event string
	At    Place
	// Node is the name of the node that delivered it.
	Node string
	// Sessions have it, LatencyMs milliseconds after its record time.
	Sessions  int64
	LatencyMs int64
	// Channel, Outcome and Device are a push's: what carried it, what came of it, and the device's hash.
	Channel, Outcome, Device string
}

// The types of a Delivery.
const (
	TypeDeliveryWebSocket = "delivery.websocket"
	TypeDeliveryPush      = "delivery.push"
)

var (
	deliveryWebSocketKind = deliveryKind(TypeDeliveryWebSocket, "an event stands in the queues of sessions")
	deliveryPushKind      = deliveryKind(TypeDeliveryPush, "a push to a device was taken, given up or left out")
)

func deliveryKind(typ, doc string) Kind {
	return Kind{
		Type: typ, Doc: doc,
		In: []In{{Topic: Deliveries, Keys: []AudienceKind{User, Conversation, Channel, Everyone}}},
		Fields: []Field{
			{Name: "event", Required: true, Bytes: notEmpty, Doc: "the type of the event delivered"},
			{Name: "topic", Required: true, Bytes: notEmpty, Doc: "where it stands"},
			{Name: "partition", Kind: ANumber, Required: true, Doc: "where it stands"},
			{Name: "offset", Kind: ANumber, Required: true, Doc: "where it stands"},
			{Name: "node", Doc: "the name of the node that delivered it"},
			{Name: "sessions", Kind: ANumber, Doc: "how many sessions have it"},
			{Name: "latencyMs", Kind: ANumber, Doc: "milliseconds since its record time"},
			{Name: "channel", Chars: Bounds{1, 64}, Doc: "what carried a push: fcm"},
			{Name: "outcome", Chars: Bounds{1, 64}, Doc: "what became of a push"},
			{Name: "device", Doc: "the hash of the device's token"},
			timestamp},
		Sender: byNode, Detail: "event",
	}
}

// ReadDelivery reads a valid event.
func ReadDelivery(e *Event) Delivery {
	b := e.body
	at := Topic(b.Text("topic")).Partition(int32(b.Int("partition"))).At(b.Int("offset"))
	return Delivery{Event: b.Text("event"), At: at, Node: b.Text("node"), Sessions: b.Int("sessions"), LatencyMs: b.Int("latencyMs"),
		Channel: b.Text("channel"), Outcome: b.Text("outcome"), Device: b.Text("device")}
}

// ToSessions makes the event of a delivery to sessions: key is the user's, or the delivered event's own; source is NodeSource of
// the node. There is one for every event that reaches anybody, so it is written by hand.
func (d Delivery) ToSessions(key, source string) *Event {
	b := d.appendPlace(make([]byte, 0, 192))
	b = append(strconv.AppendInt(append(b, `,"sessions":`...), d.Sessions, 10), `,"latencyMs":`...)
	b = append(strconv.AppendInt(b, d.LatencyMs, 10), '}')
	return New(Deliveries, key, Meta{Type: TypeDeliveryWebSocket, Source: source, ID: d.At.String()}, b)
}

// appendPlace begins the value with what every delivery has.
func (d Delivery) appendPlace(b []byte) []byte {
	b = append(append(append(b, `{"event":"`...), d.Event...), `","topic":"`...)
	b = append(append(b, d.At.Topic...), `","partition":`...)
	b = append(strconv.AppendInt(b, int64(d.At.ID), 10), `,"offset":`...)
	b = append(strconv.AppendInt(b, d.At.Offset, 10), `,"node":`...)
	return appendText(b, d.Node)
}

// appendText appends a string as JSON.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			text, _ := json.Marshal(s) // a string always encodes
			return append(b, text...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// Push makes the event of what became of a push.
func (d Delivery) Push(key, source string) *Event {
	return New(Deliveries, key, Meta{Type: TypeDeliveryPush, Source: source, ID: NewID()},
		Fields("event", d.Event, "topic", string(d.At.Topic), "partition", d.At.ID, "offset", d.At.Offset, "node", d.Node,
			"channel", orNil(nonZero(d.Channel)), "outcome", d.Outcome, "device", orNil(nonZero(d.Device)),
			"sessions", d.Sessions, "latencyMs", d.LatencyMs))
}
