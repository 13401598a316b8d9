package socketio

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"iter"
	"unicode/utf8"
)

// Separator stands between the packets of a long-polling payload (Engine.IO protocol 4, "Packet encoding").
const Separator = 0x1e

// binaryMark is what a base64 packet of a payload begins with.
const binaryMark = 'b'

// Payload yields the packets of a long-polling request in order, binary ones decoded; an error ends it.
func Payload(b []byte) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		if !utf8.Valid(b) {
			yield(Frame{}, malformed("payload is not UTF-8"))
			return
		}
		for packet := range bytes.SplitSeq(b, []byte{Separator}) {
			f := Frame{Data: packet}
			var err error
			if len(packet) > 0 && packet[0] == binaryMark {
				f.Binary = true
				f.Data, err = base64.StdEncoding.DecodeString(string(packet[1:]))
			}
			if err != nil {
				yield(Frame{}, malformed("base64"))
				return
			}
			if !yield(f, nil) {
				return
			}
		}
	}
}

// Frame is one Engine.IO packet: a text one, with its type, or the bytes of a binary message.
type Frame struct {
	Binary bool
	Data   []byte
}

// Attach puts attachments in the place of the packet's placeholders, as their base64 text (RFC 4648, section 4): what
// Nexus takes is JSON (Socket.IO protocol 5, "Sending and receiving binary data").
func (p *Packet) Attach(attachments [][]byte) error {
	d := json.NewDecoder(bytes.NewReader(p.Data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return malformed("payload is not JSON")
	}
	v, err := attach(v, attachments)
	if err != nil {
		return err
	}
	if p.Data, err = json.Marshal(v); err != nil {
		return malformed("payload")
	}
	return nil
}

func attach(v any, attachments [][]byte) (out any, err error) {
	switch v := v.(type) {
	case []any:
		for i := range v {
			if v[i], err = attach(v[i], attachments); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		if v["_placeholder"] == true {
			return attachment(v["num"], attachments)
		}
		for k := range v {
			if v[k], err = attach(v[k], attachments); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

func attachment(num any, attachments [][]byte) (any, error) {
	n, ok := num.(json.Number)
	i, err := n.Int64()
	if !ok || err != nil || i < 0 || i >= int64(len(attachments)) {
		return nil, malformed("illegal attachments")
	}
	return base64.StdEncoding.EncodeToString(attachments[i]), nil
}
