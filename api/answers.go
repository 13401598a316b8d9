package api

import (
	"encoding/json"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/nexus/nexus/topics"
)

// What requests carry and what is answered. The tag doc says what a member means; a member without omitempty, and no pointer, is
// always there. Members stand in the order that clients see. The OpenAPI document is made from these types.

// Told is an answer that says in words what was done.
type Told struct {
	Message string `json:"message" doc:"what was done"`
}

// ID is the id of what was done.
type ID struct {
	ID string `json:"id" doc:"the event's id"`
}

// PublishedByUser is the id of an event, or where it was published for userIds, the ids by user.
type PublishedByUser struct {
	ID  string            `json:"id,omitempty" doc:"the event's id"`
	IDs map[string]string `json:"ids,omitempty" doc:"with userIds: the events' ids, by user"`
}

// Published is the id of a CloudEvent, or of a batch the ids in its order.
type Published struct {
	ID  string   `json:"id,omitempty" doc:"the event's id"`
	IDs []string `json:"ids,omitempty" doc:"of a batch: the events' ids, in its order"`
}

// Sent says what became of a message.
type Sent struct {
	ID        string `json:"id" doc:"the message's id"`
	Duplicate bool   `json:"duplicate,omitempty" doc:"true: the log had it already"`
}

// Count is how many notifications are unread.
type Count struct {
	Count int  `json:"count" doc:"how many are unread"`
	Stale bool `json:"stale,omitempty" doc:"true: the inbox is behind, ask again"`
}

// InboxNotification is a notification or an announcement as clients got it, with read.
type InboxNotification struct{ json.RawMessage }

// InboxMessage is a message as clients got it, with read.
type InboxMessage struct{ json.RawMessage }

// NotificationPage is a page of notifications.
type NotificationPage struct {
	Notifications []InboxNotification `json:"notifications" doc:"the newest first; an announcement is one of type SYSTEM"`
	Next          *string             `json:"next" doc:"cursor of what is older; null: there is nothing"`
	Stale         bool                `json:"stale,omitempty" doc:"true: the inbox is behind, ask again"`
}

// MessagePage is a page of a conversation.
type MessagePage struct {
	Messages []InboxMessage `json:"messages" doc:"in the order of the log"`
	Next     *string        `json:"next" doc:"cursor of what is older; null: there is nothing"`
	Newer    *string        `json:"newer" doc:"give it as after, to ask for what has come since; null: the conversation is empty"`
	Stale    bool           `json:"stale,omitempty" doc:"true: the inbox is behind, ask again"`
}

// Conversation is a conversation in a list.
type Conversation struct {
	UserID      string       `json:"userId" doc:"the other user"`
	Unread      int          `json:"unread" doc:"how many messages to this user are unread"`
	LastMessage InboxMessage `json:"lastMessage" doc:"the newest message"`
}

// ConversationPage is a page of conversations.
type ConversationPage struct {
	Conversations []Conversation `json:"conversations" doc:"that with the newest message first"`
	Next          *string        `json:"next" doc:"cursor of what is older; null: there is nothing"`
	Stale         bool           `json:"stale,omitempty" doc:"true: the inbox is behind, ask again"`
}

// OnlineUsers counts who is online.
type OnlineUsers struct {
	Dashboard int `json:"dashboard" doc:"users with a session in /dashboard"`
	Messaging int `json:"messaging" doc:"users with a session in /ws"`
	Online    int `json:"online" doc:"the same as dashboard"`
}

// UserStatus tells whether a user is online.
type UserStatus struct {
	Dashboard bool   `json:"dashboard" doc:"the user has a session in /dashboard"`
	Messaging bool   `json:"messaging" doc:"the user has a session in /ws"`
	Online    bool   `json:"online" doc:"the same as dashboard"`
	UserID    string `json:"userId" doc:"the user"`
}

// PresenceAnswer is OnlineUsers, or of those that were asked for a UserStatus each, by user.
type PresenceAnswer struct{}

// Numbers are a user's statistics.
type Numbers struct {
	Connections int64 `json:"connections" doc:"connections that were accepted"`
	Messages    int64 `json:"messages" doc:"messages sent or received"`
	Posts       int64 `json:"posts" doc:"posts created"`
	Stale       bool  `json:"stale,omitempty" doc:"true: the statistics are behind"`
}

