package contract

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/topics"
)

// What make contracts would write is what is committed.
func TestCommitted(t *testing.T) {
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	files, err := Files(root)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range files {
		got, err := os.ReadFile(filepath.Join(root, path))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the code says (%v); run make contracts and commit it", path, err)
		}
	}
	old, err := Stale(root, files)
	if err != nil || len(old) > 0 {
		t.Errorf("%v are made no more (%v); run make contracts and commit it", old, err)
	}
}

// Every example in the documents is one: it fits its schema.
func TestExamples(t *testing.T) {
	b, err := NewBook()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range topics.Kinds() {
		for _, all := range []bool{false, true} {
			if err := b.Record(k.Type, example(k.Fields, all)); err != nil {
				t.Error(err)
			}
		}
	}
	for _, ns := range topics.Namespaces() {
		for _, s := range frames(ns) {
			for _, all := range []bool{false, true} {
				if err := b.Frame(ns, s.frame.Event, example(s.fields(), all)); err != nil {
					t.Error(err)
				}
			}
		}
	}
	for _, c := range topics.Commands() {
		if err := b.named(commandName(c), []byte(c.Example)); err != nil {
			t.Error(err)
		}
		if err := b.Ack(c.Event, example(c.Answer, true)); err != nil {
			t.Error(err)
		}
	}
}

// What is not so is found, each by its keyword.
func TestCheck(t *testing.T) {
	b, err := NewBook()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ schema, value, says string }{
		{`{"type":"string"}`, `1`, "number where string"},
		{`{"type":["string","null"]}`, `null`, ""},
		{`{"type":"integer"}`, `1.5`, "number where integer"},
		{`{"type":"integer"}`, `2`, ""},
		{`{"type":"number"}`, `2`, ""},
		{`{"enum":["a"]}`, `"b"`, "none of"},
		{`{"const":false}`, `true`, "is not"},
		{`{"properties":{"a":{"type":"string"}}}`, `{"a":1}`, "a: number"},
		{`{"properties":{"a":{}},"additionalProperties":false}`, `{"b":1}`, "b is not declared"},
		{`{"additionalProperties":{"type":"string"}}`, `{"b":1}`, "b: number"},
		{`{"required":["a"]}`, `{}`, "a is missing"},
		{`{"required":["a"]}`, `[]`, ""},
		{`{"items":{"type":"string"}}`, `["a",1]`, "item 1"},
		{`{"prefixItems":[{"const":"a"}],"items":{"type":"number"}}`, `["a",1]`, ""},
		{`{"prefixItems":[{"const":"a"}]}`, `["b"]`, "item 0"},
		{`{"minItems":1}`, `[]`, "minItems"},
		{`{"maxItems":1}`, `[1,2]`, "maxItems"},
		{`{"minLength":2}`, `"é"`, "minLength"},
		{`{"maxLength":1}`, `"é"`, ""},
		{`{"pattern":"^[^:\\u0000-\\u001f]+$"}`, `"a:b"`, "pattern"},
		{`{"pattern":"^[^:\\u0000-\\u001f]+$"}`, `"a b"`, ""},
		{`{"minimum":1}`, `0`, "minimum"},
		{`{"maximum":1}`, `2`, "maximum"},
		{`{"oneOf":[{"type":"number"},{"minimum":1}]}`, `2`, "2 of oneOf"},
		{`{"anyOf":[{"type":"string"},{"minimum":1}]}`, `0`, "0 of anyOf"},
		{`{"uniqueItems":true}`, `[]`, "uniqueItems is none that is known"},
	} {
		var schema map[string]any
		if err := json.Unmarshal([]byte(tc.schema), &schema); err != nil {
			t.Fatal(err)
		}
		err := b.check(schema, "it", []byte(tc.value))
		if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s of %s: %v, want %q", tc.schema, tc.value, err, tc.says)
		}
	}
}

// An answer is held against the route that echo would find.
func TestAnswer(t *testing.T) {
	b, err := NewBook()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		method, path string
		status       int
		body, says   string
	}{
		{"GET", "/notifications/unread-count", 200, `{"count":1}`, ""},
		{"GET", "/api/notifications/unread-count?x=1", 200, `{"count":1}`, ""},
		{"GET", "/notifications/unread-count", 200, `{"count":1,"more":2}`, "more is not declared"},
		{"GET", "/notifications/unread-count", 418, `{}`, "no such status"},
		{"POST", "/notifications/read-all", 200, `{"count":1}`, ""},
		{"POST", "/notifications/n1/read", 200, `{"id":"n1"}`, ""},
		{"POST", "/notifications/n1/read", 404, `{"error":{"code":"not_found","message":"x"}}`, ""},
		{"POST", "/notifications/n1/read", 404, `{"error":{"code":"not_found"}}`, "message is missing"},
		{"GET", "/presence?userIds=a", 200, `{"a":{"dashboard":true,"messaging":true,"online":true,"userId":"a"}}`, ""},
		{"GET", "/presence?userIds=a", 200, `{"a":1}`, "0 of anyOf"},
		{"GET", "/nowhere", 200, `{}`, ""},
	} {
		err := b.Answer(tc.method, tc.path, tc.status, mediaJSON, []byte(tc.body))
		if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s %s %d %s: %v, want %q", tc.method, tc.path, tc.status, tc.body, err, tc.says)
		}
	}
}

// YAML reads every text as it was written.
func TestYAML(t *testing.T) {
	for _, s := range []string{"plain text", "no", "a: b", "- x", "1.0", "", "#", "tr\"ue", "~", "2025-12-01", "é", "null", "*a", "a#b", "a #b", "/path/{id}"} {
		got := scalar(s)
		quoted, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if got != s && got != string(quoted) {
			t.Errorf("%q became %s", s, got)
		}
	}
}
