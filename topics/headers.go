package topics

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Header is a record header. It has the shape of a Kafka client's own.
type Header struct {
	Key   string
	Value []byte
}

// Header names: CloudEvents 1.0 Kafka protocol binding, section 3.2 (binary content mode), and our own.
const (
	HeaderID             = "ce_id"
	HeaderSource         = "ce_source"
	HeaderType           = "ce_type"
	HeaderTime           = "ce_time"
	HeaderSpecVersion    = "ce_specversion"
	HeaderContentType    = "content-type"
	HeaderIdempotencyKey = "idempotency-key"
	HeaderTraceParent    = "traceparent"
	HeaderNexusID        = "nexus-id"
	// HeaderPlace is on a record that nexus repartition has copied: the id that it had by its place, where it had no other.
	HeaderPlace = "nexus-place"
	// On dead letters: where the record stood, why it was refused, and whether its value was cut.
	HeaderOrigin    = "nexus-origin"
	HeaderReason    = "nexus-reason"
	HeaderTruncated = "nexus-truncated"
)

// Meta is what a record's headers say. Of a header that stands twice the last counts.
type Meta struct {
	// ID is the sender's name of the event, where there is no IdempotencyKey.
	ID string
	// Source is who sent it: SourceOf a user, NodeSource of a node, or a product service's own word.
	Source string
	// Type is the kind of event (Kind.Type); empty: Valid finds the default of topic and key.
	Type string
	// Time is when it happened, by its sender's clock, RFC 3339. Nexus goes by the record time.
	Time string
	// ContentType is not looked at, but for a CloudEvent in structured mode, which is refused.
	ContentType string
	// IdempotencyKey is the sender's name of the event: sent again under it within the dedup window, it is the same event.
	IdempotencyKey string
	// TraceParent is W3C trace context; it is passed on.
	TraceParent string
	// NexusID is the id that Nexus gave it. A record of others must not have it.
	NexusID string
	// Place is the id that a record had by its place before nexus repartition copied it. It is believed only of records that Nexus has
	// copied (pipeline.EventOf).
	Place string
}

// Set takes in one header; unknown ones are ignored.
func (m *Meta) Set(key string, value []byte) {
	switch key {
	case HeaderID:
		m.ID = string(value)
	case HeaderSource:
		m.Source = string(value)
	case HeaderType:
		m.Type = internType(value)
	case HeaderTime:
		m.Time = string(value)
	case HeaderContentType:
		m.ContentType = string(value)
	case HeaderIdempotencyKey:
		m.IdempotencyKey = string(value)
	case HeaderTraceParent:
		m.TraceParent = string(value)
	case HeaderNexusID:
		m.NexusID = string(value)
	case HeaderPlace:
		m.Place = placeIn(value)
	}
}

// placeIn is b where it is an id by place, <topic letter><partition>-<offset>, else empty.
func placeIn(b []byte) string {
	partition, offset, ok := bytes.Cut(b[min(1, len(b)):], []byte{'-'})
	if !ok || len(b) > 40 || b[0] < 'a' || b[0] > 'z' || !isNumber(partition) || !isNumber(offset) {
		return ""
	}
	return string(b)
}

func isNumber(b []byte) bool {
	return len(b) > 0 && !bytes.ContainsFunc(b, func(r rune) bool { return r < '0' || r > '9' })
}

// Headers writes m as headers, leaving out what is empty.
func (m *Meta) Headers() []Header {
	h := make([]Header, 0, 8)
	add := func(k, v string) {
		if v != "" {
			h = append(h, Header{k, []byte(v)})
		}
	}
	add(HeaderSpecVersion, "1.0")
	add(HeaderID, m.ID)
	add(HeaderSource, m.Source)
	add(HeaderType, m.Type)
	add(HeaderTime, m.Time)
	add(HeaderContentType, m.ContentType)
	add(HeaderIdempotencyKey, m.IdempotencyKey)
	add(HeaderTraceParent, m.TraceParent)
	add(HeaderNexusID, m.NexusID)
	return h
}

