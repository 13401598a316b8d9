package contract

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// tree is a JSON object whose members keep their order: documents are for people too, and must come out the same each time.
type tree []member

type member struct {
	name  string
	value any // a tree, a list, or what encoding/json takes
}

type list []any

// object makes a tree of name and value pairs, leaving out what is nil, an empty text, an empty tree or an empty list.
func object(pairs ...any) tree {
	t := tree{}
	for i := 0; i+1 < len(pairs); i += 2 {
		t = t.with(pairs[i].(string), pairs[i+1])
	}
	return t
}

// with adds a member, unless there is nothing in it.
func (t tree) with(name string, value any) tree {
	switch v := value.(type) {
	case nil:
		return t
	case string:
		if v == "" {
			return t
		}
	case tree:
		if v == nil {
			return t
		}
	case list:
		if len(v) == 0 {
			return t
		}
	}
	return append(t, member{name, value})
}

// get finds a member; nil where there is none.
func (t tree) get(name string) any {
	for _, m := range t {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

func texts(from []string) list {
	l := make(list, len(from))
	for i, s := range from {
		l[i] = s
	}
	return l
}

// MarshalJSON writes the members in their order.
func (t tree) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range t {
		if i > 0 {
			b.WriteByte(',')
		}
		v, err := encode(m.value)
		if err != nil {
			return nil, fmt.Errorf("member %s: %w", m.name, err)
		}
		name, err := encode(m.name)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// encode is JSON with <, > and & as they are.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// indented is JSON for people.
func indented(v any) []byte {
	compact, err := encode(v)
	if err != nil {
		panic(err) // a mistake in this package: make contracts and its tests find it
	}
	var b bytes.Buffer
	if err := json.Indent(&b, compact, "", "  "); err != nil {
		panic(err)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// yaml writes a tree as YAML 1.2 in block style. Texts that could be read as something else stand in JSON's quotes, which are YAML's.
func yaml(t tree) []byte {
	var b bytes.Buffer
	writeYAML(&b, t, "")
	return b.Bytes()
}

func writeYAML(b *bytes.Buffer, v any, indent string) {
	switch v := v.(type) {
	case tree:
		for i, m := range v {
			if i > 0 {
				b.WriteString(indent)
			}
			b.WriteString(scalar(m.name) + ":")
			writeBelow(b, m.value, indent)
		}
	case list:
		for i, item := range v {
			if i > 0 {
				b.WriteString(indent)
			}
			b.WriteString("-")
			if block(item) {
				b.WriteString(" ")
				writeYAML(b, item, indent+"  ")
				continue
			}
			b.WriteString(" " + scalar(item) + "\n")
		}
	}
}

// writeBelow writes the value of a member: on its line, or in lines of its own.
func writeBelow(b *bytes.Buffer, v any, indent string) {
	if !block(v) {
		b.WriteString(" " + scalar(v) + "\n")
		return
	}
	b.WriteString("\n" + indent + "  ")
	writeYAML(b, v, indent+"  ")
}

// block tells what does not fit on a line.
func block(v any) bool {
	switch v := v.(type) {
	case tree:
		return len(v) > 0
	case list:
		return len(v) > 0
	}
	return false
}

// plain are texts that YAML reads as they stand.
var plain = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9 ./_-]*[A-Za-z0-9/_.]$`)

func scalar(v any) string {
	if s, ok := v.(string); ok && plain.MatchString(s) && !strings.Contains("|true|false|null|yes|no|on|off|", "|"+strings.ToLower(s)+"|") {
		return s
	}
	b, err := encode(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// parse reads JSON into trees and lists.
func parse(b []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return parseValue(d)
}

func parseValue(d *json.Decoder) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		t := tree{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			v, err := parseValue(d)
			if err != nil {
				return nil, err
			}
			t = append(t, member{name.(string), v})
		}
		_, err := d.Token()
		return t, err
	case json.Delim('['):
		l := list{}
		for d.More() {
			v, err := parseValue(d)
			if err != nil {
				return nil, err
			}
			l = append(l, v)
		}
		_, err := d.Token()
		return l, err
	}
	return token, nil
}
