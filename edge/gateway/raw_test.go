package gateway

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/edge/wire/wiretest"
	"github.com/nexus/nexus/internal/apierr"
)

func TestParseRaw(t *testing.T) {
	for text, want := range map[string]string{ // event, data, ack
		`{"event":"e"}`:                                         "e||",
		`{"event":"e","data":{"a":1},"id":7}`:                   `e|{"a":1}|7`,
		` {"id":"x","data":[1],"event":"","more":{}} `:          `|[1]|"x"`,
		`{"event":"e","id":"` + strings.Repeat("x", 254) + `"}`: `e||"` + strings.Repeat("x", 254) + `"`,
		`{"event":"e","id":"` + strings.Repeat("x", 255) + `"}`: "refused",
		`{"event":"e","id":{}}`:                                 "refused",
		`{"event":"e","id":[1]}`:                                "refused",
		`{"event":7}`:                                           "refused",
		`{"event":null}`:                                        "refused",
		`{"data":{}}`:                                           "refused",
		`[]`:                                                    "refused",
		`null`:                                                  "refused",
		`{"event":"e"}x`:                                        "refused",
		``:                                                      "refused",
	} {
		c, err := parseRaw([]byte(text))
		got := c.event + "|" + string(c.data) + "|" + c.ack
		if err != nil {
			got = "refused"
		}
		if got != want || err != nil && err.Code != apierr.CodeBadFrame {
			t.Errorf("%s: %s %v, want %s", text, got, err, want)
		}
	}
}

// What is taken is what the frame says, and the acknowledgement repeats its id as it was; what is refused has a reason.
func FuzzParseRaw(f *testing.F) {
	for _, seed := range []string{`{"event":"subscribe","data":{"channels":["a"]},"id":1}`, `{"event":null}`, `{"event":"e","id":"\u2028"}`,
		`{"event":"e","id":{}}`, `{"event":"e","id":-1.5e3}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !utf8.Valid(b) {
			return // such a frame ends the connection
		}
		var members map[string]any
		object := json.Unmarshal(b, &members) == nil && members != nil
		folded := make(map[string]int)
		for name := range members {
			folded[strings.ToLower(name)]++ // encoding/json takes a member in another case as well
		}
		plain := folded["event"] <= 1 && folded["data"] <= 1 && folded["id"] <= 1
		c, err := parseRaw(b)
		if err != nil {
			_, named := members["event"].(string)
			id, _ := json.Marshal(members["id"])
			_, isObject := members["id"].(map[string]any)
			_, isArray := members["id"].([]any)
			if object && named && plain && !isObject && !isArray && len(id) <= maxAck/6 { // an escape has up to six bytes
				t.Errorf("%s was refused: %v", b, err)
			}
			return
		}
		switch {
		case !object:
			t.Fatalf("%s was taken", b)
		case len(c.ack) > maxAck:
			t.Errorf("an id of %d bytes", len(c.ack))
		}
		if event, ok := members["event"]; ok && plain && event != c.event {
			t.Errorf("%s: event %q", b, c.event)
		}
		if c.ack == "" {
			return
		}
		out := &wiretest.Recorder{}
		(&client{Session: &session.Session{Out: out}}).answer(&c, []byte(`{}`))
		texts := out.Texts()
		var answer map[string]any
		if err := json.Unmarshal([]byte(texts[0]), &answer); err != nil {
			t.Fatalf("%s is answered %s: %v", b, texts[0], err)
		}
		if id, ok := members["id"]; ok && plain && !reflect.DeepEqual(answer["id"], id) || len(answer) != 3 {
			t.Errorf("%s is answered %s", b, texts[0])
		}
	})
}
