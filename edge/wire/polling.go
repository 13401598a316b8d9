package wire

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nexus/nexus/edge/wire/socketio"
	"github.com/nexus/nexus/internal/apierr"
)

// polling is the long-polling transport of an Engine.IO session (Engine.IO protocol 4, "HTTP long-polling"): packets
// wait until a GET fetches them. It has no goroutine of its own.
type polling struct {
	maxQueue int
	wake     chan struct{} // something changed for the GET that waits

	mu       sync.Mutex
	queue    []byte // packets, each followed by the separator
	marks    marks  // go out after the queue
	fetching bool   // a GET is being served
	probed   bool   // a WebSocket is about to take over: no GET waits any more
	closing  bool   // the close packet is queued; nothing may follow it
	gone     bool   // nothing is served any more
	closedAt time.Time
	why      string // the first reason to end
}

func newPolling(maxQueue int) *polling {
	return &polling{maxQueue: maxQueue, wake: make(chan struct{}, 1)}
}

// Deliver implements Transport.
func (p *polling) Deliver(f Framer, s Style) {
	s.wire = wirePolling
	p.push(f.Frame(s), f.Mark(s))
}

// Text implements Transport.
func (p *polling) Text(b []byte) { p.push(appendText(nil, b, wirePolling, 0), Mark{}) }

func (p *polling) push(packets []byte, after Mark) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing || p.gone {
		return
	}
	p.queue = append(p.queue, packets...)
	p.marks.set(after)
	if len(p.queue) > p.maxQueue { // too slow: what it missed it can resume
		p.queue, p.marks = nil, nil
		p.closeLocked(apierr.CloseTooSlow)
	}
	p.nudge()
}

// Close queues the close packet; the code has no place in this protocol.
func (p *polling) Close(code int, _ string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closing && !p.gone {
		p.closeLocked(code)
		p.nudge()
	}
}

func (p *polling) closeLocked(code int) {
	p.why = reasonOf(code)
	p.queueMarks()
	p.queue = append(p.queue, socketio.EngineClose, socketio.Separator)
	p.closing, p.closedAt = true, time.Now()
}

// Abort implements Transport.
func (p *polling) Abort() { p.end(socketio.EngineClose, ReasonLost) }

// end stops serving; a GET that waits is answered with a packet of this type.
func (p *polling) end(packet byte, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return
	}
	p.gone = true
	if p.why == "" {
		p.why = why
	}
	if p.fetching && !p.closing {
		p.queueMarks()
		p.queue = append(p.queue, packet, socketio.Separator)
	}
	p.nudge()
}

// queueMarks has the marks follow what waits.
func (p *polling) queueMarks() {
	p.marks.take(func(packet []byte) { p.queue = append(p.queue, packet...) })
}

// probe lets no GET wait any more, or again.
func (p *polling) probe(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probed = on
	p.nudge()
}

func (p *polling) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Challenge asks for a packet; the engine notes when it comes.
func (p *polling) Challenge(time.Duration) { p.Text([]byte{socketio.EnginePing}) }

// Kind implements Transport.
func (p *polling) Kind() string { return "polling" }

// Waiting implements Transport.
func (p *polling) Waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue)
}

// Reason implements Transport.
func (p *polling) Reason() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.why == "" {
		return ReasonLost
	}
	return p.why
}

// overdue tells that the close packet was not fetched in time.
func (p *polling) overdue(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closing && now.Sub(p.closedAt) > closeWait
}

var (
	errOverlap = errors.New("wire: two requests of one kind at once")
	errGone    = errors.New("wire: the session has ended")
)

// probeWait is how long a GET waits that comes while a WebSocket is about to take over: what completes that may be on its
// way already, and then the GET is one too many. A GET that waits when the probe comes is let go at once.
const probeWait = 100 * time.Millisecond

// fetch waits for packets and takes them, as a payload; last tells that the session ends with it.
func (p *polling) fetch(ctx context.Context) (payload []byte, last bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fetching {
		return nil, false, errOverlap
	}
	p.fetching = true
	defer func() { p.fetching = false }()
	var lapse <-chan time.Time
	if p.probed {
		lapse = time.After(probeWait)
	}
	for {
		switch {
		case len(p.queue) > 0:
			p.queueMarks()
			payload, p.queue = bytes.TrimSuffix(p.queue, []byte{socketio.Separator}), nil
			return payload, p.closing || p.gone, nil
		case p.gone:
			return nil, false, errGone
		case p.probed && lapse == nil:
			return []byte{socketio.EngineNoop}, false, nil
		}
		p.mu.Unlock()
		select {
		case <-p.wake:
		case <-lapse:
			lapse = nil
		case <-ctx.Done():
			err = ctx.Err()
		}
		p.mu.Lock()
		if err != nil {
			p.gone = true // no later GET is served: what is lost with this one would be missing
			return nil, false, err
		}
	}
}

// takeOver moves what waits to a WebSocket, which is the transport from now on; it reports false where the session
// has ended or is about to: a client that ignores the close packet must not go on.
func (p *polling) takeOver(c *Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone || p.closing {
		return false
	}
	p.queueMarks()
	for packet := range bytes.SplitSeq(bytes.TrimSuffix(p.queue, []byte{socketio.Separator}), []byte{socketio.Separator}) {
		if len(packet) > 0 {
			c.Text(packet)
		}
	}
	p.queue, p.gone = nil, true
	p.nudge()
	return true
}
