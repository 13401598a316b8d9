package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

const (
	// reserve is how many file descriptors are kept back for the node's own clients (Kafka, databases) and its files:
	// whoever connects must not keep the node from appending what others send.
	reserve = 64
	// measureEvery is how often the descriptors that are not clients' connections are counted.
	measureEvery = time.Second
	// refusers bounds the connections that are being refused at a time. They are part of the reserve. What comes on top is
	// closed without an answer.
	refusers = 16
	// refuseWait bounds how long a refusal may take: to read a request, and to write the answer.
	refuseWait = time.Second
)

// DescriptorLimit is how many files and connections this process may have open (RLIMIT_NOFILE). Go raises the soft limit to
// the hard one at the start of every program (package os), so there is nothing to raise here.
func DescriptorLimit() (uint64, error) {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return 0, fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	return uint64(r.Cur), nil //nolint:unconvert // it is signed on FreeBSD
}

// Guard is a listener that refuses connections, with 503 and before they cost more than a moment, where they would take the
// descriptors that the node itself needs.
type Guard struct {
	net.Listener
	limit   int
	own     func() (int, error) // counts this process's open descriptors
	refused prometheus.Counter
	slots   chan struct{}   // a refusal under way holds one
	serving context.Context // ends with Close
	end     context.CancelFunc

	mu         sync.Mutex
	clients    int // connections that were let in and are open
	others     int // descriptors that are not theirs, when they were last counted
	measuredAt time.Time
}

// NewGuard guards a listener by a limit of descriptors.
func NewGuard(ln net.Listener, limit uint64, reg prometheus.Registerer) *Guard {
	g := &Guard{Listener: ln, limit: int(min(limit, 1<<30)), own: openDescriptors, slots: make(chan struct{}, refusers),
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "nexus_client_connections_refused_total",
			Help: "Connections that were refused because file descriptors were scarce."})}
	g.serving, g.end = context.WithCancel(context.Background())
	gauge := func(name, help string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
	}
	reg.MustRegister(g.refused,
		gauge("nexus_client_connections", "Connections of clients that are open, of HTTP and WebSocket alike.", func() int {
			clients,
				_ := g.counts()
			return clients
		}),
		gauge("nexus_client_connections_max", "How many connections of clients the limit of file descriptors has room for.", func() int {
			_,
				room := g.counts()
			return room
		}))
	return g
}

// openDescriptors counts the open descriptors of this process.
func openDescriptors() (int, error) {
	d, err := os.Open("/dev/fd") // Linux: a link to /proc/self/fd
	if err != nil {
		return 0, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	return max(0, len(names)-1), err // without d
}

// counts are the clients that are connected, and how many there may be.
func (g *Guard) counts() (clients, room int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.clients, g.room()
}

// room is how many clients may be connected. g.mu is held.
func (g *Guard) room() int {
	room := g.limit - reserve - g.others
	if now := time.Now(); now.Sub(g.measuredAt) >= measureEvery && (g.measuredAt.IsZero() || g.clients > room/2) {
		g.measuredAt = now
		if n, err := g.own(); err == nil { // else: as it was
			g.others = max(0, n-g.clients)
		}
		room = g.limit - reserve - g.others
	}
	return max(0, room)
}

// enter counts a client in; it reports false where there is no room.
func (g *Guard) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clients++ // its descriptor is open already
	if g.clients > g.room() {
		g.clients--
		return false
	}
	return true
}

func (g *Guard) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clients--
}

// Accept waits for the next connection that there is room for (net.Listener).
func (g *Guard) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if g.enter() {
			return &client{Conn: c, g: g}, nil
		}
		g.refused.Inc()
		select {
		case g.slots <- struct{}{}:
			go g.refuse(c)
		default:
			c.Close()
		}
	}
}

// refuse answers a connection's first request.
func (g *Guard) refuse(c net.Conn) {
	defer func() { <-g.slots }()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(refuseWait))
	defer context.AfterFunc(g.serving, func() { _ = c.SetDeadline(time.Now()) })()
	b := make([]byte, 4096)
	if _, err := c.Read(b); err != nil { // a request has come, or its beginning: an answer ahead of it would be taken for another's
		return
	}
	_, _ = io.WriteString(c, noRoom)
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // what the client still sends must not have the answer thrown away (RFC 9112, section 9.6)
		_, _ = io.CopyN(io.Discard, c, 64<<10)
	}
}

// noRoom is the answer to who finds no room.
var noRoom = func() string {
	body := topics.Failure{Code: apierr.CodeUnavailable,
		Message: "this node has as many connections as its file descriptors allow; try again later"}.Body()
	return "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\n\r\n" + string(body)
}()

// Close stops listening, and ends refusals under way (net.Listener).
func (g *Guard) Close() error {
	g.end()
	return g.Listener.Close()
}

// client is a connection that was let in.
type client struct {
	net.Conn
	g    *Guard
	once sync.Once
}

// Close closes the connection and makes room.
func (c *client) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.g.leave)
	return err
}

// CloseWrite has net/http close a connection gently.
func (c *client) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
