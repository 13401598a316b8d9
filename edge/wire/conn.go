package wire

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/apierr"
)

// Conn is one WebSocket connection. Frames are queued as bytes and written by a goroutine that lives only while there
// are any, all that wait in one syscall. Everything that is written goes through the queue.
type Conn struct {
	ws           *websocket.Conn
	net          net.Conn
	log          *slog.Logger
	wire         wire
	deflateAbove int // bytes
	maxQueue     int
	maxRead      int64
	patience     time.Duration // without anything from the client for so long, it is gone

	heart heart

	mu         sync.Mutex
	queue      [][]byte
	marks      marks // go out after the queue
	queued     int   // bytes, those being written included
	writing    bool
	closing    bool // a close frame is queued; nothing may follow it
	dead       bool
	challenged bool          // the client must show soon that it lives
	written    chan struct{} // closed once nothing is being written; nil: nobody waits for that
	why        string        // the first reason to end
}

const (
	writeWait = 5 * time.Second
	// closeWait is how long a client may take to answer a close frame.
	closeWait = 2 * time.Second
)

// Deliver queues what f makes for this wire (transport).
func (c *Conn) Deliver(f Framer, s Style) {
	s.wire = c.wire
	c.enqueue(f.Frame(s), f.Mark(s))
}

// Text queues a text of this connection alone (transport).
func (c *Conn) Text(b []byte) { c.send(appendText(nil, b, c.wire, c.deflateAbove)) }

// send queues a frame.
func (c *Conn) send(frame []byte) { c.enqueue(frame, Mark{}) }

// enqueue queues a frame, and where the client stands after it. A client that lets more than maxQueue bytes wait is closed as too slow:
// nothing is dropped
// silently.
func (c *Conn) enqueue(frame []byte, after Mark) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.dead {
		return
	}
	c.addLocked(frame)
	c.marks.set(after)
	if c.queued > c.maxQueue {
		c.queue, c.marks = nil, nil
		c.closeLocked(apierr.CloseTooSlow, "the client reads too slowly; it may resume")
		return
	}
	c.startLocked()
}

func (c *Conn) addLocked(frame []byte) {
	c.queue = append(c.queue, frame)
	c.queued += len(frame)
}

// Close sends what is queued, then a close frame, and ends the connection once the client has answered, or soon.
func (c *Conn) Close(code int, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing && !c.dead {
		c.closeLocked(code, reason)
	}
}

func (c *Conn) closeLocked(code int, reason string) {
	if c.why == "" {
		c.why = reasonOf(code)
	}
	c.marks.take(c.addLocked)
	c.addLocked(appendFrame(nil, bitFinal|opClose, closePayload(code, reason)))
	c.closing = true
	c.startLocked()
}

func (c *Conn) startLocked() {
	if !c.writing {
		c.writing = true
		go c.write()
	}
}

func (c *Conn) write() {
	for {
		c.mu.Lock()
		c.marks.take(c.addLocked)
		frames := c.queue
		c.queue = nil
		if len(frames) == 0 || c.dead {
			c.writing = false
			if c.written != nil {
				close(c.written)
				c.written = nil
			}
			closing := c.closing
			c.mu.Unlock()
			if closing {
				_ = c.net.SetReadDeadline(time.Now().Add(closeWait))
			}
			return
		}
		c.mu.Unlock()
		_ = c.net.SetWriteDeadline(time.Now().Add(writeWait))
		if c.writeAll(frames) != nil {
			c.Abort()
		}
	}
}

// joinBytes bounds how much of what waits is written at once.
const joinBytes = 64 << 10

// joins are buffers that frames are joined in. Joining is cheaper than a vector of small frames, which the runtime would
// also keep for each connection at its longest.
var joins = sync.Pool{New: func() any { b := make([]byte, 0, joinBytes); return &b }}

// writeAll writes frames, as many in one call as there is room for.
func (c *Conn) writeAll(frames [][]byte) error {
	if len(frames) == 1 {
		return c.writeOut(frames[0])
	}
	b := joins.Get().(*[]byte)
	defer joins.Put(b)
	joined := (*b)[:0]
	for _, f := range frames {
		if len(joined) > 0 && len(joined)+len(f) > joinBytes {
			if err := c.writeOut(joined); err != nil {
				return err
			}
			joined = joined[:0]
		}
		if len(f) > joinBytes {
			if err := c.writeOut(f); err != nil {
				return err
			}
			continue
		}
		joined = append(joined, f...)
	}
	if len(joined) == 0 {
		return nil
	}
	return c.writeOut(joined)
}

