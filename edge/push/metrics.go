package push

import "github.com/prometheus/client_golang/prometheus"

// Metrics are what push shows to Prometheus; nil shows nothing.
type Metrics struct {
	outcomes, retries *prometheus.CounterVec
}

// NewMetrics registers them; twice in one registry is a panic.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nexus_pushes_total",
			Help: "Pushes to devices, by channel and outcome."}, []string{"channel", "outcome"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nexus_push_retries_total",
			Help: "Attempts to push that failed and will be repeated, by channel."}, []string{"channel"})}
	reg.MustRegister(m.outcomes, m.retries)
	return m
}

func (m *Metrics) outcome(channel, what string) {
	if m != nil {
		m.outcomes.WithLabelValues(channel, what).Inc()
	}
}

func (m *Metrics) retry(channel string) {
	if m != nil {
		m.retries.WithLabelValues(channel).Inc()
	}
}
