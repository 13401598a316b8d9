// Package apierr is what clients are told when something is refused: on a socket and by REST alike.
package apierr

import (
	"net/http"
	"strconv"
	"time"

	"github.com/nexus/nexus/topics"
)

// Error is what a client is told of a refusal, on a socket and by REST alike. The codes are part of the contract.
type Error struct {
	Code    string
	Message string
	// RetryAfter is set where waiting helps.
	RetryAfter time.Duration
}

// The codes of an Error.
const (
	CodeBadFrame           = "bad_frame"
	CodeUnknownEvent       = "unknown_event"
	CodeInvalidPayload     = "invalid_payload"
	CodeRateLimited        = "rate_limited"
	CodeTokenExpired       = "token_expired"
	CodeTokenInvalid       = "token_invalid"
	CodeTokenRevoked       = "token_revoked"
	CodeForbidden          = "forbidden"
	CodeTooManyConnections = "too_many_connections"
	CodeTooManyChannels    = "too_many_channels"
	CodeTooLarge           = "too_large"
	CodeNotFound           = "not_found"
	CodeUnavailable        = "unavailable"
	CodeUpgrade            = "upgrade_required"
)

// Code is what is known of a code: the contracts and docs/protocol.md are made from it.
type Code struct {
	Code string
	// Status is its HTTP status.
	Status int
	// Doc says what has happened, Do what a client should do.
	Doc, Do string
}

// Codes lists every code.
func Codes() []Code {
	return []Code{
		{CodeBadFrame, http.StatusBadRequest, "a text of a plain WebSocket client is no frame",
			"fix the client: send text frames like {\"event\":\"…\",\"data\":{…}}"},
		{CodeUnknownEvent, http.StatusBadRequest, "the namespace has no such event", "fix the client: send an event that the namespace has"},
		{CodeInvalidPayload, http.StatusBadRequest, "a member, a parameter or the body is not what it must be",
			"fix what the message names; the same again is refused again"},
		{CodeTokenInvalid, http.StatusUnauthorized, "there is no token, or it is not one for this server", "get a new token"},
		{CodeTokenExpired, http.StatusUnauthorized, "the token's exp has passed", "get a new token; on a socket, connect again with it"},
		{CodeTokenRevoked, http.StatusUnauthorized, "the token was revoked", "have the user sign in again"},
		{CodeForbidden, http.StatusForbidden, "the token does not allow it: another user's, a scope or a channel that it lacks, or a page of " +
			"a foreign origin",
			"do not repeat it with this token"},
		{CodeNotFound, http.StatusNotFound, "there is no such thing, or it is another user's", "do not repeat it"},
		{CodeTooLarge, http.StatusRequestEntityTooLarge, "a body or a message's content is larger than is allowed", "send less"},
		{CodeUpgrade, http.StatusUpgradeRequired, "a plain HTTP request to a WebSocket's address",
			"connect with a WebSocket client (RFC 6455, version 13)"},
		{CodeRateLimited, http.StatusTooManyRequests, "too much was sent in the window",
			"wait for retryAfterMs (REST: the seconds of Retry-After), then send it again with the same id"},
		{CodeTooManyConnections, http.StatusTooManyRequests, "the user has as many connections in this namespace as are allowed",
			"close one, or wait for the seconds of Retry-After and connect again"},
		{CodeTooManyChannels, http.StatusTooManyRequests, "the session is subscribed to as many channels as are allowed; it stands in refused " +
			"of an acknowledgement",
			"unsubscribe from others first"},
		{CodeUnavailable, http.StatusServiceUnavailable, "the log or a store cannot be reached, the namespace is full, or the node is going " +
			"away: whether an event was taken is unknown",
			"wait for the seconds of Retry-After, then repeat it with the same id (clientMessageId, Idempotency-Key): it is harmless"},
	}
}

// Close codes of Nexus's own (RFC 6455, section 7.4.2: 4000-4999 are for private use).
const (
	CloseToken   = 4401 // the token expired or was revoked
	CloseTooSlow = 4408 // the client did not read; it may resume
	CloseEvicted = 4429 // a newer connection of the user took the slot
)

// Close is a code with which the server closes a WebSocket.
type Close struct {
	Code    int
	Doc, Do string
}

// Closes lists every close code. What a client sends first, the server answers with the same code.
func Closes() []Close {
	return []Close{
		{1000, "the client closed, or a Socket.IO client joined no namespace in time (CONNECT_TIMEOUT)", "nothing"},
		{1001, "the server is going away: it is being stopped or replaced", "connect again at once, to whichever node answers, and resume"},
		{1002, "a Socket.IO client broke the protocol", "fix the client"},
		{1007, "a text frame was not UTF-8", "fix the client"},
		{1009, "a message was larger than MAX_MESSAGE_BYTES", "send less"},
		{1011, "the server made a mistake with this connection", "connect again, with a growing delay, and report it"},
		{CloseToken, "the token expired or was revoked; an error event says which", "get a new token, then connect again and resume"},
		{CloseTooSlow, "the client read too slowly: more than MAX_QUEUE_BYTES waited for it", "connect again and resume"},
		{CloseEvicted, "a newer connection took the slot: the client itself came back, or CONNECTION_POLICY=evict-oldest",
			"do not connect again by yourself: the user is elsewhere"},
	}
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Invalid is an Error for a payload that is not what it must be.
func Invalid(message string) *Error { return &Error{Code: CodeInvalidPayload, Message: message} }

// Unavailable is an Error for an engine that cannot be reached: whether the event was taken is unknown, and sending it
// again with the same id is harmless.
func Unavailable() *Error {
	return &Error{Code: CodeUnavailable, Message: "the log or a store cannot be reached; try again with the same id", RetryAfter: time.Second}
}

// NotFound is the answer for what does not exist and for what is not the asking user's; what names its kind.
func NotFound(what string) *Error {
	return &Error{Code: CodeNotFound, Message: "there is no such " + what + " of this user's"}
}

// WriteHTTP answers a request with the error: its status, Retry-After where waiting helps, {"error":{"code","message"}}.
func (e *Error) WriteHTTP(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	status := e.status()
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(status)
	_, _ = w.Write(topics.Failure{Code: e.Code, Message: e.Message}.Body())
}

func (e *Error) status() int {
	for _, c := range Codes() {
		if c.Code == e.Code {
			return c.Status
		}
	}
	return http.StatusBadRequest
}
