package edge

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/topics"
)

// Five sessions end while the log is away for longer than an append may take, or while it has no room for more (B7): once it is back
// the user has room for five again, and is not online in between.
func TestEndsThatTheLogMissed(t *testing.T) {
	for _, trouble := range []string{"away", "full"} {
		t.Run(trouble, func(t *testing.T) {
			serving(t, asIs, func(t *testing.T, n *node) {
				var all []*bare
				for range 5 {
					all = append(all, n.open("/ws", "alice"))
				}
				n.l.turn(trouble)
				for _, c := range all {
					c.ws.Close()
				}
				time.Sleep(30 * time.Second)
				if got := n.e.fold.Count(topics.Messaging, "alice"); got != 5 {
					t.Fatalf("the log shows %d sessions while it takes nothing, want 5", got)
				}
				n.l.turn("")
				n.eventually("the log shows all five ends", func() bool { return n.e.fold.Count(topics.Messaging, "alice") == 0 })
				n.eventually("nothing is kept of them", func() bool { c := n.e.sessions.Counts(); return c.Slots == 0 && c.Unsettled == 0 })
				for range 5 {
					n.open("/ws", "alice")
				}
			})
		})
	}
}

// Connections that died without a word (w3): a client that comes back with its offset waits until they are found out and takes a slot,
// whoever lives stays. A client without an offset is told at once what helps.
func TestBrokenMakeRoom(t *testing.T) {
	serving(t, func(o *Options) { o.PingTimeout = time.Second }, func(t *testing.T, n *node) {
		lively := n.open("/ws", "alice")
		offset := ""
		for range 3 {
			offset = n.broken("/ws", "alice")
		}
		poller := n.poll()
		poller.post(200, `40/ws,`+authOf(t, "alice"))
		n.eventually("all five are in", func() bool { return n.e.fold.Count(topics.Messaging, "alice") == 5 })
		ask := func(offset string) (*websocket.Conn, int, string) {
			ws, resp, body := n.handshake(n.url("/ws", "alice", tokenFor(t, "alice", time.Hour)) + "&offset=" + offset)
			return ws, resp.StatusCode, body
		}
		asked := time.Now()
		if _, status, body := ask(""); status != 429 || !strings.Contains(body, "too_many_connections") ||
			!strings.Contains(body, "evict-oldest") || !strings.Contains(body, "close one of them") || strings.Count(body, "T") < 5 {
			t.Errorf("the sixth is answered %d %s", status, body)
		}
		if took := time.Since(asked); took > time.Second {
			t.Errorf("who has no offset waits for %s", took)
		}
		back, status, body := ask(offset)
		if status != 101 {
			t.Fatalf("who comes back is answered %d %s", status, body)
		}
		n.reader("/ws", back).expect("connected", map[string]any{"recovered": true})
		n.eventually("the broken ones have ended", func() bool { return n.e.fold.Count(topics.Messaging, "alice") == 2 })
		poller.get(400)
		lively.alive()
		for range 3 {
			n.open("/ws", "alice")
		}
		if _, status, _ := ask(offset); status != 429 {
			t.Errorf("beside five who live the sixth is answered %d, want 429", status)
		}
	})
}

// broken opens a bare client that reads its first frame and then nothing: it answers no ping. It returns where that client stands.
func (n *node) broken(ns topics.Namespace, user string) (offset string) {
	n.t.Helper()
	ws, _, refusal := n.handshake(n.url(ns, user, tokenFor(n.t, user, time.Hour)) + "&offset=")
	if ws == nil {
		n.t.Fatalf("refused: %s", refusal)
	}
	var first topics.RawFrame
	if err := ws.ReadJSON(&first); err != nil || first.Offset == "" {
		n.t.Fatal(first, err)
	}
	return first.Offset
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
