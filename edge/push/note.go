package push

import (
	"encoding/json"
	"net/url"
	"unicode/utf8"

	"github.com/nexus/nexus/topics"
)

// maxBody bounds a chat message's body in a push, in characters.
const maxBody = 120

// NoteOf makes a note of an event that may be pushed, and names the user it is for; ok is false for all others. The
// matrix is documented in docs/push.md.
func NoteOf(e *topics.Event) (user string, n Note, ok bool) {
	if !e.Kind().Pushed {
		return "", Note{}, false
	}
	n = Note{ID: e.EventID(), Event: e.Type, RecordTime: e.Time}
	switch {
	case e.Type == topics.TypeNotification && e.Audience.Kind == topics.User:
		v := topics.ReadNotification(e)
		n.Title, n.Body, n.Icon, n.Badge, n.Data, n.Link = v.Title, v.Body, v.Icon, v.Badge, v.Data, linkOf(v.Data)
		n.High, n.Type = v.Priority == topics.PriorityHigh, v.Type
		return e.Audience.A, n, true
	case e.Type == topics.TypeMessage:
		v := topics.ReadMessage(e)
		if v.SenderID == v.ReceiverID {
			return "", n, false
		}
		n.Title, n.Body, n.Type = "New message", cut(v.Content, maxBody), topics.NotificationMessage
		if v.Encrypted != nil {
			n.Body = "You have a new encrypted message"
		}
		n.High, n.Data = true, v.SenderData()
		return v.ReceiverID, n, true
	}
	return "", n, false
}

// linkOf is where a click leads: the producer's data.link or data.url, if it is an https URL.
func linkOf(data json.RawMessage) string {
	var members map[string]json.RawMessage
	if json.Unmarshal(data, &members) != nil {
		return ""
	}
	for _, name := range []string{"link", "url"} {
		var text string
		if json.Unmarshal(members[name], &text) != nil {
			continue
		}
		if u, err := url.Parse(text); err == nil && u.Scheme == "https" && u.Host != "" {
			return text
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
