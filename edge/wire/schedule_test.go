package wire

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
)

// Connections come and go, each with an interval of its own: as long as one is there it is looked at whenever it asks
// for that, at most a tick late, and every second at least; afterwards never again.
func TestSchedule(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed, 0))
		s := newSchedule()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- s.run(ctx) }()
		var mu sync.Mutex
		due, looks := make(map[Transport]time.Time), 0
		add := func() {
			c := &Conn{}
			interval := []time.Duration{0, 50 * time.Millisecond, 300 * time.Millisecond, 777 * time.Millisecond, time.Minute}[random.IntN(5)]
			mu.Lock()
			due[c] = time.Now()
			mu.Unlock()
			s.add(c, func(now time.Time) time.Time {
				mu.Lock()
				defer mu.Unlock()
				looks++
				want, in := due[c]
				if late := now.Sub(want); !in || late > lookTick {
					t.Errorf("looked at %s late, there: %v", late, in)
				}
				if due[c] = now.Add(min(max(interval, lookTick), lookEvery)); looks%20 == 0 { // it ends by what is due
					s.remove(c)
					delete(due, c)
				}
				return now.Add(interval)
			})
		}
		for step := 0; step < 2000 && !t.Failed(); step++ {
			switch random.IntN(3) {
			case 0:
				add()
			case 1:
				mu.Lock()
				for c := range due {
					s.remove(c)
					delete(due, c)
					break
				}
				mu.Unlock()
			}
			time.Sleep(time.Duration(random.Int64N(int64(100 * time.Millisecond))))
			synctest.Wait()
			mu.Lock()
			for c, at := range due {
				if time.Since(at) > lookTick {
					t.Errorf("%p was to be looked at %s ago", c, time.Since(at))
				}
			}
			s.mu.Lock()
			if len(s.due) != len(due) || len(s.looks) != len(due) {
				t.Errorf("%d and %d in the schedule, %d connections", len(s.due), len(s.looks), len(due))
			}
			s.mu.Unlock()
			mu.Unlock()
		}
		if looks < 2000 && !t.Failed() {
			t.Errorf("%d looks", looks)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// nobody uses an Engine.IO session for nothing.
type nobody struct{ since time.Time }

func (nobody) Message([]byte, bool) bool { return false }
func (nobody) Look(time.Time)            {}
func (n nobody) Idle() (time.Time, bool) { return n.since, true }
func (nobody) Ended()                    {}

func toNobody(*Engine, url.Values) Handler { return nobody{time.Now()} }

// bare is a running server for sessions that join nothing.
func bare(t *testing.T, interval, timeout time.Duration) *Server {
	srv := NewServer(ServerOptions{Ready: func() bool { return true }, Logger: slog.New(slog.DiscardHandler), PingInterval: interval,
		PingTimeout:    timeout,
		ConnectTimeout: time.Hour, MaxQueueBytes: 1 << 20, MaxMessageBytes: 1_000_000, MaxEngines: 40})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return srv
}

// hijacked is the answer to a WebSocket handshake over a pipe.
type hijacked struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (h hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// dialPipe makes a WebSocket connection over a pipe, whose time is the bubble's, and has serve use our end of it.
func dialPipe(t *testing.T, srv *Server, serve func(c *Conn)) *websocket.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		r, err := http.ReadRequest(bufio.NewReader(ours))
		if err != nil {
			t.Error(err)
			return
		}
		ws, err := (&websocket.Upgrader{}).Upgrade(hijacked{httptest.NewRecorder(), ours}, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		serve(srv.newConn(ws, wirePlain))
	}()
	dialer := websocket.Dialer{NetDial: func(string, string) (net.Conn, error) { return theirs, nil }}
	ws, _, err := dialer.Dial("ws://pipe/", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	return ws
}

// beats is a client as TestHeartbeats sees it: ping waits for the next ping, pong answers it, gone waits for the end.
type beats struct {
	ping, pong, gone func()
}

// Pings come at the interval, by every transport, however short it is. Who answers stays; who falls silent is gone after
// the interval and the time-out, counted from when it was last heard.
func TestHeartbeats(t *testing.T) {
	const interval, timeout, late = 300 * time.Millisecond, 200 * time.Millisecond, 5 * time.Millisecond
	for name, connect := range map[string]func(t *testing.T, srv *Server) beats{"raw": beatsOfRaw,
		"Engine.IO by WebSocket": beatsOfWebSocket, "Engine.IO by long-polling": beatsOfPolling} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := bare(t, interval, timeout)
				began := time.Now()
				client := connect(t, srv)
				near := func(what string, since time.Time, want time.Duration) {
					t.Helper()
					if got := time.Since(since); got < want || got > want+late {
						t.Errorf("%s after %s, want %s", what, got, want)
					}
				}
				for n := 1; n <= 20; n++ {
					client.ping()
					near(fmt.Sprintf("ping %d", n), began, time.Duration(n)*interval)
					time.Sleep(timeout / 2)
					client.pong()
				}
				heard := time.Now()
				synctest.Wait()
				client.gone()
				near("gone", heard, interval+timeout)
				srv.serving.Wait(t.Context())
				synctest.Wait()
				srv.mu.Lock()
				defer srv.mu.Unlock()
				if len(srv.open)+len(srv.engines)+len(srv.schedule.looks) != 0 {
					t.Errorf("%d, %d, %d are left", len(srv.open), len(srv.engines), len(srv.schedule.looks))
				}
			})
		})
	}
}

