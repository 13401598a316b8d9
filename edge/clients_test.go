package edge

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/topics"
)

// The clients of tests: a bare one, a Socket.IO one by WebSocket, one by long-polling. They speak by hand, so that they can say what a
// good one never does. All that they get goes by the node's witness.

// patience is how long a client waits, in the bubble's time: longer than anything takes that a node promises.
const patience = 30 * time.Second

// bare is a client of frames {"event":…,"data":…}. It reads all the time, and so answers pings.
type bare struct {
	n      *node
	ns     topics.Namespace
	ws     *websocket.Conn
	frames chan frame
	closed chan error
}

type frame struct {
	Event  string
	Data   map[string]any
	ID     any
	Offset string
}

func (n *node) url(ns topics.Namespace, user, token string) string {
	return "ws://nexus" + string(ns) + "?userId=" + user + "&token=" + token
}

// handshake asks for a WebSocket; the answer is closed already, and body is what it said.
func (n *node) handshake(url string) (ws *websocket.Conn, resp *http.Response, body string) {
	n.t.Helper()
	return n.handshakeFrom("", url)
}

// handshakeFrom asks for a WebSocket as a page of an origin does; empty: as what is no browser.
func (n *node) handshakeFrom(origin, url string) (ws *websocket.Conn, resp *http.Response, body string) {
	n.t.Helper()
	h := http.Header{}
	if origin != "" {
		h.Set("Origin", origin)
	}
	ws, resp, err := (&websocket.Dialer{NetDialContext: n.net.DialContext, EnableCompression: true}).Dial(url, h)
	if resp == nil {
		n.t.Fatal(err)
	}
	if err == nil {
		n.t.Cleanup(func() { ws.Close() })
		return ws, resp, ""
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	return nil, resp, string(b)
}

// open connects a bare client and waits for connected.
func (n *node) open(ns topics.Namespace, user string, more ...string) *bare {
	n.t.Helper()
	return n.openWith(ns, user, tokenFor(n.t, user, time.Hour)+strings.Join(more, ""))
}

func (n *node) openWith(ns topics.Namespace, user, token string) *bare {
	n.t.Helper()
	ws, _, refusal := n.handshake(n.url(ns, user, token))
	if ws == nil {
		n.t.Fatalf("refused: %s", refusal)
	}
	c := n.reader(ns, ws)
	c.expect("connected", nil)
	return c
}

// silent connects a bare client that reads nothing, and so answers no ping.
func (n *node) silent(ns topics.Namespace, user string) *websocket.Conn {
	n.t.Helper()
	ws, _, refusal := n.handshake(n.url(ns, user, tokenFor(n.t, user, time.Hour)))
	if ws == nil {
		n.t.Fatalf("refused: %s", refusal)
	}
	return ws
}

func (n *node) reader(ns topics.Namespace, ws *websocket.Conn) *bare {
	c := &bare{n: n, ns: ns, ws: ws, frames: make(chan frame, 10_000), closed: make(chan error, 1)}
	go c.read()
	return c
}

func (c *bare) read() {
	defer close(c.frames)
	for {
		_, b, err := c.ws.ReadMessage()
		if err != nil {
			c.n.Closed(err)
			c.closed <- err
			c.ws.Close()
			return
		}
		c.n.Raw(c.ns, b)
		var f frame
		if err := json.Unmarshal(b, &f); err != nil {
			f.Event = "not JSON: " + string(b)
		}
		c.frames <- f
	}
}

func (c *bare) send(text string) {
	c.n.t.Helper()
	c.n.Ask(c.ns, text)
	if err := c.ws.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		c.n.t.Fatal(err)
	}
}

// expect waits for a frame of an event whose data has the fields of want.
func (c *bare) expect(event string, want map[string]any) frame {
	c.n.t.Helper()
	deadline := time.After(patience)
	var seen []string
	for {
		select {
		case f, open := <-c.frames:
			if !open {
				c.n.t.Fatalf("closed with %v while waiting for %s %v; got %q", <-c.closed, event, want, seen)
			}
			if f.Event == event && has(f.Data, want) {
				return f
			}
			seen = append(seen, fmt.Sprintf("%s %v", f.Event, f.Data))
		case <-deadline:
			c.n.t.Fatalf("no %s %v; got %q", event, want, seen)
		}
	}
}

func has(data, want map[string]any) bool {
	for k, v := range want {
		if fmt.Sprint(data[k]) != fmt.Sprint(v) {
			return false
		}
	}
	return true
}

// rest are the frames that still come until the connection is closed, with that code.
func (c *bare) rest(code int) (list []frame) {
	c.n.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case f, open := <-c.frames:
			if open {
				list = append(list, f)
				continue
			}
			if err := <-c.closed; !websocket.IsCloseError(err, code) {
				c.n.t.Errorf("closed with %v, want %d", err, code)
			}
			return list
		case <-deadline:
			c.n.t.Fatalf("not closed, want close code %d", code)
		}
	}
}

// alive checks that a client is still served.
func (c *bare) alive() {
	c.n.t.Helper()
	c.send(`{"event":"authenticate","data":{"token":"none"},"id":"alive?"}`)
	for {
		if f := c.expect("ack", nil); f.ID == "alive?" {
			return
		}
	}
}

