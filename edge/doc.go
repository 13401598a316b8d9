// Package edge brings events to people: sessions of browsers and phones on the two namespaces, over bare WebSocket and
// over Socket.IO, and the hub that finds the sessions a record concerns. What clients send it appends to the log;
// nothing reaches a session that was not read from the log first.
//
// It keeps no state that the log does not have, and it waits for no client: a session that does not read is closed.
package edge
