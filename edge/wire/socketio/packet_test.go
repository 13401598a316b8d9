package socketio_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nexus/nexus/edge/wire/socketio"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		text string
		want socketio.Packet
	}{
		{`0`, socketio.Packet{Type: socketio.Connect, Namespace: "/"}},
		{`0/dashboard,`, socketio.Packet{Type: socketio.Connect, Namespace: "/dashboard"}},
		{`0/dashboard?a=b,{"token":"t"}`, socketio.Packet{Type: socketio.Connect, Namespace: "/dashboard", Data: []byte(`{"token":"t"}`)}},
		{`1/ws,`, socketio.Packet{Type: socketio.Disconnect, Namespace: "/ws"}},
		{`2["e",1]`, socketio.Packet{Type: socketio.Event, Namespace: "/", Data: []byte(`["e",1]`)}},
		{`2/ws,17["e"]`, socketio.Packet{Type: socketio.Event, Namespace: "/ws", ID: "17", Data: []byte(`["e"]`)}},
		{`3/ws,17[]`, socketio.Packet{Type: socketio.Ack, Namespace: "/ws", ID: "17", Data: []byte(`[]`)}},
		{`52-/ws,3["e",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`, socketio.Packet{Type: socketio.BinaryEvent,
			Attachments: 2, Namespace: "/ws", ID: "3",
			Data: []byte(`["e",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`)}},
	} {
		got, err := socketio.Parse([]byte(tc.text))
		if err != nil || got.Type != tc.want.Type || got.Namespace != tc.want.Namespace || got.ID != tc.want.ID ||
			got.Attachments != tc.want.Attachments || string(got.Data) != string(tc.want.Data) {
			t.Errorf("Parse(%s) = %+v, %v; want %+v", tc.text, got, err, tc.want)
		}
	}
	for _, bad := range []string{``, `7`, `x`, `2`, `2{}`, `2[]`, `2[1]`, `2["e"`, `2["e"]x`, `0[]`, `0/ws,[]`, `3["x"]`, `31{}`, `5["e"]`,
		`511-["e"]`, `5-["e"]`,
		`299999999999999999999["e"]`, `1{}`} {
		if got, err := socketio.Parse([]byte(bad)); err == nil {
			t.Errorf("Parse(%q) = %+v, want an error", bad, got)
		}
	}
}

// Golden: what goes out.
func TestAppend(t *testing.T) {
	for want, p := range map[string]socketio.Packet{
		`40/ws,{"sid":"x"}`: {Type: socketio.Connect, Namespace: "/ws", Data: []byte(`{"sid":"x"}`)},
		`43/ws,7[{}]`:       {Type: socketio.Ack, Namespace: "/ws", ID: "7", Data: []byte(`[{}]`)},
		`44{"message":"m"}`: {Type: socketio.ConnectError, Namespace: "/", Data: []byte(`{"message":"m"}`)},
	} {
		if got := string(p.Append(nil)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	want := `0{"sid":"s","upgrades":[],"pingInterval":30000,"pingTimeout":20000,"maxPayload":1000000}`
	if got := string(socketio.Handshake{SID: "s", PingInterval: 30000, PingTimeout: 20000, MaxPayload: 1_000_000}.Append(nil)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`2/ws,17["e",{}]`))
	f.Add([]byte(`52-["e",{"_placeholder":true,"num":0}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := socketio.Parse(b)
		if err != nil {
			return
		}
		if p.Attachments > socketio.MaxAttachments {
			t.Error("too many attachments")
		}
		if p.Attachments > 0 || p.Type == socketio.BinaryEvent || p.Type == socketio.BinaryAck {
			return // not written by us
		}
		again, err := socketio.Parse(p.Append(nil)[1:])
		if err != nil || again.Namespace != p.Namespace || again.ID != p.ID || string(again.Data) != string(p.Data) {
			t.Errorf("%q is read as %+v and, written, as %+v, %v", b, p, again, err)
		}
	})
}

func TestPayload(t *testing.T) {
	for in, want := range map[string]string{
		"4a":               `t"4a"`,
		"4a\x1ebAQID\x1e2": `t"4a" b"\x01\x02\x03" t"2"`,
		"":                 `t""`,
		"4a\x1e":           `t"4a" t""`,
		"bA":               `malformed`,
		"4a\x1eb?\x1e4b":   `t"4a" malformed`,
		"4\xff":            `malformed`,
	} {
		var got []string
		for f, err := range socketio.Payload([]byte(in)) {
			switch {
			case errors.Is(err, socketio.ErrPacket):
				got = append(got, "malformed")
			case f.Binary:
				got = append(got, fmt.Sprintf("b%q", f.Data))
			default:
				got = append(got, fmt.Sprintf("t%q", f.Data))
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %v, want %s", in, got, want)
		}
	}
}

func FuzzPayload(f *testing.F) {
	f.Add([]byte("40/ws,{\"token\":\"x\"}\x1e451-[\"e\",{\"_placeholder\":true,\"num\":0}]\x1ebAQID"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var binary [][]byte
		for frame, err := range socketio.Payload(b) {
			if err != nil {
				return
			}
			if frame.Binary {
				binary = append(binary, frame.Data)
				continue
			}
			if len(frame.Data) == 0 || frame.Data[0] != socketio.EngineMessage {
				continue
			}
			p, err := socketio.Parse(frame.Data[1:])
			if err != nil || p.Attach(binary) != nil {
				continue
			}
			if !json.Valid(p.Data) {
				t.Errorf("Attach made %q of %q", p.Data, frame.Data)
			}
		}
	})
}
