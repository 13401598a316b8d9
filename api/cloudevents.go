package api

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// cloudEvent is a CloudEvents 1.0 event: its attributes by name, and its data.
type cloudEvent struct {
	attributes map[string]string
	data       json.RawMessage
}

// maxAttributes bounds the attributes of a CloudEvent, names and values together, in bytes.
const maxAttributes = 2048

// publishEvents takes CloudEvents in the three content modes of the HTTP protocol binding.
func (a *API) publishEvents(c echo.Context) error {
	events, batch, err := cloudEvents(c.Request())
	if err != nil {
		return err
	}
	idem := c.Request().Header.Get("Idempotency-Key")
	if batch && idem != "" {
		return apierr.Invalid("Idempotency-Key names one event: send a batch without it, its events have ids of their own (or idempotencykey)")
	}
	var out []*topics.Event
	var ids []string
	for i, ce := range events {
		ev, err := ce.event(userOf(c), idem)
		if err != nil && batch {
			return apierr.Invalid("event " + strconv.Itoa(i+1) + " of the batch: " + err.Error())
		}
		if err != nil {
			return apierr.Invalid(err.Error())
		}
		out, ids = append(out, ev), append(ids, ev.NexusID)
	}
	if err := a.appendAll(c, out); err != nil {
		return err
	}
	if batch {
		return c.JSON(http.StatusAccepted, Published{IDs: ids})
	}
	return c.JSON(http.StatusAccepted, Published{ID: ids[0]})
}

func cloudEvents(r *http.Request) (events []cloudEvent, batch bool, err error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, false, err
	}
	switch kind := mediaType(r.Header.Get("Content-Type")); {
	case kind == "application/cloudevents-batch+json":
		var list []json.RawMessage
		if err := decode(b, &list); err != nil {
			return nil, true, err
		}
		if len(list) == 0 || len(list) > maxFanOut {
			return nil, true, apierr.Invalid("a batch has 1 to 1000 events")
		}
		for i, text := range list {
			ce, err := structured(text)
			if err != nil {
				return nil, true, apierr.Invalid("event " + strconv.Itoa(i+1) + " of the batch: " + err.Error())
			}
			events = append(events, ce)
		}
		return events, true, nil
	case kind == "application/cloudevents+json":
		ce, err := structured(b)
		return []cloudEvent{ce}, false, asInvalid(err)
	case strings.HasPrefix(kind, "application/cloudevents"):
		return nil, false, apierr.Invalid("of the formats of CloudEvents only JSON is taken: application/cloudevents+json or " +
			"application/cloudevents-batch+json")
	case r.Header.Get("ce-specversion") != "":
		ce, err := binary(r.Header, b)
		return []cloudEvent{ce}, false, asInvalid(err)
	}
	return nil, false, apierr.Invalid("send a CloudEvent: Content-Type application/cloudevents+json, application/cloudevents-batch+json, " +
		"or headers ce-id, ce-source, ce-specversion, ce-type, ce-subject")
}

// mediaType is the type of a Content-Type, in small letters, without its parameters (RFC 9110, section 8.3.1).
func mediaType(header string) string {
	if kind, _, err := mime.ParseMediaType(header); err == nil {
		return kind
	}
	kind, _, _ := strings.Cut(header, ";")
	return strings.ToLower(strings.TrimSpace(kind))
}

// problem is what is wrong with a CloudEvent.
type problem string

func (p problem) Error() string { return string(p) }

func asInvalid(err error) error {
	if err == nil {
		return nil
	}
	return apierr.Invalid(err.Error())
}

// structured reads an event in the JSON event format. Extensions may have any name that the specification allows; null
// counts as unset (JSON Event Format, section 2.2).
func structured(text []byte) (cloudEvent, error) {
	var members map[string]json.RawMessage
	if json.Unmarshal(text, &members) != nil || members == nil {
		return cloudEvent{}, problem("a CloudEvent must be a JSON object")
	}
	ce := cloudEvent{attributes: make(map[string]string), data: members["data"]}
	if text, ok := members["data_base64"]; ok && string(text) != "null" {
		var b []byte
		if ce.data != nil {
			return ce, problem("a CloudEvent has either data or data_base64")
		}
		if json.Unmarshal(text, &b) != nil || b == nil {
			return ce, problem("data_base64 must be a string of Base64 (RFC 4648)")
		}
		ce.data = b
	}
	delete(members, "data")
	delete(members, "data_base64")
	for name, raw := range members {
		if string(raw) == "null" {
			continue
		}
		v, err := attribute(name, raw)
		if err != nil {
			return ce, err
		}
		ce.attributes[name] = v
	}
	return ce, nil
}

// attribute is an attribute's value as text: a string, or for extensions a boolean or an integer (JSON Event Format, 2.2).
func attribute(name string, raw json.RawMessage) (string, error) {
	if !attributeName(name) {
		return "", problem("the attribute " + strconv.Quote(clip(name)) + " is none: names are small letters and digits")
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s, nil
	}
	if _, err := strconv.ParseInt(string(raw), 10, 32); !ownAttribute(name) && (err == nil || string(raw) == "true" ||
		string(raw) == "false") {
		return string(raw), nil
	}
	if ownAttribute(name) {
		return "", problem("the attribute " + name + " must be a string")
	}
	return "", problem("the attribute " + clip(name) + " must be a string, an integer, true or false")
}

