package contract

import (
	"fmt"
	"strings"

	"github.com/nexus/nexus/topics"
)

// eventsParts are the made parts of docs/events.md.
func eventsParts() map[string]string {
	return map[string]string{"services": servicesTable(), "fields": fieldsTables(), "senders": sendersTable()}
}

// servicesTable lists what product services append: by topic and key.
func servicesTable() string {
	var rows [][]string
	for _, s := range topics.Specs() {
		for _, k := range topics.Kinds() {
			for _, in := range k.In {
				if k.Ingest == "" || in.Topic != s.Topic {
					continue
				}
				typ := code(k.Type)
				if in.Default {
					typ += " (where `ce_type` is left out)"
				}
				rows = append(rows, []string{code(string(s.Topic)), keysText(in.Keys), typ, membersText(k)})
			}
		}
	}
	return table([]string{"topic", "key", "`ce_type`", "value"}, rows)
}

func keysText(keys []topics.AudienceKind) string {
	texts := make([]string, len(keys))
	for i, k := range keys {
		texts[i] = code(k.Shape())
	}
	return strings.Join(texts, ", ")
}

// membersText names a kind's members, those that must be there first.
func membersText(k *topics.Kind) string {
	var required, optional []string
	for _, f := range k.Fields {
		if f.Required {
			required = append(required, code(f.Name))
		} else {
			optional = append(optional, code(f.Name))
		}
	}
	return strings.Join(required, ", ") + "; optional " + strings.Join(optional, ", ")
}

// fieldsTables tell every member of what product services append.
func fieldsTables() string {
	var b strings.Builder
	for _, k := range topics.Kinds() {
		if k.Ingest == "" {
			continue
		}
		fmt.Fprintf(&b, "\n`%s`: %s.\n\n", k.Type, k.Doc)
		var rows [][]string
		for _, f := range k.Fields {
			rows = append(rows, []string{code(f.Name), f.Kind.String() + boundsText(f), f.Doc})
		}
		b.WriteString(table([]string{"member", "is", "meaning"}, rows))
	}
	return b.String() + "\n"
}

// boundsText is what bounds a text, for people.
func boundsText(f topics.Field) string {
	of := func(b topics.Bounds, unit string) string {
		switch {
		case b.Max > 0:
			return fmt.Sprintf(" of %d to %d %s", b.Min, b.Max, unit)
		case b.Min > 0:
			return ", not empty"
		}
		return ""
	}
	text := of(f.Bytes, "bytes") + of(f.Chars, "characters")
	if len(f.Enum) > 0 {
		text += ": " + strings.Join(f.Enum, ", ")
	}
	switch f.Format {
	case topics.Timestamp:
		text += ": a timestamp"
	case topics.UserID:
		text += ": a user id"
	case topics.ChannelName:
		text += ": a channel's name"
	}
	return text
}

// sendersTable lists whom a record may speak for.
func sendersTable() string {
	types := make(map[string][]string)
	var order []string
	for _, k := range topics.Kinds() {
		if k.Sender == nil {
			continue
		}
		if types[k.Sender.Doc] == nil {
			order = append(order, k.Sender.Doc)
		}
		types[k.Sender.Doc] = append(types[k.Sender.Doc], code(k.Type))
	}
	var rows [][]string
	for _, doc := range order {
		rows = append(rows, []string{strings.Join(types[doc], ", "), code(doc)})
	}
	return table([]string{"`ce_type`", "`ce_source`"}, rows)
}
