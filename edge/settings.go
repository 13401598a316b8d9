package edge

import (
	"time"

	"github.com/nexus/nexus/projections/presence"
)

// Settings are what an operator sets of an edge. The defaults are those of nexus serve (cmd/nexus/config.go); New replaces no
// zero value. All nodes of one log should have the same.
type Settings struct {
	// Limits bound the sessions of a user in a namespace (default 5) and of a namespace over all nodes (1000), and say
	// whether a user's new session ends the oldest one or is refused (the default). Raise PerUser where users have more
	// devices and tabs than that; raise PerNamespace with the file descriptors of the nodes.
	Limits presence.Limits

	// RateLimit is how many messages a user may send within RateWindow, over all nodes; default 100 in one minute. Attempts
	// to connect and look-ups of keys are counted apart, by the same two numbers. Raise it for users that are programs.
	RateLimit  int
	RateWindow time.Duration
	// ContentWindow is how long a repeat of a message without a clientMessageId is the same message; default 5 minutes, never more
	// than the dedup window. Lower it where users send the same words on purpose; 0 lets every copy in.
	ContentWindow time.Duration

	// PingInterval is how often a session is pinged, and PingTimeout how long its answer may take until it is closed;
	// default 30 s and 20 s. A client that vanished is noticed after their sum at the latest. Lower them below the idle
	// time-out of the proxies in front.
	PingInterval, PingTimeout time.Duration
	// ConnectTimeout is how long a Socket.IO session may take to join a namespace (Socket.IO's connectTimeout); default 45 s.
	ConnectTimeout time.Duration
	// StatsInterval is how often stats_update is sent to a dashboard without a change; default 30 s.
	StatsInterval time.Duration
	// PresenceGrace is how long a user whose last session has ended is still shown as online; default 2 s. Raise it where
	// pages are reloaded slowly and others see users flicker.
	PresenceGrace time.Duration

	// CompressionThreshold is the size in bytes from which on a frame is compressed for clients that can inflate it
	// (RFC 7692); default 1024. Raise it to save the processor's time, lower it to save traffic.
	CompressionThreshold int
	// MaxMessageBytes bounds a frame from a client, inflated; default 1,000,000. The body of a REST request has the same bound.
	MaxMessageBytes int
	// MaxContentBytes bounds the content of a chat message; default 32,768.
	MaxContentBytes int
	// MaxQueueBytes bounds what waits for a client that reads slowly; beyond it the client is closed and resumes later.
	// Default 1,048,576. All sessions together may need as much each: lower it where memory is short.
	MaxQueueBytes int
}
