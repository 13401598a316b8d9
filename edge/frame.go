package edge

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/nexus/nexus/edge/socketio"
	"github.com/nexus/nexus/topics"
)

// style is how a session wants its frames; frames are built once for each style that occurs.
type style struct {
	socketIO  bool // Socket.IO packets; else {"event":…,"data":…}
	offsets   bool // the client is told where it stands: beside each event of the feed, or by a mark
	canonical bool // without the guide's second names
	wire      wire // filled in by the transport
}

// wire is how a text is put on a transport.
type wire uint8

const (
	wirePlain   wire = iota // a WebSocket frame
	wireDeflate             // the same; permessage-deflate was negotiated (RFC 7692)
	wirePolling             // a packet of an Engine.IO payload
	wires
)

const styles = 8 * int(wires)

func (s style) index() int {
	i := 8 * int(s.wire)
	for n, on := range [...]bool{s.socketIO, s.offsets, s.canonical} {
		if on {
			i |= 1 << n
		}
	}
	return i
}

// framer makes the bytes of something to send, once for each style.
type framer interface {
	frame(s style) []byte
	// mark tells a Socket.IO client where it stands after that; none for what is not resumed, and for bare clients,
	// whose events carry their offsets.
	mark(s style) mark
}

// mark is an offset on its way to a Socket.IO client: a packet of its own, ["offset","…"]. socket.io-client takes its
// offset from any event whose last argument is a string; as a second argument of the events themselves it would break
// the handlers of clients that pass on what they get.
type mark struct {
	namespace topics.Namespace
	frame     []byte // empty: none
}

// marks are those that go out after all that waits: of each namespace the latest alone. So a client never has an offset
// beyond what it was sent.
type marks []mark

func (m *marks) set(latest mark) {
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

// message is an event on its way to sessions of a namespace. It is built and used by one goroutine; the frames it made
// are read by many.
type message struct {
	namespace topics.Namespace
	event     string
	alias     string        // the guide's second name of the event, or empty
	data      []byte        // a JSON object
	offset    string        // where a session stands after this event; empty for what is not resumed
	ev        *topics.Event // of the feed; nil for all others
	threshold int           // longer texts are deflated where that was negotiated

	frames [styles][]byte
	marked [wires]mark
}

// frame is the message as bytes of the WebSocket connection: one frame, or two where the event has a second name.
func (m *message) frame(s style) []byte {
	f := &m.frames[s.index()]
	if *f != nil {
		return *f
	}
	var b []byte
	if m.alias != "" && !s.canonical {
		// A bare client gets the offset with the last frame of a record.
		b = appendText(b, m.text(style{socketIO: s.socketIO}, m.event), s.wire, m.threshold)
		b = appendText(b, m.text(s, m.alias), s.wire, m.threshold)
	} else {
		b = appendText(b, m.text(s, m.event), s.wire, m.threshold)
	}
	*f = b
	return b
}

func (m *message) mark(s style) mark {
	if !s.socketIO || !s.offsets || m.offset == "" {
		return mark{}
	}
	x := &m.marked[s.wire]
	if x.frame == nil {
		p := socketio.Packet{Type: socketio.Event, Namespace: string(m.namespace), Data: slices.Concat([]byte(`["offset","`), []byte(m.offset), []byte(`"]`))}
		*x = mark{m.namespace, appendText(nil, p.Append(nil), s.wire, m.threshold)}
	}
	return *x
}

// joined are messages sent as one piece.
type joined struct {
	ms     []*message
	frames [styles][]byte
}

func (j *joined) frame(s style) []byte {
	f := &j.frames[s.index()]
	if *f == nil {
		for _, m := range j.ms {
			*f = append(*f, m.frame(s)...)
		}
	}
	return *f
}

func (j *joined) mark(s style) mark { return j.ms[len(j.ms)-1].mark(s) }

func (m *message) text(s style, event string) []byte {
	b := make([]byte, 0, len(m.data)+len(event)+len(m.offset)+48)
	if s.socketIO {
		b = append(b, "42"...)
		b = append(b, m.namespace...)
		b = append(b, `,["`...)
		b = append(b, event...)
		b = append(b, `",`...)
		b = append(b, m.data...)
		return append(b, ']')
	}
	b = append(b, `{"event":"`...)
	b = append(b, event...)
	b = append(b, `","data":`...)
	b = append(b, m.data...)
	if s.offsets && m.offset != "" {
		b = append(b, `,"offset":"`...)
		b = append(b, m.offset...)
		b = append(b, '"')
	}
	return append(b, '}')
}

// Opcodes and bits of a frame (RFC 6455, section 5.2; RFC 7692, section 6).
const (
	opText  = 0x1
	opClose = 0x8
	opPing  = 0x9
	opPong  = 0xa

	bitFinal      = 0x80
	bitCompressed = 0x40
)

// appendText appends a text as the wire has it; one longer than threshold is deflated where that was negotiated.
func appendText(b, payload []byte, w wire, threshold int) []byte {
	switch {
	case w == wirePolling:
		return append(append(b, payload...), socketio.Separator)
	case w == wireDeflate && len(payload) > threshold:
		return appendFrame(b, bitFinal|bitCompressed|opText, deflate(payload))
	}
	return appendFrame(b, bitFinal|opText, payload)
}

// appendFrame appends an unmasked frame, as servers send them.
func appendFrame(b []byte, first byte, payload []byte) []byte {
	b = append(b, first)
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n <= 0xffff:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, payload...)
}

var deflaters = sync.Pool{New: func() any {
	w, _ := flate.NewWriter(nil, flate.BestSpeed) // the level is valid
	return w
}}

// deflate compresses a message without context of others (RFC 7692, section 7.2.1).
func deflate(payload []byte) []byte {
	var b bytes.Buffer
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(&b)
	_, _ = w.Write(payload) // a bytes.Buffer takes everything
	_ = w.Flush()
	return bytes.TrimSuffix(b.Bytes(), []byte{0, 0, 0xff, 0xff})
}

// closePayload is the body of a close frame (RFC 6455, section 5.5.1).
func closePayload(code int, reason string) []byte {
	if code == 0 {
		return nil
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(code))
	return append(b, reason[:min(len(reason), 123)]...)
}
