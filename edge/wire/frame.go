package wire

import (
	"encoding/binary"

	"github.com/nexus/nexus/edge/wire/socketio"
)

// Opcodes and bits of a frame (RFC 6455, section 5.2; RFC 7692, section 6).
const (
	opText  = 0x1
	opClose = 0x8
	opPing  = 0x9
	opPong  = 0xa

	bitFinal      = 0x80
	bitCompressed = 0x40
)

// appendText appends a text as the wire has it; one longer than threshold is deflated where that was negotiated.
func appendText(b, payload []byte, w wire, threshold int) []byte {
	switch {
	case w == wirePolling:
		return append(append(b, payload...), socketio.Separator)
	case w == wireDeflate && len(payload) > threshold:
		return appendFrame(b, bitFinal|bitCompressed|opText, deflate(payload))
	}
	return appendFrame(b, bitFinal|opText, payload)
}

// appendFrame appends an unmasked frame, as servers send them.
func appendFrame(b []byte, first byte, payload []byte) []byte {
	b = append(b, first)
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n <= 0xffff:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, payload...)
}

// closePayload is the body of a close frame (RFC 6455, section 5.5.1).
func closePayload(code int, reason string) []byte {
	if code == 0 {
		return nil
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(code))
	return append(b, reason[:min(len(reason), 123)]...)
}
