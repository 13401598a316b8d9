package contract

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// dialect is the version of JSON Schema that the documents speak.
const dialect = "https://json-schema.org/draft/2020-12/schema"

// What texts of a format look like. They bound less than the code does where bytes are counted: JSON Schema counts characters.
const (
	patternUser    = "^[^:\\u0000-\\u001f\\u007f-\\u009f]+$"
	patternChannel = "^[A-Za-z0-9_.:-]+$"
	patternTime    = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)

// fieldSchema is what a member must be.
func fieldSchema(f topics.Field) tree {
	t := kindSchema(f.Kind)
	least, most := f.Chars.Min, f.Chars.Max
	if f.Bytes != (topics.Bounds{}) {
		least, most = f.Bytes.Min, f.Bytes.Max
	}
	format := f.Format
	if f.Kind == topics.AnArray {
		format = topics.AnyText // it is the items'
	}
	switch format {
	case topics.UserID:
		t, least, most = t.with("pattern", patternUser), 1, topics.MaxID
	case topics.ChannelName:
		t, least, most = t.with("pattern", patternChannel), 1, topics.MaxID
	case topics.Timestamp:
		t = t.with("format", "date-time").with("pattern", patternTime)
	}
	if least > 0 {
		t = t.with("minLength", least)
	}
	if most > 0 {
		t = t.with("maxLength", most)
	}
	if len(f.Enum) > 0 {
		t = t.with("enum", texts(f.Enum))
	}
	if f.Kind == topics.AnArray {
		items := fieldSchema(topics.Field{Kind: f.Of, Format: f.Format})
		if len(f.Items) > 0 {
			items = closed(f.Items)
		}
		t = t.with("items", items)
		if f.Count.Min > 0 {
			t = t.with("minItems", f.Count.Min)
		}
		if f.Count.Max > 0 {
			t = t.with("maxItems", f.Count.Max)
		}
	}
	return t.with("description", sentence(f.Doc))
}

// sentence is a doc as a sentence. One that begins with a value or a code, true: or rate_limited:, keeps that as it is.
func sentence(doc string) string {
	if first, _, _ := strings.Cut(doc, " "); doc == "" || strings.HasSuffix(first, ":") {
		return doc
	}
	return strings.ToUpper(doc[:1]) + doc[1:]
}

func kindSchema(k topics.JSONKind) tree {
	switch k {
	case topics.AnObject:
		return object("type", "object")
	case topics.ABool:
		return object("type", "boolean")
	case topics.ANumber:
		return object("type", "number")
	case topics.AnArray:
		return object("type", "array")
	case topics.Anything:
		return object("type", texts([]string{"object", "array", "string", "number", "boolean"}))
	}
	return object("type", "string")
}

// members is an object that has these members.
func members(fields []topics.Field) tree {
	props, required := tree{}, list{}
	for _, f := range fields {
		props = append(props, member{f.Name, fieldSchema(f)})
		if f.Required {
			required = append(required, f.Name)
		}
	}
	t := object("type", "object", "properties", props, "required", required)
	for _, f := range fields {
		if f.Or != "" {
			t = t.with("oneOf", oneOf(f.Name, f.Or))
		}
	}
	return t
}

// oneOf says that exactly one of some members is there.
func oneOf(names ...string) (l list) {
	for _, name := range names {
		l = append(l, object("required", list{name}))
	}
	return l
}

// closed is an object that has these members and no others.
func closed(fields []topics.Field) tree { return members(fields).with("additionalProperties", false) }

// recordSchema is the value of a record of a kind.
func recordSchema(k *topics.Kind) tree { return closed(k.RecordFields()) }

// shown is a frame and the kind of event it comes from; nil where no single record is behind it.
type shown struct {
	kind  *topics.Kind
	frame topics.Frame
}

// frames lists every frame that clients of a namespace get.
func frames(ns topics.Namespace) (all []shown) {
	for _, f := range topics.DerivedFrames() {
		if f.Namespace == ns {
			all = append(all, shown{nil, f})
		}
	}
	for _, k := range topics.Kinds() {
		for _, f := range k.Frames {
			if f.Namespace == ns {
				all = append(all, shown{k, f})
			}
		}
	}
	return all
}

// names are those under which a frame is sent.
func (s shown) names() []string {
	if s.frame.Alias == "" {
		return []string{s.frame.Event}
	}
	return []string{s.frame.Event, s.frame.Alias}
}

// fields are the members of the frame's data.
func (s shown) fields() []topics.Field {
	switch {
	case s.frame.Event == topics.EventError:
		return failureFields(s.frame)
	case s.kind == nil:
		return s.frame.Fields
	}
	return s.kind.FrameFields(s.frame)
}