func (c *Conn) writeOut(b []byte) error {
	n, err := c.net.Write(b)
	c.mu.Lock()
	c.queued -= n
	c.mu.Unlock()
	return err
}

// because notes why the connection ends; the first reason counts.
func (c *Conn) because(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why == "" {
		c.why = why
	}
}

// Kind implements Transport.
func (c *Conn) Kind() string { return "websocket" }

// Waiting implements Transport.
func (c *Conn) Waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queued
}

// Reason implements Transport.
func (c *Conn) Reason() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why == "" {
		return ReasonLost
	}
	return c.why
}

// Abort ends the connection at once.
func (c *Conn) Abort() {
	c.mu.Lock()
	c.dead = true
	c.mu.Unlock()
	_ = c.net.Close()
}

// errTooLarge reports a message that inflates beyond the limit.
var errTooLarge = errors.New("wire: message too large")

// read hands messages to handle, which must not keep them, until the connection ends. Everything from outside is bounded: melody's own
// loop would
// let a 64 KiB frame inflate to 60 MB.
func (c *Conn) read(handle func(kind int, message []byte)) {
	defer c.Abort()
	defer func() {
		if p := recover(); p != nil {
			// The panic's value may quote a message; the stack does not.
			c.log.Error("a handler panicked, its connection is closed", "stack", string(debug.Stack()))
			c.Close(websocket.CloseInternalServerErr, "internal error")
			c.drainQueue()
		}
	}()
	c.ws.SetReadLimit(c.maxRead)
	c.ws.SetPingHandler(func(data string) error {
		c.send(appendFrame(nil, bitFinal|opPong, []byte(data)))
		return nil
	})
	c.ws.SetPongHandler(func(string) error { return c.alive() })
	c.ws.SetCloseHandler(func(code int, _ string) error {
		if code == websocket.CloseNoStatusReceived {
			code = 0
		}
		c.because(ReasonClient)
		c.Close(code, "")
		return nil
	})
	if c.alive() != nil {
		return
	}
	for {
		err := c.next(handle)
		switch {
		case err == nil:
			continue
		case errors.Is(err, errTooLarge):
			c.Close(websocket.CloseMessageTooBig, "message too large")
		case errors.Is(err, errNotUTF8):
			c.Close(websocket.CloseInvalidFramePayloadData, "text is not UTF-8")
		}
		c.drainQueue()
		return
	}
}

var errNotUTF8 = errors.New("wire: text is not UTF-8")

// buffers are those that messages are read into; nobody keeps a message beyond its handling.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// next reads a message and handles it; everything it holds is given back before the next one.
func (c *Conn) next(handle func(kind int, message []byte)) error {
	kind, r, err := c.ws.NextReader()
	if err != nil {
		return err
	}
	b := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(b)
	b.Reset()
	_, err = b.ReadFrom(io.LimitReader(r, c.maxRead+1))
	switch {
	case err != nil:
		return err
	case int64(b.Len()) > c.maxRead:
		return errTooLarge
	case kind == websocket.TextMessage && !utf8.Valid(b.Bytes()):
		return errNotUTF8
	case c.alive() != nil:
		return net.ErrClosed
	}
	if !c.isClosing() {
		handle(kind, b.Bytes())
	}
	return nil
}

// alive grants the client its patience anew, unless the connection is closing.
func (c *Conn) alive() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return nil
	}
	c.challenged = false
	return c.net.SetReadDeadline(time.Now().Add(c.patience))
}

func (c *Conn) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// drainQueue waits, for a moment, until a close frame has been written.
func (c *Conn) drainQueue() {
	c.mu.Lock()
	if !c.writing || c.dead {
		c.mu.Unlock()
		return
	}
	if c.written == nil {
		c.written = make(chan struct{})
	}
	written := c.written
	c.mu.Unlock()
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-written:
	case <-t.C:
	}
}

// Challenge sends a ping, which every WebSocket stack answers by itself (RFC 6455, section 5.5.2). alive takes the deadline
// back; until then further challenges do not move it.
func (c *Conn) Challenge(within time.Duration) {
	c.mu.Lock()
	again := c.challenged || c.closing || c.dead
	if !again {
		c.challenged = true
		_ = c.net.SetReadDeadline(time.Now().Add(within))
	}
	c.mu.Unlock()
	if !again {
		c.send(appendFrame(nil, bitFinal|opPing, nil))
	}
}
