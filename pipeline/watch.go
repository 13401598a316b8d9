package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/nexus/nexus/topics"
)

// Watch asks Kafka, every 2 s, whether the log is still as its contract says, and where it ends. A node has one. It is safe for
// concurrent use.
type Watch struct {
	o        WatchOptions
	cluster  *Log
	names    []string // of the topics, in the order of topics.Specs
	began    time.Time
	suspects map[topics.Topic]string    // owned by Run: what the last look found wrong
	missing  map[topics.Topic]time.Time // owned by Run: since when

	mu           sync.Mutex
	missingTopic string // a topic that is missing
	ends         topics.Ends
	at           time.Time
}

// WatchOptions are what a Watch needs.
type WatchOptions struct {
	Log      *Log         // is asked; required
	Contract Contract     // what AgreeContract returned at the start; required
	Logger   *slog.Logger // is told of a topic that is missing; required
	// Metrics are told the ends: lag is measured against them. May be nil.
	Metrics *Metrics
	// Every is the pause between two questions. Default 2 s.
	Every time.Duration
	// MissingFor is how long a topic may be missing before Run ends: a broker that has just begun may not know all of them.
	// Default 30 s.
	MissingFor time.Duration
	// Timeout bounds each question. Where no answer comes nothing changes: Producer.Problem tells of a log that is away. Default 5 s.
	Timeout time.Duration
}

// NewWatch makes a watch. It asks nothing before Run.
func NewWatch(o WatchOptions) *Watch {
	if o.Every == 0 {
		o.Every = 2 * time.Second
	}
	if o.MissingFor == 0 {
		o.MissingFor = 30 * time.Second
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	return &Watch{o: o, cluster: o.Log, names: o.Log.allNames(), began: time.Now(), suspects: make(map[topics.Topic]string),
		missing: make(map[topics.Topic]time.Time)}
}

// Run watches until ctx ends; then it returns nil. Its error is a sentence for the operator: the log is not what it was when
// the node began, and the node must end before it does harm.
func (w *Watch) Run(ctx context.Context) error {
	for {
		if err := w.look(ctx); err != nil {
			return ignoreEnd(ctx, err)
		}
		if !sleep(ctx, w.o.Every) {
			return nil
		}
	}
}

func (w *Watch) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.o.Timeout)
	defer cancel()
	details, err := w.cluster.adm.ListTopics(ctx, w.names...)
	if err != nil {
		return nil
	}
	if err := w.compare(details); err != nil {
		return err
	}
	w.mu.Lock()
	w.missingTopic = ""
	for _, t := range sorted(w.missing) {
		w.missingTopic = w.cluster.nameOf(t)
	}
	w.mu.Unlock()
	if ends, err := w.cluster.listed(w.cluster.adm.ListCommittedOffsets(ctx, w.names...)); err == nil {
		w.o.Metrics.setEnds(ends)
		w.mu.Lock()
		w.ends, w.at = ends, time.Now()
		w.mu.Unlock()
	}
	return nil
}

// compare finds what has changed. What two looks in succession find is believed: one broker may answer of the past.
func (w *Watch) compare(details kadm.TopicDetails) error {
	var problems []error
	for i, s := range topics.Specs() {
		found := w.changed(s.Topic, details[w.names[i]])
		if found != "" && found == w.suspects[s.Topic] {
			problems = append(problems, errors.New(found))
		}
		w.suspects[s.Topic] = found
	}
	return errors.Join(problems...)
}

// changed says in a sentence what is not as in the contract; empty where all is, or where nothing is known.
func (w *Watch) changed(t topics.Topic, d kadm.TopicDetail) string {
	name, count := w.cluster.nameOf(t), int32(len(d.Partitions))
	if errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
		since, known := w.missing[t]
		if !known {
			w.missing[t] = time.Now()
			w.o.Logger.Warn("a topic is missing", "topic", name)
		} else if time.Since(since) >= w.o.MissingFor {
			return fmt.Sprintf("topic %s was deleted while this node was running (it has been missing for %s): what was in it is lost. "+
				"Restore the log from a backup, or start the node again to begin the topic anew", name, w.o.MissingFor)
		}
		return ""
	}
	delete(w.missing, t)
	if d.Err != nil {
		return ""
	}
	if is, was := name+"@"+d.ID.String(), w.o.Contract.Identities[t]; was != "" && is != was {
		return fmt.Sprintf("topic %s was deleted and made again while this node was running: it is another topic now, and the offsets that the "+
			"stores "+
			"remember mean nothing in it. Start the node again: each store that remembers the old topic then names its way out", name)
	}
	if want := w.o.Contract.Partitions[t]; count != want {
		return w.cluster.differs(t, count, want)
	}
	return ""
}

// Problem says that a topic is missing: nothing can be appended to it. nil where all are there.
func (w *Watch) Problem() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.missingTopic == "" {
		return nil
	}
	return fmt.Errorf("topic %s is missing", w.missingTopic)
}

// all is Ends without a copy and without its age. The map is never changed.
func (w *Watch) all() topics.Ends {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ends
}

// Ends returns the offset at which every partition of every topic ended when Kafka was asked last (as Log.Ends), and how long ago that
// was. Before the first answer ends is empty, and age is the time since NewWatch.
func (w *Watch) Ends() (ends topics.Ends, age time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.at.IsZero() {
		return nil, time.Since(w.began)
	}
	return maps.Clone(w.ends), time.Since(w.at)
}

// setEnds keeps what lag is measured against.
func (m *Metrics) setEnds(ends topics.Ends) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends = maps.Clone(ends)
}
