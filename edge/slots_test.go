package edge

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/edge/socketio"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// dialRaw opens a bare client; one that is not read from is as good as broken: it answers no ping.
func dialRaw(t *testing.T, s *httptest.Server, user, more string) (*websocket.Conn, int, string) {
	t.Helper()
	ws, resp, err := websocket.DefaultDialer.Dial(strings.Replace(s.URL, "http", "ws", 1)+"/ws?userId="+user+"&token="+user+more, nil)
	if err == nil {
		t.Cleanup(func() { ws.Close() })
		return ws, resp.StatusCode, ""
	}
	if resp == nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	return nil, resp.StatusCode, string(body)
}

// reading answers pings, as every client does that lives; done is closed when the connection ends.
func reading(ws *websocket.Conn) (done <-chan struct{}) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, _, err := ws.ReadMessage(); err != nil {
				return
			}
		}
	}()
	return ended
}

// Five sessions end while the log is away for longer than an append may take, or while it has no room for more (B7): once
// it is back the user has room for five again, and is not online in between.
func TestEndsThatTheLogMissed(t *testing.T) {
	for name, trouble := range map[string]func(*Edge, *broker) (over func()){
		"away": func(_ *Edge, b *broker) func() {
			b.stop()
			return b.start
		},
		"overloaded": func(e *Edge, _ *broker) func() {
			log := &fullLog{appender: e.slots.o.Log}
			log.full.Store(true)
			e.slots.mu.Lock()
			e.slots.o.Log = log
			e.slots.mu.Unlock()
			return func() { log.full.Store(false) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			e, s, b := runningOn(t)
			var all []*websocket.Conn
			for range 5 {
				ws, status, body := dialRaw(t, s, "alice", "")
				if status != 101 {
					t.Fatal(status, body)
				}
				all = append(all, ws)
			}
			over := trouble(e, b)
			for _, ws := range all {
				ws.Close()
			}
			waitFor(t, "the log has failed to take five ends", func() bool {
				e.slots.mu.Lock()
				defer e.slots.mu.Unlock()
				return e.slots.failed >= 5
			})
			over()
			waitFor(t, "the log shows all five ends", func() bool { return e.fold.Count(topics.Messaging, "alice") == 0 })
			waitFor(t, "nothing is kept of them", func() bool { all, unsettled := e.slots.counts(); return all == 0 && unsettled == 0 })
			for range 5 {
				if _, status, body := dialRaw(t, s, "alice", ""); status != 101 {
					t.Errorf("refused with %d %s", status, body)
				}
			}
		})
	}
}

// fullLog takes nothing while it is full.
type fullLog struct {
	appender
	full atomic.Bool
}

func (l *fullLog) TryAppend(ev *topics.Event, done func(error)) {
	if l.full.Load() {
		go done(pipeline.ErrOverloaded)
		return
	}
	l.appender.TryAppend(ev, done)
}

// A challenge stands however often it is repeated: who is silent ends, though others ask for room all the time.
func TestChallengeStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, there) }()
		c := &conn{net: here, maxQueue: 1 << 20, patience: time.Hour}
		if err := c.alive(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_, _ = here.Read(make([]byte, 1))
			close(ended)
		}()
		for range 4 {
			c.challenge(time.Second)
			time.Sleep(600 * time.Millisecond)
		}
		select {
		case <-ended:
		default:
			t.Error("a silent client is still waited for after more than twice its time")
		}
		here.Close()
		there.Close()
		<-ended
	})
}

// Connections that died without a word (w3): a client that comes back with its offset waits until they are found out and
// takes a slot, whoever lives stays. A client without an offset is told at once what helps.
func TestBrokenMakeRoom(t *testing.T) {
	e, s, _ := runningOn(t, func(o *Options) { o.PingTimeout = time.Second })
	lively, _, _ := dialRaw(t, s, "alice", "")
	ended := reading(lively)
	for range 3 {
		dialRaw(t, s, "alice", "&offset=")
	}
	poller := openPoller(t, s, "alice")
	waitFor(t, "all five are in", func() bool { return e.fold.Count(topics.Messaging, "alice") == 5 })
	if _, status, body := dialRaw(t, s, "alice", "&offset="); status != 429 || !strings.Contains(body, "too_many_connections") ||
		!strings.Contains(body, "evict-oldest") || !strings.Contains(body, "close one of them") || strings.Count(body, "T") < 5 {
		t.Errorf("the sixth is answered %d %s", status, body)
	}
	ws, status, body := dialRaw(t, s, "alice", "&offset="+url.QueryEscape(e.offset(topics.Messaging, nil)))
	if status != 101 {
		t.Fatalf("who comes back is answered %d %s", status, body)
	}
	if _, b, err := ws.ReadMessage(); err != nil || !strings.Contains(string(b), `"recovered":true`) {
		t.Errorf("who comes back gets %s, %v", b, err)
	}
	reading(ws)
	waitFor(t, "the broken ones have ended", func() bool { return e.fold.Count(topics.Messaging, "alice") == 2 })
	if resp, err := http.Get(poller); err != nil || resp.StatusCode != 400 {
		t.Errorf("the silent poller lives on: %v %v", resp, err)
	} else {
		resp.Body.Close()
	}
	select {
	case <-ended:
		t.Error("who answers pings was closed")
	default:
	}
	for range 3 {
		ws, status, body := dialRaw(t, s, "alice", "")
		if status != 101 {
			t.Fatal(status, body)
		}
		reading(ws)
	}
	if _, status, _ := dialRaw(t, s, "alice", "&offset="+url.QueryEscape(e.offset(topics.Messaging, nil))); status != 429 {
		t.Errorf("beside five who live the sixth is answered %d, want 429", status)
	}
}

