package wire

import (
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/apierr"
)

// slow is a handler that takes its time: it tells when it has begun, and ends when it may.
type slow struct {
	nobody
	begun, end chan bool
}

func (s slow) Message([]byte, bool) bool {
	s.begun <- true
	<-s.end
	return false
}

// A poller whose packets are being handled may send no pong meanwhile: a challenge does not count that as silence.
func TestBusyPollerIsNotSilent(t *testing.T) {
	handler := slow{begun: make(chan bool), end: make(chan bool)}
	n := bare(t, time.Hour, 0).newEngine(nil, newPolling(1<<20), func(*Engine, url.Values) Handler { return handler })
	taken := make(chan bool)
	go func() { taken <- n.takeAll([]byte("4x")) }()
	<-handler.begun
	n.Challenge(0)
	if n.silent(time.Now()) {
		t.Error("the poller is silent while its packet is being handled")
	}
	handler.end <- true
	if !<-taken || n.silent(time.Now()) {
		t.Error("the poller is silent once its packet has been handled")
	}
	n.Challenge(0)
	if !n.silent(time.Now()) {
		t.Error("a challenge that nobody answers does not end the poller")
	}
}

// A WebSocket that is about to take over does not, where its session has ended meanwhile, or ends: a client that took no notice of
// the close packet would go on, and one of a session that has gone would wait for nothing.
func TestNoTakeOverOfAnEndingSession(t *testing.T) {
	for name, end := range map[string]func(*Engine){
		"gone":    func(n *Engine) { n.Abort() },
		"closing": func(n *Engine) { n.Close(apierr.CloseToken, "revoked") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := bare(t, time.Hour, time.Hour)
				n := srv.newEngine(url.Values{}, newPolling(1<<20), toNobody)
				if !srv.enter(n) {
					t.Fatal("refused")
				}
				srv.watch(n, n.check)
				ws := dialPipe(t, srv, func(c *Conn) { n.serveUpgrade(c) })
				say := func(packet string) {
					if err := ws.WriteMessage(websocket.TextMessage, []byte(packet)); err != nil {
						t.Fatal(err)
					}
				}
				say("2probe")
				if _, b, err := ws.ReadMessage(); err != nil || string(b) != "3probe" {
					t.Fatalf("%s %v", b, err)
				}
				end(n)
				say("5")
				if _, b, err := ws.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
					t.Errorf("%s %v, want the close", b, err)
				}
				ws.Close()
				srv.serving.Wait(t.Context())
				synctest.Wait()
				if c := srv.Counts(); c != (Counts{}) {
					t.Errorf("left: %+v", c)
				}
			})
		})
	}
}
