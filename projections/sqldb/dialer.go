package sqldb

import (
	"net"
	"time"
)

// How a connection is found dead whose other side does not answer any more (a dropped NAT entry, a host without power):
// an idle one by keep-alives, one with data under way because nobody confirms them (RFC 5482).
const (
	keepAliveIdle  = 10 * time.Second
	keepAliveEvery = 5 * time.Second
	keepAliveTries = 3
	userTimeout    = 15 * time.Second
)

// Dialer makes the dialer for stores. timeout bounds a dial. A connection whose other side has gone silent is found dead within
// 25 s.
func Dialer(timeout time.Duration) *net.Dialer {
	return &net.Dialer{
		Timeout:         timeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveEvery, Count: keepAliveTries},
		Control:         setUserTimeout,
	}
}
