package topics

import "encoding/json"

// Notification tells a user, or a channel's subscribers, of something.
type Notification struct {
	ID, Title, Body, Type, Priority string
	Data                            json.RawMessage // an object; nil: none
	Icon, Badge                     string
}

// TypeNotification is a notification.
const TypeNotification = "notification"

// The priorities of a notification; one of high priority is pushed to devices whether its user is online or not.
const (
	PriorityLow    = "low"
	PriorityNormal = "normal"
	PriorityHigh   = "high"
)

// The types of a notification that Nexus itself has to do with.
const (
	NotificationMessage            = "MESSAGE"
	NotificationConnectionAccepted = "CONNECTION_ACCEPTED"
	NotificationSystem             = "SYSTEM"
)

// NotificationTypes are the guide's eight.
func NotificationTypes() []string {
	return []string{NotificationMessage, "CONNECTION_REQUEST", NotificationConnectionAccepted, "POST_COMMENT", "COMMENT_MENTION",
		"REFERRAL_APPLICATION", "PROJECT_UPDATE", NotificationSystem}
}

var notificationKind = Kind{
	Type: TypeNotification, Doc: "a user, or a channel's subscribers, are told of something",
	In: []In{
		{Topic: Notifications, Keys: []AudienceKind{User}, Default: true},
		{Topic: Broadcasts, Keys: []AudienceKind{Channel}, Default: true}},
	Fields: []Field{
		{Name: "title", Required: true, Bytes: notEmpty, Example: `"New Message"`, Doc: "one line"},
		{Name: "body", Required: true, Example: `"John sent you a message"`, Doc: "the text"},
		{Name: "type", Required: true, Enum: NotificationTypes(), Doc: "what it is about"},
		{Name: "priority", Enum: []string{PriorityLow, PriorityNormal, PriorityHigh}, Example: `"high"`,
			Doc: "normal where it is left out; high: pushed to devices whether the user is online or not"},
		{Name: "data", Kind: AnObject, Example: `{"senderId":"john"}`,
			Doc: "more for the clients, the product's own; link or url is where a click on a push leads"},
		{Name: "icon", Doc: "URL of a picture"},
		{Name: "badge", Doc: "URL of a small picture"},
		timestamp},
	HasID: true, Feed: true, Pushed: true, Ingest: "/notifications", Detail: "type",
	Defaults: []Default{{"priority", `"` + PriorityNormal + `"`}, {"data", "{}"}},
	Counter:  &Counter{CounterConnections, NotificationConnectionAccepted},
	Frames:   []Frame{{Namespace: Dashboard, Event: "notification", Reached: true, Doc: "a notification for this user, or of a channel"}},
}

// ReadNotification reads a valid event.
func ReadNotification(e *Event) Notification {
	b := e.body
	return Notification{ID: e.EventID(), Title: b.Text("title"), Body: b.Text("body"), Type: b.Text("type"), Priority: b.Text("priority"),
		Data: b.Raw("data"), Icon: b.Text("icon"), Badge: b.Text("badge")}
}
