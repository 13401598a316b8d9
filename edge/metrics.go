package edge

import (
	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/internal/apierr"
)

// Why a session ended, in the event log and in metrics.
const (
	reasonClient   = "client"   // it said goodbye
	reasonLost     = "lost"     // it was silent, or its connection broke
	reasonLeft     = "left"     // a Socket.IO client left the namespace and kept its connection
	reasonRefused  = "refused"  // it got no place
	reasonInternal = "internal" // a fault of ours
)

// reasonOf names a close code of this server's.
func reasonOf(code int) string {
	switch code {
	case closeToken:
		return "token"
	case closeTooSlow:
		return "too_slow"
	case closeEvicted:
		return "evicted"
	case websocket.CloseGoingAway:
		return "going_away"
	case websocket.CloseProtocolError:
		return "protocol"
	case websocket.CloseInvalidFramePayloadData:
		return "not_utf8"
	case websocket.CloseMessageTooBig:
		return "too_large"
	case websocket.CloseInternalServerErr:
		return reasonInternal
	case websocket.CloseNormalClosure:
		return "idle"
	}
	return reasonClient
}

// metrics are what the edge shows to Prometheus. No label names a user.
type metrics struct {
	e *Edge

	opened   *prometheus.CounterVec
	closed   *prometheus.CounterVec
	refused  *prometheus.CounterVec
	sent     *prometheus.CounterVec
	received *prometheus.CounterVec
	failures *prometheus.CounterVec
	resumed  *prometheus.CounterVec
	latency  *prometheus.HistogramVec
}

var (
	connectionsDesc = prometheus.NewDesc("nexus_connections", "Sessions on this node.", []string{"namespace", "protocol", "transport"}, nil)
	allDesc         = prometheus.NewDesc("nexus_cluster_connections", "Sessions on all nodes, as the log shows them.", []string{"namespace"}, nil)
	queueDesc       = prometheus.NewDesc("nexus_queue_bytes", "Bytes that wait for clients of this node.", nil, nil)
	slotsDesc       = prometheus.NewDesc("nexus_unsettled_sessions", "Sessions of this node, gone ones included, of which the log does not show yet what it should.", nil, nil)
	unackedDesc     = prometheus.NewDesc("nexus_unanswered_appends", "Appends of clients that wait for the log.", nil, nil)
)

func newMetrics(e *Edge, reg prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{e: e,
		opened:   counter("nexus_sessions_opened_total", "Sessions that were admitted.", "namespace"),
		closed:   counter("nexus_sessions_closed_total", "Sessions that ended, by reason.", "namespace", "reason"),
		refused:  counter("nexus_sessions_refused_total", "Handshakes that were refused, by error code.", "code"),
		sent:     counter("nexus_frames_sent_total", "Events queued for sessions.", "namespace", "event"),
		received: counter("nexus_frames_received_total", "Events from clients; those of no known name as unknown.", "namespace", "event"),
		failures: counter("nexus_frames_refused_total", "Events from clients that were refused, by error code.", "code"),
		resumed:  counter("nexus_sessions_resumed_total", "Sessions that asked for what they missed, by outcome.", "outcome"),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "nexus_append_to_delivery_seconds",
			Help: "From an event's record time to its frames standing in the sessions' queues.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}, []string{"event"}),
	}
	if reg != nil {
		reg.MustRegister(m.opened, m.closed, m.refused, m.sent, m.received, m.failures, m.resumed, m.latency, m)
	}
	return m
}

// receivedEvents bounds the label of nexus_frames_received_total.
var receivedEvents = map[string]bool{"subscribe": true, "unsubscribe": true, "sendMessage": true, "typing": true, "markAsRead": true, "authenticate": true}

func (m *metrics) frame(s *session, event string) {
	if !receivedEvents[event] {
		event = "unknown"
	}
	m.received.WithLabelValues(string(s.namespace), event).Inc()
}

func (m *metrics) refusal(err *apierr.Error) { m.refused.WithLabelValues(err.Code).Inc() }

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	out <- connectionsDesc
	out <- allDesc
	out <- queueDesc
	out <- unackedDesc
	out <- slotsDesc
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	type kind struct{ namespace, protocol, transport string }
	counts := make(map[kind]int)
	for _, s := range m.e.hub.sessions() {
		counts[kind{string(s.namespace), s.protocol(), s.out.kind()}]++
	}
	for k, n := range counts {
		out <- prometheus.MustNewConstMetric(connectionsDesc, prometheus.GaugeValue, float64(n), k.namespace, k.protocol, k.transport)
	}
	queued := 0
	for _, t := range m.e.transports() {
		queued += t.waiting()
	}
	out <- prometheus.MustNewConstMetric(queueDesc, prometheus.GaugeValue, float64(queued))
	out <- prometheus.MustNewConstMetric(unackedDesc, prometheus.GaugeValue, float64(m.e.unacked.count()))
	_, unsettled := m.e.slots.counts()
	out <- prometheus.MustNewConstMetric(slotsDesc, prometheus.GaugeValue, float64(unsettled))
	for ns := range feedTopics {
		out <- prometheus.MustNewConstMetric(allDesc, prometheus.GaugeValue, float64(m.e.fold.Connections(ns)), string(ns))
	}
}
