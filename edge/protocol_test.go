package edge

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
)

// What the public test suites of Engine.IO protocol 4 and Socket.IO protocol 5 ask of a server, by their own headings.
// Theirs is an echo server; here acknowledgements of subscribe take the echoes' place.

func authOf(t *testing.T, user string) string {
	return `{"userId":"` + user + `","token":"` + tokenFor(t, user, time.Hour) + `"}`
}

func checkHandshake(t *testing.T, text string, upgrades ...any) {
	t.Helper()
	h := handshakeOf(t, text)
	if h["pingInterval"] != 1000.0 || h["pingTimeout"] != 3000.0 || h["maxPayload"] != 1e6 ||
		fmt.Sprint(h["upgrades"]) != fmt.Sprintf("%v", upgrades) {
		t.Errorf("handshake %v", h)
	}
}

func TestEngineIOProtocol(t *testing.T) {
	onPinging := func(name string, every time.Duration, test func(t *testing.T, n *node)) {
		t.Run(name, func(t *testing.T) {
			serving(t, func(o *Options) {
				o.PingInterval, o.PingTimeout, o.MaxMessageBytes, o.Limits.PerUser = every, 3*time.Second, 1_000_000, 100
			}, test)
		})
	}
	on := func(name string, test func(t *testing.T, n *node)) { onPinging(name, time.Second, test) }
	on("handshake", func(t *testing.T, n *node) {
		client := n.client()
		status := func(method, query string) int {
			r, err := http.NewRequest(method, "http://nexus/socket.io/"+query, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			return resp.StatusCode
		}
		checkHandshake(t, (&poll{n: n, http: client}).get(200), "websocket")
		for _, bad := range [][2]string{{"GET", "?transport=polling"}, {"GET", "?EIO=abc&transport=polling"}, {"GET", "?EIO=3&transport=polling"},
			{"GET", "?EIO=4"},
			{"GET", "?EIO=4&transport=abc"}, {"POST", "?EIO=4&transport=polling"}, {"PUT", "?EIO=4&transport=polling"},
			{"GET", "?EIO=4&transport=websocket"},
			{"GET", "?EIO=4&transport=polling&sid=unknown"}, {"POST", "?EIO=4&transport=polling&sid=unknown"}} {
			if got := status(bad[0], bad[1]); got != 400 {
				t.Errorf("%s %s: %d, want 400", bad[0], bad[1], got)
			}
		}
		p, _ := n.socketIO("?EIO=4&transport=websocket")
		checkHandshake(t, p.expect("0"))
		for _, bad := range []string{"?transport=websocket", "?EIO=abc&transport=websocket", "?EIO=3&transport=websocket", "?EIO=4",
			"?EIO=4&transport=abc", "?EIO=4&transport=websocket&sid=unknown"} {
			if _, resp := n.socketIO(bad); resp.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: %s, want 400", bad, resp.Status)
			}
		}
	})
	on("message, long-polling", func(t *testing.T, n *node) {
		c := n.poll()
		c.post(200, "40/dashboard,"+authOf(t, "alice"))
		c.until("40/dashboard,")
		c.post(200, `42/dashboard,1["subscribe",{"channels":["a"]}]`)
		if got := c.until("43/dashboard,1"); got != `43/dashboard,1[{"channels":["a"],"refused":[]}]` {
			t.Errorf("got %s", got)
		}
		// Several packets in a payload, in order; binary ones among them.
		c.post(200, "42/dashboard,2[\"unsubscribe\",{\"channels\":[\"a\"]}]\x1e451-/dashboard,3[\"subscribe\",{\"channels\":[{\"_placeholder\":true,\"num\":0}]}]\x1ebAQIDBA==\x1e42/dashboard,4[\"subscribe\",{\"channels\":[]}]")
		if got := c.until("43/dashboard,3"); !strings.Contains(got, `"channels":[],"refused":[{"channel":"AQIDBA==","code":"invalid_payload"}]`) {
			t.Errorf("the attachment as base64: %s", got)
		}
		// A long payload is compressed for those who take that.
		n.log.announce("long", strings.Repeat("x", 5000))
		compressed := ""
		for k := 0; compressed == "" && k < 10; k++ {
			if _, header, b := c.request(t.Context(), "GET", "", "Accept-Encoding", "gzip"); header.Get("Content-Encoding") == "gzip" {
				compressed = b
			}
		}
		z, err := gzip.NewReader(strings.NewReader(compressed))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(z); err != nil || !bytes.Contains(b, []byte(`"title":"long"`)) {
			t.Errorf("%v: %.100s", err, b)
		}
		for name, bad := range map[string]string{"invalid packet format": "abc", "empty payload": "", "invalid base64": "b?",
			"not UTF-8": "4\xff"} {
			c := n.poll()
			c.post(400, bad)
			if status, _ := c.do("GET", ""); status != 400 {
				t.Errorf("%s: the session lives on", name)
			}
		}
		c = n.poll()
		c.post(413, strings.Repeat("x", 1_000_001))
		c.get(400)
	})
	on("closes the session upon duplicate poll requests", func(t *testing.T, n *node) {
		c := n.poll()
		statuses := make(chan int, 2)
		for range 2 {
			go func() { s, _ := c.do("GET", ""); statuses <- s }()
		}
		if got := []int{<-statuses, <-statuses}; !slices.Contains(got, 200) || !slices.Contains(got, 400) {
			t.Errorf("statuses %v, want 200 and 400", got)
		}
		c.get(400)
	})
	on("closes the session upon cancelled polling", func(t *testing.T, n *node) {
		c := n.poll()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan bool)
		go func() { c.request(ctx, "GET", ""); close(done) }()
		synctest.Wait()
		cancel()
		<-done
		synctest.Wait()
		if status, _ := c.do("POST", "3"); status != 400 {
			t.Errorf("the session lives on: %d", status)
		}
	})
	on("closes the session upon invalid packet format, WebSocket", func(t *testing.T, n *node) {
		p := n.engine()
		p.send("abc")
		p.expectClose(websocket.CloseProtocolError)
	})
	on("heartbeat", func(t *testing.T, n *node) {
		c, p, quiet := n.poll(), n.engine(), n.poll()
		opened := time.Now()
		for range 30 { // many times as long as a silent one is borne
			if got := c.get(200); got != "2" {
				t.Fatalf("got %q, want a ping", got)
			}
			c.post(200, "3")
			p.expect("2")
			p.send("3")
			if status, text := quiet.do("GET", ""); time.Since(opened) < 4*time.Second && text != "2" || // it polls, but answers no ping
				time.Since(opened) > 5*time.Second && status != 400 {
				t.Fatalf("silent for %s: %d %q", time.Since(opened), status, text)
			}
		}
	})
	onPinging("a poll may wait for longer than a request may take to come", 45*time.Second, func(t *testing.T, n *node) {
		c := n.poll()
		c.post(200, "40/dashboard,"+authOf(t, "alice"))
		begun := time.Now()
		if c.until("2"); time.Since(begun) < 40*time.Second {
			t.Errorf("pinged after %s", time.Since(begun))
		}
	})
	on("forcefully closes the session", func(t *testing.T, n *node) {
		c := n.poll() // TestPollsThatEndTheSession in package wire has a poll that waits
		c.post(200, "1")
		c.get(400)
		c.post(400, "3")
		p := n.engine()
		p.send("1")
		p.expectClose(websocket.CloseNormalClosure)
	})
	on("upgrade", func(t *testing.T, n *node) {
		c := n.poll()
		c.post(200, "40/dashboard,"+authOf(t, "alice"))
		c.until("42/dashboard,[\"connected\"")
		p, _ := n.socketIO("?EIO=4&transport=websocket&sid=" + c.sid)
		p.send("2probe")
		p.expect("3probe")
		for k := 0; c.get(200) != "6"; k++ { // nothing waits any more: polls are answered at once
			if k > 10 {
				t.Fatal("polls are not let go")
			}
		}
		c.post(200, `42/dashboard,1["subscribe",{"channels":["late"]}]`) // its answer waits, and moves over
		p.send("5")
		p.expect(`43/dashboard,1[{"channels":["late"]`)
		p.send(`42/dashboard,2["subscribe",{"channels":["b"]}]`)
		p.expect(`43/dashboard,2[`)
		c.get(400) // HTTP requests with the same sid are refused
		c.post(400, "3")
		if second, _ := n.socketIO("?EIO=4&transport=websocket&sid=" + c.sid); second != nil { // and so is another WebSocket
			second.expectClose(websocket.CloseProtocolError)
		}
		p.send(`42/dashboard,3["subscribe",{"channels":["c"]}]`)
		p.expect(`43/dashboard,3[`)
	})
	on("a failed upgrade leaves the session as it was", func(t *testing.T, n *node) {
		c := n.poll()
		p, _ := n.socketIO("?EIO=4&transport=websocket&sid=" + c.sid)
		p.send("2probe")
		p.expect("3probe")
		p.ws.Close()
		c.post(200, "40/dashboard,"+authOf(t, "alice"))
		c.until("40/dashboard,")
		p, _ = n.socketIO("?EIO=4&transport=websocket&sid=" + c.sid)
		p.send("2probe")
		p.expect("3probe")
		p.send("nonsense")
		p.expectClose(websocket.CloseProtocolError)
	})
}