func (s shown) schema() tree { return closed(s.fields()) }

// commands lists what clients of a namespace may say.
func commands(ns topics.Namespace) (all []topics.Command) {
	for _, c := range topics.Commands() {
		for _, in := range c.Namespaces {
			if in == ns {
				all = append(all, c)
			}
		}
	}
	return all
}

// answerSchema is the data of a command's acknowledgement: what the command answers, or what was wrong.
func answerSchema(c topics.Command) tree {
	return object("oneOf", list{closed(c.Answer), refusedSchema()})
}

func refusedSchema() tree {
	var failure []topics.Field
	for _, f := range topics.DerivedFrames() {
		if f.Event == topics.EventError {
			failure = failureFields(f)
		}
	}
	return object("type", "object",
		"properties", object("ok", object("const", false), "error", closed(failure)),
		"required", list{"ok", "error"}, "additionalProperties", false)
}

// failureFields are the members of an error, whose first is one of the codes that there are.
func failureFields(f topics.Frame) []topics.Field {
	fields := slices.Clone(f.Fields)
	fields[0].Enum = codes()
	return fields
}

func codes() (list []string) {
	for _, c := range apierr.Codes() {
		list = append(list, c.Code)
	}
	return list
}

// short is a namespace in names of files.
func short(ns topics.Namespace) string { return strings.TrimPrefix(string(ns), "/") }

// schemaName is the name of a schema's file without its ending: a colon is none that every file system takes.
func schemaName(parts ...string) string {
	return strings.ReplaceAll(strings.Join(parts, "."), ":", ".")
}

// Names of schemas.
func recordName(k *topics.Kind) string               { return schemaName("record", k.Type) }
func frameName(ns topics.Namespace, e string) string { return schemaName("frame", short(ns), e) }
func commandName(c topics.Command) string            { return schemaName("command", c.Event) }
func answerName(c topics.Command) string             { return schemaName("answer", c.Event) }

// Schemas lists every JSON Schema by its name: record.<type>, frame.<namespace>.<event>, command.<event> and answer.<event>.
func Schemas() map[string][]byte {
	all := make(map[string][]byte)
	add := func(name, doc string, t tree) {
		all[name] = indented(append(object("$schema", dialect, "$id", "/schemas/"+name+".json", "title", name, "description", sentence(doc)),
			t...))
	}
	for _, k := range topics.Kinds() {
		add(recordName(k), k.Doc, recordSchema(k))
	}
	for _, ns := range topics.Namespaces() {
		for _, s := range frames(ns) {
			for _, name := range s.names() {
				add(frameName(ns, name), s.frame.Doc, s.schema())
			}
		}
	}
	for _, c := range topics.Commands() {
		add(commandName(c), c.Doc, members(c.Fields))
		add(answerName(c), "the acknowledgement of "+c.Event, answerSchema(c))
	}
	return all
}

// types makes schemas of Go types, each once, for references to them.
type types struct {
	made  tree
	names map[string]bool
}

// ref refers to the schema of a Go type.
func (ts *types) ref(name string, schema func() tree) tree {
	if ts.names == nil {
		ts.names = map[string]bool{}
	}
	if !ts.names[name] {
		ts.names[name] = true // before it is made: a type may hold itself
		ts.made = append(ts.made, member{name, schema()})
	}
	return object("$ref", "#/components/schemas/"+name)
}

// of is the schema of a Go type as encoding/json writes and reads it.
func (ts *types) of(t reflect.Type) tree {
	switch t {
	case reflect.TypeFor[json.RawMessage]():
		return object()
	case reflect.TypeFor[api.InboxNotification]():
		return ts.ref(t.Name(), ts.inboxNotification)
	case reflect.TypeFor[api.InboxMessage]():
		return ts.ref(t.Name(), ts.inboxMessage)
	case reflect.TypeFor[api.PresenceAnswer]():
		return object("anyOf", list{ts.of(reflect.TypeFor[api.OnlineUsers]()),
			object("type", "object", "additionalProperties", ts.of(reflect.TypeFor[api.UserStatus]()))})
	}
	switch t.Kind() {
	case reflect.Pointer:
		return object("anyOf", list{ts.of(t.Elem()), object("type", "null")})
	case reflect.String:
		return object("type", "string")
	case reflect.Bool:
		return object("type", "boolean")
	case reflect.Int, reflect.Int64:
		return object("type", "integer")
	case reflect.Slice:
		return object("type", "array", "items", ts.of(t.Elem()))
	case reflect.Map:
		return object("type", "object", "additionalProperties", ts.of(t.Elem()))
	case reflect.Struct:
		return ts.ref(t.Name(), func() tree { return ts.structure(t) })
	}
	panic("contract: no schema for " + t.String())
}

