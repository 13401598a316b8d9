package topics

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
)

// Message is a chat message: Content, or Encrypted of the clients' own making.
type Message struct {
	ID                   string
	SenderID, ReceiverID string
	Content              string
	Encrypted            json.RawMessage
	ClientMessageID      string
}

// TypeMessage is a chat message.
const TypeMessage = "message"

var messageKind = Kind{
	Type: TypeMessage, Doc: "a user wrote to another",
	In: []In{{Topic: Messages, Keys: []AudienceKind{Conversation}}},
	Fields: []Field{
		{Name: "senderId", Required: true, Format: UserID, Example: `"alice"`, Doc: "who wrote it"},
		{Name: "receiverId", Required: true, Format: UserID, Example: `"bob"`, Doc: "to whom"},
		{Name: "content", Bytes: notEmpty, Or: "encrypted", Example: `"Hello"`, Doc: "the text; either this or encrypted"},
		{Name: "encrypted", Kind: Anything, Doc: "what the clients have encrypted, in their own form"},
		{Name: "clientMessageId", Chars: Bounds{1, 256}, Doc: "the sender's own id of the message; sent again with it, it is the same message"},
		timestamp},
	Check: checkMessage, Sender: byMember("senderId"), Actor: "senderId",
	HasID: true, Feed: true, Pushed: true, Counter: &Counter{Name: CounterMessages},
	Frames: []Frame{
		{Namespace: Messaging, Event: "message:sent", To: ToSender, Repeated: true, Doc: "the log has a message of this user's"},
		{Namespace: Messaging, Event: "message:new", Alias: "MESSAGE_BROADCAST", To: ToOther, Reached: true, Doc: "a message for this user"}},
}

func checkMessage(e *Event) error {
	s, r := e.body.Text("senderId"), e.body.Text("receiverId")
	if ConversationKey(s, r) != string(e.Key) {
		return errors.New("senderId and receiverId are not those of the key")
	}
	if e.body.Has("content") == e.body.Has("encrypted") {
		return errors.New("a message has either content or encrypted")
	}
	return nil
}

// ReadMessage reads a message of a valid event.
func ReadMessage(e *Event) Message {
	b := e.body
	return Message{ID: e.EventID(), SenderID: b.Text("senderId"), ReceiverID: b.Text("receiverId"), Content: b.Text("content"),
		Encrypted: b.Raw("encrypted"), ClientMessageID: b.Text("clientMessageId")}
}

// SenderData is what a push carries beside its text, so that a click finds the conversation.
func (m Message) SenderData() []byte { return Fields("senderId", m.SenderID) }

// Draft is the data of sendMessage: a message before it is sent.
type Draft struct {
	ReceiverID      string          `json:"receiverId"`
	Content         string          `json:"content"`
	Encrypted       json.RawMessage `json:"encrypted"`
	ClientMessageID string          `json:"clientMessageId"`
}

var draftFields = []Field{
	{Name: "receiverId", Required: true, Format: UserID, Example: `"bob"`, Doc: "to whom"},
	{Name: "content", Bytes: notEmpty, Or: "encrypted", Example: `"Hello"`, Doc: "the text; either this or encrypted"},
	{Name: "encrypted", Kind: Anything, Doc: "what the clients have encrypted, in their own form"},
	{Name: "clientMessageId", Chars: Bounds{1, 256}, Doc: "the client's own id of the message; sent again with it, it is the same message"},
}

// contentKeyPrefix sets keys made of content apart from those that clients choose.
const contentKeyPrefix = "sha256:"

// ContentKey is the idempotency key of a message whose sender named none: a hash of sender, receiver and content.
func (d Draft) ContentKey(sender string) string {
	h := sha256.New()
	for _, s := range [...]string{sender, d.ReceiverID, d.Content, string(d.Encrypted)} {
		sum := sha256.Sum256([]byte(s))
		h.Write(sum[:])
	}
	return contentKeyPrefix + hex.EncodeToString(h.Sum(nil))
}

// Message makes the event of a draft. Where the draft names its clientMessageId the id follows from it; else the key is
// the content's hash and the id is a new UUIDv7, or firstID where a copy was sent before.
func (d Draft) Message(sender, firstID string) *Event {
	key := ConversationKey(sender, d.ReceiverID)
	m := Meta{Source: SourceOf(sender), Type: TypeMessage}
	switch {
	case d.ClientMessageID != "":
		m.IdempotencyKey = d.ClientMessageID
		m.NexusID = EventID(key, m.Type, m.Source, m.IdempotencyKey)
	case firstID != "":
		m.IdempotencyKey, m.NexusID = d.ContentKey(sender), firstID
	default:
		m.IdempotencyKey, m.NexusID = d.ContentKey(sender), NewID()
	}
	o := newObject()
	o.text("id", m.NexusID)
	o.text("senderId", sender)
	o.text("receiverId", d.ReceiverID)
	if len(d.Encrypted) > 0 {
		o.raw("encrypted", d.Encrypted)
	} else {
		o.text("content", d.Content)
	}
	if d.ClientMessageID != "" {
		o.text("clientMessageId", d.ClientMessageID)
	}
	return New(Messages, key, m, o.bytes())
}
