package topics

// MessageRead says that a user has read a message, or all of a conversation up to one.
type MessageRead struct {
	MessageID string
	// UserID has read it.
	UserID string
	UpTo   bool
}

// TypeMessageRead says that a message was read.
const TypeMessageRead = "message.read"

var messageReadKind = Kind{
	Type: TypeMessageRead, Doc: "a user has read a message, or a conversation up to one",
	In: []In{{Topic: Messages, Keys: []AudienceKind{Conversation}}},
	Fields: []Field{
		{Name: "messageId", Required: true, Bytes: idBounds, Example: exampleID, Doc: "the message's id"},
		{Name: "userId", Required: true, Format: UserID, Example: `"bob"`, Doc: "who has read it"},
		{Name: "upTo", Kind: ABool, Doc: "true: and all of the conversation before it"},
		timestamp},
	Check: checkParticipant, Sender: byMember("userId"), Actor: "userId",
	Feed:   true,
	Frames: []Frame{{Namespace: Messaging, Event: "message:read", Doc: "a message was read, by this user or the other"}},
}

// ReadMessageRead reads a valid event.
func ReadMessageRead(e *Event) MessageRead {
	return MessageRead{MessageID: e.body.Text("messageId"), UserID: e.body.Text("userId"), UpTo: e.body.True("upTo")}
}

// Event makes the event; other is the conversation's other user. Said again it is the same event.
func (r MessageRead) Event(other string) *Event {
	name, upTo := r.MessageID, any(nil)
	if r.UpTo {
		name, upTo = "upTo:"+r.MessageID, true
	}
	return New(Messages, ConversationKey(r.UserID, other), Meta{Type: TypeMessageRead, Source: SourceOf(r.UserID), ID: NewID(),
		IdempotencyKey: name},
		Fields("messageId", r.MessageID, "userId", r.UserID, "upTo", upTo))
}

// MarkAsRead is the data of markAsRead.
type MarkAsRead struct {
	MessageID string `json:"messageId"`
	UpTo      bool   `json:"upTo"`
}

var markAsReadFields = []Field{
	{Name: "messageId", Required: true, Bytes: idBounds,
		Doc: "the message's id; the message must be one that the user received, or with upTo one of the conversation"},
	{Name: "upTo", Kind: ABool, Doc: "true: and all of the conversation before it"},
}
