package topics

import (
	"errors"
	"time"
)

// NotificationMark says that a user has read, or deleted, one of the notifications and announcements that concern him, or all up to a time.
type NotificationMark struct {
	// NotificationID is the one; empty: all up to UpTo, in Unix milliseconds.
	NotificationID string
	UpTo           int64
}

// The types of a NotificationMark.
const (
	TypeNotificationRead    = "notification.read"
	TypeNotificationDeleted = "notification.deleted"
)

var (
	notificationReadKind    = markKind(TypeNotificationRead, "a user has read notifications", "notification:read", "read")
	notificationDeletedKind = markKind(TypeNotificationDeleted, "a user has deleted notifications", "notification:deleted", "deleted")
)

func markKind(typ, doc, frame, what string) Kind {
	return Kind{
		Type: typ, Doc: doc,
		In: []In{{Topic: Notifications, Keys: []AudienceKind{User}}},
		Fields: []Field{
			{Name: "notificationId", Bytes: idBounds, Or: "upTo", Example: exampleID,
				Doc: "the notification's or announcement's id; either this or upTo"},
			{Name: "upTo", Format: Timestamp, Doc: "all up to this time"},
			timestamp},
		Check: checkTarget, Sender: byKeyUser,
		Frames: []Frame{{Namespace: Dashboard, Event: frame, Doc: "notifications were " + what + " on another device of this user's"}},
	}
}

func checkTarget(e *Event) error {
	if e.body.Has("notificationId") == e.body.Has("upTo") {
		return errors.New("either notificationId or upTo must be given")
	}
	return nil
}

// ReadNotificationMark reads a valid event.
func ReadNotificationMark(e *Event) NotificationMark {
	m := NotificationMark{NotificationID: e.body.Text("notificationId")}
	if m.NotificationID == "" {
		t, _ := time.Parse(time.RFC3339Nano, e.body.Text("upTo")) // the event is valid
		m.UpTo = t.UnixMilli()
	}
	return m
}

// Read makes the event that the user has read them.
func (m NotificationMark) Read(user string) *Event { return m.event(TypeNotificationRead, user) }

// Deleted makes the event that the user has deleted them.
func (m NotificationMark) Deleted(user string) *Event { return m.event(TypeNotificationDeleted, user) }

func (m NotificationMark) event(typ, user string) *Event {
	value := Fields("notificationId", m.NotificationID)
	if m.NotificationID == "" {
		value = Fields("upTo", FormatTime(m.UpTo))
	}
	return New(Notifications, UserKey(user), Meta{Type: typ, Source: SourceOf(user), ID: NewID()}, value)
}
