package edge

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// What a hostile client may do at the sockets (rows S01, S02, S04, S05, S08). What the HTTP server bears is in package api.

// Handshakes that must be refused before the upgrade, each with its own status and code.
func TestRefusedHandshakes(t *testing.T) {
	serving(t, asIs, func(t *testing.T, n *node) {
		good, secret := tokenFor(t, "alice", time.Hour), []byte(testSecret)
		exp := time.Now().Add(time.Hour).Unix()
		for _, tc := range []struct {
			name, user, token string
			status            int
			code              string
		}{
			{"no token", "alice", "", 401, "token_invalid"},
			{"garbage", "alice", "garbage", 401, "token_invalid"},
			{"alg none", "alice", signed(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, jwt.MapClaims{"sub": "alice", "exp": exp}),
				401, "token_invalid"},
			{"HS384", "alice", signed(t, jwt.SigningMethodHS384, secret, jwt.MapClaims{"sub": "alice", "exp": exp}), 401, "token_invalid"},
			{"empty secret", "alice", signed(t, jwt.SigningMethodHS256, []byte{}, jwt.MapClaims{"sub": "alice", "exp": exp}), 401,
				"token_invalid"},
			{"no exp", "alice", signed(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{"sub": "alice"}), 401, "token_invalid"},
			{"expired a second ago", "alice", signed(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{"sub": "alice", "exp": time.Now().Unix() - 1}),
				401, "token_expired"},
			{"not yet valid", "alice", signed(t, jwt.SigningMethodHS256, secret,
				jwt.MapClaims{"sub": "alice", "exp": exp, "nbf": time.Now().Unix() + 120}), 401, "token_invalid"},
			{"no user", "alice", signed(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{"exp": exp}), 401, "token_invalid"},
			{"user with a colon", "a:b", signed(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{"sub": "a:b", "exp": exp}), 401, "token_invalid"},
			{"a long token", "alice", strings.Repeat("x", 10_000), 401, "token_invalid"},
			{"another user", "bob", good, 403, "forbidden"},
		} {
			for _, ns := range topics.Namespaces() {
				ws, resp, text := n.handshake(n.url(ns, tc.user, tc.token))
				if ws != nil {
					t.Errorf("%s: let in", tc.name)
					continue
				}
				var body struct {
					Error struct{ Code, Message string }
				}
				if err := json.Unmarshal([]byte(text), &body); err != nil || resp.StatusCode != tc.status || body.Error.Code != tc.code {
					t.Errorf("%s: %d %+v %v, want %d %s", tc.name, resp.StatusCode, body, err, tc.status, tc.code)
				}
			}
		}
		for _, from := range []string{"https://evil.example", "null", origin + ".evil.example"} {
			if ws, resp, body := n.handshakeFrom(from, n.url("/ws", "alice", good)); ws != nil || resp.StatusCode != http.StatusForbidden ||
				!strings.Contains(body, "forbidden") {
				t.Errorf("from %s: %s %s", from, resp.Status, body)
			}
		}
		for _, from := range []string{origin, "http://nexus"} { // the allowed one, and the server's own
			if ws, resp, body := n.handshakeFrom(from, n.url("/dashboard", "dave", tokenFor(t, "dave", time.Hour))); ws == nil {
				t.Errorf("from %s: %s %s", from, resp.Status, body)
			}
		}
		// Claim userId stands in for sub; the 101 carries nothing that it need not.
		carols := signed(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{"userId": "carol", "exp": exp})
		ws, resp, _ := n.handshakeFrom(origin, n.url("/ws", "carol", carols))
		if ws == nil {
			t.Fatal(resp.Status)
		}
		for name := range resp.Header {
			if name != "Upgrade" && name != "Connection" && name != "Sec-Websocket-Accept" && name != "Sec-Websocket-Extensions" {
				t.Errorf("the 101 carries header %s", name)
			}
		}
	})
}

