package topics

import "errors"

// Typing says that a user types to another, or types no more.
type Typing struct {
	UserID   string
	IsTyping bool
}

// The types of a Typing.
const (
	TypeTypingStart = "typing.start"
	TypeTypingStop  = "typing.stop"
)

var (
	typingStartKind = typingKind(TypeTypingStart, "a user began to type to another", "typing:start", "true")
	typingStopKind  = typingKind(TypeTypingStop, "a user stopped typing", "typing:stop", "false")
)

func typingKind(typ, doc, frame, isTyping string) Kind {
	return Kind{
		Type: typ, Doc: doc,
		In: []In{{Topic: Signals, Keys: []AudienceKind{Conversation}}},
		Fields: []Field{
			{Name: "userId", Required: true, Format: UserID, Doc: "who types"},
			{Name: "isTyping", Kind: ABool, Required: true, Example: isTyping, Doc: "whether he types"},
			timestamp},
		Check: checkParticipant, Sender: byMember("userId"), Actor: "userId",
		Frames: []Frame{{Namespace: Messaging, Event: frame, Alias: "TYPING_INDICATOR", To: ToOther, Doc: doc}},
	}
}

func checkParticipant(e *Event) error {
	if !e.Audience.Has(e.body.Text("userId")) {
		return errors.New("userId is not one of the key's two users")
	}
	return nil
}

// ReadTyping reads a valid event.
func ReadTyping(e *Event) Typing {
	return Typing{UserID: e.body.Text("userId"), IsTyping: e.Type == TypeTypingStart}
}

// Event makes the event for the user's partner.
func (t Typing) Event(to string) *Event {
	return New(Signals, ConversationKey(t.UserID, to), Meta{Type: t.kind().Type, Source: SourceOf(t.UserID), ID: NewID()},
		Fields("userId", t.UserID, "isTyping", t.IsTyping))
}

// Frame is what the user's partner gets, also where no record says it: a stop that an edge derives. at is in Unix milliseconds.
func (t Typing) Frame(at int64) (*Frame, []byte) {
	return &t.kind().Frames[0], Fields("userId", t.UserID, "isTyping", t.IsTyping, "timestamp", FormatTime(at))
}

func (t Typing) kind() *Kind {
	if t.IsTyping {
		return &typingStartKind
	}
	return &typingStopKind
}

// TypingCommand is the data of typing.
type TypingCommand struct {
	ReceiverID string `json:"receiverId"`
	IsTyping   *bool  `json:"isTyping"`
}

var typingCommandFields = []Field{
	{Name: "receiverId", Required: true, Format: UserID, Doc: "to whom"},
	{Name: "isTyping", Kind: ABool, Required: true, Doc: "whether the user types"},
}