// maxHeader bounds a header that Nexus reads, in bytes: what REST takes of a CloudEvent's attributes (2048) and the prefix that
// names the user in its ce_source.
const maxHeader = 2048 + 256

// structured begins the content-type of a CloudEvent in structured or batched mode (CloudEvents 1.0 Kafka protocol binding,
// section 3.3).
const structured = "application/cloudevents"

// check tells what is wrong with the headers.
func (m *Meta) check() error {
	if len(m.ContentType) >= len(structured) && strings.EqualFold(m.ContentType[:len(structured)], structured) {
		return refuse(ReasonStructured, errors.New("the record is a CloudEvent in structured mode (content-type "+structured+
			"…); send it in binary mode: the attributes as headers ce_…, the data as the value"))
	}
	for _, h := range [...]struct{ name, value string }{{HeaderID, m.ID}, {HeaderSource, m.Source}, {HeaderIdempotencyKey, m.IdempotencyKey},
		{HeaderNexusID, m.NexusID}} {
		if len(h.value) > maxHeader {
			return refuse(ReasonHeader, fmt.Errorf("header %s has %d bytes; %d are allowed", h.name, len(h.value), maxHeader))
		}
		if !utf8.ValidString(h.value) || strings.IndexByte(h.value, 0) >= 0 {
			return refuse(ReasonHeader, fmt.Errorf("header %s must be UTF-8 without U+0000", h.name))
		}
	}
	if m.Time != "" {
		if err := CheckTimestamp(m.Time); err != nil {
			return refuse(ReasonHeader, fmt.Errorf("header %s %w", HeaderTime, err))
		}
	}
	return nil
}

// name is what the sender calls the event: its idempotency key, or else its ce_id.
func (m *Meta) name() string {
	if m.IdempotencyKey != "" {
		return m.IdempotencyKey
	}
	return m.ID
}

// Identity tells which records are of one event: those of the same one, within the dedup window. The zero Identity is none.
type Identity [16]byte

// Identity hashes the record's key, its type, its source and its idempotency key (or else its ce_id). It is false where the record has
// neither of the last two: such a record is never a duplicate.
func (m *Meta) Identity(key []byte) (Identity, bool) {
	name := m.name()
	if name == "" {
		return Identity{}, false
	}
	sum := identitySum(key, m.Type, m.Source, name)
	return Identity(sum[:16]), true
}

func identitySum(key []byte, typ, source, idem string) [sha256.Size]byte {
	b := make([]byte, 0, 256)
	for _, s := range [...]string{string(key), typ, source, idem} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return sha256.Sum256(b)
}

// EventID is the id of an event whose sender named its idempotency key: a UUIDv8 (RFC 9562, section 5.8) of the
// identity, so that a repeat has the same one for ever.
func EventID(key, typ, source, idem string) string {
	s := identitySum([]byte(key), typ, source, idem)
	s[6] = s[6]&0x0f | 0x80
	s[8] = s[8]&0x3f | 0x80
	var b [36]byte
	hex.Encode(b[:8], s[:4])
	hex.Encode(b[9:13], s[4:6])
	hex.Encode(b[14:18], s[6:8])
	hex.Encode(b[19:23], s[8:10])
	hex.Encode(b[24:], s[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// What a ce_source of Nexus's own begins with.
const (
	userSource = "/users/"
	nodeSource = "/nodes/"
)

// SourceOf is the ce_source of what a token of user sends.
func SourceOf(user string) string { return userSource + user }

// NodeSource is the ce_source of what a node sends of itself.
func NodeSource(node string) string { return nodeSource + node }

// UserOf is the user whose token sent a record of topics that only users' tokens write; empty for any other source.
func UserOf(source string) string {
	user, ok := strings.CutPrefix(source, userSource)
	if !ok {
		return ""
	}
	return user
}
