package push

import (
	"context"
	"encoding/json"
	"time"
)

// Channel brings notes to targets of one kind: devices, browsers, addresses. The pusher decides who is told of what and when,
// and keeps the jobs; a channel knows where its targets come from and how its service is spoken to. It is safe for
// concurrent use. docs/push.md tells how one is added; TestChannels holds every channel to what is said here.
type Channel interface {
	// Name is the channel's in tables, records and metrics: a lower-case letter, then at most 31 lower-case letters, digits
	// and underscores. It never changes: the jobs that wait are found by it.
	Name() string
	// On tells whether the channel can send. What would have gone by one that is off is recorded as skipped.
	On() bool
	// Targets finds the targets of users, by user; one that has none may be missing. It is asked once for each batch of
	// events, before their jobs are made, and knows the targets that users had registered when it was asked. After an error
	// the batch is tried again.
	Targets(ctx context.Context, users []string) (map[string][]string, error)
	// Fit is as much of a note as the channel ever sends: what is taken off is not kept in the job. Fitting twice changes
	// nothing.
	Fit(n Note) Note
	// Send makes one attempt to bring a note to a target, for which the event is worth left more, at least a second. It
	// returns when ctx ends. The same note may be sent again, after a crash: the service is told the note's id, so that
	// whoever gets it can tell a repeat.
	Send(ctx context.Context, target string, n Note, left time.Duration) Response
	// Forget has a target that is dead not be found again. After an error the job is tried again, from Send on.
	Forget(ctx context.Context, user, target string) error
}

// Kind is what a response means for the job, and for its target.
type Kind uint8

// The kinds. Retry is the zero value: what a channel does not understand is tried again, until the event is too old.
const (
	Retry    Kind = iota // another attempt may do
	Accepted             // the service has taken the note over
	Dead                 // there is no such target any more: it is forgotten, and the job ends
	Refused              // the service takes other notes for this target and not this one: the job ends
	SetAside             // the target is not this channel's to use: nothing is sent to it again, and the job ends
	Pause                // the service wants nothing at all for a while: no node sends by this channel, and the job waits
)

// String is the kind as metrics and statistics name it.
func (k Kind) String() string {
	return [...]string{Retry: "retry", Accepted: "accepted", Dead: "dead", Refused: "refused", SetAside: "set_aside", Pause: "pause"}[k]
}

// Response is what a channel's service said to a note.
type Response struct {
	Kind Kind
	// Outcome names, for statistics and metrics, why a job ended (Dead, Refused, SetAside); one of a few fixed words. Empty:
	// the kind's.
	Outcome string
	// After is how long the service asks to wait (Retry, Pause); 0: it did not say. An hour at most is believed.
	After time.Duration
	// Err is told to the operator. It quotes neither the target nor anything of the note, and no credentials.
	Err error
}

// Note is what a target is told of an event. It is kept in the job as JSON, which the builds before and after this one read
// as well while nodes are upgraded.
type Note struct {
	ID, Event   string // the event's id and its kind
	Type        string `json:"NotificationT"` // the notification's, like SYSTEM
	Title, Body string
	Icon, Badge string
	Link        string // where a click leads: an https URL, or empty
	High        bool   // urgent: wakes a device up
	// Data is the producer's, an object of any members; nil: none.
	Data       json.RawMessage
	RecordTime int64 // the event's, Unix milliseconds
}
