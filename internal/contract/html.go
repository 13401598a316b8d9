package contract

import (
	"bytes"
	_ "embed"
	"html/template"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

//go:embed docs.tmpl.html
var pageText string

// page is what docs.tmpl.html shows.
type page struct {
	Version string
	Routes  []pageRoute
	Sockets []pageSocket
	Topics  []pageTopic
	Codes   []apierr.Code
	Closes  []apierr.Close
}

type pageRoute struct {
	Method, Path, ID, Doc, More, Access string
	Params, Body                        []pageField
	BodyNote                            string
	Answers                             []pageAnswer
}

type pageAnswer struct {
	Status string
	Doc    string
	Type   string
}

type pageField struct{ Name, Value, Always, Doc string }

type pageSocket struct {
	Namespace, ID string
	Out           []pageMessage
	In            []pageMessage
}

type pageMessage struct {
	Event, Alias, ID, Doc, Example, Schema string
	Fields                                 []pageField
	Answer                                 []pageField
}

type pageTopic struct {
	Name, ID, Doc string
	Kinds         []pageMessage
}

// htmlPage shows both documents to people. It needs no script and nothing from elsewhere.
func htmlPage() ([]byte, error) {
	t, err := template.New("docs").Parse(pageText)
	if err != nil {
		return nil, err
	}
	p := page{Version: version, Codes: apierr.Codes(), Closes: apierr.Closes()}
	for _, r := range api.Routes() {
		p.Routes = append(p.Routes, routeOf(r))
	}
	for _, ns := range topics.Namespaces() {
		p.Sockets = append(p.Sockets, socketOf(ns))
	}
	for _, spec := range topics.Specs() {
		p.Topics = append(p.Topics, topicOf(spec))
	}
	var b bytes.Buffer
	err = t.Execute(&b, p)
	return b.Bytes(), err
}

func routeOf(r api.Route) pageRoute {
	out := pageRoute{Method: r.Method, Path: r.OpenPath(), ID: operationID(r), Doc: r.Doc, More: r.More, Access: "any valid token"}
	switch {
	case r.Public:
		out.Access = "no token"
	case r.Scope != "":
		out.Access = "a token with the scope " + r.Scope
	}
	for _, p := range r.Params {
		f := fieldOf(p.Field)
		f.Name, f.Doc = p.Name+" ("+p.In+")", p.Doc
		out.Params = append(out.Params, f)
	}
	switch {
	case r.Body.CloudEvents:
		out.BodyNote = "A CloudEvent in structured, batched or binary mode."
	case r.Body.Kind != nil || r.Body.Type != nil:
		out.Body = bodyOf(r.Body)
	}
	var ts types
	responses := responses(r, &ts, nil)
	for _, m := range responses {
		a := pageAnswer{Status: m.name + " " + http.StatusText(statusOf(m.name)), Doc: sentence(m.value.(tree).get("description").(string))}
		for _, answer := range r.Answers {
			if statusOf(m.name) == answer.Status && answer.Type != nil {
				a.Type = strings.Join(membersOf(reflect.TypeOf(answer.Type)), ", ")
			}
		}
		out.Answers = append(out.Answers, a)
	}
	return out
}

// membersOf are the names of an answer's members.
func membersOf(t reflect.Type) (names []string) {
	for _, f := range reflect.VisibleFields(t) {
		if name, _ := jsonName(f); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func statusOf(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n
}

func socketOf(ns topics.Namespace) pageSocket {
	s := pageSocket{Namespace: string(ns), ID: short(ns)}
	for _, f := range frames(ns) {
		s.Out = append(s.Out, pageMessage{Event: f.frame.Event, Alias: f.frame.Alias, ID: frameName(ns, f.frame.Event),
			Doc:     sentence(f.frame.Doc),
			Example: rawFrame(f.frame.Event, Example(f.fields())), Schema: frameName(ns, f.frame.Event), Fields: fieldsOf(f.fields())})
	}
	for _, c := range commands(ns) {
		s.In = append(s.In, pageMessage{Event: c.Event, ID: short(ns) + "." + commandName(c), Doc: sentence(c.Doc), Example: rawFrame(c.Event,
			[]byte(c.Example)),
			Schema: commandName(c), Fields: fieldsOf(c.Fields), Answer: fieldsOf(c.Answer)})
	}
	return s
}

func topicOf(spec topics.Spec) pageTopic {
	t := pageTopic{Name: string(spec.Topic), ID: "topic." + string(spec.Topic), Doc: "Kept for ever."}
	if spec.Retention != topics.Forever {
		t.Doc = "Kept for " + spec.Retention.String() + "."
	}
	for _, k := range topics.Kinds() {
		for _, in := range k.In {
			if in.Topic == spec.Topic {
				t.Kinds = append(t.Kinds, pageMessage{Event: k.Type, ID: t.ID + "." + k.Type, Doc: sentence(k.Doc),
					Example: string(Example(k.Fields)),
					Schema:  recordName(k), Fields: fieldsOf(k.Fields)})
			}
		}
	}
	return t
}

func fieldsOf(fields []topics.Field) (out []pageField) {
	for _, f := range fields {
		out = append(out, fieldOf(f))
	}
	return out
}

func fieldOf(f topics.Field) pageField {
	p := pageField{Name: f.Name, Value: strings.ReplaceAll(valueText(f), "`", ""), Doc: f.Doc}
	if f.Required {
		p.Always = "required"
	}
	return p
}

func bodyOf(b api.Body) []pageField { return fieldsOf(bodyFields(b)) }
