package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"github.com/nexus/nexus/edge/wire/socketio"
	"github.com/nexus/nexus/topics"
)

// reader is the client's end: it reads what comes by any transport and judges every offset that it is told.
type reader struct {
	t    *testing.T
	last map[string]string // by namespace: the offset of the last event of the feed
	told map[string]string // by namespace: the offset that the client has
	// events and offsets count what came.
	events, offsets int
}

func newReader(t *testing.T) *reader {
	return &reader{t: t, last: make(map[string]string), told: make(map[string]string)}
}

// take reads a packet like 42/ws,["e",{"offset":"7"}] or 42/ws,["offset","7"].
func (r *reader) take(packet string) {
	ns, body, ok := strings.Cut(strings.TrimPrefix(packet, "42"), ",")
	if !ok || packet[0] != socketio.EngineMessage {
		return
	}
	if at, is := strings.CutPrefix(body, `["offset","`); is {
		r.offsets++
		if at = strings.TrimSuffix(at, `"]`); at != r.last[ns] {
			r.t.Errorf("%s: told to stand at %s, the last event was that of %q", ns, at, r.last[ns])
		}
		r.told[ns] = at
		return
	}
	r.events++
	if _, at, is := strings.Cut(body, `{"offset":"`); is {
		r.last[ns], _, _ = strings.Cut(at, `"`)
	}
}

// readWebSocket reads frames until a close frame or the connection's end.
func (r *reader) readWebSocket(from io.Reader) {
	for {
		var head [2]byte
		if _, err := io.ReadFull(from, head[:]); err != nil {
			return
		}
		n := int(head[1])
		if n == 126 {
			var long [2]byte
			_, _ = io.ReadFull(from, long[:])
			n = int(binary.BigEndian.Uint16(long[:]))
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(from, payload); err != nil || head[0] == bitFinal|opClose {
			return
		}
		r.take(string(payload))
	}
}

func (r *reader) readPayload(b []byte) {
	for packet := range strings.SplitSeq(string(b), "\x1e") {
		if packet != "" {
			r.take(packet)
		}
	}
}

// Whatever is sent to both namespaces of a Socket.IO client, however it is cut into writes or polls, and over a change of
// transport: the client is told no offset but that of the last event it has got, and in the end it has the last one.
func TestMarks(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for run := range 200 {
		r := newReader(t)
		ours, theirs := net.Pipe()
		c := &Conn{net: ours, log: slog.New(slog.DiscardHandler), maxQueue: 1 << 20, deflateAbove: 1 << 20}
		done := make(chan bool)
		p := newPolling(1 << 20)
		var out Transport = c
		byPolling := random.IntN(2) == 0
		if byPolling {
			out = p
		} else {
			go func() { r.readWebSocket(theirs); close(done) }()
		}
		want := make(map[string]string)
		st := Style{SocketIO: true, Offsets: true, Canonical: random.IntN(2) == 0}
		for k := range 1 + random.IntN(60) {
			ns := []topics.Namespace{topics.Dashboard, topics.Messaging}[random.IntN(2)]
			m := &Message{Namespace: ns, Event: "e", Data: []byte(`{}`), Threshold: 1 << 20}
			if random.IntN(3) > 0 {
				m.Offset = fmt.Sprint(k)
				m.Data = fmt.Appendf(nil, `{"offset":"%d"}`, k)
				want[string(ns)] = m.Offset
			}
			if random.IntN(4) == 0 {
				m.Alias = "E"
			}
			out.Deliver(m, st)
			if byPolling && random.IntN(5) == 0 {
				payload, _, err := p.fetch(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				r.readPayload(payload)
			}
			if byPolling && random.IntN(30) == 0 { // the WebSocket takes over
				go func() { r.readWebSocket(theirs); close(done) }()
				p.takeOver(c)
				byPolling, out = false, c
			}
		}
		out.Close(1000, "")
		if byPolling {
			payload, _, err := p.fetch(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r.readPayload(payload)
		} else {
			<-done
		}
		ours.Close()
		theirs.Close()
		for ns, at := range want {
			if r.told[ns] != at {
				t.Errorf("run %d: %s stands at %q in the end, want %q", run, ns, r.told[ns], at)
			}
		}
		if r.offsets > r.events {
			t.Errorf("run %d: %d offsets for %d events", run, r.offsets, r.events)
		}
		if t.Failed() {
			return
		}
	}
}

// What is dropped because the client reads too slowly leaves no offset behind.
func TestMarksOfASlowClient(t *testing.T) {
	m := &Message{Namespace: topics.Messaging, Event: "e", Data: []byte(`{"x":"` + strings.Repeat("x", 900) + `"}`), Offset: "beyond",
		Threshold: 1 << 20}
	st := Style{SocketIO: true, Offsets: true}
	c, p := &Conn{writing: true, maxQueue: 1500}, newPolling(1500)
	for range 2 {
		c.Deliver(m, st)
		p.Deliver(m, st)
	}
	payload, _, err := p.fetch(t.Context())
	if len(c.marks) != 0 || len(c.queue) != 1 || err != nil || string(payload) != "1" {
		t.Errorf("%d marks and %d frames wait; polled %q, %v; want the close alone", len(c.marks), len(c.queue), payload, err)
	}
}

// Many events in one write are followed by one offset.
func TestOneMarkForAWrite(t *testing.T) {
	c := &Conn{writing: true, maxQueue: 1 << 20}
	for k := range 10 {
		c.Deliver(&Message{Namespace: topics.Messaging, Event: "e", Data: []byte(`{}`), Offset: fmt.Sprint(k), Threshold: 1024},
			Style{SocketIO: true, Offsets: true})
	}
	c.Close(1000, "")
	texts := 0
	for _, f := range c.queue {
		if strings.Contains(string(f), `["offset"`) {
			texts++
		}
	}
	if texts != 1 || len(c.queue) != 12 || !strings.Contains(string(c.queue[10]), `["offset","9"]`) {
		t.Errorf("%d offsets in %d frames: %q", texts, len(c.queue), c.queue)
	}
}
