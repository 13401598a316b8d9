package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/testenv"
)

// What the public test suites of Engine.IO protocol 4 and Socket.IO protocol 5 ask of a server, by their own headings.
// Theirs is an echo server; here acknowledgements of subscribe take the echoes' place.

type pollClient struct {
	*witness
	t    *testing.T
	base string
	sid  string
}

func (i *instance) engineURL(more string) string {
	return "http://" + i.base + "/socket.io/?EIO=4&transport=polling" + more
}

func (c *pollClient) do(method, body string) (int, string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	return c.doContext(ctx, method, body)
}

func (c *pollClient) doContext(ctx context.Context, method, body string) (int, string) {
	r, err := http.NewRequestWithContext(ctx, method, c.base+"&sid="+c.sid, strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func (c *pollClient) post(want int, body string) {
	c.t.Helper()
	for packet := range strings.SplitSeq(body, "\x1e") {
		c.Ask("", packet)
	}
	if status, text := c.do("POST", body); status != want || want == 200 && text != "ok" {
		c.t.Fatalf("POST %q: %d %q, want %d", body, status, text, want)
	}
}

func (c *pollClient) get(want int) string {
	c.t.Helper()
	status, text := c.do("GET", "")
	if status != want {
		c.t.Fatalf("GET: %d %q, want %d", status, text, want)
	}
	return text
}

// until polls until a packet begins with prefix; it returns that packet.
func (c *pollClient) until(prefix string) string {
	c.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		for packet := range strings.SplitSeq(c.get(200), "\x1e") {
			c.Packet(packet)
			if strings.HasPrefix(packet, prefix) {
				return packet
			}
		}
	}
	c.t.Fatalf("no packet %s", prefix)
	return ""
}

func (i *instance) poll(t *testing.T) *pollClient {
	t.Helper()
	c := &pollClient{witness: i.witness, t: t, base: i.engineURL("")}
	open := c.get(200)
	var h struct{ SID string }
	if open == "" || open[0] != '0' || json.Unmarshal([]byte(open[1:]), &h) != nil || h.SID == "" {
		t.Fatalf("handshake %q", open)
	}
	c.sid = h.SID
	return c
}

func (i *instance) wsEngine(t *testing.T, more string) (*packets, *http.Response, error) {
	t.Helper()
	ws, resp, err := websocket.DefaultDialer.Dial("ws://"+i.base+"/socket.io/"+more, nil)
	if err != nil {
		return nil, resp, err
	}
	t.Cleanup(func() { ws.Close() })
	_ = ws.SetReadDeadline(time.Now().Add(patience))
	return &packets{i.witness, t, ws}, resp, nil
}

func checkHandshake(t *testing.T, text string, upgrades ...any) {
	t.Helper()
	var h map[string]any
	if text == "" || text[0] != '0' || json.Unmarshal([]byte(text[1:]), &h) != nil {
		t.Fatalf("open packet %q", text)
	}
	keys := make([]string, 0, len(h))
	for k := range h {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	if got := strings.Join(keys, " "); got != "maxPayload pingInterval pingTimeout sid upgrades" {
		t.Errorf("fields %s", got)
	}
	if h["pingInterval"] != 1000.0 || h["pingTimeout"] != 3000.0 || h["maxPayload"] != 1e6 ||
		fmt.Sprint(h["upgrades"]) != fmt.Sprintf("%v", upgrades) {
		t.Errorf("handshake %v", h)
	}
}

func TestEngineIOProtocol(t *testing.T) {
	i := start(t, map[string]string{"PING_INTERVAL": "1s", "PING_TIMEOUT": "3s", "MAX_CONNECTIONS_PER_USER": "100"})
	auth := `{"userId":"alice","token":"` + tokenFor(t, "alice") + `"}`
	t.Run("handshake", func(t *testing.T) {
		status := func(method, query string) int {
			r, err := http.NewRequest(method, "http://"+i.base+"/socket.io/"+query, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			return resp.StatusCode
		}
		checkHandshake(t, (&pollClient{t: t, base: i.engineURL("")}).get(200), "websocket")
		for _, bad := range [][2]string{{"GET", "?transport=polling"}, {"GET", "?EIO=abc&transport=polling"}, {"GET", "?EIO=3&transport=polling"},
			{"GET", "?EIO=4"},
			{"GET", "?EIO=4&transport=abc"}, {"POST", "?EIO=4&transport=polling"}, {"PUT", "?EIO=4&transport=polling"},
			{"GET", "?EIO=4&transport=websocket"},
			{"GET", "?EIO=4&transport=polling&sid=unknown"}, {"POST", "?EIO=4&transport=polling&sid=unknown"}} {
			if got := status(bad[0], bad[1]); got != 400 {
				t.Errorf("%s %s: %d, want 400", bad[0], bad[1], got)
			}
		}
		p, _, err := i.wsEngine(t, "?EIO=4&transport=websocket")
		if err != nil {
			t.Fatal(err)
		}
		checkHandshake(t, p.expect("0"))
		for _, bad := range []string{"?transport=websocket", "?EIO=abc&transport=websocket", "?EIO=3&transport=websocket", "?EIO=4",
			"?EIO=4&transport=abc", "?EIO=4&transport=websocket&sid=unknown"} {
			if _, resp, err := i.wsEngine(t, bad); err == nil || resp == nil || resp.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: let in, or another status than 400: %v", bad, err)
			}
		}
	})
	t.Run("message, long-polling", func(t *testing.T) {
		c := i.poll(t)
		c.post(200, "40/dashboard,"+auth)
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
		i.must(202, "POST", "/announcements", tokenFor(t, "service", "publish"), `{"title":"long","body":"`+strings.Repeat("x", 5000)+`"}`)
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, c.base+"&sid="+c.sid, nil)
		r.Header.Set("Accept-Encoding", "gzip")
		for {
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.Header.Get("Content-Encoding") == "gzip" {
				z, err := gzip.NewReader(bytes.NewReader(b))
				if err != nil {
					t.Fatal(err)
				}
				if b, err = io.ReadAll(z); err != nil || !bytes.Contains(b, []byte(`"title":"long"`)) {
					t.Errorf("%v: %.100s", err, b)
				}
				break
			}
		}
		for name, bad := range map[string]string{"invalid packet format": "abc", "empty payload": "", "invalid base64": "b?",
			"not UTF-8": "4\xff"} {
			c := i.poll(t)
			c.post(400, bad)
			if status, _ := c.do("GET", ""); status != 400 {
				t.Errorf("%s: the session lives on", name)
			}
		}
		c = i.poll(t)
		c.post(413, strings.Repeat("x", 1_000_001))
		c.get(400)
	})
	t.Run("closes the session upon duplicate poll requests", func(t *testing.T) {
		c := i.poll(t)
		statuses := make(chan int, 2)
		for range 2 {
			go func() { s, _ := c.do("GET", ""); statuses <- s }()
		}
		if got := []int{<-statuses, <-statuses}; !slices.Contains(got, 200) || !slices.Contains(got, 400) {
			t.Errorf("statuses %v, want 200 and 400", got)
		}
		c.get(400)
	})
	t.Run("closes the session upon cancelled polling", func(t *testing.T) {
		c := i.poll(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan bool)
		go func() { c.doContext(ctx, "GET", ""); close(done) }()
		time.AfterFunc(100*time.Millisecond, cancel)
		<-done
		testenv.Eventually(t, "the session ends", func() bool { status, _ := c.do("POST", "3"); return status == 400 })
	})
	t.Run("closes the session upon invalid packet format, WebSocket", func(t *testing.T) {
		p := i.engine(t)
		p.send("abc")
		p.expectClose(websocket.CloseProtocolError)
	})
	t.Run("heartbeat", func(t *testing.T) {
		i := start(t, map[string]string{"PING_INTERVAL": "100ms", "PING_TIMEOUT": "2s"})
		c, p, quiet := i.poll(t), i.engine(t), i.poll(t)
		for range 30 {
			if got := c.get(200); got != "2" {
				t.Fatalf("got %q, want a ping", got)
			}
			c.post(200, "3")
			p.expect("2")
			p.send("3")
		}
		c.post(200, "3")                    // longer than a silent one is borne
		for status := 200; status != 400; { // it polls, but answers no ping
			var text string
			if status, text = quiet.do("GET", ""); status != 200 && status != 400 {
				t.Fatalf("%d %q", status, text)
			}
		}
	})
	t.Run("forcefully closes the session", func(t *testing.T) {
		c := i.poll(t) // TestPollsThatEndTheSession in package edge has a poll that waits
		c.post(200, "1")
		c.get(400)
		c.post(400, "3")
		p := i.engine(t)
		p.send("1")
		p.expectClose(websocket.CloseNormalClosure)
	})
	t.Run("upgrade", func(t *testing.T) {
		c := i.poll(t)
		c.post(200, "40/dashboard,"+auth)
		c.until("42/dashboard,[\"connected\"")
		p, _, err := i.wsEngine(t, "?EIO=4&transport=websocket&sid="+c.sid)
		if err != nil {
			t.Fatal(err)
		}
		p.send("2probe")
		p.expect("3probe")
		for n := 0; c.get(200) != "6"; n++ { // nothing waits any more: polls are answered at once
			if n > 10 {
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
		if second, _, err := i.wsEngine(t, "?EIO=4&transport=websocket&sid="+c.sid); err == nil { // and so is another WebSocket
			second.expectClose(websocket.CloseProtocolError)
		}
		p.send(`42/dashboard,3["subscribe",{"channels":["c"]}]`)
		p.expect(`43/dashboard,3[`)
	})
	t.Run("a failed upgrade leaves the session as it was", func(t *testing.T) {
		c := i.poll(t)
		p, _, err := i.wsEngine(t, "?EIO=4&transport=websocket&sid="+c.sid)
		if err != nil {
			t.Fatal(err)
		}
		p.send("2probe")
		p.expect("3probe")
		p.ws.Close()
		c.post(200, "40/dashboard,"+auth)
		c.until("40/dashboard,")
		p, _, err = i.wsEngine(t, "?EIO=4&transport=websocket&sid="+c.sid)
		if err != nil {
			t.Fatal(err)
		}
		p.send("nonsense")
		p.expectClose(websocket.CloseProtocolError)
	})
}

// Sessions that join nothing do not keep others out: the idlest makes room.
func TestPollingSessionsAreBounded(t *testing.T) {
	i := start(t, map[string]string{"MAX_CONNECTIONS_PER_NAMESPACE": "2"}) // so 8 sessions by long-polling
	first := i.poll(t)
	first.post(200, `40/ws,{"userId":"alice","token":"`+tokenFor(t, "alice")+`"}`)
	idle := i.poll(t)
	for range 20 {
		i.poll(t)
	}
	first.until("40/ws,")
	idle.get(400) // it was the idlest
	last := i.poll(t)
	last.post(200, `40/ws,{"userId":"bob","token":"`+tokenFor(t, "bob")+`"}`)
	last.until("40/ws,")
}

func TestSocketIOProtocol(t *testing.T) {
	i := start(t, map[string]string{"CONNECT_TIMEOUT": "2s", "MAX_CONNECTIONS_PER_USER": "100"})
	auth := `{"userId":"alice","token":"` + tokenFor(t, "alice") + `"}`
	t.Run("connect", func(t *testing.T) {
		p := i.engine(t)
		p.send("40/dashboard," + auth)
		p.expect(`40/dashboard,{"sid":"`)
		p.send("40/random")
		if got := p.expect("44/random"); got != `44/random,{"message":"Invalid namespace"}` {
			t.Errorf("got %s", got)
		}
		p.send("40/ws," + auth) // several namespaces on a session
		p.expect(`40/ws,{"sid":"`)
		bad := i.engine(t)
		bad.send("4abc") // an invalid handshake
		bad.expectClose(websocket.CloseProtocolError)
		i.engine(t).expectClose(websocket.CloseNormalClosure) // no handshake at all
	})
	t.Run("disconnect", func(t *testing.T) {
		p := i.engine(t)
		p.send("40/dashboard,"+auth, "40/ws,"+auth)
		p.expect("40/dashboard,")
		p.expect("40/ws,")
		p.send("41/dashboard,", `42/ws,1["typing",{"receiverId":"bob","isTyping":true}]`)
		p.expect(`43/ws,1[{"ok":true`)
		p.send(`42/dashboard,2["subscribe",{}]`) // it was left
		p.expectClose(websocket.CloseProtocolError)
	})
	t.Run("message", func(t *testing.T) {
		p := i.engine(t)
		p.send("40/dashboard,"+auth, `42/dashboard,456["subscribe",{"channels":["1"]},"2",{"3":[false]}]`)
		p.expect(`43/dashboard,456[`)
		p.send(`452-/dashboard,789["subscribe",{"channels":[{"_placeholder":true,"num":1},{"_placeholder":true,"num":0}]}]`)
		for _, b := range [][]byte{{1, 2, 3}, {4, 5, 6}} {
			if err := p.ws.WriteMessage(websocket.BinaryMessage, b); err != nil {
				t.Fatal(err)
			}
		}
		p.expect(`43/dashboard,789[{"channels":["1","AQID","BAUG"]`)
		for name, bad := range map[string]string{"unknown packet type": "4abc", "invalid payload format": "42/dashboard,{}",
			"invalid ack id":                  `42/dashboard,abc["subscribe",{}]`,
			"a placeholder that is not there": `451-/dashboard,["subscribe",{"_placeholder":true,"num":7}]`,
			"a text amid attachments":         `452-/dashboard,["subscribe",{}]`} {
			t.Run(name, func(t *testing.T) {
				p := i.engine(t)
				p.send("40/dashboard,"+auth, bad)
				if strings.HasPrefix(bad, "451") {
					_ = p.ws.WriteMessage(websocket.BinaryMessage, []byte{1})
				} else if strings.HasPrefix(bad, "452") {
					p.send("3")
				}
				p.expectClose(websocket.CloseProtocolError)
			})
		}
	})
}
