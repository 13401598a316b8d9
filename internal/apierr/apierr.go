// Package apierr is what clients are told when something is refused: on a socket and by REST alike.
package apierr

import (
	"encoding/json"
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
	CodeTooLarge           = "too_large"
	CodeNotFound           = "not_found"
	CodeUnavailable        = "unavailable"
	CodeUpgrade            = "upgrade_required"
)

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
	_, _ = w.Write(topics.Fields("error", json.RawMessage(topics.Fields("code", e.Code, "message", e.Message))))
}

func (e *Error) status() int {
	switch e.Code {
	case CodeTokenExpired, CodeTokenInvalid, CodeTokenRevoked:
		return http.StatusUnauthorized
	case CodeForbidden:
		return http.StatusForbidden
	case CodeNotFound:
		return http.StatusNotFound
	case CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case CodeRateLimited, CodeTooManyConnections:
		return http.StatusTooManyRequests
	case CodeUnavailable:
		return http.StatusServiceUnavailable
	case CodeUpgrade:
		return http.StatusUpgradeRequired
	}
	return http.StatusBadRequest
}
