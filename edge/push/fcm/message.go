package fcm

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"firebase.google.com/go/v4/messaging"

	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/topics"
)

// maxMessage is what FCM takes of a message, in bytes (FCM, "Message types"). FCM does not say what it counts, so all that is
// sent counts here: names, escapes, and what stands there again for the web and for Apple's devices.
const maxMessage = 4096

// shortText is what a long text is cut to first, in characters: what a chat message has.
const shortText = 120

// usualToken is what is kept free for a device's token while a note is made; FCM's have some 200 bytes.
const usualToken = 512

// ownPrefix begins the name of a member of data that is ours where the producer has one of the plain name.
const ownPrefix = "nexus_"

// draft is a message in the making: a note whose data is what FCM takes.
type draft struct {
	push.Note
	data map[string]string
}

func draftOf(n push.Note) draft { return draft{n, stringsOf(n.Data)} }

// message makes the FCM message for a device, for which the event is worth left more. A repeat has the same collapse id and tag,
// so that a device shows one.
func message(n push.Note, token string, now time.Time, left time.Duration) *messaging.Message {
	_, m := draftOf(n).within(maxMessage, func(d draft) *messaging.Message { return d.build(token, now, left) })
	return m
}

// Fit is the note as far as a message has room for it (push.Channel).
func (c *Channel) Fit(n push.Note) push.Note { return fit(n) }

func fit(n push.Note) push.Note {
	d, _ := draftOf(n).within(maxMessage, func(d draft) *messaging.Message {
		return d.build(strings.Repeat("t", usualToken), time.UnixMilli(n.RecordTime), 24*time.Hour)
	})
	d.Data = nil
	if len(d.data) > 0 {
		d.Data, _ = json.Marshal(d.data) // texts always encode
	}
	return d.Note
}

// build makes the message as it is.
func (d draft) build(token string, now time.Time, left time.Duration) *messaging.Message {
	data := maps.Clone(d.data)
	if data == nil {
		data = make(map[string]string)
	}
	for name, v := range map[string]string{"id": d.ID, "type": d.Type, "event": d.Event, "timestamp": topics.FormatTime(d.RecordTime)} {
		if _, theirs := data[name]; theirs {
			name = ownPrefix + name
		}
		data[name] = v
	}
	priority, urgency, apns := "normal", "normal", "5"
	if d.High {
		priority, urgency, apns = "high", "high", "10"
	}
	collapse := d.ID[:min(len(d.ID), 64)] // APNs: at most 64 bytes
	m := &messaging.Message{Token: token, Data: data, Notification: &messaging.Notification{Title: d.Title, Body: d.Body},
		Android: &messaging.AndroidConfig{CollapseKey: collapse, Priority: priority, TTL: &left,
			Notification: &messaging.AndroidNotification{Tag: collapse}},
		APNS: &messaging.APNSConfig{Headers: map[string]string{"apns-priority": apns, "apns-collapse-id": collapse,
			"apns-expiration": strconv.FormatInt(now.Add(left).Unix(), 10)}},
		Webpush: &messaging.WebpushConfig{Headers: map[string]string{"Urgency": urgency, "TTL": strconv.Itoa(int(left.Seconds()))},
			Notification: &messaging.WebpushNotification{Title: d.Title, Body: d.Body, Icon: d.Icon, Badge: d.Badge, Tag: collapse}}}
	if d.Link != "" {
		m.Webpush.FCMOptions = &messaging.WebpushFCMOptions{Link: d.Link}
	}
	return m
}

// within shortens the note until the message made of it is small enough. What goes first is what a user misses least: the
// producer's data, largest first; the body beyond what a chat message has; the pictures; the title beyond that; the link, with
// its member of data; and of the texts all but a beginning. Only a token of more than some 2000 bytes, which FCM does not
// give, can leave the message too large.
func (d draft) within(most int, build func(draft) *messaging.Message) (draft, *messaging.Message) {
	m := build(d)
	d.data = maps.Clone(d.data)
	for _, step := range []func(over int){
		d.dropData,
		func(over int) { d.Body = shorten(d.Body, (over+1)/2, shortText) },
		func(int) { d.Icon, d.Badge = "", "" },
		func(over int) { d.Title = shorten(d.Title, (over+1)/2, shortText) },
		func(int) { d.Link, d.data = "", nil },
		func(over int) { d.Body = shorten(d.Body, (over+1)/2, 30) },
		func(over int) { d.Title = shorten(d.Title, (over+1)/2, 30) },
	} {
		over := sizeOf(m) - most
		if over <= 0 {
			return d, m
		}
		step(over)
		m = build(d)
	}
	return d, m
}

// dropData removes members of data, largest first and the link's not at all, until so many bytes are gone.
func (d *draft) dropData(over int) {
	sizes := make(map[string]int, len(d.data))
	for name, v := range d.data {
		sizes[name] = jsonSize(name) + jsonSize(v) + len(`:,`)
	}
	names := slices.SortedFunc(maps.Keys(sizes), func(a, b string) int { return cmp.Or(cmp.Compare(sizes[b], sizes[a]), cmp.Compare(a, b)) })
	for _, name := range names {
		if over <= 0 {
			return
		}
		if d.Link != "" && d.data[name] == d.Link {
			continue
		}
		over -= sizes[name]
		delete(d.data, name)
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
	if lower == "from" || lower == "message_type" || lower == "notification" || strings.HasPrefix(lower, "google") ||
		strings.HasPrefix(lower, "gcm") ||
		strings.HasPrefix(lower, ownPrefix) {
		return "_" + name
	}
	return name
}