// openPoller joins /ws by long-polling; it returns the session's address.
func openPoller(t *testing.T, s *httptest.Server, user string) string {
	t.Helper()
	address := s.URL + "/socket.io/?EIO=4&transport=polling"
	resp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	open, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	sid, _, _ := strings.Cut(strings.TrimPrefix(string(open), `0{"sid":"`), `"`)
	address += "&sid=" + sid
	if resp, err = http.Post(address, "text/plain", strings.NewReader(`40/ws,{"userId":"`+user+`","token":"`+user+`"}`)); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	return address
}

// A drain that meets a CONNECT which waits for a silent log ends it, and is over when its time is (B17).
func TestDrainEndsAdmissions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, rand.New(rand.NewPCG(1, 1)))
		w.l.turn("away")
		n := w.e.newEngine(url.Values{}, newPolling(1<<20))
		if !w.e.enter(n) {
			t.Fatal("not entered")
		}
		w.e.watch(n, n.check)
		answered := make(chan struct{})
		go func() {
			n.takeAll([]byte(`40/ws,{"userId":"u0","token":"u0-a"}`))
			close(answered)
		}()
		synctest.Wait()
		select {
		case <-answered:
			t.Fatal("CONNECT does not wait for the log")
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		drained := make(chan struct{})
		go func() {
			w.e.Drain(ctx)
			close(drained)
		}()
		synctest.Wait() // no time has passed
		select {
		case <-answered:
		default:
			t.Error("CONNECT goes on waiting")
		}
		begun := time.Now()
		<-drained
		if took := time.Since(begun); took > time.Second {
			t.Errorf("drain took %s, its time was a second", took)
		}
		if len(w.e.hub.byID)+len(w.e.hub.coming) != 0 {
			t.Error("the session is still known")
		}
		w.l.turn("")
		w.l.pending.wait(context.Background())
	})
}

// A session that is renewed while its token runs out goes on, or is told that it does not; never both.
func TestRenewOrExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, rand.New(rand.NewPCG(1, 1)))
		for range 200 {
			s := member("u0", topics.Messaging)
			s.identity.Store(&Identity{User: "u0", Expires: time.Now()})
			w.e.hub.join(s, func() {})
			refused := make(chan bool)
			go func() { refused <- w.e.renew(s, Identity{User: "u0", Expires: time.Now().Add(time.Hour)}) != nil }()
			w.e.expire(s, time.Now())
			if closed := s.out.(*conn).isClosing(); <-refused != closed {
				t.Fatalf("renewal refused %v, closed %v", !closed, closed)
			}
			w.e.hub.leave(s)
		}
	})
}

// A poller whose packets are being handled may send no pong meanwhile: a challenge does not count that as silence.
func TestBusyPollerIsNotSilent(t *testing.T) {
	n := bare(t, Options{Settings: Settings{PingInterval: time.Hour}}).newEngine(nil, newPolling(1<<20))
	n.handling.Lock() // the handler takes its time
	taken := make(chan bool)
	go func() { taken <- n.takeAll([]byte{socketio.EnginePong}) }()
	waitFor(t, "the packet is being handled", func() bool {
		if !n.posting.TryLock() {
			return true
		}
		n.posting.Unlock()
		return false
	})
	n.challenge(0)
	waitFor(t, "the poller counts as alive", func() bool { return !n.silent(time.Now()) })
	n.handling.Unlock()
	if !<-taken || n.silent(time.Now()) {
		t.Error("the poller is silent once its packet has been handled")
	}
	n.challenge(0)
	if !n.silent(time.Now()) {
		t.Error("a challenge that nobody answers does not end the poller")
	}
}
