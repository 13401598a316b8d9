package wire

import (
	"slices"

	"github.com/nexus/nexus/edge/wire/socketio"
	"github.com/nexus/nexus/topics"
)

// Mark is an offset on its way to a Socket.IO client: a packet of its own, ["offset","…"]. socket.io-client takes its
// offset from any event whose last argument is a string; as a second argument of the events themselves it would break
// the handlers of clients that pass on what they get.
type Mark struct {
	namespace topics.Namespace
	frame     []byte // empty: none
}

// Bytes are the packet's on the wire; none where there is nothing to tell.
func (m Mark) Bytes() []byte { return m.frame }

// marks are those that go out after all that waits: of each namespace the latest alone. So a client never has an offset
// beyond what it was sent.
type marks []Mark

func (m *marks) set(latest Mark) {
	if len(latest.frame) == 0 {
		return
	}
	for i := range *m {
		if (*m)[i].namespace == latest.namespace {
			(*m)[i] = latest
			return
		}
	}
	*m = append(*m, latest)
}

// take calls emit with each mark's frame, and forgets them.
func (m *marks) take(emit func(frame []byte)) {
	for _, x := range *m {
		emit(x.frame)
	}
	clear(*m)
	*m = (*m)[:0]
}

// Message is an event on its way to sessions of a namespace. It is built and used by one goroutine; the frames it made
// are read by many.
type Message struct {
	Namespace topics.Namespace
	Event     string
	Alias     string        // the guide's second name of the event, or empty
	Data      []byte        // a JSON object
	Offset    string        // where a session stands after this event; empty for what is not resumed
	Of        *topics.Event // of the feed; nil for all others
	Threshold int           // longer texts are deflated where that was negotiated

	frames [styles][]byte
	marked [wires]Mark
}

// Frame is the message as bytes of the WebSocket connection: one frame, or two where the event has a second name.
func (m *Message) Frame(s Style) []byte {
	f := &m.frames[s.index()]
	if *f != nil {
		return *f
	}
	var b []byte
	if m.Alias != "" && !s.Canonical {
		// A bare client gets the offset with the last frame of a record.
		b = appendText(b, m.text(Style{SocketIO: s.SocketIO}, m.Event), s.wire, m.Threshold)
		b = appendText(b, m.text(s, m.Alias), s.wire, m.Threshold)
	} else {
		b = appendText(b, m.text(s, m.Event), s.wire, m.Threshold)
	}
	*f = b
	return b
}

// Mark implements Framer.
func (m *Message) Mark(s Style) Mark {
	if !s.SocketIO || !s.Offsets || m.Offset == "" {
		return Mark{}
	}
	x := &m.marked[s.wire]
	if x.frame == nil {
		p := socketio.Packet{Type: socketio.Event, Namespace: string(m.Namespace), Data: slices.Concat([]byte(`["`+topics.EventOffset+`","`), []byte(m.Offset),
			[]byte(`"]`))}
		*x = Mark{m.Namespace, appendText(nil, p.Append(nil), s.wire, m.Threshold)}
	}
	return *x
}

// Joined are messages sent as one piece.
type Joined struct {
	Messages []*Message // at least one; those of one namespace

	frames [styles][]byte
}

// Frame implements Framer.
func (j *Joined) Frame(s Style) []byte {
	f := &j.frames[s.index()]
	if *f == nil {
		for _, m := range j.Messages {
			*f = append(*f, m.Frame(s)...)
		}
	}
	return *f
}

// Mark implements Framer.
func (j *Joined) Mark(s Style) Mark { return j.Messages[len(j.Messages)-1].Mark(s) }

func (m *Message) text(s Style, event string) []byte {
	b := make([]byte, 0, len(m.Data)+len(event)+len(m.Offset)+48)
	if s.SocketIO {
		b = append(b, "42"...)
		b = append(b, m.Namespace...)
		b = append(b, `,["`...)
		b = append(b, event...)
		b = append(b, `",`...)
		b = append(b, m.Data...)
		return append(b, ']')
	}
	b = append(b, `{"event":"`...)
	b = append(b, event...)
	b = append(b, `","data":`...)
	b = append(b, m.Data...)
	if s.Offsets && m.Offset != "" {
		b = append(b, `,"offset":"`...)
		b = append(b, m.Offset...)
		b = append(b, '"')
	}
	return append(b, '}')
}

// Frozen is what a framer made for one session, whatever its transport will be when that is sent.
type Frozen struct {
	Of *topics.Event // of the feed; nil for all others

	frames [wires][]byte
	marks  [wires]Mark
}

// Freeze makes the frames of f for a session's style here and now: who made f uses it for other sessions.
func Freeze(f Framer, s Style) *Frozen {
	z := &Frozen{}
	if m, ok := f.(*Message); ok {
		z.Of = m.Of
	}
	for w := range wires {
		s.wire = w
		z.frames[w], z.marks[w] = f.Frame(s), f.Mark(s)
	}
	return z
}

// Size is how many bytes a WebSocket without compression takes for it.
func (z *Frozen) Size() int { return len(z.frames[wirePlain]) }

// Frame implements Framer.
func (z *Frozen) Frame(s Style) []byte { return z.frames[s.wire] }

// Mark implements Framer.
func (z *Frozen) Mark(s Style) Mark { return z.marks[s.wire] }
