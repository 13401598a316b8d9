package contract

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// marked finds a part of a document that is made: what stands between <!-- made: name --> and <!-- end -->.
var marked = regexp.MustCompile(`(?s)<!-- made: ([a-z-]+) -->\n.*?<!-- end -->`)

// protocolParts are the made parts of docs/protocol.md.
func protocolParts() map[string]string {
	parts := map[string]string{"codes": codesTable(), "closes": closesTable()}
	for _, ns := range topics.Namespaces() {
		parts[short(ns)+"-frames"], parts[short(ns)+"-commands"] = framesText(ns), commandsText(ns)
	}
	return parts
}

// fill puts the made parts into the text of a document that people have written around them.
func fill(document string, written []byte, parts map[string]string) (filled []byte, err error) {
	filled = marked.ReplaceAllFunc(written, func(part []byte) []byte {
		name := string(marked.FindSubmatch(part)[1])
		text, ok := parts[name]
		if !ok {
			err = fmt.Errorf("%s: nothing is made under the name %q", document, name)
		}
		delete(parts, name)
		return []byte("<!-- made: " + name + " -->\n" + text + "<!-- end -->")
	})
	for name := range parts {
		err = fmt.Errorf("%s has no place for %q", document, name)
	}
	return filled, err
}

// table writes rows as Markdown.
func table(head []string, rows [][]string) string {
	var b strings.Builder
	write := func(cells []string) {
		for _, c := range cells {
			b.WriteString("| " + strings.ReplaceAll(c, "|", "\\|") + " ")
		}
		b.WriteString("|\n")
	}
	write(head)
	b.WriteString(strings.Repeat("|---", len(head)) + "|\n")
	for _, r := range rows {
		write(r)
	}
	return b.String()
}

func codesTable() string {
	var rows [][]string
	for _, c := range apierr.Codes() {
		rows = append(rows, []string{code(c.Code), fmt.Sprint(c.Status), c.Doc, c.Do})
	}
	return table([]string{"code", "HTTP", "what has happened", "what to do"}, rows)
}

func closesTable() string {
	var rows [][]string
	for _, c := range apierr.Closes() {
		rows = append(rows, []string{fmt.Sprint(c.Code), c.Doc, c.Do})
	}
	return table([]string{"code", "why", "what to do"}, rows)
}

func code(s string) string { return "`" + s + "`" }

func framesText(ns topics.Namespace) string {
	var b bytes.Buffer
	for _, s := range frames(ns) {
		fmt.Fprintf(&b, "\n### `%s`\n\n%s.", s.frame.Event, sentence(s.frame.Doc))
		if s.frame.Alias != "" {
			fmt.Fprintf(&b, " It is sent a second time as `%s`, unless the client asks for `events=canonical`.", s.frame.Alias)
		}
		if s.kind != nil && s.kind.Feed {
			b.WriteString(" It is replayed to a client that reconnects.")
		}
		fmt.Fprintf(&b, "\n\n    %s\n\n%s", rawFrame(s.frame.Event, Example(s.fields())), fieldsTable(s.fields()))
	}
	return b.String()
}

func commandsText(ns topics.Namespace) string {
	var b bytes.Buffer
	for _, c := range commands(ns) {
		fmt.Fprintf(&b, "\n### `%s`\n\n%s.\n\n    %s\n\n%s", c.Event, sentence(c.Doc), rawFrame(c.Event, []byte(c.Example)),
			fieldsTable(c.Fields))
		fmt.Fprintf(&b, "\nAcknowledged with:\n\n    %s\n\n%s", Example(c.Answer), fieldsTable(c.Answer))
	}
	return b.String()
}

func fieldsTable(fields []topics.Field) string {
	var rows [][]string
	for _, f := range fields {
		always := ""
		if f.Required {
			always = "always"
		}
		rows = append(rows, []string{code(f.Name), valueText(f), always, f.Doc})
	}
	return table([]string{"member", "value", "", "meaning"}, rows)
}

// valueText says in words what a member may be.
func valueText(f topics.Field) string {
	text := f.Kind.String()
	switch {
	case f.Kind == topics.AnArray && len(f.Items) == 0:
		text = "an array of strings"
	case len(f.Enum) > 0:
		text = "one of `" + strings.Join(f.Enum, "`, `") + "`"
	case f.Format == topics.UserID:
		text = "a user id"
	case f.Format == topics.ChannelName:
		text = "a channel's name"
	case f.Format == topics.Timestamp:
		text = "a timestamp"
	case len(f.Items) > 0:
		names := make([]string, len(f.Items))
		for i, item := range f.Items {
			names[i] = code(item.Name)
		}
		text = "an array of objects with " + strings.Join(names, ", ")
	}
	for _, b := range []struct {
		topics.Bounds
		unit string
	}{{f.Bytes, "bytes"}, {f.Chars, "characters"}} {
		switch {
		case b.Max > 0:
			text += fmt.Sprintf(", %d to %d %s", b.Min, b.Max, b.unit)
		case b.Min > 0:
			text += ", not empty"
		}
	}
	return text
}