// structure is the schema of an answer.
func (ts *types) structure(t reflect.Type) tree {
	props, required := tree{}, list{}
	for _, f := range reflect.VisibleFields(t) {
		name, omit := jsonName(f)
		if f.Anonymous && name == "" {
			continue // its members are seen by themselves
		}
		s := ts.of(f.Type)
		if f.Tag.Get("enum") == "codes" {
			s = s.with("enum", texts(codes()))
		}
		if doc := f.Tag.Get("doc"); doc != "" {
			s = s.with("description", sentence(doc))
		}
		props = props.with(name, s)
		if !omit {
			required = append(required, name)
		}
	}
	return object("type", "object", "properties", props, "required", required, "additionalProperties", false)
}

func jsonName(f reflect.StructField) (name string, omitempty bool) {
	name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name, options == "omitempty"
}

// request is the schema of a body: the members that the Go type has, and of each what the fields say of it.
func request(b api.Body) tree {
	if b.Kind != nil {
		return ingestSchema(b.Kind)
	}
	return closed(bodyFields(b))
}

// bodyFields are the members of a body.
func bodyFields(b api.Body) (fields []topics.Field) {
	if b.Kind != nil {
		fields, _ = ingestFields(b.Kind)
		return fields
	}
	for _, f := range reflect.VisibleFields(reflect.TypeOf(b.Type)) {
		name, omit := jsonName(f)
		field := topics.Field{Name: name, Required: f.Type.Kind() != reflect.Pointer && !omit || f.Tag.Get("required") == "true",
			Doc: f.Tag.Get("doc")}
		for _, known := range b.Fields {
			if known.Name == name {
				field.Kind, field.Bytes, field.Chars, field.Enum, field.Format = known.Kind, known.Bytes, known.Chars, known.Enum, known.Format
				field.Of, field.Items, field.Count, field.Or, field.Example = known.Of, known.Items, known.Count, known.Or, known.Example
				if field.Doc == "" {
					field.Doc = known.Doc
				}
				if f.Type == reflect.TypeFor[json.RawMessage]() || reflect.TypeOf(b.Type) == reflect.TypeFor[topics.Draft]() {
					field.Required = known.Required
				}
			}
		}
		if f.Tag.Get("format") == "userId" {
			field.Format = topics.UserID
		}
		fields = append(fields, field)
	}
	return fields
}

// ingestFields are the members of a body at which an event of a kind is handed in: its own, and whom it is for. shared: one member
// is both.
func ingestFields(k *topics.Kind) (fields []topics.Field, shared bool) {
	to := api.RecipientFields(k)
	fields = append(fields, to...)
	for _, f := range k.Fields {
		f.Required = f.Required && f.Fill == nil && refusesEmpty(f)
		if i := indexOf(to, f.Name); i >= 0 { // one member means both
			shared, fields[i].Doc = true, fields[i].Doc+"; with channel: "+f.Doc
			continue
		}
		fields = append(fields, f)
	}
	return fields, shared
}

// refusesEmpty tells whether a text must not be empty. What is left out of a body counts as empty.
func refusesEmpty(f topics.Field) bool {
	return f.Bytes.Min > 0 || f.Chars.Min > 0 || len(f.Enum) > 0 || f.Format != topics.AnyText
}

// ingestSchema is the body at which an event of a kind is handed in.
func ingestSchema(k *topics.Kind) tree {
	to := api.RecipientFields(k)
	fields, shared := ingestFields(k)
	t := closed(fields)
	if len(to) == 0 {
		return t
	}
	names := make([]string, len(to))
	var choices list
	for i, f := range to {
		names[i] = f.Name
		choice := object("required", list{f.Name})
		if f.Kind == topics.AnArray {
			choice = choice.with("not", object("required", list{to[0].Name}))
		}
		choices = append(choices, choice)
	}
	if shared { // userId may stand beside channel
		choices[0] = choices[0].(tree).with("not", object("required", list{names[1]}))
		return t.with("anyOf", choices)
	}
	return t.with("oneOf", oneOf(names...))
}

func indexOf(fields []topics.Field, name string) int {
	for i, f := range fields {
		if f.Name == name {
			return i
		}
	}
	return -1
}

// inbox items are what clients got, and read.
func (ts *types) inboxMessage() tree {
	k := topics.KindOf(topics.TypeMessage)
	return closed(append(k.FrameFields(topics.Frame{}), readField))
}

func (ts *types) inboxNotification() tree {
	return closed(append(topics.KindOf(topics.TypeNotification).FrameFields(topics.Frame{}), readField))
}

var readField = topics.Field{Name: "read", Kind: topics.ABool, Required: true, Doc: "whether it is read"}
