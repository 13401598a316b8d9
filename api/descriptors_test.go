package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/internal/testenv"
)

// A guard lets in as many as its limit has room for beside the node's own descriptors and the reserve; the rest gets 503.
// Who leaves makes room, whatever took the connection over.
func TestGuard(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const others, room = 10, 3
	g := NewGuard(ln, reserve+others+room, prometheus.NewRegistry())
	g.own = func() (int, error) { return others + g.clients, nil } // called with g.mu held
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack() // as a WebSocket does
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}))
	s.Listener.Close()
	s.Listener = g
	s.Start()
	defer s.Close()
	ask := func() (net.Conn, int) {
		t.Helper()
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		b := make([]byte, 4096)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		status := int(b[9]-'0')*100 + int(b[10]-'0')*10 + int(b[11]-'0')
		if status == 503 {
			rest, _ := io.ReadAll(c)
			if all := string(b[:n]) + string(rest); all != noRoom {
				t.Errorf("refused with %q", all)
			}
		}
		return c, status
	}
	var in []net.Conn
	for range room {
		c, status := ask()
		if status != 101 {
			t.Fatalf("connection %d is answered %d", len(in), status)
		}
		in = append(in, c)
	}
	if _, status := ask(); status != 503 {
		t.Errorf("one too many is answered %d", status)
	}
	in[0].Close()
	testenv.Eventually(t, "a connection that was closed is no longer counted", func() bool { clients, _ := g.counts(); return clients < room })
	c, status := ask()
	if status != 101 {
		t.Errorf("after one has left: %d", status)
	}
	for _, c := range append(in, c) {
		c.Close()
	}
}

// A request that is still open when the time to stop is over is cut, and the stop is a clean one.
func TestStopCutsWhatIsOpen(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	a := New(Options{Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Handlers: map[string]http.Handler{
		"/dashboard": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			defer close(ended)
			close(begun)
			<-r.Context().Done()
		})}})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, ln, 50*time.Millisecond) }()
	asked := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + ln.Addr().String() + "/dashboard")
		if err == nil {
			resp.Body.Close()
		}
		asked <- err
	}()
	<-begun
	stop()
	if err := <-served; err != nil && !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
		_ = a.echo.Server.Close() // the rest must not hang
	}
	if err := <-asked; err == nil {
		t.Error("the request was answered")
	}
	<-ended
}
