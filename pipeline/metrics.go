package pipeline

import (
	"cmp"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kprom"

	"github.com/nexus/nexus/topics"
)

// Metrics are what the pipeline shows to Prometheus; docs/operations.md lists them. A nil *Metrics counts nothing. It is safe for
// concurrent use.
type Metrics struct {
	reg         prometheus.Registerer
	duplicates  *prometheus.CounterVec
	retries     *prometheus.CounterVec
	setAside    *prometheus.CounterVec
	misrouted   prometheus.Counter
	deadLetters *prometheus.CounterVec
	telemetry   prometheus.Counter
	looks       *prometheus.CounterVec

	mu        sync.Mutex
	consumers map[*Consumer]bool
	ends      topics.Ends
}

var (
	lagDesc = prometheus.NewDesc("nexus_consumer_lag_records", "Records that a consumer has not applied yet, of the partitions it has.",
		[]string{"consumer", "topic"}, nil)
	entriesDesc = prometheus.NewDesc("nexus_dedup_window_entries", "Identities in the dedup windows.", nil, nil)
	bytesDesc   = prometheus.NewDesc("nexus_dedup_window_bytes", "Memory of the dedup windows.", nil, nil)
)

// NewMetrics registers the pipeline's metrics with reg. It panics where they are registered there already.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{reg: reg, consumers: make(map[*Consumer]bool),
		duplicates: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nexus_duplicates_total", Help: "Records that were duplicates."},
			[]string{"consumer", "topic"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nexus_batch_failures_total",
			Help: "Attempts to apply a batch that failed."}, []string{"consumer", "topic"}),
		setAside: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nexus_set_aside_total",
			Help: "Records that a projection can never apply; they are in dead-letters."}, []string{"consumer", "topic"}),
		misrouted: prometheus.NewCounter(prometheus.CounterOpts{Name: "nexus_strays_total",
			Help: "Misrouted records that the intake appended once more, in their own partition."}),
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nexus_dead_letters_total", Help: "Records that are in dead-letters."},
			[]string{"topic", "reason"}),
		telemetry: prometheus.NewCounter(prometheus.CounterOpts{Name: "nexus_telemetry_dropped_total",
			Help: "Records of topic deliveries dropped because too many waited for the log."}),
		looks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nexus_point_looks_total",
			Help: "Partitions of offsets of clients that came back which were looked up in the log."}, []string{"way"})}
	reg.MustRegister(m.duplicates, m.retries, m.setAside, m.misrouted, m.deadLetters, m.telemetry, m.looks, m)
	return m
}

// client adds the metrics of a long-lived Kafka client, kprom's, under a name.
func (m *Metrics) client(name string) []kgo.Opt {
	if m == nil {
		return nil
	}
	labelled := prometheus.WrapRegistererWith(prometheus.Labels{"client": name}, m.reg)
	return []kgo.Opt{kgo.WithHooks(kprom.NewMetrics("nexus_kafka", kprom.Registerer(labelled)))}
}

func (m *Metrics) add(c *Consumer) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.consumers[c] = true
}

func (m *Metrics) remove(c *Consumer) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.consumers, c)
}

func (m *Metrics) duplicate(c *Consumer, t topics.Topic) {
	if m != nil {
		m.duplicates.WithLabelValues(c.Name, string(t)).Inc()
	}
}

func (m *Metrics) failed(c *Consumer, t topics.Topic) {
	if m != nil {
		m.retries.WithLabelValues(c.Name, string(t)).Inc()
	}
}

func (m *Metrics) wasSetAside(c *Consumer, t topics.Topic) {
	if m != nil {
		m.setAside.WithLabelValues(c.Name, string(t)).Inc()
	}
}

func (m *Metrics) rerouted() {
	if m != nil {
		m.misrouted.Inc()
	}
}

func (m *Metrics) deadLetter(t topics.Topic, reason topics.Reason) {
	if m != nil {
		m.deadLetters.WithLabelValues(string(t), string(reason)).Inc()
	}
}

func (m *Metrics) telemetryDropped() {
	if m != nil {
		m.telemetry.Inc()
	}
}

// looked counts partitions in which points were looked up: with a fetch, or by a scan.
func (m *Metrics) looked(way string, partitions int) {
	if m != nil {
		m.looks.WithLabelValues(way).Add(float64(partitions))
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	out <- lagDesc
	out <- entriesDesc
	out <- bytesDesc
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var windows *Windows // all consumers share them
	for c := range m.consumers {
		for t, lag := range c.lag(m.ends) {
			out <- prometheus.MustNewConstMetric(lagDesc, prometheus.GaugeValue, float64(lag), c.Name, string(t))
		}
		windows = cmp.Or(windows, c.Windows)
	}
	if windows != nil {
		out <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(windows.Entries()))
		out <- prometheus.MustNewConstMetric(bytesDesc, prometheus.GaugeValue, float64(windows.Bytes()))
	}
}