func beatsOfRaw(t *testing.T, srv *Server) beats {
	ws := dialPipe(t, srv, func(c *Conn) {
		srv.Serve(c, func(time.Time) {}, func() {}, func(int, []byte) {})
	})
	pings, gone := make(chan bool), make(chan bool)
	ws.SetPingHandler(func(string) error { pings <- true; return nil })
	go func() {
		defer close(gone)
		_, _, _ = ws.ReadMessage()
	}()
	return beats{
		ping: func() { <-pings },
		pong: func() { _ = ws.WriteControl(websocket.PongMessage, nil, time.Time{}) },
		gone: func() {
			for {
				select {
				case <-pings:
				case <-gone:
					return
				}
			}
		},
	}
}

func beatsOfWebSocket(t *testing.T, srv *Server) beats {
	ws := dialPipe(t, srv, func(c *Conn) { srv.serveWebSocket(c, nil, url.Values{}, toNobody) })
	read := func() string {
		_, b, err := ws.ReadMessage()
		if err != nil {
			return ""
		}
		return string(b)
	}
	if open := read(); !strings.Contains(open, `"pingInterval":300,"pingTimeout":200`) {
		t.Fatalf("open packet %q", open)
	}
	return beats{
		ping: func() {
			if got := read(); got != "2" {
				t.Fatalf("got %q, want a ping", got)
			}
		},
		pong: func() { _ = ws.WriteMessage(websocket.TextMessage, []byte("3")) },
		gone: func() {
			for read() != "" {
			}
		},
	}
}

// polled is a long-polling session without a server, and what requests to it are answered.
func polled(t *testing.T, srv *Server) func(ctx context.Context, method, body string) (int, string) {
	t.Helper()
	n := srv.newEngine(url.Values{}, newPolling(1<<20), toNobody)
	if !srv.enter(n) {
		t.Fatal("refused")
	}
	srv.watch(n, n.check)
	handler := srv.EngineIO(toNobody)
	return func(ctx context.Context, method, body string) (int, string) {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequestWithContext(ctx, method, "/?EIO=4&transport=polling&sid="+n.sid, strings.NewReader(body)))
		return w.Code, w.Body.String()
	}
}

func beatsOfPolling(t *testing.T, srv *Server) beats {
	do := polled(t, srv)
	return beats{
		ping: func() {
			if status, got := do(t.Context(), "GET", ""); status != 200 || got != "2" {
				t.Fatalf("%d %q, want a ping", status, got)
			}
		},
		pong: func() {
			if status, got := do(t.Context(), "POST", "3"); status != 200 {
				t.Fatalf("%d %q", status, got)
			}
		},
		gone: func() {
			if status, got := do(t.Context(), "GET", ""); status != 200 || got != "2" {
				t.Errorf("%d %q, want the last ping", status, got)
			}
			if status, got := do(t.Context(), "GET", ""); status != 200 || got != "2\x1e1" {
				t.Errorf("%d %q, want a ping and the close packet", status, got)
			}
			if status, _ := do(t.Context(), "GET", ""); status != 400 {
				t.Errorf("%d, want 400", status)
			}
		},
	}
}

