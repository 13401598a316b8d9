package edge

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// A command whose data is not what it must be is refused with the names of the members concerned, those that were meant
// among them; what is more than needed is ignored; no content is repeated.
func TestCommandsNameTheirMembers(t *testing.T) {
	for _, tc := range []struct {
		data string
		into payload
		want string // part of the error; empty: none
	}{
		{`{"channels":["a"]}`, &subscription{}, ""},
		{`{"channels":[]}`, &subscription{}, ""},
		{`{"channels":["a"],"channel":"b","later":1}`, &subscription{}, ""},
		{`{"channel":"x"}`, &subscription{}, `: missing or empty is "channels"; not known is "channel"`},
		{`{}`, &subscription{}, `: missing or empty is "channels"`},
		{`{"channels":null}`, &subscription{}, `: missing or empty is "channels"`},
		{`{"channels":"x"}`, &subscription{}, `: "channels" has another kind of value`},
		{`{"channels":[7]}`, &subscription{}, `: "channels" has another kind of value`},
		{`{"d":1,"c":1,"b":1,"a":1}`, &subscription{}, `not known is "a", "b", "c"`},
		{`["a"]`, &subscription{}, `must be like {}`},
		{`null`, &subscription{}, `must be like {}`},
		{``, &subscription{}, `must be like {}`},
		{`{"receiverId":"bob","content":"x"}`, &draft{}, ""},
		{`{"receiverId":"bob","encrypted":{"a":1},"extra":1}`, &draft{}, ""},
		{`{"to":"bob","content":"x"}`, &draft{}, `: missing or empty is "receiverId"; not known is "to"`},
		{`{"receiverId":"bob","text":"x","clientMessageId":"1"}`, &draft{}, `: missing or empty is "content"; not known is "text"`},
		{`{"receiverId":"bob","content":7}`, &draft{}, `: "content" has another kind of value`},
		{`{"receiverId":"bob","typing":true}`, &typist{}, `: missing or empty is "isTyping"; not known is "typing"`},
		{`{"isTyping":false}`, &typist{}, `: missing or empty is "receiverId"`},
		{`{"receiverId":"bob","isTyping":false}`, &typist{}, ""},
		{`{"id":"1"}`, &receipt{}, `: missing or empty is "messageId"; not known is "id"`},
		{`{"messageId":"1","upTo":true}`, &receipt{}, ""},
		{`{"messageId":"1","upTo":"yes"}`, &receipt{}, `: "upTo" has another kind of value`},
		{`{"jwt":"1"}`, &renewal{}, `: missing or empty is "token"; not known is "jwt"`},
		{`{"secret words, not a name":1,"` + strings.Repeat("s3cret", 8) + `":2}`, &renewal{}, `: missing or empty is "token"`},
	} {
		err := read(command{event: "e", data: json.RawMessage(tc.data)}, tc.into, `{}`)
		switch {
		case (err == nil) != (tc.want == ""):
			t.Errorf("%s: %v, want %q", tc.data, err, tc.want)
		case err == nil:
		case err.Code != apierr.CodeInvalidPayload || !strings.HasPrefix(err.Message, `the data of "e" must be like {}`) || !strings.HasSuffix(err.Message, tc.want):
			t.Errorf("%s: %v, want …%s", tc.data, err, tc.want)
		case strings.Contains(err.Message, "s3cret") || strings.Contains(err.Message, "secret"):
			t.Errorf("%s: contents are repeated: %v", tc.data, err)
		}
	}
}

// What an error says of refused channels is bounded.
func TestRefusedChannelsAreNamed(t *testing.T) {
	if got := tellRefused([]refusal{{"a b", apierr.CodeInvalidPayload}, {"news", apierr.CodeForbidden}}); got != `channels were refused: "a b" (invalid_payload), "news" (forbidden)` {
		t.Error(got)
	}
	if got := tellRefused(make([]refusal, 128)); !strings.HasSuffix(got, " and 118 more") {
		t.Error(got)
	}
}

// A token that allows fewer channels than the one before ends the other subscriptions, and the client is told.
func TestNarrowerTokenEndsSubscriptions(t *testing.T) {
	m := newMetrics(nil, nil)
	e := &Edge{hub: newHub(m.sent), slots: newSlots(slotOptions{}), o: Options{Revoked: func(Identity) bool { return false },
		Verify: func(token string) (Identity, error) {
			return Identity{User: "a", Channels: strings.Split(token, ",")}, nil
		}}}
	s := member("a", topics.Dashboard)
	s.m = m
	s.identity.Store(&Identity{User: "a"})
	e.hub.join(s, func() {})
	for _, name := range []string{"news", "board", "staff"} {
		e.hub.subscribe(s, name)
	}
	e.authenticate(s, command{event: "authenticate", data: json.RawMessage(`{"token":"news,board"}`), ack: "1"})
	e.authenticate(s, command{event: "authenticate", data: json.RawMessage(`{"token":"news"}`)})
	e.authenticate(s, command{event: "authenticate", data: json.RawMessage(`{"token":"news"}`), ack: "2"})
	if now := e.hub.channelsOf(s); !slices.Equal(now, []string{"news"}) {
		t.Errorf("the session still has %q", now)
	}
	texts := got(t, s)
	if len(texts) != 3 || !strings.Contains(texts[0], `"refused":[{"channel":"staff","code":"forbidden"}]`) ||
		!strings.Contains(texts[1], `channels were refused: \"board\" (forbidden)`) || strings.Contains(texts[2], "refused") {
		t.Errorf("the client got %q", texts)
	}
}