// Two connections of a user, three in a namespace: who is one too many is told when to come again; whoever leaves makes room.
func TestLimits(t *testing.T) {
	serving(t, func(o *Options) { o.Limits.PerUser, o.Limits.PerNamespace = 2, 3 }, func(t *testing.T, n *node) {
		refusal := func(user string) (status int, after, body string) {
			ws, resp, body := n.handshake(n.url("/ws", user, tokenFor(t, user, time.Hour)))
			if ws != nil {
				ws.Close()
			}
			return resp.StatusCode, resp.Header.Get("Retry-After"), body
		}
		n.open("/ws", "carol")
		first := n.open("/ws", "alice")
		n.open("/ws", "alice")
		if status, after, body := refusal("alice"); status != 429 || after == "" || !strings.Contains(body, "too_many_connections") {
			t.Errorf("one connection too many of a user: %d, Retry-After %q, %s", status, after, body)
		}
		if status, after, body := refusal("bob"); status != 503 || after == "" || !strings.Contains(body, "namespace") {
			t.Errorf("one connection too many in the namespace: %d, Retry-After %q, %s", status, after, body)
		}
		n.open("/dashboard", "bob") // the other namespace has room
		first.ws.Close()
		n.eventually("a closed connection's slot is given back", func() bool { status, _, _ := refusal("bob"); return status == 101 })
	})
}

// A thousand connections in a namespace; one more is refused, and let in once another has gone.
func TestThousandConnections(t *testing.T) {
	const many = 1000
	serving(t, func(o *Options) { o.Limits.PerNamespace = many }, func(t *testing.T, n *node) {
		all := make(chan *websocket.Conn, many)
		var opening sync.WaitGroup
		for w := range 20 {
			opening.Go(func() {
				for k := w; k < many; k += 20 {
					all <- n.silent("/ws", fmt.Sprintf("u%d", k/5))
				}
			})
		}
		opening.Wait()
		late := func(ns topics.Namespace) (int, string) {
			ws, resp, body := n.handshake(n.url(ns, "late", tokenFor(t, "late", time.Hour)))
			if ws != nil {
				ws.Close()
			}
			return resp.StatusCode, body
		}
		if status, body := late("/ws"); status != 503 || !strings.Contains(body, "namespace") {
			t.Errorf("connection 1001: %d %s", status, body)
		}
		if status, _ := late("/dashboard"); status != 101 {
			t.Errorf("the other namespace: %d", status)
		}
		(<-all).Close()
		n.eventually("the slot is free again", func() bool { status, _ := late("/ws"); return status == 101 })
	})
}

// With evict-oldest the newest connections stay.
func TestEvictOldest(t *testing.T) {
	serving(t, func(o *Options) { o.Limits.PerUser, o.Limits.EvictOldest = 2, true }, func(t *testing.T, n *node) {
		first, second, third := n.open("/ws", "alice"), n.open("/ws", "alice"), n.open("/ws", "alice")
		first.expect("error", map[string]any{"code": "too_many_connections"})
		first.rest(apierr.CloseEvicted)
		second.alive()
		third.alive()
	})
}

// Bad frames get an error and the connection stays.
func TestBadFrames(t *testing.T) {
	serving(t, asIs, func(t *testing.T, n *node) {
		c := n.open("/ws", "alice")
		for _, tc := range []struct{ text, code string }{
			{`nonsense`, "bad_frame"}, {``, "bad_frame"}, {`[]`, "bad_frame"}, {`{"data":{}}`, "bad_frame"}, {`{"event":7}`, "bad_frame"},
			{`{"event":"none","data":{}}`, "unknown_event"},
			{`{"event":"subscribe","data":{"channels":[]}}`, "unknown_event"},
			{`{"event":"sendMessage"}`, "invalid_payload"},
			{`{"event":"sendMessage","data":{"receiverId":"bob"}}`, "invalid_payload"},
			{`{"event":"sendMessage","data":{"receiverId":"a:b","content":"x"}}`, "invalid_payload"},
			{`{"event":"sendMessage","data":{"receiverId":"bob","content":"\u0000"}}`, "invalid_payload"},
			{`{"event":"sendMessage","data":{"receiverId":"bob","content":7}}`, "invalid_payload"},
			{`{"event":"sendMessage","data":{"receiverId":"bob","content":"` + strings.Repeat("x", 40_000) + `"}}`, "too_large"},
			{`{"event":"typing","data":{"receiverId":"bob"}}`, "invalid_payload"},
			{`{"event":"markAsRead","data":{"messageId":"none"}}`, "not_found"},
			{`{"event":"authenticate","data":{"token":"none"}}`, "token_invalid"},
		} {
			c.send(tc.text)
			c.expect("error", map[string]any{"code": tc.code})
		}
		if got := n.log.all(topics.Messages); len(got) != 0 {
			t.Errorf("appended: %d events", len(got))
		}
		limited := n.openWith("/dashboard", "carol", tokenFor(t, "carol", time.Hour, "mine"))
		limited.send(`{"event":"subscribe","data":{"channel":"mine"}}`)
		limited.expect("error", map[string]any{"code": "invalid_payload",
			"message": `the data of "subscribe" must be like {"channels":["referrals","events"]}: missing or empty is "channels"; not known is "channel", known are "channels", "offset"`})
		limited.send(`{"event":"subscribe","data":{"channels":["mine","news","a b"]}}`)
		limited.expect("error", map[string]any{"code": "invalid_payload",
			"message": `channels were refused: "news" (forbidden), "a b" (invalid_payload)`})
		c.send(`{"event":"sendMessage","data":{"receiverId":"bob","content":"still here","extra":{"ignored":true}},"id":"x"}`)
		if f := c.expect("ack", map[string]any{"ok": true}); f.ID != "x" {
			t.Errorf("ack of %v", f.ID)
		}
	})
}

