package topics

import (
	"encoding/json"
	"slices"
)

// Recipients says which sessions of an audience get a frame.
type Recipients uint8

// The recipients. ToAudience: those of the key's user, both users of a conversation, a channel's subscribers, everybody.
const (
	ToAudience Recipients = iota
	ToSender              // those of the conversation's user who did it
	ToOther               // those of the conversation's other user
)

// Frame is what a client gets of an event, or of what an edge derives: {"event": Event, "data": …} for a bare client, a
// Socket.IO event for another.
type Frame struct {
	Namespace Namespace
	Event     string
	// Alias is the guide's second name: the frame is sent under both, unless the client asks for events=canonical. May be empty.
	Alias string
	Doc   string
	To    Recipients
	// Reached: a session that gets it counts as one that the event was delivered to.
	Reached bool
	// Repeated: of a repeat, too, with "duplicate": true.
	Repeated bool
	// Fields are the data's members where no record has them; empty: they are the kind's.
	Fields []Field
}

// FrameTo is the frame that a user gets of an event of this kind that actor did; nil: none.
func (k *Kind) FrameTo(user, actor string) *Frame {
	for i := range k.Frames {
		switch f := &k.Frames[i]; f.To {
		case ToSender:
			if user == actor {
				return f
			}
		case ToOther:
			if user != actor {
				return f
			}
		default:
			return f
		}
	}
	return nil
}

// FrameFields are the members of the data of a frame of the kind: those of the record, with what Nexus puts in.
func (k *Kind) FrameFields(f Frame) (fields []Field) {
	if k.HasID {
		id := anID
		id.Required, id.Doc = true, "the event's id; a second frame with it is a repeat"
		fields = append(fields, id)
	}
	for _, field := range k.Fields {
		field.Required = field.Required || field.Name == timestamp.Name || slices.ContainsFunc(k.Defaults,
			func(d Default) bool { return d.Field == field.Name })
		fields = append(fields, field)
	}
	if f.Repeated {
		fields = append(fields, duplicateField)
	}
	return fields
}

// RecordFields are the members of the value of a record of the kind: its fields, and the id that Nexus puts in.
func (k *Kind) RecordFields() []Field { return append([]Field{anID}, k.Fields...) }

// Names of what clients get that no single record is behind.
const (
	EventConnected   = "connected"
	EventError       = "error"
	EventAck         = "ack"    // bare clients; Socket.IO has a packet of its own
	EventOffset      = "offset" // Socket.IO clients; bare ones get it beside event and data
	EventUserStatus  = "user_status"
	EventOnline      = "presence:online"
	EventOffline     = "presence:offline"
	EventStatsUpdate = "stats_update"
)

// DerivedFrames lists what clients get that no single record is behind.
func DerivedFrames() (list []Frame) {
	for _, ns := range Namespaces() {
		list = append(list,
			Frame{Namespace: ns, Event: EventConnected, Doc: "the session is open: the first frame", Fields: connectedFields(ns)},
			Frame{Namespace: ns, Event: EventError, Doc: "something was refused, or the session is about to end", Fields: errorFields})
	}
	return append(list,
		Frame{Namespace: Dashboard, Event: EventUserStatus, Doc: "another user came online or went offline on the dashboard",
			Fields: userStatusFields},
		Frame{Namespace: Dashboard, Event: EventStatsUpdate, Doc: "the user's numbers", Fields: statsFields},
		Frame{Namespace: Messaging, Event: EventOnline, Doc: "another user came online in the chat", Fields: presenceFields},
		Frame{Namespace: Messaging, Event: EventOffline, Doc: "another user went offline in the chat", Fields: presenceFields})
}

func connectedFields(ns Namespace) []Field {
	example := `"Dashboard connection established"`
	if ns == Messaging {
		example = `"Messaging connection established"`
	}
	return []Field{
		{Name: "userId", Required: true, Format: UserID, Example: `"alice"`, Doc: "the user of the token"},
		{Name: "timestamp", Required: true, Format: Timestamp, Doc: "the server's time"},
		{Name: "message", Required: true, Example: example, Doc: "a text for people"},
		{Name: "recovered", Kind: ABool, Doc: "true: the client got all that it missed; only where it asked for that"},
	}
}

