package push

import (
	"cmp"
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
	case e.Type == topics.TypeNotification && e.Audience.Kind == topics.User:
		n.Title, n.Body, n.Icon, n.Badge = e.Body.Text("title"), e.Body.Text("body"), e.Body.Text("icon"), e.Body.Text("badge")
		n.High, n.NotificationT = e.Body.Text("priority") == "high", e.Body.Text("type")
		n.Data = stringsOf(e.Body.Raw("data"))
		n.Link = linkOf(n.Data)
		return e.Audience.A, n, true
	case e.Type == topics.TypeMessage:
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
	for _, name := range slices.Sorted(maps.Keys(members)) {
		raw := members[name]
		var s string
		if json.Unmarshal(raw, &s) != nil || raw[0] != '"' {
			s = string(raw)
		}
		if as := allowedName(name); as != name {
			for members[as] != nil { // both are kept
				as = "_" + as
			}
			name = as
		}
		out[name] = s
	}
	return out
}

// allowedName keeps clear of the names that FCM reserves (FCM HTTP v1, "data") and of our own.
func allowedName(name string) string {
	lower := strings.ToLower(name)
	if lower == "from" || lower == "message_type" || lower == "notification" || strings.HasPrefix(lower, "google") || strings.HasPrefix(lower, "gcm") ||
		strings.HasPrefix(lower, ownPrefix) {
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

// maxMessage is what FCM takes of a message, in bytes (FCM, "Message types"). FCM does not say what it counts, so all that is
// sent counts here: names, escapes, and what stands there again for the web and for Apple's devices.
const maxMessage = 4096

// usualToken is what is kept free for a device's token while a note is made; FCM's have some 200 bytes.
const usualToken = 512

// ownPrefix begins the name of a member of data that is ours where the producer has one of the plain name.
const ownPrefix = "nexus_"

// message makes the FCM message for a device. A repeat has the same collapse id and tag, so that a device shows one.
func (n Note) message(token string, now time.Time, ttl time.Duration) *messaging.Message {
	left := max(time.Second, ttl-now.Sub(time.UnixMilli(n.RecordTime)))
	return n.within(maxMessage, func(n Note) *messaging.Message { return n.build(token, now, left) })
}

// fit is the note as far as a message has room for it: more need not be kept.
func (n Note) fit() Note {
	n.within(maxMessage, func(some Note) *messaging.Message {
		n = some
		return some.build(strings.Repeat("t", usualToken), time.UnixMilli(n.RecordTime), 24*time.Hour)
	})
	return n
}

// build makes the message as it is.
func (n Note) build(token string, now time.Time, left time.Duration) *messaging.Message {
	data := maps.Clone(n.Data)
	if data == nil {
		data = make(map[string]string)
	}
	for name, v := range map[string]string{"id": n.ID, "type": n.NotificationT, "event": n.Event, "timestamp": topics.FormatTime(n.RecordTime)} {
		if _, producers := data[name]; producers {
			name = ownPrefix + name
		}
		data[name] = v
	}
	priority, urgency, apns := "normal", "normal", "5"
	if n.High {
		priority, urgency, apns = "high", "high", "10"
	}
	collapse := n.ID[:min(len(n.ID), 64)] // APNs: at most 64 bytes
	m := &messaging.Message{Token: token, Data: data, Notification: &messaging.Notification{Title: n.Title, Body: n.Body},
		Android: &messaging.AndroidConfig{CollapseKey: collapse, Priority: priority, TTL: &left, Notification: &messaging.AndroidNotification{Tag: collapse}},
		APNS: &messaging.APNSConfig{Headers: map[string]string{"apns-priority": apns, "apns-collapse-id": collapse,
			"apns-expiration": strconv.FormatInt(now.Add(left).Unix(), 10)}},
		Webpush: &messaging.WebpushConfig{Headers: map[string]string{"Urgency": urgency, "TTL": strconv.Itoa(int(left.Seconds()))},
			Notification: &messaging.WebpushNotification{Title: n.Title, Body: n.Body, Icon: n.Icon, Badge: n.Badge, Tag: collapse}}}
	if n.Link != "" {
		m.Webpush.FCMOptions = &messaging.WebpushFCMOptions{Link: n.Link}
	}
	return m
}

// within shortens the note until the message made of it is small enough. What goes first is what a user misses least: the
// producer's data, largest first; the body beyond what a chat message has; the pictures; the title beyond that; the link, with
// its member of data; and of the texts all but a beginning. Only a token of more than some 2000 bytes, which FCM does not
// give, can leave the message too large.
func (n Note) within(most int, build func(Note) *messaging.Message) *messaging.Message {
	m := build(n)
	n.Data = maps.Clone(n.Data)
	for _, step := range []func(over int){
		n.dropData,
		func(over int) { n.Body = shorten(n.Body, (over+1)/2, maxBody) },
		func(int) { n.Icon, n.Badge = "", "" },
		func(over int) { n.Title = shorten(n.Title, (over+1)/2, maxBody) },
		func(int) { n.Link, n.Data = "", nil },
		func(over int) { n.Body = shorten(n.Body, (over+1)/2, 30) },
		func(over int) { n.Title = shorten(n.Title, (over+1)/2, 30) },
	} {
		over := sizeOf(m) - most
		if over <= 0 {
			return m
		}
		step(over)
		m = build(n)
	}
	return m
}

// dropData removes members of data, largest first and the link's not at all, until so many bytes are gone.
func (n *Note) dropData(over int) {
	sizes := make(map[string]int, len(n.Data))
	for name, v := range n.Data {
		sizes[name] = jsonSize(name) + jsonSize(v) + len(`:,`)
	}
	names := slices.SortedFunc(maps.Keys(sizes), func(a, b string) int { return cmp.Or(cmp.Compare(sizes[b], sizes[a]), cmp.Compare(a, b)) })
	for _, name := range names {
		if over <= 0 {
			return
		}
		if n.Link != "" && n.Data[name] == n.Link {
			continue
		}
		over -= sizes[name]
		delete(n.Data, name)
	}
}

// shorten takes so many bytes, as JSON has them, off a text's end, but leaves the first characters, least of them.
func shorten(text string, over, least int) string {
	most := jsonSize(text) - over - jsonSize("…")
	size, characters := len(`""`), 0
	for i, r := range text {
		if size += jsonSize(string(r)) - len(`""`); characters >= least && size > most {
			return text[:i] + "…"
		}
		characters++
	}
	return text
}

// sizeOf is the size of the request that the Firebase SDK makes of a message.
func sizeOf(m *messaging.Message) int { return len(`{"message":}`) + jsonSize(m) }

func jsonSize(v any) int {
	b, err := json.Marshal(v)
	if err != nil { // a message of texts always encodes
		return 0
	}
	return len(b)
}

// probe is a message that is good for any token: where FCM refuses it, the token is at fault.
func probe(token string) *messaging.Message {
	return &messaging.Message{Token: token, Data: map[string]string{"event": "probe"}}
}
