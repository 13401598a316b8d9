package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// metrics are what the gateway shows to Prometheus. No label names a user.
type metrics struct {
	g *Gateway

	refused  *prometheus.CounterVec
	received *prometheus.CounterVec
	failures *prometheus.CounterVec
}

var unackedDesc = prometheus.NewDesc("nexus_unanswered_appends", "Appends of clients that wait for the log.", nil, nil)

func newMetrics(g *Gateway, reg prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{g: g,
		refused:  counter("nexus_sessions_refused_total", "Handshakes that were refused, by error code.", "code"),
		received: counter("nexus_frames_received_total", "Events from clients; those of no known name as unknown.", "namespace", "event"),
		failures: counter("nexus_frames_refused_total", "Events from clients that were refused, by error code.", "code"),
	}
	if reg != nil {
		reg.MustRegister(m.refused, m.received, m.failures, m)
	}
	return m
}

// frame counts what a client says. The label is bounded: what no namespace knows is unknown.
func (m *metrics) frame(ns topics.Namespace, event string) {
	if !spoken(event) {
		event = "unknown"
	}
	m.received.WithLabelValues(string(ns), event).Inc()
}

func (m *metrics) refusal(err *apierr.Error) { m.refused.WithLabelValues(err.Code).Inc() }

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) { out <- unackedDesc }

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	out <- prometheus.MustNewConstMetric(unackedDesc, prometheus.GaugeValue, float64(m.g.Unanswered()))
}