// Sessions that join nothing do not keep others out: the idlest makes room.
func TestPollingSessionsAreBounded(t *testing.T) {
	serving(t, func(o *Options) { o.Limits.PerNamespace = 2 }, func(t *testing.T, n *node) { // so 8 sessions by long-polling
		first := n.poll()
		first.post(200, `40/ws,`+authOf(t, "alice"))
		idle := n.poll()
		for range 20 {
			n.poll()
		}
		first.until("40/ws,")
		synctest.Wait()
		idle.get(400) // it was the idlest, and is gone
		last := n.poll()
		last.post(200, `40/ws,`+authOf(t, "bob"))
		last.until("40/ws,")
		if got := n.e.server.Counts().Engines; got != 8 {
			t.Errorf("%d sessions, want 8", got)
		}
	})
}

func TestSocketIOProtocol(t *testing.T) {
	on := func(name string, test func(t *testing.T, n *node)) {
		t.Run(name, func(t *testing.T) { serving(t, asIs, test) })
	}
	on("connect", func(t *testing.T, n *node) {
		auth := authOf(t, "alice")
		p := n.engine()
		p.send("40/dashboard," + auth)
		p.expect(`40/dashboard,{"sid":"`)
		p.send("40/random")
		if got := p.expect("44/random"); got != `44/random,{"message":"Invalid namespace"}` {
			t.Errorf("got %s", got)
		}
		p.send("40/ws," + auth) // several namespaces on a session
		p.expect(`40/ws,{"sid":"`)
		bad := n.engine()
		bad.send("4abc") // an invalid handshake
		bad.expectClose(websocket.CloseProtocolError)
		begun := time.Now()
		n.engine().expectClose(websocket.CloseNormalClosure) // no handshake at all
		if took := time.Since(begun); took < time.Minute || took > time.Minute+2*time.Second {
			t.Errorf("closed after %s, the time to connect is a minute", took)
		}
	})
	on("disconnect", func(t *testing.T, n *node) {
		p, auth := n.engine(), authOf(t, "alice")
		p.send("40/dashboard,"+auth, "40/ws,"+auth)
		p.expect("40/dashboard,")
		p.expect("40/ws,")
		p.send("41/dashboard,", `42/ws,1["typing",{"receiverId":"bob","isTyping":true}]`)
		p.expect(`43/ws,1[{"ok":true`)
		p.send(`42/dashboard,2["subscribe",{}]`) // it was left
		p.expectClose(websocket.CloseProtocolError)
	})
	on("message", func(t *testing.T, n *node) {
		p := n.engine()
		p.send("40/dashboard,"+authOf(t, "alice"), `42/dashboard,456["subscribe",{"channels":["1"]},"2",{"3":[false]}]`)
		p.expect(`43/dashboard,456[`)
		p.send(`452-/dashboard,789["subscribe",{"channels":[{"_placeholder":true,"num":1},{"_placeholder":true,"num":0}]}]`)
		p.attach([]byte{1, 2, 3}, []byte{4, 5, 6})
		p.expect(`43/dashboard,789[{"channels":["1","AQID","BAUG"]`)
	})
	for name, bad := range map[string]string{"unknown packet type": "4abc", "invalid payload format": "42/dashboard,{}",
		"invalid ack id":                  `42/dashboard,abc["subscribe",{}]`,
		"a placeholder that is not there": `451-/dashboard,["subscribe",{"_placeholder":true,"num":7}]`,
		"a text amid attachments":         `452-/dashboard,["subscribe",{}]`} {
		on("message/"+name, func(t *testing.T, n *node) {
			p := n.engine()
			p.send("40/dashboard,"+authOf(t, "alice"), bad)
			if strings.HasPrefix(bad, "451") {
				p.attach([]byte{1})
			} else if strings.HasPrefix(bad, "452") {
				p.send("3")
			}
			p.expectClose(websocket.CloseProtocolError)
		})
	}
}

func TestSocketIOPackets(t *testing.T) {
	t.Run("refusals keep the session", func(t *testing.T) {
		serving(t, asIs, func(t *testing.T, n *node) {
			p, auth := n.engine(), authOf(t, "alice")
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
	})
	t.Run("what breaks the protocol closes it", func(t *testing.T) {
		serving(t, asIs, func(t *testing.T, n *node) {
			for _, bad := range []string{`x`, `4`, `49`, `42["e"]`, `42/ws,["e",{}]`, `42/dashboard,{}`, `40/dashboard,[]`, `45999-["e"]`, `5`} {
				p := n.engine()
				p.send(bad)
				p.expectClose(websocket.CloseProtocolError)
			}
			p, auth := n.engine(), authOf(t, "alice")
			p.send(`40/ws,`+auth, `40/ws,`+auth)
			p.expectClose(websocket.CloseProtocolError)
			p = n.engine()
			p.attach([]byte{1})
			p.expectClose(websocket.CloseProtocolError)
		})
	})
}
