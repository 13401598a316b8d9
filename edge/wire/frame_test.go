package wire

import (
	"bytes"
	"compress/flate"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/nexus/nexus/topics"
)

// unframe splits bytes of a server into the texts of its frames, inflated.
func unframe(t *testing.T, b []byte) (texts []string, compressed []bool) {
	t.Helper()
	for len(b) > 0 {
		first, n := b[0], int(b[1])
		b = b[2:]
		switch n {
		case 126:
			n, b = int(b[0])<<8|int(b[1]), b[2:]
		case 127:
			n = 0
			for _, c := range b[:8] {
				n = n<<8 | int(c)
			}
			b = b[8:]
		}
		payload := b[:n]
		b = b[n:]
		if first&bitCompressed != 0 {
			var err error
			payload, err = io.ReadAll(flate.NewReader(io.MultiReader(bytes.NewReader(payload),
				strings.NewReader("\x00\x00\xff\xff\x01\x00\x00\xff\xff"))))
			if err != nil {
				t.Fatal(err)
			}
		}
		if first&^bitCompressed != bitFinal|opText {
			t.Fatalf("first byte %x", first)
		}
		texts, compressed = append(texts, string(payload)), append(compressed, first&bitCompressed != 0)
	}
	return texts, compressed
}

// Golden: the wire formats of both protocols.
func TestFrames(t *testing.T) {
	m := func() *Message {
		return &Message{Namespace: topics.Messaging, Event: "message:new", Alias: "MESSAGE_BROADCAST", Data: []byte(`{"a":1}`), Offset: "off",
			Threshold: 1024}
	}
	for _, tc := range []struct {
		style Style
		want  string
	}{
		{Style{Canonical: true}, `{"event":"message:new","data":{"a":1}}`},
		{Style{Canonical: true, Offsets: true}, `{"event":"message:new","data":{"a":1},"offset":"off"}`},
		{Style{}, `{"event":"message:new","data":{"a":1}} {"event":"MESSAGE_BROADCAST","data":{"a":1}}`},
		{Style{Offsets: true}, `{"event":"message:new","data":{"a":1}} {"event":"MESSAGE_BROADCAST","data":{"a":1},"offset":"off"}`},
		{Style{SocketIO: true, Canonical: true}, `42/ws,["message:new",{"a":1}]`},
		{Style{SocketIO: true, Offsets: true}, `42/ws,["message:new",{"a":1}] 42/ws,["MESSAGE_BROADCAST",{"a":1}] 42/ws,["offset","off"]`},
	} {
		one := m()
		texts, _ := unframe(t, slices.Concat(one.Frame(tc.style), one.Mark(tc.style).frame))
		if got := strings.Join(texts, " "); got != tc.want {
			t.Errorf("%+v: %s\nwant %s", tc.style, got, tc.want)
		}
	}
}

func TestFramesAreBuiltOnce(t *testing.T) {
	m := &Message{Event: "e", Data: []byte(`{}`)}
	if a, b := m.Frame(Style{}), m.Frame(Style{}); &a[0] != &b[0] {
		t.Error("a second session of the same style has another frame built")
	}
	m.Offset = "o"
	if a, b := m.Mark(Style{SocketIO: true, Offsets: true}), m.Mark(Style{SocketIO: true, Offsets: true}); &a.frame[0] != &b.frame[0] {
		t.Error("a second session of the same style has another mark built")
	}
	seen := make(map[int]bool)
	for i := range styles {
		seen[Style{i&1 != 0, i&2 != 0, i&4 != 0, wire(i / 8)}.index()] = true
	}
	if len(seen) != styles {
		t.Errorf("%d different indexes of %d styles", len(seen), styles)
	}
}

// Longer than the threshold is deflated, the threshold itself is not, and nothing is where it was not negotiated.
func TestDeflate(t *testing.T) {
	for _, tc := range []struct {
		size int
		wire wire
		want bool
	}{{1024, wireDeflate, false}, {1025, wireDeflate, true}, {70_000, wireDeflate, true}, {70_000, wirePlain, false}} {
		payload := []byte(strings.Repeat("é", tc.size/2) + strings.Repeat("x", tc.size%2))
		texts, compressed := unframe(t, appendText(nil, payload, tc.wire, 1024))
		if compressed[0] != tc.want || texts[0] != string(payload) {
			t.Errorf("%+v: compressed %v, intact %v", tc, compressed[0], texts[0] == string(payload))
		}
	}
}

func TestNegotiateDeflate(t *testing.T) {
	for offer, want := range map[string]bool{
		"": false, "permessage-deflate": true, "permessage-deflate; client_max_window_bits": true,
		"x-webkit-deflate-frame, permessage-deflate": true, "permessage-deflate; server_max_window_bits=10": false,
		"permessage-deflate; server_max_window_bits=10, permessage-deflate": true, "other": false,
	} {
		h := map[string][]string{"Sec-Websocket-Extensions": {offer}}
		if got := negotiateDeflate(h); got != want {
			t.Errorf("%q: %v, want %v", offer, got, want)
		}
	}
}

func BenchmarkFrame(b *testing.B) {
	data := bytes.Repeat([]byte("x"), 128)
	b.ReportAllocs()
	for b.Loop() {
		m := &Message{Namespace: topics.Dashboard, Event: "notification", Data: data, Threshold: 1024}
		for range 1000 {
			m.Frame(Style{})
		}
	}
}
