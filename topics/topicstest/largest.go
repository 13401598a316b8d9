// Package topicstest makes events for tests out of the schema in package topics.
package topicstest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/nexus/nexus/topics"
)

// Largest makes, for every type of event, topic and kind of key, one event for each field, in which that field is the
// largest that topics.Valid lets in; and one in which all fields are large at once. Keys are always the largest.
// Texts are random and of four bytes a character, so that no store can compress them. A field that no candidate fits is
// an error: teach candidates its values.
func Largest(seed uint64) ([]*topics.Event, error) {
	m := maker{r: rand.New(rand.NewPCG(seed, 0))}
	m.long = m.text(topics.MaxValue)
	var all []*topics.Event
	for _, s := range topics.Kinds() {
		for _, in := range s.In {
			made, err := m.ofTopic(s, in)
			if err != nil {
				return nil, err
			}
			all = append(all, made...)
		}
	}
	return all, nil
}

type maker struct {
	r    *rand.Rand
	long string // a text of topics.MaxValue bytes
}

// draft is an event under construction: values by field, in the order of the schema.
type draft struct {
	shape  *topics.Kind
	topic  topics.Topic
	key    string
	id     string
	source string
	signed bool // source is what a valid event has
	values map[string]any
}

func (d draft) with(field string, v any) draft {
	values := map[string]any{field: v}
	for name, old := range d.values {
		if name != field {
			values[name] = old
		}
	}
	d.values = values
	return d
}

func (d draft) event() *topics.Event {
	pairs := []any{"id", d.id}
	for _, f := range d.shape.Fields {
		if v, ok := d.values[f.Name]; ok {
			pairs = append(pairs, f.Name, v)
		}
	}
	e := &topics.Event{Topic: d.topic, Key: []byte(d.key), Value: topics.Fields(pairs...),
		Meta: topics.Meta{Type: d.shape.Type, ID: d.id, NexusID: d.id, Source: d.source}}
	if _, ofNode := d.values["node"]; !d.signed || ofNode {
		Sign(e)
	}
	return e
}

func (d draft) valid() bool { return topics.Valid(d.event()) == nil }

func (m maker) ofTopic(s *topics.Kind, in topics.In) (list []*topics.Event, err error) {
	for _, key := range in.Keys {
		base, ok := m.base(s, in.Topic, key)
		if !ok {
			return nil, fmt.Errorf("no candidate makes a %s in %s valid", s.Type, in.Topic)
		}
		base.source, base.signed = base.event().Source, true
		made, err := m.ofBase(base)
		if err != nil {
			return nil, err
		}
		list = append(list, made...)
	}
	return list, nil
}

// base is a valid event of a kind of key: the required fields, and an optional one where the schema wants one of several.
func (m maker) base(s *topics.Kind, t topics.Topic, kind topics.AudienceKind) (draft, bool) {
	d := draft{shape: s, topic: t, key: m.key(kind), id: topics.NewID()}
	for _, f := range s.Fields {
		if f.Required {
			d = d.with(f.Name, nil)
		}
	}
	d, ok := m.complete(d)
	for _, f := range s.Fields {
		if ok {
			break
		}
		if f.Required {
			continue
		}
		if with, fits := m.complete(d.with(f.Name, nil)); fits {
			d, ok = with, true
		}
	}
	return d, ok
}

// complete finds values for the fields that are nil: the first of the candidates against which Valid says nothing of that
// field. It reports whether the event is valid then.
func (m maker) complete(d draft) (draft, bool) {
	for _, f := range d.shape.Fields {
		if v, ok := d.values[f.Name]; !ok || v != nil {
			continue
		}
		for _, c := range m.candidates(d, f) {
			try := d.with(f.Name, c)
			if err := topics.Valid(try.event()); err == nil || !strings.Contains(err.Error(), f.Name) || strings.Contains(err.Error(), "missing") {
				d = try
				break
			}
		}
	}
	return d, d.valid()
}

// candidates are values of a field, small ones.
func (m maker) candidates(d draft, f topics.Field) []any {
	aud, _ := topics.ParseAudience(d.key)
	switch f.Kind {
	case topics.AString:
		switch f.Name { // ids that the key's have to equal, where it has any
		case "userId", "senderId", "by":
			if aud.Kind == topics.Channel || aud.A == "" {
				return []any{m.text(topics.MaxID)}
			}
			return []any{aud.A}
		case "receiverId":
			return []any{aud.B}
		}
		return []any{m.text(8), topics.NotificationTypes()[0], "high", "/dashboard", "9999-12-31T23:59:59.999999999Z"}
	case topics.ABool:
		return []any{json.RawMessage("true"), json.RawMessage("false")}
	case topics.ANumber:
		return []any{json.RawMessage("9223372036854775807"), json.RawMessage("1.7976931348623157e308")}
	case topics.AnArray:
		return []any{m.prekeys(), json.RawMessage(`["` + m.text(topics.MaxID) + `"]`)}
	}
	return []any{json.RawMessage(topics.Fields("k", m.text(8)))}
}

