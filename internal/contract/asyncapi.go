package contract

import (
	"slices"
	"strings"

	"github.com/nexus/nexus/topics"
)

// AsyncAPI is the AsyncAPI 3 document: the topics with their records, and the two sockets with every frame in and out.
func AsyncAPI() []byte { return append([]byte(madeBy), yaml(asyncAPI())...) }

// async gathers the parts of the document.
type async struct{ channels, operations, messages, schemas tree }

func asyncAPI() tree {
	var a async
	for _, spec := range topics.Specs() {
		a.topic(spec)
	}
	for _, ns := range topics.Namespaces() {
		a.schemas = append(a.schemas, member{refusalName, refusedSchema()})
		a.socket(ns)
	}
	return object("asyncapi", "3.0.0",
		"info", object("title", "Nexus", "version", version, "license", object("name", "Apache-2.0"), "description",
			"The topics of the log, and the two sockets. docs/protocol.md tells the same to people. On the sockets each frame has two forms: "+
				"a plain WebSocket client gets the text {\"event\":…,\"data\":…}, a Socket.IO client the event with one argument, the data."),
		"defaultContentType", mediaJSON,
		"servers", object(
			"kafka", object("host", "localhost:9092", "protocol", "kafka", "description",
				"The log. In production it is your Kafka (KAFKA_BROKERS)."),
			"socket", object("host", "localhost:3000", "protocol", "ws", "description", "Bare WebSocket clients and Socket.IO clients")),
		"channels", a.channels, "operations", a.operations,
		"components", object("messages", a.messages, "schemas", unique(a.schemas)))
}

const refusalName = "refusal"

// unique drops members that stand twice.
func unique(t tree) (out tree) {
	seen := map[string]bool{}
	for _, m := range t {
		if !seen[m.name] {
			out = append(out, m)
		}
		seen[m.name] = true
	}
	return out
}

func ref(parts ...string) tree { return object("$ref", "#/"+strings.Join(parts, "/")) }

// named is a name as AsyncAPI takes it in references: of letters, digits, underscores, full stops and hyphens.
func named(parts ...string) string { return schemaName(parts...) }

// topic adds a topic's channel, its messages and operations.
func (a *async) topic(spec topics.Spec) {
	id := named("topic", string(spec.Topic))
	var messages tree
	var sent, received list
	for _, k := range topics.Kinds() {
		for _, in := range k.In {
			if in.Topic != spec.Topic {
				continue
			}
			name := recordName(k)
			messages = append(messages, member{name, ref("components", "messages", name)})
			a.record(k)
			here := ref("channels", id, "messages", name)
			if sent = append(sent, here); k.Ingest != "" {
				received = append(received, here)
			}
		}
	}
	doc := "Kept for ever"
	if spec.Retention != topics.Forever {
		doc = "Kept for " + spec.Retention.String()
	}
	if spec.Topic == topics.DeadLetters {
		doc += ". Records that were refused, with their own key, headers and value, and " + topics.HeaderReason + ", " + topics.HeaderOrigin +
			" and " +
			topics.HeaderTruncated + " beside"
	}
	settings := tree{{"retention.ms", retention(spec)}, {"cleanup.policy", list{"delete"}}}
	binding := tree{{"topic", topics.Names{Prefix: "nexus."}.Name(spec.Topic)}}
	if spec.Partitions > 0 {
		binding = append(binding, member{"partitions", spec.Partitions})
	}
	binding = append(binding, member{"topicConfiguration", settings}, member{"bindingVersion", "0.5.0"})
	a.channels = append(a.channels, member{id, object("address", topics.Names{Prefix: "nexus."}.Name(spec.Topic), "title",
		string(spec.Topic), "description", doc,
		"servers", list{ref("servers", "kafka")}, "messages", messages, "bindings", object("kafka", binding))})
	if len(sent) > 0 {
		a.operations = append(a.operations, member{named("append", string(spec.Topic)), object("action", "send", "channel", ref("channels", id),
			"summary", "Nexus appends", "messages", sent)})
	}
	if len(received) > 0 {
		a.operations = append(a.operations, member{named("ingest", string(spec.Topic)), object("action", "receive", "channel", ref("channels",
			id),
			"summary", "Product services append", "messages", received)})
	}
}

