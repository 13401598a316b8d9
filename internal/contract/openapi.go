package contract

import (
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

const mediaJSON = "application/json"

// OpenAPI is the OpenAPI 3.1 document: the API's table of routes.
func OpenAPI() []byte { return append([]byte(madeBy), yaml(openAPI())...) }

const madeBy = "# Made by `make contracts` from the tables in the code. Do not edit it.\n"

func openAPI() tree {
	var ts types
	fault := ts.of(reflect.TypeFor[api.Fault]())
	paths := tree{}
	for _, r := range api.Routes() {
		op := operation(r, &ts, fault)
		i := slices.IndexFunc(paths, func(m member) bool { return m.name == r.OpenPath() })
		if i < 0 {
			item := tree{}
			if r.Public {
				item = item.with("servers", list{object("url", "/")})
			}
			paths, i = append(paths, member{r.OpenPath(), item}), len(paths)
		}
		paths[i].value = paths[i].value.(tree).with(strings.ToLower(r.Method), op)
	}
	return object("openapi", "3.1.0",
		"info", object("title", "Nexus", "version", version, "license", object("name", "Apache-2.0", "identifier", "Apache-2.0"),
			"description", "Notifications and chat: what a user has, what services publish, what operators do. "+
				"Every GET answers HEAD as well. What travels on the sockets is in /asyncapi.yaml."),
		"jsonSchemaDialect", dialect,
		"servers", list{object("url", "/"), object("url", "/api")},
		"security", list{tree{{"token", list{}}}},
		"paths", paths,
		"components", object("schemas", ts.made, "securitySchemes", object("token",
			object("type", "http", "scheme", "bearer", "bearerFormat", "JWT", "description",
				"A JSON Web Token. Its sub is the user; its scope, a list with spaces, may hold publish and admin."))))
}

// version is the contract's: it grows by a minor with every addition, by a major where something changes or goes.
const version = "1.0.0"

func operation(r api.Route, ts *types, fault tree) tree {
	doc := r.More
	if r.Scope != "" {
		doc = strings.TrimSpace(doc + " The token must have the scope " + r.Scope + ".")
	}
	op := object("operationId", operationID(r), "summary", r.Doc, "description", doc)
	if r.Public {
		op = append(op, member{"security", list{}})
	}
	var params list
	for _, p := range r.Params {
		params = append(params, parameter(p))
	}
	return op.with("parameters", params).with("requestBody", requestBody(r)).with("responses", responses(r, ts, fault))
}

// operationID is a name for generated clients: getNotificationsUnreadCount.
func operationID(r api.Route) string {
	id := strings.ToLower(r.Method)
	for _, part := range strings.FieldsFunc(r.Path, func(c rune) bool { return c == '/' || c == '-' || c == '.' }) {
		by, isParam := strings.CutPrefix(part, ":")
		if isParam {
			part = "by" + strings.ToUpper(by[:1]) + by[1:]
		}
		id += strings.ToUpper(part[:1]) + part[1:]
	}
	return id
}

func parameter(p api.Param) tree {
	s := fieldSchema(p.Field)
	s = slices.DeleteFunc(s, func(m member) bool { return m.name == "description" })
	if p.Kind == topics.ANumber {
		s = object("type", "integer", "minimum", p.Least, "maximum", p.Most, "default", p.Default)
	}
	t := object("name", p.Name, "in", p.In, "description", sentence(p.Doc))
	if p.Example != "" {
		t = t.with("example", rawJSON([]byte(p.Example)))
	}
	if p.Required {
		t = t.with("required", true)
	}
	return t.with("schema", s)
}

func requestBody(r api.Route) any {
	switch {
	case r.Body.CloudEvents:
		one := cloudEvent()
		return object("required", true, "description", "A CloudEvent in structured mode, or a batch. In binary mode the attributes are headers ce-…, and the body is the data.",
			"content", object("application/cloudevents+json", object("schema", one),
				"application/cloudevents-batch+json", object("schema", object("type", "array", "minItems", 1, "maxItems", 1000, "items", one))))
	case r.Body.Kind != nil || r.Body.Type != nil:
		return object("required", !r.Body.Optional, "content", object(mediaJSON, object("schema", request(r.Body))))
	}
	return nil
}

// cloudEvent is a CloudEvent in the JSON event format, of any kind that may be handed in.
func cloudEvent() tree {
	var kinds list
	for _, k := range topics.Kinds() {
		if k.Ingest != "" {
			kinds = append(kinds, cloudEventOf(k))
		}
	}
	return object("oneOf", kinds)
}

func cloudEventOf(k *topics.Kind) tree {
	text := func(doc string) tree {
		return object("type", "string", "minLength", 1, "maxLength", 256, "description", doc)
	}
	return object("type", "object", "title", k.Type,
		"properties", object("specversion", object("const", "1.0"), "id", text("The caller's name of the event"), "source", text("Where it comes from"),
			"type", object("const", k.Type), "subject", object("type", "string", "pattern", keyPattern(k), "description", "The audience key"),
			"time", object("type", "string", "format", "date-time", "pattern", patternTime), "datacontenttype", object("type", "string", "maxLength", 128),
			"idempotencykey", object("type", "string", "maxLength", 256, "description", "Counts as the event's name in place of id"),
			"data", closed(k.Fields)),
		"required", list{"specversion", "id", "source", "type", "subject", "data"})
}

// keyPattern is what the keys of a kind's records look like.
func keyPattern(k *topics.Kind) string {
	var shapes []string
	for _, in := range k.In {
		for _, key := range in.Keys {
			switch key {
			case topics.User:
				shapes = append(shapes, topics.UserKey("")+"[^:\\u0000-\\u001f\\u007f-\\u009f]{1,128}")
			case topics.Channel:
				shapes = append(shapes, topics.ChannelKey("")+"[A-Za-z0-9_.:-]{1,128}")
			case topics.Everyone:
				shapes = append(shapes, topics.EveryoneKey)
			}
		}
	}
	return "^(" + strings.Join(shapes, "|") + ")$"
}

// responses are the route's answers by status. Of errors that share a status the description lists the codes.
func responses(r api.Route, ts *types, fault tree) tree {
	byStatus := map[int]tree{}
	for _, a := range r.Answers {
		schema, media := object("type", "string"), a.Media
		if !strings.HasPrefix(media, "text/") {
			schema = object("type", "object")
		}
		if a.Type != nil {
			schema, media = ts.of(reflect.TypeOf(a.Type)), mediaJSON
		}
		byStatus[a.Status] = object("description", sentence(a.Doc), "content", object(media, object("schema", schema)))
	}
	codes := r.Codes()
	for _, c := range apierr.Codes() {
		if !slices.Contains(codes, c.Code) {
			continue
		}
		if had := byStatus[c.Status]; had != nil {
			had[0].value = had[0].value.(string) + "; " + c.Code + ": " + c.Doc
			continue
		}
		byStatus[c.Status] = object("description", c.Code+": "+c.Doc, "headers", headers(c.Status), "content", object(mediaJSON, object("schema", fault)))
	}
	all := tree{}
	for status := range 600 {
		if t := byStatus[status]; t != nil {
			all = all.with(strconv.Itoa(status), t)
		}
	}
	return all
}

// headers are those that errors of a status have.
func headers(status int) any {
	switch status {
	case http.StatusUnauthorized:
		return object("WWW-Authenticate", object("description", "RFC 6750", "schema", object("const", "Bearer")))
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return object("Retry-After", object("description", "Seconds to wait", "schema", object("type", "integer", "minimum", 1)))
	}
	return nil
}
