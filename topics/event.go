package topics

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Event is a record of one of our topics, as consumers and producers see it. Valid fills in Type where the record names none,
// Audience and Body, and remembers its verdict: an event is not safe for concurrent use until Valid has run on it once.
// Afterwards it may be read by many.
type Event struct {
	Topic     Topic
	Partition int32
	Offset    int64
	Time      int64 // record time, Unix milliseconds
	Key       []byte
	Value     []byte
	Meta

	// Audience and Body are the key and the value as Valid has read them.
	Audience Audience
	Body     Body

	// Duplicate is the dedup window's verdict, Stray says that the record stands in a partition its key does not belong
	// to. Both are set by the consumer that polled the record.
	Duplicate, Stray bool

	judged  bool
	verdict error
}

// Bounds, in bytes: of a record's value, and of a device token (FCM's have some 200).
const (
	MaxValue = 256 << 10
	MaxToken = 4096
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
	if err := e.Meta.check(); err != nil {
		return err
	}
	s, err := e.readKey()
	if err != nil {
		return err
	}
	if len(e.Value) > MaxValue {
		return refuse(ReasonSize, fmt.Errorf("the value has %d bytes; %d are allowed", len(e.Value), MaxValue))
	}
	if e.Body, err = scanBody(e.Value); err != nil {
		return refuse(ReasonJSON, err)
	}
	if err := s.check(e); err != nil {
		return refuse(ReasonField, err)
	}
	if rule := senders[e.Type]; rule != nil {
		if err := rule(e); err != nil {
			return refuse(ReasonSender, err)
		}
	}
	return refuse(ReasonID, e.checkID())
}

// readKey finds the event's schema and reads the key that the schema asks for.
func (e *Event) readKey() (*schema, error) {
	aud, keyErr := ParseAudience(string(e.Key))
	if e.Type == "" {
		e.Type = DefaultType(e.Topic, aud.Kind)
	}
	if e.Type == "" && keyErr != nil && e.Topic != Presence {
		return nil, refuse(ReasonKey, keyErr)
	}
	s := schemaOf(e.Type, e.Topic)
	if s == nil {
		return nil, refuse(ReasonType, fmt.Errorf("ce_type %q is not one of topic %s", clip(e.Type), e.Topic))
	}
	if slices.Contains(s.keys, NoAudience) {
		return s, nil
	}
	if keyErr == nil && s.keys != nil && !slices.Contains(s.keys, aud.Kind) {
		keyErr = fmt.Errorf("the key does not suit a %s", s.typ)
	}
	e.Audience = aud
	return s, refuse(ReasonKey, keyErr)
}