func retention(spec topics.Spec) int64 {
	if spec.Retention == topics.Forever {
		return -1
	}
	return spec.Retention.Milliseconds()
}

// record adds the message of a kind of event.
func (a *async) record(k *topics.Kind) {
	name := recordName(k)
	a.schemas = append(a.schemas, member{name, recordSchema(k)})
	var keys []string
	standard := false
	for _, in := range k.In {
		standard = standard || in.Default
		for _, key := range in.Keys {
			keys = append(keys, key.Shape())
		}
	}
	a.messages = append(a.messages, member{name, object("name", k.Type, "title", k.Type, "summary", sentence(k.Doc),
		"headers", recordHeaders(k, standard), "payload", ref("components", "schemas", name),
		"bindings", object("kafka", tree{{"key", object("type", "string", "description", strings.Join(keys, " or "))}, {"bindingVersion",
			"0.5.0"}}),
		"examples", list{object("payload", rawJSON(Example(k.Fields)))})})
	a.messages = unique(a.messages)
}

// recordHeaders are the headers of a kind's records (CloudEvents 1.0 Kafka protocol binding, binary mode).
func recordHeaders(k *topics.Kind, standard bool) tree {
	text := func(doc string) tree { return object("type", "string", "description", doc) }
	source := text("Where it comes from")
	if k.Sender != nil {
		source = text(k.Sender.Doc)
	}
	typ := object("const", k.Type)
	if standard {
		typ = typ.with("description", "May be left out")
	}
	t := object("type", "object", "properties", object(topics.HeaderSpecVersion, object("const", "1.0"), topics.HeaderType, typ,
		topics.HeaderID, text("The sender's name of the event, where there is no "+topics.HeaderIdempotencyKey), topics.HeaderSource, source,
		topics.HeaderTime, object("type", "string", "format", "date-time"), topics.HeaderIdempotencyKey,
		text("The sender's name of the event: repeated under it within five minutes, it is one event"),
		topics.HeaderTraceParent, text("W3C trace context"), topics.HeaderNexusID, text("Nexus's own: producers leave it out")))
	if !standard {
		t = t.with("required", list{topics.HeaderType})
	}
	return t
}

// socket adds a namespace's two channels, for bare and for Socket.IO clients.
func (a *async) socket(ns topics.Namespace) {
	raw, io := named("raw", short(ns)), named("socketio", short(ns))
	var rawOut, rawIn, ioOut, ioIn tree
	for _, s := range frames(ns) {
		for _, event := range s.names() {
			schema := frameName(ns, event)
			a.schemas = append(a.schemas, member{schema, s.schema()})
			data := Example(s.fields())
			rawOut = append(rawOut, a.message(schemaName("raw", short(ns), event), event, s.frame.Doc, envelope(event, schema, true),
				rawExample(event, data)))
			ioOut = append(ioOut, a.message(schemaName("socketio", short(ns), event), event, s.frame.Doc, arguments(event, schema),
				ioExample(event, data)))
		}
	}
	offset := object("type", "array", "items", list{object("const", topics.EventOffset), object("type", "string")}, "minItems", 2,
		"maxItems", 2)
	ioOut = append(ioOut, a.message(schemaName("socketio", short(ns), topics.EventOffset), topics.EventOffset,
		"where the client stands, for coming back",
		offset, list{topics.EventOffset, "9HkB…"}))
	for _, c := range commands(ns) {
		schema := commandName(c)
		a.schemas = append(a.schemas, member{schema, members(c.Fields)}, member{answerName(c), answerSchema(c)})
		command := envelope(c.Event, schema, false)
		rawIn = append(rawIn, a.message(schemaName("raw", short(ns), "command", c.Event), c.Event, c.Doc, command, rawExample(c.Event,
			[]byte(c.Example))))
		ioIn = append(ioIn, a.message(schemaName("socketio", short(ns), "command", c.Event), c.Event, c.Doc, arguments(c.Event, schema),
			ioExample(c.Event, []byte(c.Example))))
		answer := answerName(c)
		rawOut = append(rawOut, a.message(schemaName("raw", short(ns), answer), topics.EventAck,
			"the acknowledgement of "+c.Event+", where it had an id",
			object("type", "object", "properties", tree{{"event", object("const", topics.EventAck)}, {"id", object()}, {"data", ref("components",
				"schemas", answer)}},
				"required", list{"event", "id", "data"}, "additionalProperties", false), nil))
		ioOut = append(ioOut, a.message(schemaName("socketio", short(ns), answer), topics.EventAck,
			"the acknowledgement of "+c.Event+", where it was asked for",
			object("type", "array", "items", list{ref("components", "schemas", answer)}, "minItems", 1, "maxItems", 1), nil))
	}
	query := object("type", "object", "properties", object(
		"userId", object("type", "string", "description", "The token's user"), "token", object("type", "string", "description",
			"A JSON Web Token"),
		"offset", object("type", "string", "description", "Bare clients: where the client stood; empty the first time"),
		"events", object("const", "canonical", "description", "Without the second names of events")),
		"required", list{"userId", "token"})
	binding := object("ws", tree{{"method", "GET"}, {"query", query}, {"bindingVersion", "0.1.0"}})
	a.sockets(raw, string(ns), "Bare WebSocket clients: text frames", binding, rawOut, rawIn)
	a.sockets(io, "/socket.io/", "Socket.IO v4 clients, namespace "+string(ns)+": Engine.IO 4 over WebSocket or long-polling "+
		"(?EIO=4&transport=…)", nil, ioOut, ioIn)
}

