package push

import (
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"firebase.google.com/go/v4/messaging"

	"github.com/nexus/nexus/topics"
)

// Note is what a device is told of an event.
type Note struct {
	ID, Event     string // the event's id and type
	Title, Body   string
	Icon, Badge   string
	Link          string
	High          bool
	Data          map[string]string
	RecordTime    int64 // Unix milliseconds
	NotificationT string
}

// maxBody bounds a chat message's body in a push, in characters.
const maxBody = 120

// noteOf makes a note of an event that may be pushed, and names the user it is for; ok is false for all others. The
// matrix is documented in docs/push.md.
func noteOf(e *topics.Event) (user string, n Note, ok bool) {
	n = Note{ID: e.EventID(), Event: e.Type, RecordTime: e.Time}
	switch {
	case e.Type == topics.Notification && e.Audience.Kind == topics.User:
		n.Title, n.Body, n.Icon, n.Badge = e.Body.Text("title"), e.Body.Text("body"), e.Body.Text("icon"), e.Body.Text("badge")
		n.High, n.NotificationT = e.Body.Text("priority") == "high", e.Body.Text("type")
		n.Data = stringsOf(e.Body.Raw("data"))
		n.Link = linkOf(n.Data)
		return e.Audience.A, n, true
	case e.Type == topics.Message:
		sender, receiver := e.Body.Text("senderId"), e.Body.Text("receiverId")
		if sender == receiver {
			return "", n, false
		}
		n.Title, n.Body, n.NotificationT = "New message", cut(e.Body.Text("content"), maxBody), "MESSAGE"
		if e.Body.Has("encrypted") {
			n.Body = "You have a new encrypted message"
		}
		n.High, n.Data = true, map[string]string{"senderId": sender}
		return receiver, n, true
	}
	return "", n, false
}

// stringsOf turns an object into what FCM takes: strings; anything else as its JSON.
func stringsOf(object []byte) map[string]string {
	var members map[string]json.RawMessage
	if json.Unmarshal(object, &members) != nil {
		return nil
	}
	out := make(map[string]string, len(members))
	for name, raw := range members {
		var s string
		if json.Unmarshal(raw, &s) != nil || raw[0] != '"' {
			s = string(raw)
		}
		out[allowedName(name)] = s
	}
	return out
}

// allowedName keeps clear of the names that FCM reserves (FCM HTTP v1, "data").
func allowedName(name string) string {
	lower := strings.ToLower(name)
	if lower == "from" || lower == "message_type" || lower == "notification" || strings.HasPrefix(lower, "google") || strings.HasPrefix(lower, "gcm") {
		return "_" + name
	}
	return name
}

// linkOf is where a click leads: data.link or data.url, if it is an https URL as FCM demands.
func linkOf(data map[string]string) string {
	for _, name := range []string{"link", "url"} {
		if u, err := url.Parse(data[name]); err == nil && u.Scheme == "https" && u.Host != "" {
			return data[name]
		}
	}
	return ""
}

// cut shortens text to so many characters.
func cut(text string, characters int) string {
	if utf8.RuneCountInString(text) <= characters {
		return text
	}
	return string([]rune(text)[:characters-1]) + "…"
}

// maxPayload is what FCM takes of a message (FCM, "Message types"), less what the envelope needs.
const maxPayload = 4096 - 96

// message makes the FCM message for a device. A repeat has the same collapse id and tag, so that a device shows one.
func (n Note) message(token string, now time.Time, ttl time.Duration) *messaging.Message {
	data := maps.Clone(n.Data)
	if data == nil {
		data = make(map[string]string)
	}
	data["id"], data["type"], data["event"] = n.ID, n.NotificationT, n.Event
	data["timestamp"] = topics.FormatTime(n.RecordTime)
	body := fit(n.Title, n.Body, data)
	left := max(time.Second, ttl-now.Sub(time.UnixMilli(n.RecordTime)))
	priority, urgency, apns := "normal", "normal", "5"
	if n.High {
		priority, urgency, apns = "high", "high", "10"
	}
	collapse := n.ID[:min(len(n.ID), 64)] // APNs: at most 64 bytes
	m := &messaging.Message{Token: token, Data: data, Notification: &messaging.Notification{Title: n.Title, Body: body},
		Android: &messaging.AndroidConfig{CollapseKey: collapse, Priority: priority, TTL: &left, Notification: &messaging.AndroidNotification{Tag: collapse}},
		APNS: &messaging.APNSConfig{Headers: map[string]string{"apns-priority": apns, "apns-collapse-id": collapse,
			"apns-expiration": strconv.FormatInt(now.Add(left).Unix(), 10)}},
		Webpush: &messaging.WebpushConfig{Headers: map[string]string{"Urgency": urgency, "TTL": strconv.Itoa(int(left.Seconds()))},
			Notification: &messaging.WebpushNotification{Title: n.Title, Body: body, Icon: n.Icon, Badge: n.Badge, Tag: collapse}}}
	if n.Link != "" {
		m.Webpush.FCMOptions = &messaging.WebpushFCMOptions{Link: n.Link}
	}
	return m
}

// own are the members of data that every push has.
var own = []string{"id", "type", "event", "timestamp"}

// fit removes the producer's data, largest first, and then cuts the body, until the message is within FCM's bound.
func fit(title, body string, data map[string]string) string {
	size := func() int {
		n := 2 * (len(title) + len(body)) // they stand in webpush as well
		for k, v := range data {
			n += len(k) + len(v)
		}
		return n
	}
	names := slices.SortedFunc(maps.Keys(data), func(a, b string) int { return len(data[b]) - len(data[a]) })
	for _, name := range names {
		if size() <= maxPayload {
			return body
		}
		if !slices.Contains(own, name) {
			delete(data, name)
		}
	}
	if over := size() - maxPayload; over > 0 {
		body = body[:max(0, len(body)-over/2-4)]
		for !utf8.ValidString(body) {
			body = body[:len(body)-1]
		}
		body += "…"
	}
	return body
}

// probe is a message that is good for any token: where FCM refuses it, the token is at fault.
func probe(token string) *messaging.Message {
	return &messaging.Message{Token: token, Data: map[string]string{"event": "probe"}}
}