// ofBase makes the events of a base.
func (m maker) ofBase(base draft) (list []*topics.Event, err error) {
	all := base
	for _, f := range base.shape.Fields {
		n := len(list)
		for _, c := range m.candidates(base, f) {
			if f.Kind == topics.AString && len(list) > n {
				break // the first that fits has grown to what others would
			}
			if d, ok := m.fit(base.with(f.Name, c), f.Name); ok {
				d = m.grow(d, f)
				d.id = topics.NewID()
				list = append(list, d.event())
			}
			if try := all.with(f.Name, c); try.valid() {
				all = try
			}
		}
		if len(list) == n {
			return nil, fmt.Errorf("no candidate fits field %s of a %s in %s", f.Name, base.shape.Type, base.topic)
		}
	}
	all.id = topics.NewID()
	return append(list, all.event()), nil
}

// fit makes a draft valid by leaving out, or adding, one field other than kept: of some only one of two may be given.
func (m maker) fit(d draft, kept string) (draft, bool) {
	if d.valid() {
		return d, true
	}
	for _, f := range d.shape.Fields {
		if f.Required || f.Name == kept {
			continue
		}
		without := d.with(f.Name, nil)
		if without.valid() {
			return without, true
		}
		for _, c := range m.candidates(d, f) {
			if with := d.with(f.Name, c); with.valid() {
				return with, true
			}
		}
	}
	return d, false
}

// grow makes a field as large as it may be, where it is a text that may be any.
func (m maker) grow(d draft, f topics.Field) draft {
	wrap := func(s string) any { return s }
	switch f.Kind {
	case topics.AnObject, topics.Anything:
		wrap = func(s string) any { return json.RawMessage(topics.Fields("k", s)) }
	case topics.AString:
	default:
		return d
	}
	if try := d.with(f.Name, wrap(m.long[:unbounded])); try.valid() { // only the value's size bounds it
		room := topics.MaxValue - len(try.event().Value)
		return d.with(f.Name, wrap(m.long[:(unbounded+room)/4*4]+"xyz"[:(unbounded+room)%4]))
	}
	longest := m.largest(func(s string) bool { return d.with(f.Name, wrap(s)).valid() })
	if longest == "" {
		return d
	}
	return d.with(f.Name, wrap(longest))
}

// unbounded is a length in bytes that no field with a bound of its own has.
const unbounded = 16 << 10

// key is the largest of a kind.
func (m maker) key(kind topics.AudienceKind) string {
	switch kind {
	case topics.User:
		return topics.UserKey(m.text(topics.MaxID))
	case topics.Conversation:
		return topics.ConversationKey(m.text(topics.MaxID), m.text(topics.MaxID))
	case topics.Channel:
		const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:-"
		b := make([]byte, topics.MaxID)
		for i := range b {
			b[i] = letters[m.r.IntN(len(letters))]
		}
		return topics.ChannelKey(string(b))
	case topics.Everyone:
		return topics.EveryoneKey
	}
	return m.text(topics.MaxID)
}

func (m maker) prekeys() json.RawMessage {
	list := make([]topics.Prekey, topics.MaxPrekeys)
	for i := range list {
		list[i] = topics.Prekey{ID: m.text(64), Key: m.text(256)}
	}
	b, _ := json.Marshal(list) // strings always encode
	return b
}

// text is random, of n bytes, four of them a character but for the rest.
func (m maker) text(n int) string {
	var b strings.Builder
	for ; n >= 4; n -= 4 {
		b.WriteRune(rune(0x10000 + m.r.IntN(0x100000)))
	}
	return b.String() + "xyz"[:n]
}

// largest finds the longest text below unbounded that fits, by doubling and then by halves; empty where none does.
func (m maker) largest(fits func(string) bool) string {
	text := m.text(unbounded)
	low, high := 0, 1 // in characters of four bytes
	for 4*high <= unbounded && fits(text[:4*high]) {
		low, high = high, 2*high
	}
	high = min(high, unbounded/4+1)
	for high-low > 1 {
		if mid := (low + high) / 2; fits(text[:4*mid]) {
			low = mid
		} else {
			high = mid
		}
	}
	best := text[:4*low]
	for _, more := range []string{"x", "xy", "xyz"} {
		if s := text[:4*low] + more; fits(s) {
			best = s
		}
	}
	return best
}
