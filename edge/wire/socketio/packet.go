// Package socketio reads and writes the packets of Engine.IO protocol 4 and Socket.IO protocol 5, as the documents of
// the Socket.IO project define them. It knows no connections.
package socketio

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Engine.IO packet types (Engine.IO protocol 4, "Packet types").
const (
	EngineOpen    = '0'
	EngineClose   = '1'
	EnginePing    = '2'
	EnginePong    = '3'
	EngineMessage = '4'
	EngineUpgrade = '5'
	EngineNoop    = '6'
)

// Type is a Socket.IO packet type (Socket.IO protocol 5, "Packet types").
type Type byte

// The packet types.
const (
	Connect      Type = '0'
	Disconnect   Type = '1'
	Event        Type = '2'
	Ack          Type = '3'
	ConnectError Type = '4'
	BinaryEvent  Type = '5'
	BinaryAck    Type = '6'
)

// Packet is a Socket.IO packet.
type Packet struct {
	Type        Type
	Attachments int    // binary frames that follow a BinaryEvent or BinaryAck
	Namespace   string // "/" where none is written
	ID          string // digits; empty where no acknowledgement is asked for
	Data        json.RawMessage
}

// MaxAttachments bounds the binary frames of one packet.
const MaxAttachments = 10

// ErrPacket reports bytes that break the protocol: the session has to be closed.
var ErrPacket = errors.New("socketio: malformed packet")

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrPacket, what) }

// Parse reads the payload of an Engine.IO message packet, without its leading 4. Data points into b.
func Parse(b []byte) (p Packet, err error) {
	if len(b) == 0 || b[0] < byte(Connect) || b[0] > byte(BinaryAck) {
		return p, malformed("unknown type")
	}
	p.Type, p.Namespace = Type(b[0]), "/"
	b = b[1:]
	if p.Type == BinaryEvent || p.Type == BinaryAck {
		n := digits(b)
		if n == 0 || n > 2 || n == len(b) || b[n] != '-' {
			return p, malformed("number of attachments")
		}
		p.Attachments, _ = strconv.Atoi(string(b[:n]))
		if p.Attachments > MaxAttachments {
			return p, malformed("too many attachments")
		}
		b = b[n+1:]
	}
	if len(b) > 0 && b[0] == '/' {
		name, rest, _ := bytes.Cut(b, []byte{','})
		name, _, _ = bytes.Cut(name, []byte{'?'})
		p.Namespace, b = string(name), rest
	}
	if n := digits(b); n > 0 {
		if n > 19 {
			return p, malformed("acknowledgement id")
		}
		p.ID, b = string(b[:n]), b[n:]
	}
	if len(b) > 0 {
		p.Data = b
	}
	return p, p.check()
}

func (p Packet) check() error {
	if len(p.Data) > 0 && !json.Valid(p.Data) {
		return malformed("payload is not JSON")
	}
	switch p.Type {
	case Connect:
		if len(p.Data) > 0 && p.Data[0] != '{' {
			return malformed("payload of CONNECT")
		}
	case Event, BinaryEvent:
		if _, _, err := p.Call(); err != nil {
			return err
		}
	case Ack, BinaryAck:
		if len(p.Data) == 0 || p.Data[0] != '[' || p.ID == "" {
			return malformed("payload of ACK")
		}
	case Disconnect:
		if len(p.Data) > 0 {
			return malformed("payload of DISCONNECT")
		}
	}
	return nil
}

// Call splits the payload of an EVENT into the event's name and its first argument, nil where there is none.
func (p Packet) Call() (event string, arg json.RawMessage, err error) {
	var args []json.RawMessage
	if json.Unmarshal(p.Data, &args) != nil || len(args) == 0 {
		return "", nil, malformed("payload of EVENT")
	}
	if json.Unmarshal(args[0], &event) != nil {
		return "", nil, malformed("name of EVENT")
	}
	if len(args) > 1 {
		arg = args[1]
	}
	return event, arg, nil
}

func digits(b []byte) int {
	n := 0
	for n < len(b) && '0' <= b[n] && b[n] <= '9' {
		n++
	}
	return n
}

// Append writes the packet as the text of an Engine.IO message packet, with its leading 4.
func (p Packet) Append(b []byte) []byte {
	b = append(b, EngineMessage, byte(p.Type))
	if p.Namespace != "/" && p.Namespace != "" {
		b = append(b, p.Namespace...)
		b = append(b, ',')
	}
	b = append(b, p.ID...)
	return append(b, p.Data...)
}

// Handshake is the first packet of a session (Engine.IO protocol 4, "Handshake").
type Handshake struct {
	SID          string   `json:"sid"`
	Upgrades     []string `json:"upgrades"`
	PingInterval int64    `json:"pingInterval"` // milliseconds
	PingTimeout  int64    `json:"pingTimeout"`  // milliseconds
	MaxPayload   int64    `json:"maxPayload"`   // bytes
}

// Append writes the open packet.
func (h Handshake) Append(b []byte) []byte {
	if h.Upgrades == nil {
		h.Upgrades = []string{}
	}
	body, _ := json.Marshal(h) // strings and numbers always encode
	return append(append(b, EngineOpen), body...)
}
