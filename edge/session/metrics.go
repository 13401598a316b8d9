package session

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/topics"
)

// metrics are what sessions show to Prometheus. No label names a user.
type metrics struct {
	l *Sessions

	opened *prometheus.CounterVec
	closed *prometheus.CounterVec
	sent   *prometheus.CounterVec
}

var (
	connectionsDesc = prometheus.NewDesc("nexus_connections", "Sessions on this node.", []string{"namespace", "protocol", "transport"}, nil)
	allDesc         = prometheus.NewDesc("nexus_cluster_connections", "Sessions on all nodes, as the log shows them.", []string{"namespace"},
		nil)
	slotsDesc = prometheus.NewDesc("nexus_unsettled_sessions",
		"Sessions of this node, gone ones included, of which the log does not show yet what it should.", nil, nil)
)

func newMetrics(l *Sessions, reg prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{l: l,
		opened: counter("nexus_sessions_opened_total", "Sessions that were admitted.", "namespace"),
		closed: counter("nexus_sessions_closed_total", "Sessions that ended, by reason.", "namespace", "reason"),
		sent:   counter("nexus_frames_sent_total", "Events queued for sessions.", "namespace", "event"),
	}
	if reg != nil {
		reg.MustRegister(m.opened, m.closed, m.sent, m)
	}
	return m
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	out <- connectionsDesc
	out <- allDesc
	out <- slotsDesc
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	type kind struct{ namespace, protocol, transport string }
	counts := make(map[kind]int)
	for _, s := range m.l.Sessions() {
		counts[kind{string(s.Namespace), s.Protocol(), s.Out.Kind()}]++
	}
	for k, n := range counts {
		out <- prometheus.MustNewConstMetric(connectionsDesc, prometheus.GaugeValue, float64(n), k.namespace, k.protocol, k.transport)
	}
	_, unsettled := m.l.slots.counts()
	out <- prometheus.MustNewConstMetric(slotsDesc, prometheus.GaugeValue, float64(unsettled))
	for _, ns := range topics.Namespaces() {
		out <- prometheus.MustNewConstMetric(allDesc, prometheus.GaugeValue, float64(m.l.o.Presence.Connections(ns)), string(ns))
	}
}
