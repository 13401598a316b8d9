// Package pipe is a network for tests in a bubble (testing/synctest): its connections are pipes, so that waiting for one is waiting
// within the bubble, and its deadlines go by the bubble's time. Nothing is buffered: who does not read holds the other side up at once.
package pipe

import (
	"context"
	"net"
	"sync"
)

// Listener hands a server one end of each connection. Make it with Listen, within the bubble.
type Listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Listen makes a listener.
func Listen() *Listener { return &Listener{conns: make(chan net.Conn), closed: make(chan struct{})} }

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return addr{} }

// DialContext connects to the listener, whatever the address (http.Transport, websocket.Dialer).
func (l *Listener) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	theirs, ours := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type addr struct{}

// Network implements net.Addr.
func (addr) Network() string { return "pipe" }

// String implements net.Addr.
func (addr) String() string { return "pipe" }
