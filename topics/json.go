package topics

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// MaxDepth bounds the nesting of a record's value.
const MaxDepth = 64

// body is a record's value: one JSON object, its top-level members found by a single scan. It points into the value.
type body struct {
	value   []byte // from brace to brace
	members []member
}

type member struct {
	name string
	raw  []byte
}

// Has reports whether the object has a top-level member of this name.
func (b body) Has(name string) bool { return b.Raw(name) != nil }

// Raw is the JSON of a member; nil if there is none.
func (b body) Raw(name string) []byte {
	for i := range b.members {
		if b.members[i].name == name {
			return b.members[i].raw
		}
	}
	return nil
}

// Text is the text of a string member; empty if there is none or it is not a string.
func (b body) Text(name string) string {
	raw := b.Raw(name)
	if len(raw) == 0 || raw[0] != '"' {
		return ""
	}
	return unquote(raw)
}

// True reports whether a member is true.
func (b body) True(name string) bool { return string(b.Raw(name)) == "true" }

// Int is the value of a number member; 0 if there is none or it is no whole number within int64.
func (b body) Int(name string) int64 {
	n, _ := strconv.ParseInt(string(b.Raw(name)), 10, 64)
	return n
}

// unquote decodes a JSON string that the scanner has accepted.
func unquote(raw []byte) string {
	if len(raw) < 2 || raw[0] != '"' {
		return ""
	}
	for _, c := range raw {
		if c == '\\' {
			var s string
			if json.Unmarshal(raw, &s) != nil {
				return ""
			}
			return s
		}
	}
	return string(raw[1 : len(raw)-1])
}

// scanBody reads value as one JSON object (RFC 8259) and refuses what stores and languages read differently: bytes that
// are no UTF-8, members that stand twice (also in another case: Go matches names so), lone surrogates, U+0000, numbers
// beyond float64, nesting beyond MaxDepth.
func scanBody(value []byte) (body, error) {
	if !utf8.Valid(value) {
		return body{}, errors.New("the value is not UTF-8")
	}
	s := scanner{b: value}
	s.space()
	if s.peek() != '{' {
		return body{}, errors.New("the value must be one JSON object")
	}
	start := s.i
	if err := s.value(); err != nil {
		return body{}, err
	}
	end := s.i
	s.space()
	if s.i != len(value) {
		return body{}, s.fail("nothing may follow the JSON object")
	}
	return body{value: value[start:end], members: s.members}, nil
}

type scanner struct {
	b       []byte
	i       int
	depth   int
	names   []uint64 // folded name hashes of the open objects, innermost last
	members []member // of the outermost object
}

func (s *scanner) fail(what string) error {
	return fmt.Errorf("invalid JSON at byte %d: %s", s.i, what)
}

func (s *scanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

func (s *scanner) value() error {
	switch c := s.peek(); {
	case c == '{':
		return s.nested(s.object)
	case c == '[':
		return s.nested(s.array)
	case c == '"':
		_, err := s.string()
		return err
	case c == '-' || '0' <= c && c <= '9':
		return s.number()
	case c == 't':
		return s.word("true")
	case c == 'f':
		return s.word("false")
	case c == 'n':
		return s.word("null")
	}
	return s.fail("a value is expected")
}

func (s *scanner) nested(scan func() error) error {
	if s.depth++; s.depth > MaxDepth {
		return s.fail(fmt.Sprintf("nested deeper than %d", MaxDepth))
	}
	s.i++
	s.space()
	err := scan()
	s.depth--
	return err
}

func (s *scanner) object() error {
	base := len(s.names)
	defer func() { s.names = s.names[:base] }()
	var seen map[uint64]bool // only for objects of many members
	if s.peek() == '}' {
		s.i++
		return nil
	}
	for {
		if s.peek() != '"' {
			return s.fail("a member name is expected")
		}
		name, err := s.string()
		if err != nil {
			return err
		}
		if seen, err = s.unique(base, seen, name); err != nil {
			return err
		}
		s.space()
		if s.peek() != ':' {
			return s.fail("a colon is expected")
		}
		s.i++
		s.space()
		start := s.i
		if err := s.value(); err != nil {
			return err
		}
		if s.depth == 1 {
			s.members = append(s.members, member{unquote(name), s.b[start:s.i]})
		}
		s.space()
		switch s.peek() {
		case ',':
			s.i++
			s.space()
		case '}':
			s.i++
			return nil
		default:
			return s.fail("a comma or closing brace is expected")
		}
	}
}

// unique notes a member name of the object whose names start at base. Beyond 16 members it goes over to a map.
func (s *scanner) unique(base int, seen map[uint64]bool, name []byte) (map[uint64]bool, error) {
	h := foldHash(name)
	twice := seen[h]
	if seen == nil {
		for _, n := range s.names[base:] {
			twice = twice || n == h
		}
	}
	if twice {
		return seen, s.fail("a member stands twice (names are compared without case)")
	}
	s.names = append(s.names, h)
	if seen == nil && len(s.names)-base > 16 {
		seen = make(map[uint64]bool)
		for _, n := range s.names[base:] {
			seen[n] = true
		}
	}
	if seen != nil {
		seen[h] = true
	}
	return seen, nil
}

func (s *scanner) array() error {
	if s.peek() == ']' {
		s.i++
		return nil
	}
	for {
		if err := s.value(); err != nil {
			return err
		}
		s.space()
		switch s.peek() {
		case ',':
			s.i++
			s.space()
		case ']':
			s.i++
			return nil
		default:
			return s.fail("a comma or closing bracket is expected")
		}
	}
}

// string scans a string and returns it with its quotes.
func (s *scanner) string() ([]byte, error) {
	start := s.i
	s.i++
	for s.i < len(s.b) {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			return s.b[start:s.i], nil
		case c == '\\':
			if err := s.escape(); err != nil {
				return nil, err
			}
		case c < 0x20:
			if c == 0 {
				return nil, s.fail("U+0000 is not allowed")
			}
			return nil, s.fail("a control character in a string must be escaped")
		default:
			s.i++
		}
	}
	return nil, s.fail("a string does not end")
}

