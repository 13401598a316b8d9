package main

import (
	"encoding/json"
	"flag"
	"io"
	"reflect"
	"strings"
	"testing"
)

// What nexus publish sends is made of the table of kinds: each member by its flag, the text also by --text.
func TestPublications(t *testing.T) {
	for _, tc := range []struct {
		args []string // of which the first is what is published
		path string
		body map[string]any // nil: refused
		says string
	}{
		{[]string{"notification", "--user", "a", "--title", "T", "--body", "B", "--type", "SYSTEM", "--icon", "I", "--data", `{"x":1}`},
			"/notifications",
			map[string]any{"userId": "a", "title": "T", "body": "B", "type": "SYSTEM", "icon": "I", "data": map[string]any{"x": 1.0}}, ""},
		{[]string{"notification", "--channel", "c", "--title", "T", "--text", "B", "--type", "SYSTEM"}, "/notifications",
			map[string]any{"channel": "c", "title": "T", "body": "B", "type": "SYSTEM"}, ""},
		{[]string{"activity", "--user", "a", "--type", "x", "--text", "M"}, "/activities", map[string]any{"userId": "a", "type": "x",
			"message": "M"}, ""},
		{[]string{"announcement", "--title", "T"}, "/announcements", map[string]any{"title": "T", "body": ""}, ""},
		{[]string{"message", "--to", "b", "--text", "hi", "--client-message-id", "1"}, "/messages",
			map[string]any{"receiverId": "b", "content": "hi", "clientMessageId": "1"}, ""},
		{[]string{"message", "--to", "b", "--encrypted", `["c"]`}, "/messages", map[string]any{"receiverId": "b", "encrypted": []any{"c"}}, ""},
		{[]string{"announcement", "--title", "T", "--user", "a"}, "", nil, "--user"}, // it would go to everybody
		{[]string{"announcement", "--title", "T", "--channel", "c"}, "", nil, "--channel"},
		{[]string{"message", "--to", "b", "--text", "hi", "--title", "T"}, "", nil, "--title does not go with message"},
		{[]string{"activity", "--user", "a", "--data", "{"}, "", nil, "--data: must be JSON"},
	} {
		f := flag.NewFlagSet("publish", flag.ContinueOnError)
		f.SetOutput(io.Discard)
		user, channel, to, words := f.String("user", "", ""), f.String("channel", "", ""), f.String("to", "", ""), f.String("text", "", "")
		list := publications()
		given := memberFlags(f, list)
		if err := f.Parse(tc.args[1:]); err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			if p.name != tc.args[0] {
				continue
			}
			whom := audience{*user, *channel}
			err := p.check(given, whom)
			var b []byte
			if err == nil {
				b, err = p.body(given, *words, *to, whom)
			}
			if tc.body == nil {
				if err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("%v: %s, %v", tc.args, b, err)
				}
				continue
			}
			var got map[string]any
			if err != nil || json.Unmarshal(b, &got) != nil || p.path != tc.path || !reflect.DeepEqual(got, tc.body) {
				t.Errorf("%v: %s %s, %v", tc.args, p.path, b, err)
			}
		}
	}
}
