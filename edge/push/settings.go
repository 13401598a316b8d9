package push

import "time"

// Settings are what an operator sets of pushes. The defaults are those of nexus serve (cmd/nexus/config.go); New replaces no zero
// value.
type Settings struct {
	// TTL is how old an event may be when it is pushed; an older one is not any more. Default 24 h. Lower it where
	// yesterday's news only annoys.
	TTL time.Duration
	// Rate bounds the sends of this node by each channel, in messages a second; default 200. Raise it where pushes fall behind
	// and the quota at the channel's service has room.
	Rate int
	// Lease is how long a claimed job belongs to its worker; after that another may take it: the worker has died. Default
	// 90 s; it must be longer than an attempt takes.
	Lease time.Duration
}
