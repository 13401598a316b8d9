package topics

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// JSONKind is the JSON kind of a field.
type JSONKind uint8

// The kinds of a field's value.
const (
	AString JSONKind = iota
	AnObject
	ABool
	ANumber
	AnArray
	Anything
)

func (k JSONKind) String() string {
	return [...]string{"a string", "an object", "true or false", "a number", "an array", "any value"}[k]
}

// Format is what the text of a field must be, beyond its length.
type Format uint8

// The formats.
const (
	AnyText     Format = iota
	Timestamp          // RFC 3339 (CheckTimestamp)
	UserID             // CheckUserID
	ChannelName        // CheckChannel
)

// Bounds are those of a text's length. Max 0: there is no upper one but the record's.
type Bounds struct{ Min, Max int }

// Field is a member of a record's value, of a frame's data or of a command's.
type Field struct {
	Name     string
	Kind     JSONKind
	Required bool
	// Doc says what it means, with its unit.
	Doc string
	// Bytes and Chars bound a text, in bytes where stores index it, in characters where it is only kept.
	Bytes, Chars Bounds
	// Count bounds an array's items.
	Count Bounds
	// Enum lists the texts that are allowed; empty: any.
	Enum   []string
	Format Format
	// Of is the kind of an array's items; Items are the members of the items where those are objects.
	Of    JSONKind
	Items []Field
	// Or is another member: exactly one of the two must be there; empty: there is none.
	Or string
	// Example is a value as JSON has it, for people; may be empty.
	Example string
	// Fill makes the member of a record that is handed in by REST; nil: it is what was given. to is whom the event is for, given
	// the text that was given, sender the user of the token.
	Fill func(to Audience, given, sender string) string
}

// check tells what is wrong with a text.
func (f *Field) check(s string) error {
	if err := f.checkLength(s); err != nil {
		return err
	}
	if len(f.Enum) > 0 && !slices.Contains(f.Enum, s) {
		return fmt.Errorf("must be one of %s", strings.Join(f.Enum, ", "))
	}
	switch f.Format {
	case Timestamp:
		return CheckTimestamp(s)
	case UserID:
		return CheckUserID(s)
	case ChannelName:
		return CheckChannel(s)
	}
	return nil
}

func (f *Field) checkLength(s string) error {
	for _, of := range [...]struct {
		n    int
		b    Bounds
		unit string
	}{{len(s), f.Bytes, "bytes"}, {utf8.RuneCountInString(s), f.Chars, "characters"}} {
		switch {
		case of.b.Max == 0 && of.n < of.b.Min:
			return errors.New("must not be empty")
		case of.b.Max > 0 && (of.n < of.b.Min || of.n > of.b.Max):
			return fmt.Errorf("must have %d to %d %s", of.b.Min, of.b.Max, of.unit)
		}
	}
	return nil
}

// checkRaw tells what is wrong with a member's JSON.
func (f *Field) checkRaw(raw []byte) error {
	if !f.Kind.fits(raw[0]) {
		return fmt.Errorf("field %s must be %s", f.Name, f.Kind)
	}
	if f.Kind != AString {
		return nil
	}
	if err := f.check(unquote(raw)); err != nil {
		return fmt.Errorf("field %s: %w", f.Name, err)
	}
	return nil
}

// fits tells by its first byte whether a JSON value is of the kind.
func (k JSONKind) fits(c byte) bool {
	switch k {
	case AString:
		return c == '"'
	case AnObject:
		return c == '{'
	case AnArray:
		return c == '['
	case ABool:
		return c == 't' || c == 'f'
	case ANumber:
		return c == '-' || '0' <= c && c <= '9'
	}
	return true
}

// Members that more than one kind has.
var (
	timestamp = Field{Name: "timestamp", Format: Timestamp, Example: `"2025-12-01T10:00:00.000Z"`,
		Doc: "when it happened, RFC 3339; left out: the record's time"}
	notEmpty = Bounds{Min: 1}
	idBounds = Bounds{1, MaxID}
	anID     = Field{Name: "id", Bytes: idBounds, Example: exampleID, Doc: "the event's id: Nexus puts it there, producers leave it out"}
)

// exampleID is an event's id in examples.
const exampleID = `"0198f3a2-6c1d-7b3e-9a55-2f4c8d0e7b61"`
