package topics

import "slices"

// Kind is everything that is known of one kind of event. Routing, resume, inbox, statistics, push, ingest, the commands and the
// contracts read it here: a new kind is a file of this package and a line in kinds.
type Kind struct {
	// Type is the record's header ce_type.
	Type string
	// Doc says in a sentence what has happened.
	Doc string
	// In are the topics it stands in, each with the keys it may have there.
	In []In
	// Fields are the members of the record's value, in the order in which Nexus writes them. No other members are allowed, but
	// for id, which is Nexus's, and timestamp, which every kind may have: the record's time is put in where it is left out.
	Fields []Field
	// Check judges what no single field shows; may be nil.
	Check func(*Event) error
	// Sender says whom a record may speak for; nil: anybody who may write its topic.
	Sender *Sender

	// HasID: what clients and stores get carries the event's id.
	HasID bool
	// Defaults are put into what clients and stores get where the record leaves them out.
	Defaults []Default
	// Feed: a session that comes back is given what it missed of this kind.
	Feed bool
	// Frames are what clients get; none: nothing.
	Frames []Frame
	// Actor is the member that names the user who did it; empty: there is none.
	Actor string

	// Ingest is the REST path at which product services hand it in; empty: they cannot.
	Ingest string
	// Detail is the member by which the statistics tell events of this kind apart; empty: there is none.
	Detail string
	// Counter is the user's number that it moves; nil: none.
	Counter *Counter
	// Pushed: it may be told to a user's devices.
	Pushed bool
}

// In is a topic that a kind of event stands in.
type In struct {
	Topic Topic
	// Keys are the kinds of key that are allowed; NoAudience: any text.
	Keys []AudienceKind
	// Default: a record of this topic and key that has no ce_type is of this kind.
	Default bool
}

// Default is a member that is put in where a record leaves it out: its name, and its value in JSON.
type Default struct{ Field, JSON string }

// Counter is a number of a user's that events of a kind move: those whose Event.Detail is Detail; all, where that is empty. Name is the
// member of stats_update.
type Counter struct{ Name, Detail string }

// The counters.
const (
	CounterConnections = "connections"
	CounterMessages    = "messages"
	CounterPosts       = "posts"
)

// kinds is the vocabulary, read-only.
var kinds = [...]*Kind{
	&messageKind, &messageReadKind,
	&notificationKind, &activityKind, &announcementKind, &notificationReadKind, &notificationDeletedKind,
	&typingStartKind, &typingStopKind,
	&deviceRegisteredKind, &deviceUnregisteredKind,
	&heartbeatKind, &connectedKind, &disconnectedKind, &channelsKind,
	&deliveryWebSocketKind, &deliveryPushKind,
	&revokedKind, &keyPublishedKind, &keyTakenKind, &contractKind, &windowKind,
}

// Kinds lists every kind of event. The list and what it points to must not be changed.
func Kinds() []*Kind { return kinds[:] }

// KindOf finds a kind by its type; nil where there is none.
func KindOf(typ string) *Kind {
	for _, k := range kinds {
		if k.Type == typ {
			return k
		}
	}
	return nil
}

// in is the kind's entry of a topic; nil where it does not stand there.
func (k *Kind) in(t Topic) *In {
	for i := range k.In {
		if k.In[i].Topic == t {
			return &k.In[i]
		}
	}
	return nil
}

// TopicFor is the topic that a record of this kind and of a key belongs to; false where there is none.
func (k *Kind) TopicFor(key AudienceKind) (Topic, bool) {
	for _, in := range k.In {
		if slices.Contains(in.Keys, key) {
			return in.Topic, true
		}
	}
	return "", false
}

// DefaultType is the type of a record without ce_type: product services may send a key and a value alone. Where a topic has one
// such kind it is that, whatever the key.
func DefaultType(t Topic, key AudienceKind) string {
	var found []*Kind
	for _, k := range kinds {
		if in := k.in(t); in != nil && in.Default {
			if slices.Contains(in.Keys, key) {
				return k.Type
			}
			found = append(found, k)
		}
	}
	if len(found) == 1 {
		return found[0].Type
	}
	return ""
}

// internType saves a string for each record of a known type.
func internType(b []byte) string {
	for _, k := range kinds {
		if k.Type == string(b) {
			return k.Type
		}
	}
	return string(b)
}

// FeedTopics are the topics whose events clients of a namespace are given when they come back, in the order of Specs.
func FeedTopics(ns Namespace) (list []Topic) {
	for _, s := range Specs() {
		if slices.ContainsFunc(kinds[:], func(k *Kind) bool { return k.Feed && k.in(s.Topic) != nil && k.shownIn(ns) }) {
			list = append(list, s.Topic)
		}
	}
	return list
}

// shownIn reports whether clients of a namespace get a frame of the kind.
func (k *Kind) shownIn(ns Namespace) bool {
	return slices.ContainsFunc(k.Frames, func(f Frame) bool { return f.Namespace == ns })
}
