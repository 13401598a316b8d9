// Package edge brings events to people: sessions of browsers and phones on the two namespaces, over bare WebSocket and
// over Socket.IO. What clients send it appends to the log; nothing reaches a session that was not read from the log first.
//
// It keeps no state that the log does not have, and it waits for no client: a session that does not read is closed.
//
// The package itself wires four others, and push beside them:
//
//	wire     bytes in, bytes out; knows no users
//	session  who is there: a session's life, the hub, its slot in the log
//	gateway  what a client may say; not how events reach it
//	live     what a client is shown, live and replayed; not what it says
//
// wire imports none of the others, session wire, gateway and live both, and never each other.
package edge
