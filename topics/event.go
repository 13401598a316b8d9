package topics

import (
	"strconv"
	"strings"
)

// Event is a record of one of our topics, as consumers and producers see it. Valid fills in Type where the record names none,
// Audience, and remembers its verdict: an event is not safe for concurrent use until Valid has run on it once.
// Afterwards it may be read by many.
type Event struct {
	Topic     Topic
	Partition int32
	Offset    int64
	Time      int64 // record time, Unix milliseconds
	Key       []byte
	Value     []byte
	Meta

	// Audience is the key as Valid has read it.
	Audience Audience
	// body is the value as Valid has read it. Outside this package nobody knows its members: ReadMessage, ReadNotification and
	// their siblings tell what they say.
	body body

	// Duplicate is the dedup window's verdict, Stray says that the record stands in a partition its key does not belong
	// to. Both are set by the consumer that polled the record.
	Duplicate, Stray bool

	judged  bool
	verdict error
	kind    *Kind
}

// MaxValue bounds a record's value, in bytes.
const MaxValue = 256 << 10

// At is where the record stands in the log.
func (e *Event) At() Place { return e.Topic.Partition(e.Partition).At(e.Offset) }

// Kind is what is known of events of this type; nil where Valid finds none.
func (e *Event) Kind() *Kind {
	if e.kind != nil {
		return e.kind
	}
	return KindOf(e.Type)
}

// Actor is the user who did it; empty where the kind names none. The event must be valid.
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

// EventID is the event's id: the one that Nexus minted; else the hash of its identity, which REST gives the same identity; else
// <topic letter><partition>-<offset> of where the record stood first.
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

// Data is what clients receive as the event's data: the value with what it leaves out spliced in before its last
// brace, and extra members. The event must be valid.
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

// RepeatData is Data of a duplicate, as its sender is shown it.
func (e *Event) RepeatData() []byte { return e.Data(`"duplicate":true`) }