// packets is a Socket.IO client by WebSocket.
type packets struct {
	n  *node
	ws *websocket.Conn
}

// socketIO asks for a WebSocket at /socket.io/; nil: refused.
func (n *node) socketIO(query string) (*packets, *http.Response) {
	n.t.Helper()
	ws, resp, _ := n.handshake("ws://nexus/socket.io/" + query)
	if ws == nil {
		return nil, resp
	}
	_ = ws.SetReadDeadline(time.Now().Add(10 * patience))
	return &packets{n, ws}, resp
}

// engine opens an Engine.IO session.
func (n *node) engine() *packets {
	n.t.Helper()
	p, resp := n.socketIO("?EIO=4&transport=websocket")
	if p == nil {
		n.t.Fatalf("refused: %s", resp.Status)
	}
	p.expect(`0{"sid":"`)
	return p
}

func (p *packets) send(texts ...string) {
	p.n.t.Helper()
	for _, s := range texts {
		p.n.Ask("", s)
		if err := p.ws.WriteMessage(websocket.TextMessage, []byte(s)); err != nil {
			p.n.t.Fatal(err)
		}
	}
}

// attach sends attachments.
func (p *packets) attach(list ...[]byte) {
	p.n.t.Helper()
	for _, b := range list {
		if err := p.ws.WriteMessage(websocket.BinaryMessage, b); err != nil {
			p.n.t.Fatal(err)
		}
	}
}

// expect reads packets until one begins with prefix.
func (p *packets) expect(prefix string) string {
	p.n.t.Helper()
	for {
		_, b, err := p.ws.ReadMessage()
		if err != nil {
			p.n.t.Fatalf("waiting for %s: %v", prefix, err)
		}
		p.n.Packet(string(b))
		if strings.HasPrefix(string(b), prefix) {
			return string(b)
		}
	}
}

func (p *packets) expectClose(code int) {
	p.n.t.Helper()
	for {
		if _, _, err := p.ws.ReadMessage(); err != nil {
			p.n.Closed(err)
			p.ws.Close()
			if !websocket.IsCloseError(err, code) {
				p.n.t.Errorf("closed with %v, want %d", err, code)
			}
			return
		}
	}
}

// poll is a Socket.IO client by long-polling.
type poll struct {
	n    *node
	sid  string
	http *http.Client
}

func (n *node) client() *http.Client {
	c := &http.Client{Transport: &http.Transport{DialContext: n.net.DialContext}}
	n.t.Cleanup(c.CloseIdleConnections)
	return c
}

const pollURL = "http://nexus/socket.io/?EIO=4&transport=polling"

// poll opens an Engine.IO session.
func (n *node) poll() *poll {
	n.t.Helper()
	c := &poll{n: n, http: n.client()}
	c.sid = fmt.Sprint(handshakeOf(n.t, c.get(http.StatusOK))["sid"])
	return c
}

// handshakeOf reads an open packet.
func handshakeOf(t *testing.T, text string) map[string]any {
	t.Helper()
	var h map[string]any
	if text == "" || text[0] != '0' || json.Unmarshal([]byte(text[1:]), &h) != nil || h["sid"] == "" {
		t.Fatalf("open packet %q", text)
	}
	if got := strings.Join(slices.Sorted(maps.Keys(h)), " "); got != "maxPayload pingInterval pingTimeout sid upgrades" {
		t.Errorf("fields %s", got)
	}
	return h
}

// request makes a request of the session; an error is status 0.
func (c *poll) request(ctx context.Context, method, body string, header ...string) (int, http.Header, string) {
	url := pollURL
	if c.sid != "" {
		url += "&sid=" + c.sid
	}
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err.Error()
	}
	for k := 0; k+1 < len(header); k += 2 {
		r.Header.Set(header[k], header[k+1])
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return 0, nil, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil, err.Error()
	}
	return resp.StatusCode, resp.Header, string(b)
}

func (c *poll) do(method, body string) (int, string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	status, _, text := c.request(ctx, method, body)
	return status, text
}

func (c *poll) post(want int, body string) {
	c.n.t.Helper()
	for packet := range strings.SplitSeq(body, "\x1e") {
		c.n.Ask("", packet)
	}
	if status, text := c.do("POST", body); status != want || want == http.StatusOK && text != "ok" {
		c.n.t.Fatalf("POST %.100q: %d %q, want %d", body, status, text, want)
	}
}

func (c *poll) get(want int) string {
	c.n.t.Helper()
	status, text := c.do("GET", "")
	if status != want {
		c.n.t.Fatalf("GET: %d %q, want %d", status, text, want)
	}
	return text
}

// until polls until a packet begins with prefix; it returns that packet.
func (c *poll) until(prefix string) string {
	c.n.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		for packet := range strings.SplitSeq(c.get(http.StatusOK), "\x1e") {
			c.n.Packet(packet)
			if strings.HasPrefix(packet, prefix) {
				return packet
			}
		}
	}
	c.n.t.Fatalf("no packet %s", prefix)
	return ""
}
