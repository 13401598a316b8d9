package topics

import (
	"strconv"
	"strings"
)

// Event is a record of one of our topics, as consumers and producers see it.
//
// Valid reads it: it fills in Audience, and Type where the record names none, and it remembers its verdict. Until Valid has run once, an
// event belongs to one goroutine; afterwards many may read it.
type Event struct {
	// Topic, Partition and Offset are where it stands (At). Of an event that is still to be appended only Topic is known.
	Topic     Topic
	Partition int32
	Offset    int64
	Time      int64 // record time, Unix milliseconds; 0 until it is appended
	Key       []byte
	Value     []byte // a JSON object, MaxValue bytes at most
	// Meta is what the headers say.
	Meta

	// Audience is the key as Valid has read it.
	Audience Audience
	// body is the value as Valid has read it. Outside this package nobody knows its members: ReadMessage, ReadNotification and
	// their siblings tell what they say.
	body body

	// Duplicate is the dedup window's verdict. Stray says that the record stands in another partition than its key's. The consumer
	// that polled the record sets both.
	Duplicate, Stray bool

	judged  bool
	verdict error
	kind    *Kind
}

// MaxValue bounds a record's value, in bytes.
const MaxValue = 256 << 10

// At is where the record stands in the log.
func (e *Event) At() Place { return e.Topic.Partition(e.Partition).At(e.Offset) }

// Kind is what is known of events of this type; nil where there is no such type.
func (e *Event) Kind() *Kind {
	if e.kind != nil {
		return e.kind
	}
	return KindOf(e.Type)
}

// Actor is the user who did what the event tells; empty where the kind names none. The event must be valid.
func (e *Event) Actor() string {
	k := e.Kind()
	switch {
	case k.Actor == "":
		return ""
	case k.Sender != nil && k.Sender.member == k.Actor:
		return UserOf(e.Source) // the same, and no copy
	}
	return e.body.Text(k.Actor)
}

// ActorOf is the user who did what an event's data says (Data); empty where the kind names none.
func (k *Kind) ActorOf(data []byte) string {
	if k.Actor == "" {
		return ""
	}
	b, err := scanBody(data)
	if err != nil { // it was valid when it was stored
		return ""
	}
	return b.Text(k.Actor)
}

// Detail is the text by which the statistics tell events of this kind apart; empty where there is none. The event must be valid.
func (e *Event) Detail() string {
	if k := e.Kind(); k.Detail != "" {
		return e.body.Text(k.Detail)
	}
	return ""
}

// EventID is the event's id, at most 64 bytes. Nexus gave it one in header nexus-id; or it follows from what its sender called it
// (function EventID), so that REST and Kafka give one event one id; or it is made of the place where the record stood first:
// <Spec.Letter><partition>-<offset>.
func (e *Event) EventID() string {
	switch {
	case e.NexusID != "":
		return e.NexusID
	case e.name() != "":
		return EventID(string(e.Key), e.Type, e.Source, e.name())
	case e.Place != "":
		return e.Place
	}
	s, _ := Of(e.Topic)
	b := append(make([]byte, 0, 24), s.Letter)
	b = strconv.AppendInt(b, int64(e.Partition), 10)
	b = append(b, '-')
	return string(strconv.AppendInt(b, e.Offset, 10))
}

// Data is what clients receive as the event's data: the value, and before its last brace what it leaves out (id, defaults, timestamp)
// and extra members, each as "name":value in JSON. The event must be valid.
func (e *Event) Data(extra ...string) []byte {
	v, k := e.body.value, e.Kind()
	b := append(make([]byte, 0, len(v)+96), v[:len(v)-1]...)
	empty := len(e.body.members) == 0
	add := func(s string) {
		if !empty {
			b = append(b, ',')
		}
		empty = false
		b = append(b, s...)
	}
	if k.HasID && !e.body.Has(anID.Name) {
		add(`"id":"` + e.EventID() + `"`)
	}
	for _, d := range k.Defaults {
		if !e.body.Has(d.Field) {
			add(`"` + d.Field + `":` + d.JSON)
		}
	}
	if !e.body.Has(timestamp.Name) {
		add(`"` + timestamp.Name + `":"` + FormatTime(e.Time) + `"`)
	}
	for _, s := range extra {
		add(s)
	}
	return append(b, '}')
}

// clip bounds what an error repeats of its input.
func clip(s string) string {
	if len(s) > 64 {
		s = strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

// RepeatData is Data of a duplicate, as its sender is shown it: with "duplicate":true.
func (e *Event) RepeatData() []byte { return e.Data(`"duplicate":true`) }