// Connected is the data of connected.
type Connected struct {
	UserID string
	// At is in Unix milliseconds.
	At      int64
	Message string
	// Recovered is nil where the client did not ask to be given what it missed.
	Recovered *bool
}

// Data is the frame's data.
func (c Connected) Data() []byte {
	return Fields("userId", c.UserID, "timestamp", FormatTime(c.At), "message", c.Message, "recovered", orNil(c.Recovered))
}

var errorFields = []Field{
	{Name: "code", Required: true, Example: `"rate_limited"`, Doc: "the kind of error, for programs"},
	{Name: "message", Required: true, Example: `"too many at once; try again in 4s"`, Doc: "what is wrong and what to do, for people"},
	{Name: "retryAfterMs", Kind: ANumber, Example: "4000", Doc: "rate_limited: after how many milliseconds another attempt may succeed"},
	{Name: "retryable", Kind: ABool, Doc: "unavailable: the same again with the same id is harmless"},
}

// Failure is the data of error.
type Failure struct {
	Code, Message string
	RetryAfterMs  int64 // 0: it is not said
	Retryable     bool
}

// Data is the frame's data.
func (f Failure) Data() []byte {
	return Fields("code", f.Code, "message", f.Message, "retryAfterMs", orNil(nonZero(f.RetryAfterMs)), "retryable",
		orNil(nonZero(f.Retryable)))
}

// Body is what REST answers for it: {"error":{…}}.
func (f Failure) Body() []byte { return Fields(EventError, json.RawMessage(f.Data())) }

var userStatusFields = []Field{
	{Name: "userId", Required: true, Format: UserID, Doc: "who"},
	{Name: "status", Required: true, Enum: []string{online, offline}, Doc: "online, or offline"},
	{Name: "timestamp", Required: true, Format: Timestamp, Doc: "since when"},
}

const (
	online  = "online"
	offline = "offline"
)

var presenceFields = []Field{
	{Name: "userId", Required: true, Format: UserID, Doc: "who"},
	{Name: "timestamp", Required: true, Format: Timestamp, Doc: "since when"},
}

// PresenceFrame is what other users are shown of a user who came online or went offline in a namespace: the event's name and its
// data. at is in Unix milliseconds.
func PresenceFrame(ns Namespace, user string, on bool, at int64) (event string, data []byte) {
	if ns == Dashboard {
		status := offline
		if on {
			status = online
		}
		return EventUserStatus, Fields("userId", user, "status", status, "timestamp", FormatTime(at))
	}
	event = EventOffline
	if on {
		event = EventOnline
	}
	return event, Fields("userId", user, "timestamp", FormatTime(at))
}

var statsFields = []Field{
	{Name: CounterConnections, Kind: ANumber, Required: true, Example: "150", Doc: "connections that were accepted"},
	{Name: CounterMessages, Kind: ANumber, Required: true, Example: "1250", Doc: "messages sent or received"},
	{Name: CounterPosts, Kind: ANumber, Required: true, Example: "89", Doc: "posts created"},
	{Name: "timestamp", Required: true, Format: Timestamp, Doc: "the server's time"},
	{Name: "stale", Kind: ABool, Doc: "true: the numbers are known to be old, the statistics are behind"},
}

// Stats are a user's numbers: the CONNECTION_ACCEPTED notifications, the messages sent or received, and the activities of type
// post_created, each addressed to the user.
type Stats struct{ Connections, Messages, Posts int64 }

// Data is the data of stats_update. at is in Unix milliseconds.
func (s Stats) Data(at int64, stale bool) []byte {
	return Fields(CounterConnections, s.Connections, CounterMessages, s.Messages, CounterPosts, s.Posts, "timestamp", FormatTime(at),
		"stale", orNil(nonZero(stale)))
}

// RawFrame is a frame for a bare client: {"event":…,"data":…}, for an event of the feed with the offset at which the client stands
// after it.
type RawFrame struct {
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data,omitempty"`
	Offset string          `json:"offset,omitempty"`
	// ID is that of the frame that an acknowledgement answers.
	ID json.RawMessage `json:"id,omitempty"`
}

// nonZero is a pointer to v; nil where v is its type's zero value.
func nonZero[T comparable](v T) *T {
	if v == *new(T) {
		return nil
	}
	return &v
}

// orNil is what p points to, as Fields takes it.
func orNil[T any](p *T) any {
	if p == nil {
		return nil
	}
	return *p
}
