// Package wire has the bytes of clients: WebSocket connections, long-polling, the change from the one to the other, frames and
// their compression, pings and time-outs. Where one begins to read: Server for connections, Message for what goes out.
//
// It knows no users and no events: what comes in it hands on, what goes out was made by others. It waits for no client: one
// that lets too much wait is closed.
package wire
