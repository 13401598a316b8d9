// Package session has this node's sessions: their life, which goes in one direction under one lock (Session), the hub that
// finds those whom an event concerns (Hub), and what the log says of them (slots), which in the end is true whatever befalls
// the log or the node.
//
// It knows nothing of what frames contain: the gateway reads them, live writes them.
package session
