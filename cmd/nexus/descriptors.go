package main

import (
	"net"

	"github.com/nexus/nexus/api"
)

// guarded keeps file descriptors back for the node's own clients, and warns where the limit has no room for as many
// connections as the settings allow: both namespaces full, and what the node needs itself.
func (a *app) guarded(ln net.Listener) net.Listener {
	limit, err := api.DescriptorLimit()
	if err != nil {
		a.log.Warn("the limit of file descriptors is not known: connections are not bounded by it", "err", err)
		return ln
	}
	if want := uint64(2*a.c.Edge.Limits.PerNamespace + 128); limit < want {
		a.log.Warn("the limit of file descriptors is lower than MAX_CONNECTIONS_PER_NAMESPACE needs: connections beyond it are refused with "+
			"503; raise it (ulimit -n, LimitNOFILE)",
			"limit", limit, "wanted", want)
	}
	return api.NewGuard(ln, limit, a.registry)
}