// A poll that waits is answered with a noop as the client closes, one that is given up ends the session, and so does a
// second one; nothing is answered afterwards.
func TestPollsThatEndTheSession(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(t *testing.T, do func(ctx context.Context, method, body string) (int, string), cancel func())
		want string // the answer to the poll that waits
	}{
		"closed by the client": {func(t *testing.T, do func(context.Context, string, string) (int, string), _ func()) {
			if status, got := do(t.Context(), "POST", "1"); status != 200 || got != "ok" {
				t.Errorf("POST: %d %q", status, got)
			}
		}, "200 6"},
		"a second poll": {func(t *testing.T, do func(context.Context, string, string) (int, string), _ func()) {
			if status, _ := do(t.Context(), "GET", ""); status != 400 {
				t.Errorf("the second: %d, want 400", status)
			}
		}, "200 1"},
		"given up": {func(t *testing.T, _ func(context.Context, string, string) (int, string), cancel func()) { cancel() }, "400"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				do := polled(t, bare(t, time.Minute, time.Minute))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				answer := make(chan string, 1)
				go func() {
					status, text := do(ctx, "GET", "")
					answer <- fmt.Sprint(status, " ", text)
				}()
				synctest.Wait() // it waits
				tc.end(t, do, cancel)
				if got := <-answer; !strings.HasPrefix(got, tc.want) {
					t.Errorf("the poll that waited: %q, want %s", got, tc.want)
				}
				for _, method := range []string{"GET", "POST"} {
					if status, _ := do(t.Context(), method, "3"); status != 400 {
						t.Errorf("%s afterwards: %d, want 400", method, status)
					}
				}
			})
		})
	}
}

// No poll waits in the place of one that was given up, before the session's end is seen either.
func TestPollAfterOneThatWasGivenUp(t *testing.T) {
	p := newPolling(1 << 20)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := p.fetch(ctx); err == nil {
		t.Fatal("it was answered")
	}
	p.Text([]byte("4late"))
	if b, _, err := p.fetch(t.Context()); !errors.Is(err, errGone) {
		t.Errorf("%q, %v; want %v", b, err, errGone)
	}
}

// A poll that waits as a WebSocket begins to take over is let go at once; a later one is refused where the WebSocket
// completes that in time, and is let go otherwise.
func TestPollsAmidAnUpgrade(t *testing.T) {
	for name, completes := range map[string]bool{"completed": true, "not completed": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, answers := newPolling(1<<20), make(chan string, 1)
				poll := func() {
					b, _, err := p.fetch(t.Context())
					answers <- fmt.Sprint(string(b), err)
				}
				go poll()
				synctest.Wait()
				began := time.Now()
				p.probe(true)
				if got := <-answers; got != "6<nil>" || time.Since(began) > 0 {
					t.Errorf("the poll that waited: %s after %s", got, time.Since(began))
				}
				go poll()
				synctest.Wait()
				want := "6<nil>"
				if completes {
					want = fmt.Sprint(errGone)
					p.takeOver(&Conn{writing: true, maxQueue: 1 << 20})
				}
				if got := <-answers; got != want {
					t.Errorf("the later poll: %s, want %s", got, want)
				}
			})
		})
	}
}

// What it costs to look after idle connections: each is looked at once a second.
func BenchmarkScheduleLook(b *testing.B) {
	s, now := newSchedule(), time.Now()
	for range 10_000 {
		s.add(&Conn{}, func(now time.Time) time.Time { return now.Add(time.Minute) })
	}
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(100 * time.Microsecond)
		l := s.pop(now.Add(time.Hour))
		s.put(l, now, l.check(now))
	}
}
