package testenv

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// Proxy stands between a client and a server and can fall silent, as a dropped NAT entry or a dead host behind a virtual
// address does: the connections stay open and nothing comes through any more.
type Proxy struct {
	Addr string // where clients connect

	ln     net.Listener
	server string

	mu     sync.Mutex
	links  []*link
	silent bool // new connections too
}

type link struct {
	client, server net.Conn
	silent         chan struct{} // closed once nothing may pass
	once           sync.Once
}

// NewProxy starts a proxy before the server at addr; the test's end stops it.
func NewProxy(t testing.TB, addr string) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: ln.Addr().String(), ln: ln, server: addr}
	var busy sync.WaitGroup
	busy.Go(func() { p.accept(&busy) })
	t.Cleanup(func() {
		ln.Close()
		p.mu.Lock()
		for _, l := range p.links {
			l.fallSilent()
			l.client.Close()
			l.server.Close()
		}
		p.mu.Unlock()
		busy.Wait()
	})
	return p
}

func (p *Proxy) accept(busy *sync.WaitGroup) {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			client.Close()
			continue
		}
		l := &link{client: client, server: server, silent: make(chan struct{})}
		p.mu.Lock()
		p.links = append(p.links, l)
		if p.silent {
			l.fallSilent()
		}
		p.mu.Unlock()
		busy.Go(func() { l.pass(client, server) })
		busy.Go(func() { l.pass(server, client) })
	}
}

// pass copies one direction. A silent link reads on and passes nothing, not even the end.
func (l *link) pass(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-l.silent:
			if err != nil {
				return
			}
			continue
		default:
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				from.Close()
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				from.Close()
			}
			to.Close()
			return
		}
	}
}

func (l *link) fallSilent() { l.once.Do(func() { close(l.silent) }) }

// Swallow makes the connections that there are fall silent; new ones pass.
func (p *Proxy) Swallow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		l.fallSilent()
	}
}

// Silence makes all connections fall silent, those to come as well, as a server that was stopped does.
func (p *Proxy) Silence() {
	p.mu.Lock()
	p.silent = true
	p.mu.Unlock()
	p.Swallow()
}