// sockets adds a channel with its two operations.
func (a *async) sockets(id, address, doc string, binding any, out, in tree) {
	a.channels = append(a.channels, member{id, object("address", address, "description", doc, "servers", list{ref("servers", "socket")},
		"messages", slices.Concat(out, in), "bindings", binding)})
	refs := func(t tree) (l list) {
		for _, m := range t {
			l = append(l, ref("channels", id, "messages", m.name))
		}
		return l
	}
	a.operations = append(a.operations,
		member{named("send", id), object("action", "send", "channel", ref("channels", id), "summary", "The server sends", "messages", refs(out))},
		member{named("receive", id), object("action", "receive", "channel", ref("channels", id), "summary", "Clients send", "messages",
			refs(in))})
}

// message adds a message and is the reference to it, by its name.
func (a *async) message(id, name, doc string, payload tree, example any) member {
	t := object("name", name, "title", name, "summary", sentence(doc), "payload", payload)
	if example != nil {
		t = t.with("examples", list{object("payload", example)})
	}
	a.messages = unique(append(a.messages, member{id, t}))
	return member{id, ref("components", "messages", id)}
}

// envelope is a frame of a bare client.
func envelope(event, schema string, out bool) tree {
	props := tree{{"event", object("const", event)}, {"data", ref("components", "schemas", schema)}}
	t := tree{{"type", "object"}}
	if out {
		props = append(props, member{"offset", object("type", "string", "description",
			"Where the client stands after this frame; only of what can be replayed, if the client asked for it")})
		return append(t, member{"properties", props}, member{"required", list{"event", "data"}}, member{"additionalProperties", false})
	}
	props = append(props, member{"id", object("type", texts([]string{"string", "number"}), "maxLength", 254, "description",
		"Asks for an acknowledgement, which has the same id")})
	return append(t, member{"properties", props}, member{"required", list{"event", "data"}})
}

// arguments is a Socket.IO event: its name and one argument. AsyncAPI's schemas are of draft 07, where items is such a list.
func arguments(event, schema string) tree {
	return object("type", "array", "items", list{object("const", event), ref("components", "schemas", schema)}, "minItems", 2, "maxItems", 2)
}

func rawExample(event string, data []byte) tree {
	return tree{{"event", event}, {"data", rawJSON(data)}}
}

func ioExample(event string, data []byte) list { return list{event, rawJSON(data)} }