// Health tells that the process serves.
type Health struct {
	Status string `json:"status" doc:"ok"`
	Build
}

// Readiness tells whether a node is ready, and why it is not.
type Readiness struct {
	Problems map[string]string `json:"problems,omitempty" doc:"what is behind or cannot be reached, by part"`
	Status   string            `json:"status" doc:"ready, or not ready"`
}

// DeviceWithKeys is one of the user's devices.
type DeviceWithKeys struct {
	DeviceID string `json:"deviceId" doc:"the device"`
	Prekeys  int    `json:"prekeys" doc:"how many one-time keys are left"`
}

// OwnKeys are the user's devices that have keys.
type OwnKeys struct {
	Devices []DeviceWithKeys `json:"devices" doc:"those that have keys"`
}

// DeviceKeys are the keys of a device, as others get them.
type DeviceKeys struct {
	DeviceID    string         `json:"deviceId" doc:"the device"`
	IdentityKey string         `json:"identityKey" doc:"its long-lived key"`
	Prekey      *topics.Prekey `json:"prekey" doc:"a one-time key that nobody else gets; null: none is left, or none was asked for"`
}

// UserKeys are the keys of a user's devices.
type UserKeys struct {
	Devices []DeviceKeys `json:"devices" doc:"those that have keys"`
	UserID  string       `json:"userId" doc:"the user"`
}

// DiagnosedSession is a session of a user's, on whatever node.
type DiagnosedSession struct {
	ID        string   `json:"id" doc:"the session"`
	Node      string   `json:"node" doc:"the node that serves it"`
	Namespace string   `json:"namespace" doc:"/dashboard or /ws"`
	Since     string   `json:"since" doc:"when it began, RFC 3339"`
	Channels  []string `json:"channels" doc:"what it is subscribed to"`
}

// DiagnosedDevice is a device of a user's. Its token is nobody's business.
type DiagnosedDevice struct {
	Hash     string `json:"hash" doc:"of the device's token"`
	Platform string `json:"platform" doc:"a word of the client's"`
}

// Diagnosis is what a user's case looks like from a node.
type Diagnosis struct {
	AllowedOrigins []string           `json:"allowedOrigins" doc:"origins that browsers may come from, or any"`
	Connections    int                `json:"connections" doc:"how many sessions there are"`
	Devices        []DiagnosedDevice  `json:"devices" doc:"where pushes go"`
	Push           bool               `json:"push" doc:"whether events are pushed to devices"`
	Sessions       []DiagnosedSession `json:"sessions" doc:"on all nodes"`
	UserID         string             `json:"userId" doc:"the user"`
}

// DeviceRegistration is the body that registers a device.
type DeviceRegistration struct {
	Token    string  `json:"token"`
	Platform *string `json:"platform"`
}

// DeviceRemoval is the body that takes a device off the list.
type DeviceRemoval struct {
	Token *string `json:"token" required:"true"`
}

// PublishedKeys is the body that publishes a device's keys.
type PublishedKeys struct {
	DeviceID    string          `json:"deviceId"`
	IdentityKey string          `json:"identityKey"`
	Prekeys     []topics.Prekey `json:"prekeys,omitempty"`
}

// RevokedTokens is the body that revokes tokens.
type RevokedTokens struct {
	UserID  string  `json:"userId" doc:"whose tokens" format:"userId"`
	TokenID *string `json:"tokenId"`
}

// Fault is every answer of an error.
type Fault struct {
	Error FaultText `json:"error" doc:"what is wrong"`
}

// FaultText is what is wrong.
type FaultText struct {
	Code    string `json:"code" enum:"codes" doc:"a word that a program can act on"`
	Message string `json:"message" doc:"what is wrong and what to do, for people"`
}

// told answers with words.
func told(c echo.Context, text string) error { return c.JSON(http.StatusOK, Told{text}) }

// compact answers without the newline that c.JSON ends with: so these answers have always been.
func compact(c echo.Context, status int, answer any) error {
	b, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	return c.JSONBlob(status, b)
}

// orNull is a cursor, or null where there is none.
func orNull(cursor string) *string {
	if cursor == "" {
		return nil
	}
	return &cursor
}
