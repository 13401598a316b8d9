package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// packets is a Socket.IO client by hand, for what a well-behaved one never sends.
type packets struct {
	*witness
	t  *testing.T
	ws *websocket.Conn
}

func (i *instance) engine(t *testing.T) *packets {
	t.Helper()
	ws, _, err := websocket.DefaultDialer.Dial("ws://"+i.base+"/socket.io/?EIO=4&transport=websocket", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	_ = ws.SetReadDeadline(time.Now().Add(patience))
	p := &packets{i.witness, t, ws}
	p.expect(`0{"sid":"`)
	return p
}

func (p *packets) send(texts ...string) {
	p.t.Helper()
	for _, s := range texts {
		p.Ask("", s)
		if err := p.ws.WriteMessage(websocket.TextMessage, []byte(s)); err != nil {
			p.t.Fatal(err)
		}
	}
}

// expect reads packets until one begins with prefix.
func (p *packets) expect(prefix string) string {
	p.t.Helper()
	for {
		_, b, err := p.ws.ReadMessage()
		if err != nil {
			p.t.Fatalf("waiting for %s: %v", prefix, err)
		}
		p.Packet(string(b))
		if strings.HasPrefix(string(b), prefix) {
			return string(b)
		}
	}
}

func (p *packets) expectClose(code int) {
	p.t.Helper()
	for {
		if _, _, err := p.ws.ReadMessage(); err != nil {
			p.Closed(err)
			if !websocket.IsCloseError(err, code) {
				p.t.Errorf("closed with %v, want %d", err, code)
			}
			return
		}
	}
}

func TestSocketIOPackets(t *testing.T) {
	i := start(t, map[string]string{"CONNECT_TIMEOUT": "2s"})
	auth := `{"userId":"alice","token":"` + tokenFor(t, "alice") + `"}`
	t.Run("refusals keep the session", func(t *testing.T) {
		p := i.engine(t)
		p.send(`40/dashboard,`)
		p.expect(`44/dashboard,{"message":"a token is needed","data":{"code":"token_invalid"}}`)
		p.send(`40/dashboard,{"userId":7}`)
		p.expect(`44/dashboard,{"message":"auth must`)
		p.send(`40/other,` + auth)
		p.expect(`44/other,{"message":"Invalid namespace"}`)
		p.send(`40`)
		p.expect(`44{"message":"Invalid namespace"}`)
		p.send(`40/dashboard,` + auth)
		p.expect(`40/dashboard,{"sid":"`)
		p.expect(`42/dashboard,["connected",{"userId":"alice"`)
		p.send(`42/dashboard,7["subscribe",{"channels":7}]`)
		p.expect(`43/dashboard,7[{"ok":false,"error":{"code":"invalid_payload"`)
		p.send(`42/dashboard,8["sendMessage",{}]`)
		p.expect(`43/dashboard,8[{"ok":false,"error":{"code":"unknown_event"`)
		p.send(`41/dashboard,`, `40/dashboard,`+auth) // left, and joined again
		p.expect(`40/dashboard,{"sid":"`)
		p.send(`42/dashboard,9["subscribe",{"channels":["a"]}]`)
		p.expect(`43/dashboard,9[{"channels":["a"],"refused":[]}]`)
		p.send(`1`)
		p.expectClose(websocket.CloseNormalClosure)
	})
	t.Run("what breaks the protocol closes it", func(t *testing.T) {
		for _, bad := range []string{`x`, `4`, `49`, `42["e"]`, `42/ws,["e",{}]`, `42/dashboard,{}`, `40/dashboard,[]`, `45999-["e"]`, `5`} {
			p := i.engine(t)
			p.send(bad)
			p.expectClose(websocket.CloseProtocolError)
		}
		p := i.engine(t)
		p.send(`40/ws,`+auth, `40/ws,`+auth)
		p.expectClose(websocket.CloseProtocolError)
		p = i.engine(t)
		if err := p.ws.WriteMessage(websocket.BinaryMessage, []byte{1}); err != nil {
			t.Fatal(err)
		}
		p.expectClose(websocket.CloseProtocolError)
	})
	t.Run("a session that joins nothing is closed", func(t *testing.T) {
		i.engine(t).expectClose(websocket.CloseNormalClosure)
	})
}

// A client that does not read is closed as too slow; its neighbours are not slowed.
func TestSlowClient(t *testing.T) {
	i := start(t, map[string]string{"MAX_QUEUE_BYTES": "65536"})
	slow, _, err := websocket.DefaultDialer.Dial(i.url("/dashboard", "slow", tokenFor(t, "slow")), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	quick := i.open("/dashboard", "quick")
	service := tokenFor(t, "service", "publish")
	body := `{"title":"t","body":"` + strings.Repeat("x", 200_000) + `"}`
	// The kernel takes some megabytes before the server's own queue fills.
	online := func() bool { return i.must(200, "GET", "/presence/slow", service, "")["online"] == true }
	deadline := time.Now().Add(2 * patience)
	sent := 0
	for ; sent == 0 || online(); sent++ {
		if time.Now().After(deadline) {
			t.Fatal("a client that never reads is still connected")
		}
		i.must(202, "POST", "/announcements", service, body)
	}
	for range sent {
		quick.expect("announcement", nil)
	}
	_ = slow.SetReadDeadline(time.Now().Add(patience))
	for err == nil {
		_, _, err = slow.ReadMessage()
	}
	t.Logf("after %d frames of 200 kB: %v", sent, err)
	if ce, ok := errors.AsType[*websocket.CloseError](err); ok && ce.Code != 4408 && ce.Code != websocket.CloseAbnormalClosure {
		t.Errorf("closed with %v, want 4408", err)
	}
}
