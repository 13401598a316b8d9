package topics

import (
	"bytes"
	"encoding/json"

	"github.com/google/uuid"
)

// Receipt tells a sender what became of an event: its id, and whether the log had it already.
type Receipt struct {
	ID        string // Event.EventID
	Duplicate bool   // true: the log had the event already, under this id
}

// New makes an event that Nexus itself appends. Where m names no ID (header ce_id), it is m.NexusID. value must be a JSON object.
func New(t Topic, key string, m Meta, value []byte) *Event {
	if m.ID == "" {
		m.ID = m.NexusID
	}
	return &Event{Topic: t, Key: []byte(key), Meta: m, Value: value}
}

// NewID is an id of an event whose sender named no key: a UUIDv7 (RFC 9562, section 5.7).
func NewID() string { return uuid.Must(uuid.NewV7()).String() }

// Fields builds a JSON object from pairs of a name, which must be a string, and a value, in order. It leaves out values that are nil, and
// those that encoding/json refuses. A json.RawMessage stands as it is. Strings keep <, > and & as they are.
func Fields(pairs ...any) []byte {
	o := newObject()
	for i := 0; i+1 < len(pairs); i += 2 {
		name := pairs[i].(string)
		switch v := pairs[i+1].(type) {
		case nil:
		case json.RawMessage:
			if len(v) > 0 {
				o.raw(name, v)
			}
		case string:
			o.text(name, v)
		default:
			b, err := json.Marshal(v)
			if err == nil {
				o.raw(name, b)
			}
		}
	}
	return o.bytes()
}

type object struct {
	b   bytes.Buffer
	enc *json.Encoder
}

func newObject() *object {
	o := &object{}
	o.b.WriteByte('{')
	o.enc = json.NewEncoder(&o.b)
	o.enc.SetEscapeHTML(false)
	return o
}

func (o *object) name(name string) {
	if o.b.Len() > 1 {
		o.b.WriteByte(',')
	}
	o.b.WriteString(`"` + name + `":`)
}

func (o *object) text(name, v string) {
	o.name(name)
	_ = o.enc.Encode(v)         // a string always encodes
	o.b.Truncate(o.b.Len() - 1) // the encoder's newline
}

func (o *object) raw(name string, v []byte) {
	o.name(name)
	o.b.Write(v)
}

func (o *object) bytes() []byte {
	o.b.WriteByte('}')
	return o.b.Bytes()
}