// checkID: what Nexus mints stands in the value and in header nexus-id; a record of others has neither. Whoever forges both
// gets no further than his own event: the id must be the hash of this record's identity, or else a random one that is the
// record's ce_id as well. So nobody can take the id that a named event has or will have.
func (e *Event) checkID() error {
	id := e.Body.Text("id")
	switch {
	case e.Body.Has("id") && e.NexusID == "":
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

func schemaOf(typ string, t Topic) *schema {
	for i := range schemas {
		if schemas[i].typ == typ && slices.Contains(schemas[i].topics, t) {
			return &schemas[i]
		}
	}
	return nil
}

func (s *schema) check(e *Event) error {
	for _, m := range e.Body.members {
		if m.name == "id" {
			if err := checkKind("id", aString, m.raw); err != nil {
				return err
			}
			continue
		}
		i := slices.IndexFunc(s.fields, func(f field) bool { return f.name == m.name })
		if i < 0 {
			return fmt.Errorf("unknown field %q of a %s; put it in data", clip(m.name), s.typ)
		}
		f := s.fields[i]
		if err := checkKind(f.name, f.kind, m.raw); err != nil {
			return err
		}
		if f.check == nil {
			continue
		}
		if err := f.check(unquote(m.raw)); err != nil {
			return fmt.Errorf("field %s: %w", f.name, err)
		}
	}
	for _, f := range s.fields {
		if f.required && !e.Body.Has(f.name) {
			return fmt.Errorf("field %s of a %s is missing", f.name, s.typ)
		}
	}
	if s.extra == nil {
		return nil
	}
	return s.extra(e)
}

func checkKind(name string, k kind, raw []byte) error {
	ok := true
	switch c := raw[0]; k {
	case aString:
		ok = c == '"'
	case anObject:
		ok = c == '{'
	case anArray:
		ok = c == '['
	case aBool:
		ok = c == 't' || c == 'f'
	case aNumber:
		ok = c == '-' || '0' <= c && c <= '9'
	}
	if !ok {
		return fmt.Errorf("field %s must be %s", name, k)
	}
	return nil
}

func checkMessage(e *Event) error {
	s, r := e.Body.Text("senderId"), e.Body.Text("receiverId")
	if ConversationKey(s, r) != string(e.Key) {
		return errors.New("senderId and receiverId are not those of the key")
	}
	if e.Body.Has("content") == e.Body.Has("encrypted") {
		return errors.New("a message has either content or encrypted")
	}
	return nil
}

func checkParticipant(e *Event) error {
	if !e.Audience.Has(e.Body.Text("userId")) {
		return errors.New("userId is not one of the key's two users")
	}
	return nil
}

func checkAudience(e *Event) error {
	want := User
	if e.Topic == Broadcasts {
		want = Channel
	}
	if e.Audience.Kind != want {
		return fmt.Errorf("the key of a %s in %s must be %s", e.Type, e.Topic,
			map[AudienceKind]string{User: "user:<id>", Channel: "channel:<name>"}[want])
	}
	return nil
}

func checkTarget(e *Event) error {
	if e.Body.Has("notificationId") == e.Body.Has("upTo") {
		return errors.New("either notificationId or upTo must be given")
	}
	return nil
}

func notEmpty(s string) error {
	if s == "" {
		return errors.New("must not be empty")
	}
	return nil
}

// size bounds what stores index: their limits are in bytes.
func size(least, most int) func(string) error {
	return func(s string) error {
		if n := len(s); n < least || n > most {
			return fmt.Errorf("must have %d to %d bytes", least, most)
		}
		return nil
	}
}

// length bounds what is only kept.
func length(least, most int) func(string) error {
	return func(s string) error {
		if n := utf8.RuneCountInString(s); n < least || n > most {
			return fmt.Errorf("must have %d to %d characters", least, most)
		}
		return nil
	}
}

func oneOf(allowed ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(allowed, s) {
			return fmt.Errorf("must be one of %s", strings.Join(allowed, ", "))
		}
		return nil
	}
}

// TimeLayout is how Nexus writes timestamps: RFC 3339, UTC, milliseconds, Z.
const TimeLayout = "2006-01-02T15:04:05.000Z"

// CheckTimestamp accepts RFC 3339 timestamps of any offset, as JavaScript's Date can read them: two digits for every
// part, T and Z in capitals, no leap second.
func CheckTimestamp(s string) error {
	if _, err := time.Parse(time.RFC3339Nano, s); err != nil || !timestampShape.MatchString(s) {
		return errors.New("must be an RFC 3339 timestamp, like 2025-12-01T10:00:00.000Z or 2025-12-01T11:00:00+01:00")
	}
	return nil
}

// timestampShape is what time.Parse is more lenient about (ECMA-262, Date Time String Format; a fraction of up to nine
// digits, an offset of less than a day).
var timestampShape = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// FormatTime writes Unix milliseconds as Nexus writes timestamps.
func FormatTime(ms int64) string { return time.UnixMilli(ms).UTC().Format(TimeLayout) }

// EventID is the event's id: the one that Nexus minted, else <topic letter><partition>-<offset> of where the record stood
// first.
func (e *Event) EventID() string {
	if e.NexusID != "" {
		return e.NexusID
	}
	if e.Place != "" {
		return e.Place
	}
	s, _ := Of(e.Topic)
	b := append(make([]byte, 0, 24), s.Letter)
	b = strconv.AppendInt(b, int64(e.Partition), 10)
	b = append(b, '-')
	return string(strconv.AppendInt(b, e.Offset, 10))
}

// Data is what clients receive as the event's data: the value with what it leaves out spliced in before its last
// brace. withID adds the id, which only feed events carry. The event must be valid.
func (e *Event) Data(withID bool, extra ...string) []byte {
	v := e.Body.value
	b := append(make([]byte, 0, len(v)+96), v[:len(v)-1]...)
	empty := len(e.Body.members) == 0
	add := func(s string) {
		if !empty {
			b = append(b, ',')
		}
		empty = false
		b = append(b, s...)
	}
	if withID && !e.Body.Has("id") {
		add(`"id":"` + e.EventID() + `"`)
	}
	if e.Type == TypeNotification {
		if !e.Body.Has("priority") {
			add(`"priority":"normal"`)
		}
		if !e.Body.Has("data") {
			add(`"data":{}`)
		}
	}
	if !e.Body.Has("timestamp") {
		add(`"timestamp":"` + FormatTime(e.Time) + `"`)
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
