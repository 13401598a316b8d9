package topics

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// AudienceKind says whom a record concerns.
type AudienceKind uint8

// The kinds of audience, with what a key of each looks like. NoAudience is a key that names nobody: topics of Nexus's own bookkeeping
// have such.
const (
	NoAudience   AudienceKind = iota
	User                      // user:<id>
	Conversation              // dm:<a>:<b>, a ≤ b: the two users of a conversation
	Channel                   // channel:<name>
	Everyone                  // all
)

// Shape is what a key of the kind looks like, for people.
func (k AudienceKind) Shape() string {
	return [...]string{"any text", "user:<id>", "dm:<a>:<b>", "channel:<name>", EveryoneKey}[k]
}

// Audience is a record's key, parsed: who is to get it. It is fit to be a key of a map.
type Audience struct {
	Kind AudienceKind
	// A is the user, the first of the conversation or the channel's name; B the second of the conversation.
	A, B string
}

// MaxID bounds user ids, channel names and events' ids, in bytes.
const MaxID = 128

// UserKey is the key of what concerns one user.
func UserKey(user string) string { return "user:" + user }

// ChannelKey is the key of what concerns a channel's subscribers.
func ChannelKey(name string) string { return "channel:" + name }

// EveryoneKey is the key of what concerns all users.
const EveryoneKey = "all"

// ConversationKey is the key of what concerns two users; the order of the arguments does not matter.
func ConversationKey(a, b string) string {
	if a > b {
		a, b = b, a
	}
	return "dm:" + a + ":" + b
}

// ParseAudience reads a record's key. The error says what a key must look like.
func ParseAudience(key string) (Audience, error) {
	if key == EveryoneKey {
		return Audience{Kind: Everyone}, nil
	}
	kind, rest, _ := strings.Cut(key, ":")
	switch kind {
	case "user":
		if err := CheckUserID(rest); err != nil {
			return Audience{}, fmt.Errorf("key user:<id>: %w", err)
		}
		return Audience{Kind: User, A: rest}, nil
	case "dm":
		a, b, ok := strings.Cut(rest, ":")
		if !ok || CheckUserID(a) != nil || CheckUserID(b) != nil {
			return Audience{}, errors.New("key dm:<a>:<b> must name two user ids")
		}
		if a > b {
			return Audience{}, errors.New("key dm:<a>:<b> must name the smaller user id first")
		}
		return Audience{Kind: Conversation, A: a, B: b}, nil
	case "channel":
		if err := CheckChannel(rest); err != nil {
			return Audience{}, fmt.Errorf("key channel:<name>: %w", err)
		}
		return Audience{Kind: Channel, A: rest}, nil
	}
	if key == "" {
		return Audience{}, errors.New("the record has no key; it must be user:<id>, dm:<a>:<b>, channel:<name> or all")
	}
	return Audience{}, errors.New("the record's key must be user:<id>, dm:<a>:<b>, channel:<name> or all")
}

// Key is the record's key: ParseAudience(a.Key()) is a. Of no audience there is none.
func (a Audience) Key() string {
	switch a.Kind {
	case User:
		return UserKey(a.A)
	case Conversation:
		return ConversationKey(a.A, a.B)
	case Channel:
		return ChannelKey(a.A)
	case Everyone:
		return EveryoneKey
	}
	return ""
}

// Other is the user of a conversation who is not user. In a conversation with oneself that is user again. Of an audience that is no
// conversation it means nothing.
func (a Audience) Other(user string) string {
	if a.A == user {
		return a.B
	}
	return a.A
}

// Has reports whether user is the audience's user or one of its conversation.
func (a Audience) Has(user string) bool {
	return a.Kind == User && a.A == user || a.Kind == Conversation && (a.A == user || a.B == user)
}

// CheckUserID tells what is wrong with a user id: 1-128 bytes of UTF-8, no colon, no control characters.
func CheckUserID(id string) error {
	switch {
	case id == "":
		return errors.New("a user id must not be empty")
	case len(id) > MaxID:
		return fmt.Errorf("a user id has at most %d bytes", MaxID)
	case !utf8.ValidString(id):
		return errors.New("a user id must be UTF-8")
	case strings.ContainsRune(id, ':') || strings.ContainsFunc(id, unicode.IsControl):
		return errors.New("a user id must not contain a colon or control characters")
	}
	return nil
}

// CheckChannel tells what is wrong with a channel's name: 1-128 bytes of A-Z a-z 0-9 _ . : -.
func CheckChannel(name string) error {
	if name == "" || len(name) > MaxID {
		return fmt.Errorf("a channel name has 1 to %d bytes", MaxID)
	}
	for i := range len(name) {
		c := name[i]
		if ('a' > c || c > 'z') && ('A' > c || c > 'Z') && ('0' > c || c > '9') && strings.IndexByte("_.:-", c) < 0 {
			return errors.New("a channel name consists of A-Z a-z 0-9 _ . : -")
		}
	}
	return nil
}
