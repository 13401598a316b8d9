package topics

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// Reason is the kind of fault that a record was refused for: one of a few, fit to be a metric's label.
type Reason string

// The reasons of Valid.
const (
	ReasonStructured Reason = "structured" // a CloudEvent in structured mode
	ReasonHeader     Reason = "header"     // too long, not UTF-8, or not what a header of this name holds
	ReasonType       Reason = "type"       // ce_type is not one of the topic
	ReasonKey        Reason = "key"        // not the audience of an event of this type
	ReasonSize       Reason = "size"       // the value is too large
	ReasonJSON       Reason = "json"       // the value is not one JSON object that all read alike
	ReasonField      Reason = "field"      // a member is missing, unknown, or not what it must be
	ReasonSender     Reason = "sender"     // ce_source is not that of whom the record speaks for
	ReasonID         Reason = "id"         // nexus-id is not this event's
)

// Refusal is what is wrong with a record. Its text is fit to be shown to whoever wrote the record: it never quotes the value.
type Refusal struct {
	Reason Reason
	err    error
}

func (r *Refusal) Error() string { return r.err.Error() }

func (r *Refusal) Unwrap() error { return r.err }

// refuse gives an error its reason; none stays none.
func refuse(why Reason, err error) error {
	if err == nil {
		return nil
	}
	return &Refusal{why, err}
}

// Valid is the one judge of validity: it reads the event's headers, key and value once and says what is wrong with them, as a
// Refusal. The verdict is a function of the record alone.
func Valid(e *Event) error {
	if !e.judged {
		e.verdict = e.judge()
		e.judged = true
	}
	return e.verdict
}

func (e *Event) judge() error {
	if err := e.check(); err != nil {
		return err
	}
	k, err := e.readKey()
	if err != nil {
		return err
	}
	if len(e.Value) > MaxValue {
		return refuse(ReasonSize, fmt.Errorf("the value has %d bytes; %d are allowed", len(e.Value), MaxValue))
	}
	if e.body, err = scanBody(e.Value); err != nil {
		return refuse(ReasonJSON, err)
	}
	if err := k.checkFields(e); err != nil {
		return refuse(ReasonField, err)
	}
	if k.Sender != nil {
		if err := k.Sender.check(e); err != nil {
			return refuse(ReasonSender, err)
		}
	}
	if err := e.checkID(); err != nil {
		return refuse(ReasonID, err)
	}
	e.kind = k
	return nil
}

// readKey finds the event's kind and reads the key that the kind asks for.
func (e *Event) readKey() (*Kind, error) {
	aud, keyErr := ParseAudience(string(e.Key))
	if e.Type == "" {
		e.Type = DefaultType(e.Topic, aud.Kind)
	}
	if e.Type == "" && keyErr != nil && e.Topic != Presence {
		return nil, refuse(ReasonKey, keyErr)
	}
	k := KindOf(e.Type)
	var in *In
	if k != nil {
		in = k.in(e.Topic)
	}
	if in == nil {
		return nil, refuse(ReasonType, fmt.Errorf("ce_type %q is not one of topic %s", clip(e.Type), e.Topic))
	}
	if slices.Contains(in.Keys, NoAudience) {
		return k, nil
	}
	if keyErr == nil && !slices.Contains(in.Keys, aud.Kind) {
		keyErr = fmt.Errorf("the key of a %s in %s must be %s", k.Type, e.Topic, shapes(in.Keys))
	}
	e.Audience = aud
	return k, refuse(ReasonKey, keyErr)
}

// shapes are what keys of some kinds look like, for people.
func shapes(list []AudienceKind) string {
	texts := make([]string, len(list))
	for i, k := range list {
		texts[i] = k.Shape()
	}
	return strings.Join(texts, " or ")
}

// checkID: what Nexus mints stands in the value and in header nexus-id; a record of others has neither. Whoever forges both
// gets no further than his own event: the id must be the hash of this record's identity, or else a random one that is the
// record's ce_id as well. So nobody can take the id that a named event has or will have.
func (e *Event) checkID() error {
	id := e.body.Text("id")
	switch {
	case e.body.Has("id") && e.NexusID == "":
		return errors.New("a record must not have a top-level id; Nexus gives it one")
	case e.NexusID == "":
		return nil
	case id != e.NexusID:
		return errors.New("header nexus-id and the value's id differ")
	case e.NexusID == e.ID && isRandomID(e.NexusID), e.NexusID == EventID(string(e.Key), e.Type, e.Source, e.name()):
		return nil
	}
	return errors.New("header nexus-id is not this event's: it is Nexus's own header, leave it and the top-level id out")
}

// isRandomID tells a UUIDv7 as NewID writes it.
func isRandomID(id string) bool {
	u, err := uuid.Parse(id)
	return err == nil && u.Version() == 7 && u.Variant() == uuid.RFC4122 && u.String() == id
}

// checkFields judges the value's members.
func (k *Kind) checkFields(e *Event) error {
	for _, m := range e.body.members {
		f := k.field(m.name)
		switch {
		case m.name == anID.Name:
			f = &Field{Name: m.name} // what it must be but a text is for checkID to say
		case f == nil:
			return fmt.Errorf("unknown field %q of a %s; put it in data", clip(m.name), k.Type)
		}
		if err := f.checkRaw(m.raw); err != nil {
			return err
		}
	}
	for i := range k.Fields {
		if f := &k.Fields[i]; f.Required && !e.body.Has(f.Name) {
			return fmt.Errorf("field %s of a %s is missing", f.Name, k.Type)
		}
	}
	if k.Check == nil {
		return nil
	}
	return k.Check(e)
}

// field finds a field by its name; nil where there is none.
func (k *Kind) field(name string) *Field {
	for i := range k.Fields {
		if k.Fields[i].Name == name {
			return &k.Fields[i]
		}
	}
	return nil
}