// The message that is one too many within the window is refused with the time to wait, after which the next one is taken.
func TestRateLimit(t *testing.T) {
	serving(t, func(o *Options) { o.RateLimit = 30 }, func(t *testing.T, n *node) {
		c := n.open("/ws", "alice")
		send := func(k int) map[string]any {
			c.send(fmt.Sprintf(`{"event":"sendMessage","data":{"receiverId":"bob","content":"%d"},"id":%d}`, k, k))
			return c.expect("ack", nil).Data
		}
		for k := range 30 {
			if got := send(k); got["ok"] != true {
				t.Fatalf("message %d: %v", k, got)
			}
		}
		refused, _ := send(30)["error"].(map[string]any)
		if refused["code"] != "rate_limited" {
			t.Fatalf("the 31st: %v", refused)
		}
		wait := time.Duration(refused["retryAfterMs"].(float64) * float64(time.Millisecond))
		if time.Sleep(wait - time.Second); send(31)["ok"] == true {
			t.Errorf("taken a second before the %s that it was to wait", wait)
		}
		if time.Sleep(time.Second); send(32)["ok"] != true {
			t.Errorf("refused after the %s that it was to wait", wait)
		}
	})
}

// What breaks the protocol of WebSocket closes the connection with the right code, and nobody else's.
func TestBrokenFrames(t *testing.T) {
	serving(t, func(o *Options) { o.MaxMessageBytes = 70_000 }, func(t *testing.T, n *node) {
		neighbour := n.open("/ws", "alice")
		text := func(b []byte) []byte { return frameOf(0x80|1, b) }
		for name, tc := range map[string]struct {
			raw  []byte
			code int
		}{
			"not UTF-8":            {text([]byte("\xff\xfe")), websocket.CloseInvalidFramePayloadData},
			"too large":            {text(bytes.Repeat([]byte("x"), 70_001)), websocket.CloseMessageTooBig},
			"reserved bits":        {[]byte{0xff, 0xff, 0xff}, websocket.CloseProtocolError},
			"not masked":           {[]byte{0x81, 0x01, 'x'}, websocket.CloseProtocolError},
			"an unknown opcode":    {[]byte{0x83, 0x80, 0, 0, 0, 0}, websocket.CloseProtocolError},
			"a ping that is large": {[]byte{0x89, 0xfe, 1, 0, 0, 0, 0, 0}, websocket.CloseProtocolError},
		} {
			c := n.open("/dashboard", "breaker")
			_, _ = c.ws.NetConn().Write(tc.raw) // the server may have closed before it has read all
			if err := closeOf(c); !websocket.IsCloseError(err, tc.code) {
				t.Errorf("%s: closed with %v, want %d", name, err, tc.code)
			}
		}
		neighbour.alive()
	})
}

// closeOf waits for a client's end.
func closeOf(c *bare) error {
	for range c.frames {
	}
	return <-c.closed
}

// frameOf is a client's frame, masked with zeros; head is its first byte (RFC 6455, section 5.2).
func frameOf(head byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{head, 0x80 | 127}, uint64(len(payload)))
	return append(append(b, 0, 0, 0, 0), payload...)
}

