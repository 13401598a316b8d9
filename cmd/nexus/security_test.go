package main

import (
	"bufio"
	"bytes"
	"compress/flate"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/testenv"
)

// The rows S01-S10 of what a hostile client may do; S09 is in cluster_test.go, S10 beside the edge.

// S01: bad frames and mutated envelopes, ten thousand of each with NEXUS_TEST_FULL=1: no panic, no session left behind, neighbours
// unharmed.
func TestBadFramesByTheThousand(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("NEXUS_TEST_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("NEXUS_TEST_SEED=%d", seed)
	rounds := 20
	if os.Getenv("NEXUS_TEST_FULL") == "1" {
		rounds = 250
	}
	i := start(t, map[string]string{"RATE_LIMIT_MESSAGES": "1000000", "MAX_CONNECTIONS_PER_USER": "1000"})
	neighbour := i.open("/ws", "neighbour")
	var wg sync.WaitGroup
	for w := range 8 {
		r := mrand.New(mrand.NewPCG(seed, uint64(w)))
		wg.Go(func() {
			for range rounds {
				i.badFrames(r, 5)
			}
		})
		wg.Go(func() { i.badEnvelopes(t, mrand.New(mrand.NewPCG(seed, uint64(100+w))), 5*rounds) })
	}
	wg.Wait()
	testenv.Eventually(t, "all but the neighbour are gone", func() bool {
		return i.must(200, "GET", "/presence", tokenFor(t, "x"),
			"")["messaging"] == 1.0
	})
	testenv.Eventually(t, "no session is left behind", func() bool {
		return strings.Contains(i.scrape(), `nexus_cluster_connections{namespace="/ws"} 1`) &&
			!strings.Contains(i.scrape(), `nexus_connections{namespace="/dashboard"`)
	})
	neighbour.send(`{"event":"typing","data":{"receiverId":"x","isTyping":true},"id":1}`)
	neighbour.expect("ack", map[string]any{"ok": true})
	if strings.Contains(i.log.String(), "panicked") {
		t.Errorf("a handler panicked:\n%s", i.log)
	}
}

// badFrames sends raw bytes that are no good frames on a new connection and reads until it ends.
func (i *instance) badFrames(r *mrand.Rand, n int) {
	ws, _, err := websocket.DefaultDialer.Dial(i.url([]string{"/ws", "/dashboard"}[r.IntN(2)], "u", tokenFor(i.t, "u")), nil)
	if err != nil {
		i.t.Errorf("dial: %v", err)
		return
	}
	defer ws.Close()
	c := ws.NetConn()
	random := func(n int) []byte {
		b := make([]byte, n)
		for k := range b {
			b[k] = byte(r.Uint32())
		}
		return b
	}
	for range n {
		var b []byte
		switch r.IntN(8) {
		case 0:
			b = random(1 + r.IntN(200)) // anything
		case 1:
			b = append([]byte{0x80 | byte(r.IntN(8))<<4 | byte(r.IntN(16)), 0x80 | 5}, random(9)...) // reserved bits and opcodes
		case 2:
			b = append([]byte{0x81, 5}, random(5)...) // not masked
		case 3:
			b = append([]byte{0x81, 0x80 | 127}, random(8)...) // a huge length
		case 4:
			b = bytes.Repeat([]byte{0x01, 0x80, 0, 0, 0, 0}, 50) // fragments that begin anew
		case 5:
			b = append([]byte{0x88, 0x80 | 2, 0, 0, 0, 0}, random(2)...) // any close code
		case 6:
			b = bytes.Repeat([]byte{0x89, 0x80, 0, 0, 0, 0}, 100) // pings
		case 7:
			b = append([]byte{0xc1, 0x80 | 20, 0, 0, 0, 0}, random(20)...) // garbage that claims to be deflated
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
	_ = c.(*net.TCPConn).CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, _ = io.Copy(io.Discard, c)
}

// badEnvelopes sends mutated JSON: each is answered and the connection stays.
func (i *instance) badEnvelopes(t *testing.T, r *mrand.Rand, n int) {
	user := "e" + strconv.Itoa(r.IntN(1e9))
	ws, _, err := websocket.DefaultDialer.Dial(i.url("/ws", user, tokenFor(t, user)), nil)
	if err != nil {
		t.Errorf("dial: %v", err)
		return
	}
	defer ws.Close()
	good := []string{`{"event":"sendMessage","data":{"receiverId":"x","content":"c"},"id":1}`,
		`{"event":"typing","data":{"receiverId":"x","isTyping":true}}`,
		`{"event":"markAsRead","data":{"messageId":"m"}}`, `{"event":"authenticate","data":{"token":"t"}}`}
	odd := []string{strings.Repeat("[", 10_000), `{"event":1e999}`, `{"event":"sendMessage","event":"typing"}`,
		`{"event":"typing","data":{"receiverId":"x","receiverId":"y","isTyping":1e999}}`,
		`{"event":"sendMessage","data":{"receiverId":"x","content":` + strings.Repeat(`{"a":`, 5000) + `1` + strings.Repeat(`}`, 5000) + `}}`,
		"\u0000", `{"event":"sendMessage","data":null,"id":{}}`}
	for k := range n {
		text := []byte(good[r.IntN(len(good))])
		if r.IntN(10) == 0 {
			text = []byte(odd[r.IntN(len(odd))])
		}
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
		if err := ws.WriteMessage(websocket.TextMessage, text); err != nil {
			t.Errorf("envelope %d of %s: %v", k, user, err)
			return
		}
	}
	if err := ws.WriteMessage(websocket.TextMessage,
		[]byte(`{"event":"typing","data":{"receiverId":"x","isTyping":false},"id":"last"}`)); err != nil {
		t.Error(err)
		return
	}
	_ = ws.SetReadDeadline(time.Now().Add(2 * patience))
	for {
		_, b, err := ws.ReadMessage()
		if err != nil {
			t.Errorf("%s: %v", user, err)
			return
		}
		if bytes.Contains(b, []byte(`"id":"last"`)) {
			return
		}
	}
}

// peakRSS is the most memory that a process has held, in bytes.
func (n *node) peakRSS() int {
	n.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		n.t.Skip("no /proc")
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(b)
	kb, _ := strconv.Atoi(string(m[1]))
	return kb << 10
}

// S02: fifty compressed bombs at once, sixty megabytes each.
func TestBombs(t *testing.T) {
	n := launch(t, map[string]string{"PORT": "0", "HOST": "127.0.0.1", "DATA_DIR": t.TempDir(), "EMBEDDED_KAFKA_PORT": "0",
		"JWT_SECRET": testSecret, "MAX_CONNECTIONS_PER_USER": "50"})
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestCompression)
	_, _ = w.Write(make([]byte, 60<<20))
	_ = w.Flush()
	bomb := bytes.TrimSuffix(b.Bytes(), []byte{0, 0, 0xff, 0xff})
	var socks []*socket
	for range 50 {
		socks = append(socks, n.open("/ws", "bomber"))
	}
	before := n.peakRSS()
	for _, s := range socks {
		writeCompressed(t, s.ws.NetConn(), bomb)
	}
	for _, s := range socks {
		s.expectClose(websocket.CloseMessageTooBig)
	}
	after := n.peakRSS()
	t.Logf("fifty bombs of %d bytes: %d MB more at the peak", len(bomb), (after-before)>>20)
	if after-before > 20<<20 {
		t.Errorf("%d MB more", (after-before)>>20)
	}
}

// S03: what is another's answers like what is not there, and stays as it was.
func TestOthersThings(t *testing.T) {
	i := start(t, nil)
	service, alice, mallory := tokenFor(t, "service", "publish"), tokenFor(t, "alice"), tokenFor(t, "mallory")
	id := fmt.Sprint(i.must(202, "POST", "/notifications", service, `{"userId":"alice","title":"t","body":"","type":"SYSTEM"}`)["id"])
	message := fmt.Sprint(i.must(202, "POST", "/messages", alice, `{"receiverId":"bob","content":"private"}`)["id"])
	i.must(200, "POST", "/notifications/device-token", alice, `{"token":"alices"}`)
	for _, path := range []string{"/notifications/" + id + "/read", "/notifications/none/read"} {
		if got := fmt.Sprint(i.must(404, "POST", path, mallory,
			"")); got != "map[error:map[code:not_found message:there is no such notification of this user's]]" {
			t.Errorf("%s: %s", path, got)
		}
	}
	i.must(404, "DELETE", "/notifications/"+id, mallory, "")
	if got := i.must(200, "GET", "/notifications?userId=alice", mallory, "")["notifications"].([]any); len(got) != 0 {
		t.Errorf("another's inbox: %v", got)
	}
	if got := i.must(200, "GET", "/messages?with=bob&userId=alice", mallory, "")["messages"].([]any); len(got) != 0 {
		t.Errorf("another's messages: %v", got)
	}
	i.must(200, "DELETE", "/notifications/device-token", mallory, `{"token":"alices"}`)
	i.must(403, "POST", "/notifications", mallory, `{"userId":"alice","title":"t","body":"","type":"SYSTEM"}`)
	i.must(403, "POST", "/revocations", mallory, `{"userId":"alice"}`)
	i.must(403, "GET", "/diagnostics/alice", mallory, "")
	s := i.open("/ws", "mallory")
	for _, m := range []string{message, "none"} {
		s.send(`{"event":"markAsRead","data":{"messageId":"` + m + `"},"id":"x"}`)
		const notFound = "map[error:map[code:not_found message:there is no such message of this user's] ok:false]"
		if got := fmt.Sprint(s.expect("ack", nil).Data); got != notFound {
			t.Errorf("markAsRead %s: %s", m, got)
		}
	}
	bob := i.open("/ws", "bob")
	s.send(`{"event":"sendMessage","data":{"receiverId":"bob","content":"spoofed","senderId":"alice","id":"mine","timestamp":"2020-01-01T00:00:00Z"}}`)
	if f := bob.expect("message:new", nil); f.Data["senderId"] != "mallory" || f.Data["id"] == "mine" ||
		strings.HasPrefix(fmt.Sprint(f.Data["timestamp"]), "2020") {
		t.Errorf("spoofed: %v", f.Data)
	}
	if got := i.must(200, "GET", "/notifications/unread-count", alice, "")["count"]; got != 1.0 {
		t.Errorf("alice has %v unread, want 1", got)
	}
	if got := i.must(200, "GET", "/messages?with=alice", tokenFor(t, "bob"),
		"")["messages"].([]any)[0].(map[string]any); got["read"] != false {
		t.Errorf("the message: %v", got)
	}
	if got := i.must(200, "GET", "/diagnostics/alice", tokenFor(t, "op", "admin"), "")["devices"].([]any); len(got) != 1 {
		t.Errorf("alice's devices: %v", got)
	}
}

// S04, beside TestRefusedHandshakes: tokens of other kinds.
func TestForgedTokens(t *testing.T) {
	i := start(t, map[string]string{"JWT_AUDIENCE": "nexus", "JWT_ISSUER": "us"})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	exp := time.Now().Add(time.Hour).Unix()
	claims := func(more ...any) jwt.MapClaims {
		c := jwt.MapClaims{"sub": "alice", "exp": exp, "aud": "nexus", "iss": "us"}
		for k := 0; k+1 < len(more); k += 2 {
			c[more[k].(string)] = more[k+1]
		}
		return c
	}
	kid := func(kid string) string {
		token := jwt.NewWithClaims(jwt.SigningMethodHS256, claims())
		token.Header["kid"] = kid
		s, err := token.SignedString([]byte("another secret, of another server!"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, token := range map[string]string{
		"RS256":             signed(t, jwt.SigningMethodRS256, key, claims()),
		"wrong aud":         signed(t, jwt.SigningMethodHS256, []byte(testSecret), claims("aud", "other")),
		"no aud":            signed(t, jwt.SigningMethodHS256, []byte(testSecret), claims("aud", nil)),
		"wrong iss":         signed(t, jwt.SigningMethodHS256, []byte(testSecret), claims("iss", "them")),
		"kid as a path":     kid("../../dev/null"),
		"kid as SQL":        kid("' OR 1=1 --"),
		"a megabyte":        strings.Repeat("a", 1<<20),
		"iat in the future": signed(t, jwt.SigningMethodHS256, []byte(testSecret), claims("iat", exp)),
	} {
		r, _ := http.NewRequest(http.MethodGet, "http://"+i.base+"/stats", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(r)
		if err != nil { // a header beyond its bound may break the connection
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
		if len(token) > 10_000 {
			continue
		}
		if status, _ := i.refused("/ws", "alice", token); status != 401 {
			t.Errorf("%s: handshake %d", name, status)
		}
	}
	i.must(200, "GET", "/stats", signed(t, jwt.SigningMethodHS256, []byte(testSecret), claims()), "")
}

// S05: what is sent after the token has expired is not appended, though the connection still stands.
func TestSendAfterExpiry(t *testing.T) {
	i := start(t, nil)
	expires := time.Now().Add(2 * time.Second).Truncate(time.Second).Add(time.Second)
	s := i.dial(i.url("/ws", "alice", signed(t, jwt.SigningMethodHS256, []byte(testSecret),
		jwt.MapClaims{"sub": "alice", "exp": expires.Unix()})))
	s.expect("connected", nil)
	time.Sleep(time.Until(expires)) // the moment itself
	s.send(`{"event":"sendMessage","data":{"receiverId":"bob","content":"late"},"id":1}`)
	s.expectClose(4401)
	if got := i.must(200, "GET", "/messages?with=bob", tokenFor(t, "alice"), "")["messages"].([]any); len(got) != 0 {
		t.Errorf("appended after expiry: %v", got)
	}
}

// S08: two thousand connections that send their headers a byte at a time, and five hundred WebSockets that are silent,
// are closed; whoever behaves is served meanwhile.
func TestSlowLoris(t *testing.T) {
	n := launch(t, map[string]string{"PORT": "0", "HOST": "127.0.0.1", "DATA_DIR": t.TempDir(), "EMBEDDED_KAFKA_PORT": "0",
		"JWT_SECRET":    testSecret,
		"PING_INTERVAL": "2s", "PING_TIMEOUT": "1s", "MAX_CONNECTIONS_PER_USER": "1000", "RATE_LIMIT_MESSAGES": "100000"})
	var slow []net.Conn
	for range 2000 {
		c, err := net.Dial("tcp", n.base)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		slow = append(slow, c)
	}
	begin := time.Now()
	stop := make(chan bool)
	var dripping sync.WaitGroup
	dripping.Go(func() {
		for k := 0; ; k++ {
			for _, c := range slow {
				_, _ = c.Write([]byte("GET / HTTP/1.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaa"[k : k+1]))
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Second):
			}
			if k > 30 {
				return
			}
		}
	})
	var silent []*websocket.Conn
	for range 500 {
		ws, _, err := websocket.DefaultDialer.Dial(n.url("/ws", "silent", tokenFor(t, "silent")), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		ws.SetPingHandler(func(string) error { return nil })
		silent = append(silent, ws)
	}
	opened := time.Now()
	for range 20 { // whoever behaves
		s := n.open("/dashboard", "good")
		s.ws.Close()
	}
	for _, ws := range silent {
		_ = ws.SetReadDeadline(time.Now().Add(patience))
		var err error
		for err == nil {
			_, _, err = ws.ReadMessage()
		}
		if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
			t.Fatal("a silent WebSocket was not closed")
		}
	}
	t.Logf("500 silent WebSockets closed %s after the last was opened", time.Since(opened).Round(100*time.Millisecond))
	for _, c := range slow {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, bufio.NewReader(c)); err != nil {
			if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
				t.Fatal("a slow header was not given up")
			}
		}
	}
	t.Logf("2000 slow headers closed %s after they began", time.Since(begin).Round(100*time.Millisecond))
	close(stop)
	dripping.Wait()
	n.must(200, "GET", "/stats", tokenFor(t, "good"), "")
}

// A body that drips is given up, too.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	i := start(t, nil)
	c, err := net.Dial("tcp", i.base)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\n{", tokenFor(t, "alice"))
	_ = c.SetReadDeadline(time.Now().Add(45 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil {
		if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
			t.Error("a body that never ends was not given up")
		}
	}
}
