package contract

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/topics"
)

// Book holds what was sent against the contract. It reads exactly the part of JSON Schema that this package writes, and refuses a
// schema with anything else in it; tests hold it against an official validator.
type Book struct {
	schemas map[string]map[string]any // by name, as Schemas has them
	open    map[string]any
	routes  []api.Route
}

// NewBook reads the contract as it is made.
func NewBook() (*Book, error) {
	b := &Book{schemas: make(map[string]map[string]any), routes: api.Routes()}
	for name, text := range Schemas() {
		if err := json.Unmarshal(text, mapIn(b.schemas, name)); err != nil {
			return nil, fmt.Errorf("schema %s: %w", name, err)
		}
	}
	text, err := encode(openAPI())
	if err != nil {
		return nil, err
	}
	return b, json.Unmarshal(text, &b.open)
}

// mapIn makes a map in a map, to be filled.
func mapIn(m map[string]map[string]any, name string) *map[string]any {
	m[name] = make(map[string]any)
	v := m[name]
	return &v
}

// Record checks the value of a record of a type.
func (b *Book) Record(typ string, value []byte) error {
	return b.named(schemaName("record", typ), value)
}

// Frame checks the data of a frame that a client of a namespace got.
func (b *Book) Frame(ns topics.Namespace, event string, data []byte) error {
	return b.named(frameName(ns, event), data)
}

// Ack checks the data of an acknowledgement of a command.
func (b *Book) Ack(event string, data []byte) error {
	return b.named(schemaName("answer", event), data)
}

func (b *Book) named(name string, value []byte) error {
	s, ok := b.schemas[name]
	if !ok {
		return fmt.Errorf("%s is not in the contract", name)
	}
	return b.check(s, name, value)
}

