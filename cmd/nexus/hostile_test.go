package main

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/topics"
)

func signed(t *testing.T, method jwt.SigningMethod, key any, claims jwt.MapClaims) string {
	t.Helper()
	s, err := jwt.NewWithClaims(method, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Handshakes that must be refused before the upgrade, each with its own status and code.
func TestRefusedHandshakes(t *testing.T) {
	i := start(t, map[string]string{"ALLOWED_ORIGIN": "https://app.example.com", "JWT_ISSUER": "", "MAX_CONNECTIONS_PER_USER": "2",
		"MAX_CONNECTIONS_PER_NAMESPACE": "3"})
	good, secret := tokenFor(t, "alice"), []byte(testSecret)
	exp := time.Now().Add(time.Hour).Unix()
	for _, tc := range []struct {
		name, user, token, origin string
		status                    int
		code                      string
	}{
		{"no token", "alice", "", "", 401, "token_invalid"},
		{"garbage", "alice", "garbage", "", 401, "token_invalid"},
		{"alg none", "alice", signed(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, jwt.MapClaims{"sub": "alice", "exp": exp}), "",
			401, "token_invalid"},
		{"HS384", "alice", signed(t, jwt.SigningMethodHS384, secret, jwt.MapClaims{"sub": "alice", "exp": exp}), "", 401, "token_invalid"},
		{"empty secret", "alice", signed(t, jwt.SigningMethodHS256, []byte{}, jwt.MapClaims{"sub": "alice", "exp": exp}), "", 401,
			"token_invalid"},
		{"no exp", "alice", signed(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{"sub": "alice"}), "", 401, "token_invalid"},
		{"expired a second ago", "alice", signed(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{"sub": "alice", "exp": time.Now().Unix() - 1}),
			"", 401, "token_expired"},
		{"not yet valid", "alice", signed(t, jwt.SigningMethodHS256, secret,
			jwt.MapClaims{"sub": "alice", "exp": exp, "nbf": time.Now().Unix() + 120}), "", 401, "token_invalid"},
		{"no user", "alice", signed(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{"exp": exp}), "", 401, "token_invalid"},
		{"user with a colon", "a:b", signed(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{"sub": "a:b", "exp": exp}), "", 401,
			"token_invalid"},
		{"a long token", "alice", strings.Repeat("x", 10_000), "", 401, "token_invalid"},
		{"another user", "bob", good, "", 403, "forbidden"},
		{"evil origin", "alice", good, "https://evil.example", 403, "forbidden"},
		{"null origin", "alice", good, "null", 403, "forbidden"},
		{"look-alike origin", "alice", good, "https://app.example.com.evil.example", 403, "forbidden"},
	} {
		h := http.Header{}
		if tc.origin != "" {
			h.Set("Origin", tc.origin)
		}
		for _, ns := range []string{"/dashboard", "/ws"} {
			ws, resp, err := websocket.DefaultDialer.Dial(i.url(ns, tc.user, tc.token), h)
			if err == nil {
				ws.Close()
				t.Errorf("%s: let in", tc.name)
				continue
			}
			if resp == nil {
				t.Errorf("%s: %v", tc.name, err)
				continue
			}
			var body struct {
				Error struct{ Code, Message string }
			}
			if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || resp.StatusCode != tc.status || body.Error.Code != tc.code {
				t.Errorf("%s: %d %+v %v, want %d %s", tc.name, resp.StatusCode, body, err, tc.status, tc.code)
			}
		}
	}
	// claim userId stands in for sub; the allowed and the server's own origin are let in, and the 101 carries nothing else.
	ws, resp, err := websocket.DefaultDialer.Dial(i.url("/ws", "carol",
		signed(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{"userId": "carol", "exp": exp})),
		http.Header{"Origin": {"https://app.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	for name := range resp.Header {
		if name != "Upgrade" && name != "Connection" && name != "Sec-Websocket-Accept" {
			t.Errorf("the 101 carries header %s", name)
		}
	}
	if own, _, err := websocket.DefaultDialer.Dial(i.url("/dashboard", "dave", tokenFor(t, "dave")),
		http.Header{"Origin": {"http://" + i.base}}); err != nil {
		t.Errorf("the server's own origin: %v", err)
	} else {
		own.Close()
	}
	testLimits(t, i)
	noSecrets(t, i, good)
}

// testLimits: two connections of a user, three in /ws (carol has one).
func testLimits(t *testing.T, i *instance) {
	first := i.open("/ws", "alice")
	i.open("/ws", "alice")
	refusal := func(user string) (int, string) {
		t.Helper()
		ws, resp, err := websocket.DefaultDialer.Dial(i.url("/ws", user, tokenFor(t, user)), nil)
		if err == nil {
			ws.Close()
			return 101, ""
		}
		return resp.StatusCode, resp.Header.Get("Retry-After")
	}
	if status, after := refusal("alice"); status != 429 || after == "" {
		t.Errorf("one connection too many of a user: %d, Retry-After %q", status, after)
	}
	if status, after := refusal("bob"); status != 503 || after == "" {
		t.Errorf("one connection too many in the namespace: %d, Retry-After %q", status, after)
	}
	first.ws.Close()
	testenv.Eventually(t, "a closed connection's place is given back", func() bool { status, _ := refusal("bob"); return status == 101 })
}

// Bad frames get an error and the connection stays; what breaks the protocol closes it with the right code.
func TestBadFrames(t *testing.T) {
	i := start(t, map[string]string{"MAX_MESSAGE_BYTES": "70000", "RATE_LIMIT_MESSAGES": "30"})
	s := i.open("/ws", "alice")
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
		s.send(tc.text)
		s.expect("error", map[string]any{"code": tc.code})
	}
	token, err := api.Tokens{Secrets: [][]byte{[]byte(testSecret)}}.Sign(api.Claims{User: "carol", Channels: []string{"mine"}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	limited := i.dial(i.url("/dashboard", "carol", token))
	limited.send(`{"event":"subscribe","data":{"channel":"mine"}}`)
	limited.expect("error", map[string]any{"code": "invalid_payload",
		"message": `the data of "subscribe" must be like {"channels":["referrals","events"]}: missing or empty is "channels"; not known is "channel", known are "channels", "offset"`})
	limited.send(`{"event":"subscribe","data":{"channels":["mine","news","a b"]}}`)
	limited.expect("error", map[string]any{"code": "invalid_payload",
		"message": `channels were refused: "news" (forbidden), "a b" (invalid_payload)`})
	s.send(`{"event":"sendMessage","data":{"receiverId":"bob","content":"still here","extra":{"ignored":true}},"id":"x"}`)
	if f := s.expect("ack", map[string]any{"ok": true}); f.ID != "x" {
		t.Errorf("ack of %v", f.ID)
	}
	for n := 0; ; n++ {
		s.send(fmt.Sprintf(`{"event":"sendMessage","data":{"receiverId":"bob","content":"%d"},"id":%d}`, n, n))
		f := s.expect("ack", nil)
		if f.Data["ok"] == true && n < 30 {
			continue
		}
		e, _ := f.Data["error"].(map[string]any)
		if n != 29 || e["code"] != "rate_limited" || e["retryAfterMs"] == nil {
			t.Errorf("message %d: %v; want the 31st refused as rate_limited", n+2, f.Data)
		}
		break
	}
	for name, tc := range map[string]struct {
		kind int
		data []byte
		code int
	}{
		"not UTF-8": {websocket.TextMessage, []byte("\xff\xfe"), websocket.CloseInvalidFramePayloadData},
		"too large": {websocket.TextMessage, bytes.Repeat([]byte("x"), 70_001), websocket.CloseMessageTooBig},
	} {
		s := i.open("/dashboard", "u"+strings.ReplaceAll(name, " ", ""))
		s.ws.EnableWriteCompression(false)
		if err := s.ws.WriteMessage(tc.kind, tc.data); err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) { s.t = t; s.expectClose(tc.code) })
	}
	t.Run("a compressed bomb", func(t *testing.T) {
		s := i.open("/dashboard", "bomber")
		s.t = t
		var b bytes.Buffer
		w, _ := flate.NewWriter(&b, flate.BestCompression)
		_, _ = w.Write(make([]byte, 60<<20))
		_ = w.Flush()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		writeCompressed(t, s.ws.NetConn(), bytes.TrimSuffix(b.Bytes(), []byte{0, 0, 0xff, 0xff}))
		s.expectClose(websocket.CloseMessageTooBig)
		if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 20<<20 {
			t.Errorf("a frame of %d bytes had %d MB allocated", b.Len(), (after.TotalAlloc-before.TotalAlloc)>>20)
		}
	})
	t.Run("broken frames", func(t *testing.T) {
		for _, raw := range [][]byte{{0xff, 0xff, 0xff}, {0x81, 0x01, 'x'}, {0x83, 0x80, 0, 0, 0, 0}, {0x89, 0xfe, 1, 0, 0, 0, 0, 0}} {
			s := i.open("/dashboard", "breaker")
			s.t = t
			if _, err := s.ws.NetConn().Write(raw); err != nil {
				t.Fatal(err)
			}
			s.expectClose(websocket.CloseProtocolError)
		}
	})
	// Nobody else was harmed.
	s.send(`{"event":"typing","data":{"receiverId":"bob","isTyping":true},"id":"t"}`)
	s.expect("ack", map[string]any{"ok": true})
}

// writeCompressed writes one masked, compressed text frame.
func writeCompressed(t *testing.T, c net.Conn, payload []byte) {
	t.Helper()
	b := binary.BigEndian.AppendUint16([]byte{0x80 | 0x40 | 1, 0x80 | 126}, uint16(len(payload)))
	if len(payload) > 0xffff {
		b = binary.BigEndian.AppendUint64([]byte{0x80 | 0x40 | 1, 0x80 | 127}, uint64(len(payload)))
	}
	b = append(b, 0, 0, 0, 0) // a mask of zeros
	if _, err := c.Write(append(b, payload...)); err != nil {
		t.Fatal(err)
	}
}

// A token that runs out ends its session; authenticate renews it.
func TestTokenExpiry(t *testing.T) {
	i := start(t, nil)
	short := signed(t, jwt.SigningMethodHS256, []byte(testSecret),
		jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(3 * time.Second).Unix()})
	dies, renews := i.dial(i.url("/ws", "alice", short)), i.dial(i.url("/ws", "alice", short))
	renews.expect("connected", nil)
	renews.send(fmt.Sprintf(`{"event":"authenticate","data":{"token":%q},"id":1}`, tokenFor(t, "bob")))
	renews.expect("ack", map[string]any{"ok": false})
	renews.send(fmt.Sprintf(`{"event":"authenticate","data":{"token":%q},"id":2}`, tokenFor(t, "alice")))
	renews.expect("ack", map[string]any{"ok": true})
	dies.expect("error", map[string]any{"code": "token_expired"})
	dies.expectClose(4401)
	renews.send(`{"event":"sendMessage","data":{"receiverId":"bob","content":"alive"},"id":3}`)
	renews.expect("ack", map[string]any{"ok": true})
}

// Longer messages are compressed where the client offered it, shorter never; the canonical names alone where asked for.
func TestCompressionAndNames(t *testing.T) {
	i := start(t, nil)
	bob, plain := i.open("/ws", "bob"), i.open("/ws", "bob", "&events=canonical&offset=")
	long := strings.Repeat("long ", 2000)
	i.must(202, "POST", "/messages", tokenFor(t, "alice"), `{"receiverId":"bob","content":"`+long+`"}`)
	bob.expect("message:new", map[string]any{"content": long})
	bob.expect("MESSAGE_BROADCAST", map[string]any{"content": long})
	f := plain.expect("message:new", map[string]any{"content": long})
	if f.Offset == "" {
		t.Error("a client that asked for offsets got none")
	}
	i.must(202, "POST", "/messages", tokenFor(t, "alice"), `{"receiverId":"bob","content":"last"}`)
	for f := range plain.frames {
		if f.Event == "MESSAGE_BROADCAST" {
			t.Error("events=canonical got MESSAGE_BROADCAST")
		}
		if f.Event == "message:new" {
			break
		}
	}
	again := i.dial(i.url("/ws", "bob", tokenFor(t, "bob")) + "&offset=" + f.Offset)
	again.expect("connected", map[string]any{"recovered": true})
	again.expect("message:new", map[string]any{"content": "last"})
}

// Configuration problems are told all at once, by the names that were typed.
func TestConfigProblems(t *testing.T) {
	var log safeBuffer
	env := map[string]string{"PORT": "99999", "PING_INTERVAL": "soon", "KAFKA_BROKERS": "k:9092", "JWT_SECRET": "your-secret-key-here",
		"DATABASE_URL": "mysql://u:hunter2@h/d"}
	code := run(t.Context(), []string{"serve", "--max-connections-per-user", "none"}, env, &log, &log)
	if code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	for _, want := range []string{"PORT:", "PING_INTERVAL:", "JWT_SECRET: is a placeholder", "--max-connections-per-user:", "DATABASE_URL:"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no word of %s in:\n%s", want, log.String())
		}
	}
	if strings.Contains(log.String(), "hunter2") {
		t.Error("a password was printed")
	}
}

// A client that answers pings stays over many of them; one that is silent is gone after PING_INTERVAL and PING_TIMEOUT.
// TestHeartbeats in package edge has the times.
func TestHeartbeat(t *testing.T) {
	i := start(t, map[string]string{"PING_INTERVAL": "50ms", "PING_TIMEOUT": "1s"})
	silent, _, err := websocket.DefaultDialer.Dial(i.url("/ws", "silent", tokenFor(t, "silent")), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	silent.SetPingHandler(func(string) error { return nil })
	ws, _, err := websocket.DefaultDialer.Dial(i.url("/ws", "lively", tokenFor(t, "lively")), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	var pings atomic.Int64
	answer := ws.PingHandler()
	ws.SetPingHandler(func(data string) error { pings.Add(1); return answer(data) })
	lively := &socket{witness: i.witness, ns: topics.Messaging, t: t, ws: ws, frames: make(chan frame, 10_000), closed: make(chan error, 1)}
	go lively.read()
	_ = silent.SetReadDeadline(time.Now().Add(patience))
	for err == nil {
		_, _, err = silent.ReadMessage()
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		t.Error("a client that answers no ping was not closed")
	}
	since := pings.Load()
	testenv.Eventually(t, "pings for twice as long as a silent one is borne", func() bool { return pings.Load() >= since+2*1050/50 })
	lively.send(`{"event":"typing","data":{"receiverId":"x","isTyping":false},"id":1}`)
	lively.expect("ack", map[string]any{"ok": true})
}

// SIGTERM under load: what was sent is answered before the close, and what was answered is kept.
func TestDrain(t *testing.T) {
	dir := t.TempDir()
	i := start(t, map[string]string{"DATA_DIR": dir, "RATE_LIMIT_MESSAGES": "100000"})
	s := i.open("/ws", "alice")
	const n = 500
	for k := range n {
		s.send(fmt.Sprintf(`{"event":"sendMessage","data":{"receiverId":"bob","content":"c","clientMessageId":"%d"},"id":%d}`, k, k))
	}
	s.expect("ack", nil)
	i.stop()
	acked := 1
	for f := range s.frames {
		if f.Event == "ack" && f.Data["ok"] == true {
			acked++
		}
	}
	if err := <-s.closed; !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("closed with %v, want 1001", err)
	}
	again := start(t, map[string]string{"DATA_DIR": dir})
	have, cursor := 0, ""
	for {
		page := again.must(200, "GET", "/messages?with=alice&limit=200&cursor="+cursor, tokenFor(t, "bob"), "")
		have += len(page["messages"].([]any))
		next, more := page["next"].(string)
		if !more {
			break
		}
		cursor = next
	}
	if have < acked {
		t.Errorf("%d messages were acknowledged and %d kept", acked, have)
	}
	t.Logf("%d of %d acknowledged before the close, %d kept", acked, n, have)
}