// Fifty compressed bombs at once, of sixty megabytes each: all are closed, and what a node allocates for one is a small multiple of
// what a message may have, not of what it would inflate to.
func TestBombs(t *testing.T) {
	const limit, bombs = 70_000, 50
	bomb := frameOf(0x80|0x40|1, deflatedZeros(60))
	serving(t, func(o *Options) { o.MaxMessageBytes, o.Limits.PerUser = limit, bombs }, func(t *testing.T, n *node) {
		var list []*bare
		for range bombs {
			list = append(list, n.open("/ws", "bomber"))
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var sending sync.WaitGroup
		for _, c := range list {
			sending.Go(func() { _, _ = c.ws.NetConn().Write(bomb) })
		}
		for _, c := range list {
			c.rest(websocket.CloseMessageTooBig)
		}
		sending.Wait()
		runtime.ReadMemStats(&after)
		if got := (after.TotalAlloc - before.TotalAlloc) / bombs; got > 10*limit {
			t.Errorf("a bomb of %d bytes had %d bytes allocated", len(bomb), got)
		} else {
			t.Logf("a bomb of %d bytes had %d bytes allocated", len(bomb), got)
		}
	})
}

// deflatedZeros is a message of that many megabytes of zeros, as permessage-deflate has it (RFC 7692, section 7.2.1). From the second
// megabyte on all deflate to the same bytes.
func deflatedZeros(megabytes int) []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestCompression) // the level is valid
	megabyte := func() []byte {
		b.Reset()
		_, _ = w.Write(make([]byte, 1<<20))
		_ = w.Flush()
		return bytes.Clone(b.Bytes())
	}
	all := append(megabyte(), bytes.Repeat(megabyte(), megabytes-1)...)
	return bytes.TrimSuffix(all, []byte{0, 0, 0xff, 0xff})
}