func (s *scanner) escape() error {
	s.i++
	switch s.peek() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i++
		return nil
	case 'u':
		s.i++
	default:
		return s.fail("unknown escape")
	}
	r, ok := s.hex()
	switch {
	case !ok:
		return s.fail("four hexadecimal digits are expected")
	case r == 0:
		return s.fail("U+0000 is not allowed")
	case r >= 0xdc00 && r <= 0xdfff:
		return s.fail("a lone surrogate is not allowed")
	case r < 0xd800 || r > 0xdbff:
		return nil
	}
	if s.peek() == '\\' && s.i+1 < len(s.b) && s.b[s.i+1] == 'u' {
		s.i += 2
		if low, ok := s.hex(); ok && low >= 0xdc00 && low <= 0xdfff {
			return nil
		}
	}
	return s.fail("a lone surrogate is not allowed")
}

func (s *scanner) hex() (uint64, bool) {
	if s.i+4 > len(s.b) {
		return 0, false
	}
	for _, c := range s.b[s.i : s.i+4] {
		if ('0' > c || c > '9') && ('a' > c || c > 'f') && ('A' > c || c > 'F') {
			return 0, false
		}
	}
	r, err := strconv.ParseUint(string(s.b[s.i:s.i+4]), 16, 32)
	s.i += 4
	return r, err == nil
}

func (s *scanner) number() error {
	start := s.i
	if s.peek() == '-' {
		s.i++
	}
	switch c := s.peek(); {
	case c == '0':
		s.i++
	case '1' <= c && c <= '9':
		s.digits()
	default:
		return s.fail("a digit is expected")
	}
	plain := true
	if s.peek() == '.' {
		plain = false
		s.i++
		if !s.digits() {
			return s.fail("a digit is expected")
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		plain = false
		s.i++
		if c := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		if !s.digits() {
			return s.fail("a digit is expected")
		}
	}
	if plain && s.i-start < 300 {
		return nil
	}
	if _, err := strconv.ParseFloat(string(s.b[start:s.i]), 64); err != nil {
		return s.fail("a number is beyond float64")
	}
	return nil
}

func (s *scanner) digits() bool {
	start := s.i
	for c := s.peek(); '0' <= c && c <= '9'; c = s.peek() {
		s.i++
	}
	return s.i > start
}

func (s *scanner) word(w string) error {
	if s.i+len(w) > len(s.b) || string(s.b[s.i:s.i+len(w)]) != w {
		return s.fail("a value is expected")
	}
	s.i += len(w)
	return nil
}

// foldHash is FNV-1a over the name's runes, each replaced by the smallest of its case orbit, as encoding/json folds.
func foldHash(quoted []byte) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for _, r := range unquote(quoted) {
		h = (h ^ uint64(foldRune(r))) * prime
	}
	return h
}

func foldRune(r rune) rune {
	if r < utf8.RuneSelf && (r < 'A' || 'Z' < r && r < 'a' || r > 'z') {
		return r
	}
	for {
		next := unicode.SimpleFold(r)
		if next <= r {
			return next
		}
		r = next
	}
}