// ownAttribute tells the attributes that Nexus reads from the rest, which it lets pass unread.
func ownAttribute(name string) bool {
	switch name {
	case "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "idempotencykey", "traceparent":
		return true
	}
	return false
}

// attributeName follows CloudEvents 1.0, "Attribute Naming Convention".
func attributeName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
}

// binary reads an event whose attributes are headers and whose data is the body (HTTP Protocol Binding, section 3.1).
func binary(h http.Header, body []byte) (cloudEvent, error) {
	ce := cloudEvent{attributes: make(map[string]string), data: body}
	for header, values := range h {
		name, ok := strings.CutPrefix(strings.ToLower(header), "ce-")
		if !ok {
			continue
		}
		if !attributeName(name) || len(values) > 1 {
			return ce, problem("header ce-" + clip(name) + ": attributes have names of small letters and digits, and stand once")
		}
		v, err := headerValue(values[0])
		if err != nil {
			return ce, problem("header ce-" + clip(name) + ": " + err.Error())
		}
		ce.attributes[name] = v
	}
	return ce, nil
}

// headerValue undoes quoting, then percent-encoding, once each (HTTP Protocol Binding, section 3.1.3.2).
func headerValue(v string) (string, error) {
	if len(v) > 1 && v[0] == '"' && v[len(v)-1] == '"' {
		v = unquoted(v[1 : len(v)-1])
	}
	v, err := url.PathUnescape(v)
	if err != nil {
		return "", problem("an escape is broken: write a percent sign as %25")
	}
	if !utf8.ValidString(v) {
		return "", problem("must be UTF-8, percent-encoded")
	}
	return v, nil
}

// unquoted undoes the backslashes of a quoted string (RFC 9110, section 5.6.4).
func unquoted(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// event makes the record: subject is the audience key, and the source is the token's user with the event's own.
func (ce cloudEvent) event(user, idem string) (*topics.Event, error) {
	at := ce.attributes
	size := 0
	for name, v := range at {
		size += len(name) + len(v)
	}
	switch {
	case size > maxAttributes:
		return nil, problem("the attributes of a CloudEvent have at most 2048 bytes together")
	case at["specversion"] != "1.0":
		return nil, problem("specversion must be 1.0")
	}
	for _, name := range []string{"id", "source", "type"} {
		if at[name] == "" {
			return nil, problem("the attribute " + name + " is missing")
		}
	}
	if at["subject"] == "" {
		return nil, problem("the attribute subject is missing: it is the audience key, like user:alice, channel:news or all")
	}
	kind := topics.KindOf(at["type"])
	if kind == nil || kind.Ingest == "" {
		return nil, problem("type must be " + orList(ingested()))
	}
	topic, err := topicOf(kind, at["subject"])
	if err != nil {
		return nil, err
	}
	if at["idempotencykey"] != "" {
		idem = at["idempotencykey"]
	}
	m := topics.Meta{ID: at["id"], Type: at["type"], Source: topics.SourceOf(user) + "#" + at["source"], Time: at["time"],
		TraceParent:    at["traceparent"],
		IdempotencyKey: idem}
	if idem == "" {
		idem = at["id"]
	}
	m.NexusID = topics.EventID(at["subject"], m.Type, m.Source, idem)
	value, err := withID(ce.data, m.NexusID)
	if err != nil {
		return nil, err
	}
	return topics.New(topic, at["subject"], m, value), nil
}

// topicOf is the topic that an event of a kind goes to, by its audience key.
func topicOf(kind *topics.Kind, key string) (topics.Topic, error) {
	to, err := topics.ParseAudience(key)
	if err != nil {
		return "", problem("subject: " + err.Error())
	}
	topic, ok := kind.TopicFor(to.Kind)
	if !ok {
		return "", problem("subject: " + kind.Type + " is for " + orList(shapes(kind)))
	}
	return topic, nil
}

// ingested are the types of event that product services may hand in.
func ingested() (types []string) {
	for _, k := range topics.Kinds() {
		if k.Ingest != "" {
			types = append(types, k.Type)
		}
	}
	return types
}

// shapes are what the keys of a kind's events look like.
func shapes(k *topics.Kind) (list []string) {
	for _, in := range k.In {
		for _, key := range in.Keys {
			list = append(list, key.Shape())
		}
	}
	return list
}

// orList writes a list as people do: a, b or c.
func orList(list []string) string {
	last := len(list) - 1
	if last < 1 {
		return strings.Join(list, "")
	}
	return strings.Join(list[:last], ", ") + " or " + list[last]
}

// withID puts an id in front of an object's members.
func withID(object []byte, id string) ([]byte, error) {
	object = bytes.TrimSpace(object)
	var members map[string]json.RawMessage
	if json.Unmarshal(object, &members) != nil || members == nil {
		return nil, problem("data must be a JSON object")
	}
	if _, has := members["id"]; has {
		return nil, problem("data must not have an id; Nexus gives it one")
	}
	if len(members) == 0 {
		return nil, problem("data must not be empty")
	}
	return append([]byte(`{"id":"`+id+`",`), object[1:]...), nil
}