// Bad frames and mutated envelopes, ten thousand of each with NEXUS_TEST_FULL=1: no panic, no session left behind, neighbours unharmed.
func TestBadFramesByTheThousand(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("NEXUS_TEST_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("NEXUS_TEST_SEED=%d", seed)
	rounds := 10
	if os.Getenv("NEXUS_TEST_FULL") == "1" {
		rounds = 250
	}
	serving(t, func(o *Options) { o.RateLimit, o.Limits.PerUser = 1_000_000, 1000 }, func(t *testing.T, n *node) {
		neighbour := n.open("/ws", "neighbour")
		var clients sync.WaitGroup
		for w := range 8 {
			r := mrand.New(mrand.NewPCG(seed, uint64(w)))
			clients.Go(func() {
				for range rounds {
					n.badFrames(r, 5)
				}
			})
			clients.Go(func() { n.badEnvelopes(mrand.New(mrand.NewPCG(seed, uint64(100+w))), fmt.Sprint("e", w), 5*rounds) })
		}
		clients.Wait()
		n.eventually("all but the neighbour are gone, for all nodes", func() bool {
			return n.e.fold.Connections(topics.Messaging) == 1 && n.e.fold.Connections(topics.Dashboard) == 0
		})
		if c := n.e.sessions.Counts(); c.Joined != 1 {
			t.Errorf("%+v, want the neighbour alone", c)
		}
		neighbour.alive()
	})
}

// badFrames sends raw bytes that are no good frames on a new connection, and reads until it ends.
func (n *node) badFrames(r *mrand.Rand, count int) {
	ns := topics.Namespaces()[r.IntN(2)]
	ws, _, refusal := n.handshake(n.url(ns, "u", tokenFor(n.t, "u", time.Hour)))
	if ws == nil {
		n.t.Errorf("refused: %s", refusal)
		return
	}
	c := ws.NetConn()
	read := make(chan bool)
	go func() { // a client that reads nothing would be closed for that
		_, _ = io.Copy(io.Discard, c)
		close(read)
	}()
	for range count {
		if _, err := c.Write(badFrame(r)); err != nil {
			break
		}
	}
	time.Sleep(time.Second) // what can be answered is; then it goes without a word
	c.Close()
	<-read
}

func badFrame(r *mrand.Rand) []byte {
	random := func(n int) []byte {
		b := make([]byte, n)
		for k := range b {
			b[k] = byte(r.Uint32())
		}
		return b
	}
	switch r.IntN(8) {
	case 0:
		return random(1 + r.IntN(200)) // anything
	case 1:
		return append([]byte{0x80 | byte(r.IntN(8))<<4 | byte(r.IntN(16)), 0x80 | 5}, random(9)...) // reserved bits and opcodes
	case 2:
		return append([]byte{0x81, 5}, random(5)...) // not masked
	case 3:
		return append([]byte{0x81, 0x80 | 127}, random(8)...) // a huge length
	case 4:
		return bytes.Repeat([]byte{0x01, 0x80, 0, 0, 0, 0}, 50) // fragments that begin anew
	case 5:
		return append([]byte{0x88, 0x80 | 2, 0, 0, 0, 0}, random(2)...) // any close code
	case 6:
		return bytes.Repeat([]byte{0x89, 0x80, 0, 0, 0, 0}, 100) // pings
	}
	return append([]byte{0xc1, 0x80 | 20, 0, 0, 0, 0}, random(20)...) // garbage that claims to be deflated
}

// badEnvelopes sends mutated JSON: the connection stays, and what is good is answered in the end.
func (n *node) badEnvelopes(r *mrand.Rand, user string, count int) {
	ws, _, refusal := n.handshake(n.url("/ws", user, tokenFor(n.t, user, time.Hour)))
	if ws == nil {
		n.t.Errorf("refused: %s", refusal)
		return
	}
	c := n.reader("/ws", ws)
	good := []string{`{"event":"sendMessage","data":{"receiverId":"x","content":"c"},"id":1}`,
		`{"event":"typing","data":{"receiverId":"x","isTyping":true}}`,
		`{"event":"markAsRead","data":{"messageId":"m"}}`, `{"event":"authenticate","data":{"token":"t"}}`}
	odd := []string{strings.Repeat("[", 10_000), `{"event":1e999}`, `{"event":"sendMessage","event":"typing"}`,
		`{"event":"typing","data":{"receiverId":"x","receiverId":"y","isTyping":1e999}}`,
		`{"event":"sendMessage","data":{"receiverId":"x","content":` + strings.Repeat(`{"a":`, 5000) + `1` + strings.Repeat(`}`, 5000) + `}}`,
		"\u0000", `{"event":"sendMessage","data":null,"id":{}}`}
	for k := range count {
		text := []byte(good[r.IntN(len(good))])
		if r.IntN(10) == 0 {
			text = []byte(odd[r.IntN(len(odd))])
		}
		if err := ws.WriteMessage(websocket.TextMessage, mutated(r, text)); err != nil {
			n.t.Errorf("envelope %d of %s: %v", k, user, err)
			return
		}
	}
	c.alive()
	ws.Close()
}

func mutated(r *mrand.Rand, text []byte) []byte {
	for range r.IntN(4) {
		at := r.IntN(len(text))
		switch r.IntN(3) {
		case 0:
			text[at] = byte(' ' + r.IntN(95))
		case 1:
			text = append(text[:at:at], text[min(at+1+r.IntN(4), len(text)):]...)
		case 2:
			text = append(text[:at:at], append([]byte(`"{}`), text[at:]...)...)
		}
		if len(text) == 0 {
			text = []byte("x")
		}
	}
	return text
}

// A token that runs out ends its session, a second later at most; authenticate renews it.
func TestTokenExpiry(t *testing.T) {
	serving(t, asIs, func(t *testing.T, n *node) {
		const life = 30 * time.Second
		expires := time.Now().Add(life)
		short := tokenFor(t, "alice", life)
		dies, renews := n.openWith("/ws", "alice", short), n.openWith("/ws", "alice", short)
		renews.send(fmt.Sprintf(`{"event":"authenticate","data":{"token":%q},"id":1}`, tokenFor(t, "bob", time.Hour)))
		renews.expect("ack", map[string]any{"ok": false})
		renews.send(fmt.Sprintf(`{"event":"authenticate","data":{"token":%q},"id":2}`, tokenFor(t, "alice", time.Hour)))
		renews.expect("ack", map[string]any{"ok": true})
		dies.expect("error", map[string]any{"code": "token_expired"})
		if late := time.Since(expires); late < 0 || late > 2*time.Second {
			t.Errorf("ended %s after its token", late)
		}
		dies.rest(apierr.CloseToken)
		renews.send(`{"event":"sendMessage","data":{"receiverId":"bob","content":"alive"},"id":3}`)
		renews.expect("ack", map[string]any{"ok": true})
	})
}

// What is sent after the token has expired is not appended, though the connection still stands.
func TestSendAfterExpiry(t *testing.T) {
	serving(t, asIs, func(t *testing.T, n *node) {
		expires := time.Now().Add(10 * time.Second)
		c := n.openWith("/ws", "alice", tokenFor(t, "alice", 10*time.Second))
		c.send(`{"event":"sendMessage","data":{"receiverId":"bob","content":"in time"},"id":0}`)
		c.expect("ack", map[string]any{"ok": true})
		time.Sleep(time.Until(expires)) // the moment itself: nobody has looked at the session yet
		c.send(`{"event":"sendMessage","data":{"receiverId":"bob","content":"late"},"id":1}`)
		c.rest(apierr.CloseToken)
		if got := n.log.all(topics.Messages); len(got) != 1 {
			t.Errorf("%d messages were appended, want the one that was sent in time", len(got))
		}
	})
}

// A client that answers pings stays; two hundred that are silent are gone after PingInterval and PingTimeout, and whoever behaves is
// served meanwhile. TestHeartbeats in package wire has the times of every transport.
func TestHeartbeat(t *testing.T) {
	serving(t, func(o *Options) {
		o.PingInterval, o.PingTimeout, o.Limits.PerUser, o.Limits.PerNamespace, o.RateLimit = 2*time.Second, time.Second, 1000, 1000, 100_000
	}, func(t *testing.T, n *node) {
		lively := n.open("/ws", "lively")
		var silent []*bare
		for range 200 {
			ws, _, refusal := n.handshake(n.url("/ws", "silent", tokenFor(t, "silent", time.Hour)))
			if ws == nil {
				t.Fatalf("refused: %s", refusal)
			}
			ws.SetPingHandler(func(string) error { return nil }) // it reads all and says nothing
			silent = append(silent, n.reader("/ws", ws))
		}
		opened := time.Now()
		for range 20 { // whoever behaves
			n.open("/dashboard", "good").ws.Close()
		}
		for _, c := range silent {
			_ = closeOf(c)
		}
		if took := time.Since(opened); took > 3*time.Second {
			t.Errorf("silent clients were borne for %s, which is longer than both together", took)
		}
		n.eventually("their slots are given back", func() bool { return n.e.fold.Connections("/ws") == 1 })
		lively.alive()
	})
}

// The end of the node under load: what was sent is answered before the close, by the log or as not available, and what was answered
// by the log is in it.
func TestDrain(t *testing.T) {
	serving(t, asIs, func(t *testing.T, n *node) {
		c, idle := n.open("/ws", "alice"), n.open("/dashboard", "bob")
		const sent = 500
		go func() {
			for k := range sent {
				text := fmt.Sprintf(`{"event":"sendMessage","data":{"receiverId":"bob","content":"c","clientMessageId":"%d"},"id":%d}`, k, k)
				if c.ws.WriteMessage(websocket.TextMessage, []byte(text)) != nil {
					return
				}
			}
		}()
		c.expect("ack", map[string]any{"ok": true})
		n.drain(10 * time.Second)
		acked := 1
		for _, f := range c.rest(websocket.CloseGoingAway) {
			if f.Event == "ack" && f.Data["ok"] == true {
				acked++
			}
		}
		idle.rest(websocket.CloseGoingAway)
		if have := len(n.log.all(topics.Messages)); have != acked {
			t.Errorf("%d messages were acknowledged, the log has %d", acked, have)
		}
		ws, resp, _ := n.handshake(n.url("/ws", "late", tokenFor(t, "late", time.Hour)))
		if ws != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("who comes now is answered %s", resp.Status)
		}
	})
}

