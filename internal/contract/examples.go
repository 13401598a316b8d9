package contract

import (
	"encoding/json"

	"github.com/nexus/nexus/topics"
)

// Example is the value of a record, a frame or a command of these fields, as it may be: with what it must have.
func Example(fields []topics.Field) json.RawMessage { return example(fields, false) }

// example is an object with these members as it may be sent. Of two that exclude each other the first is there; those that need not
// be there are left out unless all is set.
func example(fields []topics.Field, all bool) json.RawMessage {
	var t tree
	left := map[string]bool{}
	for _, f := range fields {
		if left[f.Name] || !f.Required && !all && f.Or == "" {
			continue
		}
		left[f.Or] = true
		t = append(t, member{f.Name, value(f)})
	}
	b, err := encode(t)
	if err != nil {
		panic(err) // an example in the vocabulary is no JSON: the tests of this package find it
	}
	return b
}

// value is a member's value as it may be.
func value(f topics.Field) any {
	switch {
	case f.Example != "":
		return json.RawMessage(f.Example)
	case len(f.Enum) > 0:
		return f.Enum[0]
	case f.Format == topics.UserID:
		return "alice"
	case f.Format == topics.ChannelName:
		return "referrals"
	case f.Format == topics.Timestamp:
		return "2025-12-01T10:00:00.000Z"
	}
	switch f.Kind {
	case topics.AnObject:
		return tree{}
	case topics.ABool:
		return true
	case topics.ANumber:
		return 1
	case topics.AnArray:
		if len(f.Items) > 0 {
			return list{example(f.Items, true)}
		}
		return list{}
	}
	return "…"
}

// rawFrame is a frame of a bare client.
func rawFrame(event string, data json.RawMessage) string {
	b, err := encode(tree{{"event", event}, {"data", data}})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// rawJSON is JSON as a tree, so that YAML shows it as its own.
func rawJSON(b []byte) any {
	v, err := parse(b)
	if err != nil {
		panic(err) // an example in the vocabulary is no JSON
	}
	return v
}
