package topics

import (
	"encoding/json"
	"slices"
)

// What clients may say.
const (
	CommandSubscribe    = "subscribe"
	CommandUnsubscribe  = "unsubscribe"
	CommandSendMessage  = "sendMessage"
	CommandTyping       = "typing"
	CommandMarkAsRead   = "markAsRead"
	CommandAuthenticate = "authenticate"
)

// Command is something that a client may say. Where it asks for an acknowledgement it gets the members of Answer, or, where the
// command was refused, {"ok":false,"error":{…}}.
type Command struct {
	Event      string
	Namespaces []Namespace
	Doc        string
	Fields     []Field
	Answer     []Field
	// Example is a command's data as it may be sent.
	Example string
}

// Commands lists what clients may say.
func Commands() []Command { return commands }

var commands = []Command{
	{Event: CommandSubscribe, Namespaces: []Namespace{Dashboard}, Fields: subscriptionFields, Answer: subscriptionAnswer,
		Doc: "begins to get what is sent to channels", Example: `{"channels":["referrals","events"]}`},
	{Event: CommandUnsubscribe, Namespaces: []Namespace{Dashboard}, Fields: subscriptionFields[:1], Answer: unsubscriptionAnswer,
		Doc: "stops getting what is sent to channels", Example: `{"channels":["events"]}`},
	{Event: CommandSendMessage, Namespaces: []Namespace{Messaging}, Fields: draftFields, Answer: receiptFields,
		Doc: "sends a chat message", Example: `{"receiverId":"bob","content":"Hello","clientMessageId":"7c1d"}`},
	{Event: CommandTyping, Namespaces: []Namespace{Messaging}, Fields: typingCommandFields, Answer: receiptFields,
		Doc: "tells another user that this one began or stopped typing", Example: `{"receiverId":"bob","isTyping":true}`},
	{Event: CommandMarkAsRead, Namespaces: []Namespace{Messaging}, Fields: markAsReadFields, Answer: receiptFields,
		Doc: "says that a message was read", Example: `{"messageId":"0191f0c2-…"}`},
	{Event: CommandAuthenticate, Namespaces: Namespaces(), Fields: authenticateFields, Answer: authenticateAnswer,
		Doc: "renews the session's token before it expires", Example: `{"token":"…"}`},
}

// CommandOf finds what a client of a namespace says; false where there is no such command.
func CommandOf(ns Namespace, event string) (Command, bool) {
	i := slices.IndexFunc(commands, func(c Command) bool { return c.Event == event && slices.Contains(c.Namespaces, ns) })
	if i < 0 {
		return Command{}, false
	}
	return commands[i], true
}

// ignored is in every acknowledgement of what was carried out.
var ignored = Field{Name: "ignored", Kind: AnArray, Of: AString, Example: `["extra"]`,
	Doc: "unknown members, three at most: they had no effect"}

// Ignored adds to the data of an acknowledgement the names of members that had no effect; none: it stays as it is.
func Ignored(data []byte, names []string) []byte {
	if len(names) == 0 {
		return data
	}
	list, _ := json.Marshal(names) // strings always encode
	return slices.Concat(data[:len(data)-1], []byte(`,"`+ignored.Name+`":`), list, []byte("}"))
}

var okField = Field{Name: "ok", Kind: ABool, Required: true, Doc: "true: the log has it; false: error says why not"}

var receiptFields = []Field{okField,
	{Name: "id", Example: exampleID, Doc: "the event's id"},
	duplicateField, ignored}

var duplicateField = Field{Name: "duplicate", Kind: ABool, Doc: "true: the log had it already"}

// Data is the data of an acknowledgement.
func (r Receipt) Data() []byte {
	return Fields("ok", true, "id", r.ID, "duplicate", orNil(nonZero(r.Duplicate)))
}

// RefusedData is the data of an acknowledgement of what was refused.
func RefusedData(f Failure) []byte { return Fields("ok", false, "error", json.RawMessage(f.Data())) }

var authenticateFields = []Field{{Name: "token", Required: true, Bytes: notEmpty, Doc: "a new token of the same user"}}

var authenticateAnswer = []Field{okField, {Name: refusedField.Name, Kind: AnArray, Of: AnObject, Items: refusedField.Items,
	Doc: "the channels whose subscriptions end because the new token does not allow them"}, ignored}

// Authenticate is the data of authenticate.
type Authenticate struct {
	Token string `json:"token"`
}

// AuthenticatedData is the data of authenticate's acknowledgement: refused are the channels that the new token does not allow; none:
// the member is left out.
func AuthenticatedData(refused []RefusedChannel) []byte {
	if len(refused) == 0 {
		return Fields("ok", true)
	}
	return Fields("ok", true, "refused", refused)
}

// MaxChannels bounds the channels that a session subscribes to.
const MaxChannels = 128

var (
	channelsField = Field{Name: "channels", Kind: AnArray, Of: AString, Required: true, Example: `["referrals","events"]`,
		Doc: "names of channels"}
	refusedField = Field{Name: "refused", Kind: AnArray, Of: AnObject, Required: true, Example: `[]`,
		Doc: "the channels that were refused, and why",
		Items: []Field{{Name: "channel", Required: true, Doc: "its name"}, {Name: "code", Required: true,
			Doc: "why: invalid_payload, forbidden or too_many_channels"}}}
)

var subscriptionFields = []Field{channelsField,
	{Name: "offset", Doc: "where the client stands: what the channels had since then is sent first (plain WebSocket)"}}

var subscriptionAnswer = []Field{
	{Name: "channels", Kind: AnArray, Of: AString, Required: true, Example: `["referrals","events"]`,
		Doc: "all that the session is subscribed to now"}, refusedField,
	{Name: "recovered", Kind: ABool, Doc: "true: all that the channels had since offset was sent; only where offset was given"}, ignored}

var unsubscriptionAnswer = []Field{
	{Name: "channels", Kind: AnArray, Of: AString, Required: true, Example: `["referrals"]`, Doc: subscriptionAnswer[0].Doc}, refusedField, ignored}

// Subscription is the data of subscribe.
type Subscription struct {
	Channels []string `json:"channels"`
	// Offset is where a bare client stands: what the channels had since then is sent first.
	Offset string `json:"offset"`
}

// Unsubscription is the data of unsubscribe.
type Unsubscription struct {
	Channels []string `json:"channels"`
}

// RefusedChannel is a channel that a session may not subscribe to, and an error's code.
type RefusedChannel struct {
	Channel string `json:"channel"`
	Code    string `json:"code"`
}

// notNull is a slice that is never null in JSON.
func notNull[T any](of []T) []T { return append([]T{}, of...) }

// SubscribedData is the data of the acknowledgement of subscribe and unsubscribe. recovered is nil where no offset was given.
func SubscribedData(channels []string, refused []RefusedChannel, recovered *bool) []byte {
	return Fields("channels", notNull(channels), "refused", notNull(refused), "recovered", orNil(recovered))
}
