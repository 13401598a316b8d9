package topics

import "encoding/json"

// HandshakePart is a part of a handshake: what a client says of itself before it gets its first frame.
type HandshakePart uint8

// The parts.
const (
	BareQuery   HandshakePart = iota // the query of a bare client's WebSocket handshake
	SocketQuery                      // the query of a Socket.IO client's first request
	SocketAuth                       // the object of its CONNECT packet, one for each namespace: socket.io-client's auth
)

// MaxHandshakeBytes bounds an HTTP request's line and headers, in bytes, and so a handshake's query. A CONNECT packet is bounded as
// every message is (MAX_MESSAGE_BYTES).
const MaxHandshakeBytes = 32 << 10

// The words of a handshake, and the one value of events.
const (
	wordUser   = "userId"
	wordToken  = "token"
	wordOffset = "offset"
	wordEvents = "events"
	wordPID    = "pid"

	canonicalEvents = "canonical"
)

// CanonicalQuery asks for frames without the second names of events (Frame.Alias), as it stands in a handshake's query.
const CanonicalQuery = wordEvents + "=" + canonicalEvents

// HandshakeFields are the words that a part may have, all of them texts. Others are ignored.
func HandshakeFields(p HandshakePart) []Field { return handshakeFields[p] }

var handshakeFields = [...][]Field{
	BareQuery: {
		{Name: wordUser, Required: true, Format: UserID, Doc: "the token's user"},
		{Name: wordToken, Required: true, Bytes: notEmpty, Doc: "a JSON Web Token"},
		{Name: wordOffset, Doc: "where the client stood when its last connection ended; empty the first time. With it every frame that can " +
			"be replayed has offset"},
		eventsWord},
	SocketQuery: {
		{Name: wordUser, Format: UserID, Doc: "the token's user, where auth does not name it"},
		{Name: wordToken, Bytes: notEmpty, Doc: "a JSON Web Token, where auth has none"},
		eventsWord},
	SocketAuth: {
		{Name: wordUser, Format: UserID, Doc: "the token's user; left out: the query's"},
		{Name: wordToken, Bytes: notEmpty, Doc: "a JSON Web Token; left out: the query's"},
		{Name: wordPID, Doc: "coming back: the pid that the answer to the last CONNECT had. socket.io-client sends it by itself"},
		{Name: wordOffset, Doc: "coming back: the argument of the last event offset. socket.io-client sends it by itself"}},
}

var eventsWord = Field{Name: wordEvents, Enum: []string{canonicalEvents}, Doc: "leaves out the second names of events"}

// Handshake is what a client has said of itself. Nothing in it is verified yet.
type Handshake struct {
	UserID, Token string
	// Offset is where the client stood; empty: it does not say. WantsOffsets tells that the query names it, be it empty: a bare client
	// then gets offsets with its frames.
	Offset       string
	WantsOffsets bool
	// PID is by what a Socket.IO client claims the state that it had; empty: it claims none.
	PID string
	// Canonical leaves out the second names of events (Frame.Alias).
	Canonical bool
}

// ReadHandshake reads a query, as url.Values has it. Of a word that stands twice the first counts.
func ReadHandshake(query map[string][]string) Handshake {
	word := func(name string) string {
		if all := query[name]; len(all) > 0 {
			return all[0]
		}
		return ""
	}
	_, wants := query[wordOffset]
	return Handshake{UserID: word(wordUser), Token: word(wordToken), Offset: word(wordOffset), WantsOffsets: wants,
		Canonical: word(wordEvents) == canonicalEvents}
}

// Connect is the handshake of a namespace: what the CONNECT packet says goes before what the query h has said. auth may be empty. An
// error means that it is no object, or that a word is no text.
func (h Handshake) Connect(auth []byte) (Handshake, error) {
	var said socketAuth
	if len(auth) > 0 {
		if err := json.Unmarshal(auth, &said); err != nil {
			return Handshake{}, err
		}
	}
	c := Handshake{PID: said.PID, Offset: said.Offset, Canonical: h.Canonical}
	if c.UserID = h.UserID; said.UserID != nil { // null is as if left out
		c.UserID = *said.UserID
	}
	if c.Token = h.Token; said.Token != nil {
		c.Token = *said.Token
	}
	return c, nil
}

type socketAuth struct {
	UserID *string `json:"userId"`
	Token  *string `json:"token"`
	PID    string  `json:"pid"`
	Offset string  `json:"offset"`
}

// ConnectAnswer is the data of the answer to a CONNECT packet.
type ConnectAnswer struct{ SID, PID string }

// Data is the packet's data.
func (a ConnectAnswer) Data() []byte { return Fields("sid", a.SID, wordPID, a.PID) }

// ConnectAnswerFields are the members of ConnectAnswer's data.
func ConnectAnswerFields() []Field {
	return []Field{{Name: "sid", Required: true, Doc: "the session's id; it tells nothing and opens nothing"},
		{Name: wordPID, Required: true, Doc: "what the client claims its state by when it comes back; it is worth nothing without " +
			"a token of the same user"}}
}

// ConnectError is the data of a CONNECT_ERROR packet: the message, and the code, where there is one, in data.
func (f Failure) ConnectError() []byte {
	if f.Code == "" {
		return Fields("message", f.Message)
	}
	return Fields("message", f.Message, "data", json.RawMessage(Fields("code", f.Code)))
}
