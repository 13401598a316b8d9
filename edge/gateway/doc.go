// Package gateway takes what clients say: the handshake, as bare WebSocket clients and as Socket.IO clients make it, and
// commands (topics.Commands), within limits. What a command does is appended to the log; nothing reaches a session that was
// not read from the log first.
//
// It knows nothing of how events reach a client: live does that.
package gateway