// A client that does not read is closed as too slow; its neighbours are not slowed.
func TestSlowClient(t *testing.T) {
	serving(t, func(o *Options) { o.MaxQueueBytes = 1 << 16 }, func(t *testing.T, n *node) {
		ws, _, _ := n.handshake(n.url("/dashboard", "slow", tokenFor(t, "slow", time.Hour)))
		ws.EnableWriteCompression(false)
		quick := n.open("/dashboard", "quick")
		body, begun := incompressible(10_000), time.Now()
		for k := range 10 {
			n.log.announce(fmt.Sprint(k), body)
			quick.expect("announcement", map[string]any{"title": k})
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("the neighbour was held up for %s", took)
		}
		_ = ws.SetReadDeadline(time.Now().Add(patience))
		var err error
		for err == nil {
			_, _, err = ws.ReadMessage()
		}
		if !websocket.IsCloseError(err, apierr.CloseTooSlow) {
			t.Errorf("closed with %v, want %d", err, apierr.CloseTooSlow)
		}
		n.eventually("the slow one is offline", func() bool { return !n.e.fold.Online(topics.Dashboard, "slow") })
	})
}

// incompressible is text of a length that deflate makes nothing of.
func incompressible(n int) string {
	r := mrand.New(mrand.NewPCG(1, 1))
	b := make([]byte, n)
	for k := range b {
		b[k] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[r.IntN(64)]
	}
	return string(b)
}
