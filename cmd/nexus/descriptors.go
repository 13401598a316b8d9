package main

import (
	"net"

	"github.com/nexus/nexus/api"
)

// guarded keeps file descriptors back for the node's own clients, and warns where the limit has no room for as many
// connections as the settings allow: both namespaces full, and what the node needs itself.
func (s *server) guarded(ln net.Listener) net.Listener {
	limit, err := api.DescriptorLimit()
	if err != nil {
		s.log.Warn("the limit of file descriptors is not known: connections are not bounded by it", "err", err)
		return ln
	}
	if want := uint64(2*s.c.MaxConnectionsPerNamespace + 128); limit < want {
		s.log.Warn("the limit of file descriptors is lower than MAX_CONNECTIONS_PER_NAMESPACE needs: connections beyond it are refused with 503; raise it (ulimit -n, LimitNOFILE)",
			"limit", limit, "wanted", want)
	}
	return api.NewGuard(ln, limit, s.registry)
}