func (b *Book) check(schema map[string]any, name string, value []byte) error {
	var v any
	if err := json.Unmarshal(value, &v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := b.value(schema, v); err != nil {
		return fmt.Errorf("%s: %w, in %s", name, err, value)
	}
	return nil
}

// Answer checks a response of the REST API. A path that no route has is not checked, unless it was answered as if it were one.
func (b *Book) Answer(method, path string, status int, media string, body []byte) error {
	path, _, _ = strings.Cut(path, "?")
	r, ok := b.route(method, path)
	if !ok {
		return nil
	}
	what := fmt.Sprintf("%s %s %d", method, r.OpenPath(), status)
	responses := dig(b.open, "paths", r.OpenPath(), strings.ToLower(r.Method), "responses")
	response, ok := responses[strconv.Itoa(status)].(map[string]any)
	if !ok {
		return fmt.Errorf("%s: the contract has no such status; it has %v", what, slices.Sorted(maps.Keys(responses)))
	}
	content, ok := dig(response, "content")[media].(map[string]any)
	if !ok {
		return fmt.Errorf("%s: the contract has no %q", what, media)
	}
	if media != mediaJSON {
		return nil
	}
	return b.check(dig(content, "schema"), what, body)
}

// route finds the route of a request as echo does: what stands in the table as it is comes before what has parameters.
func (b *Book) route(method, path string) (found api.Route, ok bool) {
	if method == "HEAD" {
		method = "GET"
	}
	path, api := strings.CutPrefix(path, "/api")
	for _, r := range b.routes {
		if r.Method == method && !(api && r.Public) && matches(r.Path, path) && (!ok || !strings.Contains(r.Path, ":")) {
			found, ok = r, true
		}
	}
	return found, ok
}

func matches(pattern, path string) bool {
	p, s := strings.Split(pattern, "/"), strings.Split(path, "/")
	return len(p) == len(s) && !slices.ContainsFunc(p, func(part string) bool {
		i := slices.Index(p, part)
		return part != s[i] && !strings.HasPrefix(part, ":")
	})
}

func dig(m map[string]any, names ...string) map[string]any {
	for _, name := range names {
		m, _ = m[name].(map[string]any)
	}
	return m
}

// value checks a value as encoding/json decodes it.
func (b *Book) value(schema map[string]any, v any) error {
	for _, keyword := range slices.Sorted(maps.Keys(schema)) {
		if err := b.keyword(schema, keyword, v); err != nil {
			return err
		}
	}
	return nil
}

// keyword applies one keyword of a schema (JSON Schema 2020-12, Validation). One that does not concern the value's kind holds.
func (b *Book) keyword(schema map[string]any, keyword string, v any) error {
	arg := schema[keyword]
	switch keyword {
	case "$schema", "$id", "title", "description", "format", "default", "examples":
		return nil
	case "$ref":
		return b.value(dig(b.open, strings.Split(strings.TrimPrefix(arg.(string), "#/"), "/")...), v)
	case "type":
		return checkType(arg, v)
	case "const":
		if !reflect.DeepEqual(arg, v) {
			return fmt.Errorf("%v is not %v", v, arg)
		}
		return nil
	case "enum":
		if !slices.ContainsFunc(arg.([]any), func(x any) bool { return reflect.DeepEqual(x, v) }) {
			return fmt.Errorf("%v is none of %v", v, arg)
		}
		return nil
	case "oneOf", "anyOf":
		return b.some(keyword, arg.([]any), v)
	case "properties", "required", "additionalProperties":
		if object, ok := v.(map[string]any); ok {
			return b.object(schema, keyword, object)
		}
		return nil
	case "items", "prefixItems", "minItems", "maxItems":
		if array, ok := v.([]any); ok {
			return b.array(schema, keyword, array)
		}
		return nil
	case "minLength", "maxLength", "pattern":
		if text, ok := v.(string); ok {
			return checkText(keyword, arg, text)
		}
		return nil
	case "minimum", "maximum":
		if n, ok := v.(float64); ok && (keyword == "minimum" && n < arg.(float64) || keyword == "maximum" && n > arg.(float64)) {
			return fmt.Errorf("%v breaks %s %v", n, keyword, arg)
		}
		return nil
	}
	return fmt.Errorf("the keyword %s is none that is known", keyword)
}

func checkType(arg, v any) error {
	allowed, ok := arg.([]any)
	if !ok {
		allowed = []any{arg}
	}
	is := "null"
	switch v := v.(type) {
	case string:
		is = "string"
	case bool:
		is = "boolean"
	case []any:
		is = "array"
	case map[string]any:
		is = "object"
	case float64:
		if is = "number"; v == float64(int64(v)) && slices.Contains(allowed, any("integer")) {
			is = "integer"
		}
	}
	if !slices.Contains(allowed, any(is)) {
		return fmt.Errorf("%s where %v is expected", is, arg)
	}
	return nil
}

func (b *Book) some(keyword string, schemas []any, v any) error {
	fits, errs := 0, []error{}
	for _, s := range schemas {
		if err := b.value(s.(map[string]any), v); err != nil {
			errs = append(errs, err)
			continue
		}
		fits++
	}
	if fits == 0 || keyword == "oneOf" && fits > 1 {
		return fmt.Errorf("%d of %s fit: %w", fits, keyword, errors.Join(errs...))
	}
	return nil
}

func (b *Book) object(schema map[string]any, keyword string, object map[string]any) error {
	properties := dig(schema, "properties")
	switch keyword {
	case "required":
		for _, name := range schema[keyword].([]any) {
			if _, ok := object[name.(string)]; !ok {
				return fmt.Errorf("member %v is missing", name)
			}
		}
	case "properties":
		for name, s := range properties {
			if v, ok := object[name]; ok {
				if err := b.value(s.(map[string]any), v); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	default:
		for name, v := range object {
			if properties[name] != nil {
				continue
			}
			s, ok := schema[keyword].(map[string]any)
			if !ok {
				return fmt.Errorf("member %s is not declared", name)
			}
			if err := b.value(s, v); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func (b *Book) array(schema map[string]any, keyword string, array []any) error {
	prefix, _ := schema["prefixItems"].([]any)
	switch arg := schema[keyword]; keyword {
	case "minItems", "maxItems":
		if n := float64(len(array)); keyword == "minItems" && n < arg.(float64) || keyword == "maxItems" && n > arg.(float64) {
			return fmt.Errorf("%v items break %s %v", n, keyword, arg)
		}
	case "prefixItems":
		for i, s := range prefix[:min(len(prefix), len(array))] {
			if err := b.value(s.(map[string]any), array[i]); err != nil {
				return fmt.Errorf("item %d: %w", i, err)
			}
		}
	default:
		for i, v := range array[min(len(prefix), len(array)):] {
			if err := b.value(arg.(map[string]any), v); err != nil {
				return fmt.Errorf("item %d: %w", i, err)
			}
		}
	}
	return nil
}

func checkText(keyword string, arg any, text string) error {
	ok := true
	switch n := float64(utf8.RuneCountInString(text)); keyword {
	case "minLength":
		ok = n >= arg.(float64)
	case "maxLength":
		ok = n <= arg.(float64)
	default:
		re, err := regexp.Compile(escapes.ReplaceAllString(arg.(string), `\x{$1}`))
		if err != nil {
			return fmt.Errorf("pattern %v: %w", arg, err)
		}
		ok = re.MatchString(text)
	}
	if !ok {
		return fmt.Errorf("%q breaks %s %v", text, keyword, arg)
	}
	return nil
}

// escapes are ECMA-262's escapes, which Go's expressions write otherwise.
var escapes = regexp.MustCompile(`\\u([0-9a-f]{4})`)
