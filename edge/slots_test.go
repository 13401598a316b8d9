package edge

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/internal/testenv"
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
	for name, trouble := range map[string]func(*broker) (over func()){
		"away": func(b *broker) func() {
			b.Stop()
			return b.Start
		},
		"overloaded": func(b *broker) func() {
			b.said.full.Store(true)
			return func() { b.said.full.Store(false) }
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
			over := trouble(b)
			for _, ws := range all {
				ws.Close()
			}
			testenv.Eventually(t, "the log has failed to take five ends", func() bool { return b.said.failed.Load() >= 5 })
			over()
			testenv.Eventually(t, "the log shows all five ends", func() bool { return e.fold.Count(topics.Messaging, "alice") == 0 })
			testenv.Eventually(t, "nothing is kept of them", func() bool { c := e.sessions.Counts(); return c.Slots == 0 && c.Unsettled == 0 })
			for range 5 {
				if _, status, body := dialRaw(t, s, "alice", ""); status != 101 {
					t.Errorf("refused with %d %s", status, body)
				}
			}
		})
	}
}

// fullLog takes nothing while it is full, and counts what failed of the ends of sessions.
type fullLog struct {
	session.Log
	full   atomic.Bool
	failed atomic.Int64
}

func (l *fullLog) TryAppend(ev *topics.Event, done func(error)) {
	counted := func(err error) {
		if err != nil && ev.Type == topics.TypeDisconnected {
			l.failed.Add(1)
		}
		done(err)
	}
	if l.full.Load() {
		go counted(pipeline.ErrOverloaded)
		return
	}
	l.Log.TryAppend(ev, counted)
}

// Connections that died without a word (w3): a client that comes back with its offset waits until they are found out and
// takes a slot, whoever lives stays. A client without an offset is told at once what helps.
func TestBrokenMakeRoom(t *testing.T) {
	e, s, _ := runningOn(t, func(o *Options) { o.PingTimeout = time.Second })
	lively, _, _ := dialRaw(t, s, "alice", "")
	ended := reading(lively)
	offset := ""
	for range 3 {
		silent, _, _ := dialRaw(t, s, "alice", "&offset=")
		offset = offsetOf(t, silent)
	}
	poller := openPoller(t, s, "alice")
	testenv.Eventually(t, "all five are in", func() bool { return e.fold.Count(topics.Messaging, "alice") == 5 })
	if _, status, body := dialRaw(t, s, "alice", "&offset="); status != 429 || !strings.Contains(body, "too_many_connections") ||
		!strings.Contains(body, "evict-oldest") || !strings.Contains(body, "close one of them") || strings.Count(body, "T") < 5 {
		t.Errorf("the sixth is answered %d %s", status, body)
	}
	ws, status, body := dialRaw(t, s, "alice", "&offset="+url.QueryEscape(offset))
	if status != 101 {
		t.Fatalf("who comes back is answered %d %s", status, body)
	}
	if _, b, err := ws.ReadMessage(); err != nil || !strings.Contains(string(b), `"recovered":true`) {
		t.Errorf("who comes back gets %s, %v", b, err)
	}
	reading(ws)
	testenv.Eventually(t, "the broken ones have ended", func() bool { return e.fold.Count(topics.Messaging, "alice") == 2 })
	if resp, err := http.Get(poller); err != nil || resp.StatusCode != http.StatusBadRequest {
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
	if _, status, _ := dialRaw(t, s, "alice", "&offset="+url.QueryEscape(offset)); status != 429 {
		t.Errorf("beside five who live the sixth is answered %d, want 429", status)
	}
}

// offsetOf reads where a client stands, from its first frame.
func offsetOf(t *testing.T, ws *websocket.Conn) string {
	t.Helper()
	var first topics.RawFrame
	if err := ws.ReadJSON(&first); err != nil || first.Offset == "" {
		t.Fatal(first, err)
	}
	return first.Offset
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
	if resp, err = http.Post(address, "text/plain", strings.NewReader(`40/ws,{"userId":"`+user+`","token":"`+user+`"}`)); err != nil ||
		resp.StatusCode != http.StatusOK {
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
		p := w.newPoller()
		if !p.open() {
			t.Fatal("not opened")
		}
		answered := make(chan struct{})
		go func() {
			p.post(`40/ws,{"userId":"u0","token":"u0-a"}`)
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
		if c := w.e.sessions.Counts(); c.Joined+c.Coming != 0 {
			t.Errorf("the session is still known: %+v", c)
		}
		w.l.turn("")
		w.l.pending.Wait(context.Background())
	})
}
