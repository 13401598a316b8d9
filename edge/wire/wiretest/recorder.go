// Package wiretest has a transport for tests: it keeps what is sent.
package wiretest

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/nexus/nexus/edge/wire"
)

// Recorder is a transport whose client reads nothing. The zero value is ready; it is safe for concurrent use.
type Recorder struct {
	mu    sync.Mutex
	texts []string
	code  int
}

// Deliver implements wire.Transport.
func (r *Recorder) Deliver(f wire.Framer, s wire.Style) {
	r.add(Unframe(f.Frame(s))...)
	r.add(Unframe(f.Mark(s).Bytes())...)
}

// Text implements wire.Transport.
func (r *Recorder) Text(b []byte) { r.add(string(b)) }

func (r *Recorder) add(texts ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.code == 0 {
		r.texts = append(r.texts, texts...)
	}
}

// Close implements wire.Transport.
func (r *Recorder) Close(code int, _ string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.code == 0 {
		r.code = code
	}
}

// Abort implements wire.Transport.
func (r *Recorder) Abort() { r.Close(1006, "") }

// Challenge implements wire.Transport.
func (r *Recorder) Challenge(time.Duration) {}

// Kind implements wire.Transport.
func (r *Recorder) Kind() string { return "recorder" }

// Waiting implements wire.Transport.
func (r *Recorder) Waiting() int { return 0 }

// Reason implements wire.Transport.
func (r *Recorder) Reason() string { return wire.ReasonLost }

// Texts are those sent so far, before it was closed.
func (r *Recorder) Texts() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.texts)
}

// Code is that of the close; 0: it is open.
func (r *Recorder) Code() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.code
}

// Unframe splits a server's uncompressed WebSocket frames into their texts (RFC 6455, section 5.2).
func Unframe(b []byte) (texts []string) {
	for len(b) > 0 {
		n := int(b[1])
		b = b[2:]
		switch n {
		case 126:
			n, b = int(binary.BigEndian.Uint16(b)), b[2:]
		case 127:
			n, b = int(binary.BigEndian.Uint64(b)), b[8:]
		}
		texts, b = append(texts, string(b[:n])), b[n:]
	}
	return texts
}
