package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/edge"
	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/keys"
	"github.com/nexus/nexus/projections/revocations"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/projections/stats"
)

// app is one process of Nexus: a list of parts, of which a command opens those that it needs. Make it with newApp, then open,
// then run; close it in any case.
//
//	newApp ──▶ open(names…) ──▶ run ──▶ close
//	               └── fails ──────────▶ close
type app struct {
	c      *Config
	log    *slog.Logger
	stdout io.Writer
	// keepTimes has the embedded log keep the times of what is appended: for nexus repartition.
	keepTimes bool
	// leaveWait is how long members that have just been stopped may still stand in their group.
	leaveWait time.Duration

	registry *prometheus.Registry
	metrics  *pipeline.Metrics

	list    []part
	parts   map[string]*opened // those that are open, by name
	closers []func()           // called backwards

	// What the parts have opened, for the parts below them in the list.
	tokens   api.Tokens
	listener net.Listener
	kafka    pipeline.Kafka
	logs     *pipeline.Log
	watch    *pipeline.Watch
	producer *pipeline.Producer
	window   time.Duration
	windows  *pipeline.Windows
	db       *sqldb.DB
	inbox    *inbox.Inbox
	counts   *stats.Memory
	revoked  *revocations.Revocations
	keys     *keys.Directory
	edge     *edge.Edge
	pusher   *push.Pusher
	health   *health
	api      *api.API
}

// newApp makes an app of which nothing is open yet.
func newApp(c *Config, log *slog.Logger, stdout io.Writer) *app {
	a := &app{c: c, log: log, stdout: stdout, leaveWait: leaveWait, registry: prometheus.NewRegistry(),
		parts: make(map[string]*opened)}
	a.list = a.allParts()
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildOf().metric())
	a.metrics = pipeline.NewMetrics(a.registry)
	return a
}

// embedded tells whether the log is this process's own.
func (a *app) embedded() bool { return len(a.c.Kafka.Brokers) == 0 }

func (a *app) component(name string) *slog.Logger { return a.log.With("component", name) }

func (a *app) onClose(fn func()) { a.closers = append(a.closers, fn) }

// close undoes what open did, backwards. It may be called again.
func (a *app) close() {
	for _, fn := range slices.Backward(a.closers) {
		fn()
	}
	a.closers = nil
}

// open opens the parts of these names and what they need, in the order of the list; no name means all. Where one fails, close
// undoes those before it.
func (a *app) open(ctx context.Context, names ...string) error {
	wanted := a.withNeeds(names)
	for _, p := range a.list {
		if a.parts[p.name] != nil || len(names) > 0 && !wanted[p.name] {
			continue
		}
		o, err := p.open(ctx)
		if err != nil {
			return err
		}
		a.parts[p.name] = &o
	}
	return nil
}

// withNeeds are the parts of these names, those that they need, and so on.
func (a *app) withNeeds(names []string) map[string]bool {
	all := make(map[string]bool)
	for _, name := range names {
		all[name] = true
	}
	for _, p := range slices.Backward(a.list) { // a part stands below those that it needs
		if all[p.name] {
			for _, need := range p.needs {
				all[need] = true
			}
		}
	}
	return all
}

// stored are the parts whose positions are kept, in the order of the list. Of those that are open the consumer is there.
func (a *app) stored() (list []part) {
	for _, p := range a.list {
		if p.keeps != nowhere {
			list = append(list, p)
		}
	}
	return list
}

// consumer is what reads the log for a part that is open, or nil.
func (a *app) consumer(name string) *pipeline.Consumer {
	if o := a.parts[name]; o != nil {
		return o.consumer
	}
	return nil
}

// checkLogs makes sure, before anything is folded, that every store remembers the log that is there.
func (a *app) checkLogs(ctx context.Context) error {
	var problems []error
	for _, p := range a.stored() {
		c := a.consumer(p.name)
		err := a.await(ctx, "what "+p.name+" remembers of the log", func(ctx context.Context) error {
			err := c.Check(ctx, a.logs)
			if forOperator(err) {
				problems = append(problems, err)
				return nil
			}
			return err // an engine that is not there yet, such as the group's coordinator
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(problems...)
}

// forOperator tells of an error that no waiting mends: the store and the log do not fit.
func forOperator(err error) bool {
	var wrong *pipeline.WrongLogError
	return errors.As(err, &wrong) || errors.Is(err, stats.ErrEmptied)
}

// run works until ctx ends, then drains: no new connections, open ones told to come back elsewhere, what was accepted
// answered and flushed. All parts are open.
func (a *app) run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, work := errgroup.WithContext(work)
	serving, stopServing := context.WithCancel(work)
	defer stopServing()
	served := make(chan struct{})
	g.Go(func() error { return a.work(work, g) })
	g.Go(func() error {
		defer close(served)
		if err := a.api.Serve(serving, a.listener, a.c.ShutdownTimeout); err != nil && !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve HTTP: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		ending, end := context.WithCancel(work) // by a signal or by a part that failed
		defer end()
		defer context.AfterFunc(ctx, end)()
		if err := a.announce(ending); err != nil {
			return err
		}
		<-ending.Done()
		a.log.Info("shutting down")
		stopServing()
		grace := a.c.ShutdownTimeout
		if work.Err() != nil {
			grace = time.Second // nothing will be answered any more
		}
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		a.edge.Drain(drain)
		<-served // requests under way need the tail; Serve waits for them within the same time
		a.producer.Flush(drain)
		stop()
		return nil
	})
	err := g.Wait()
	if err == nil {
		a.log.Info("stopped")
	}
	return err
}

// warmFor bounds how long the windows are kept warm for consumers that have not taken their partitions over.
const warmFor = 30 * time.Second

// work starts the parts, in the order of the list: at once those that judge no duplicates (so revocations, for which whoever
// connects waits, are read that much earlier), and the others once their dedup windows have been warmed, once for all of them.
func (a *app) work(ctx context.Context, g *errgroup.Group) error {
	var judging []*opened
	var consumers []*pipeline.Consumer
	for _, p := range a.list {
		switch o := a.parts[p.name]; {
		case o.consumer != nil && o.consumer.Windows != nil:
			judging, consumers = append(judging, o), append(consumers, o.consumer)
		case o.run != nil:
			g.Go(func() error { return o.run(ctx) })
		}
	}
	release, err := a.windows.Prepare(ctx, a.logs, consumers)
	if err != nil && ctx.Err() == nil {
		a.log.Warn("the dedup windows could not be warmed beforehand; each consumer does it for itself", "err", err)
	}
	defer release()
	for _, o := range judging {
		g.Go(func() error { return o.run(ctx) })
	}
	for end := time.Now().Add(warmFor); time.Now().Before(end); {
		if !slices.ContainsFunc(consumers, func(c *pipeline.Consumer) bool { return !c.Assigned() }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// announce prints where the server is, once it admits sessions; while that takes long it logs what is waited for.
func (a *app) announce(ctx context.Context) error {
	told := time.Now()
	for {
		problems := a.health.problems(ctx, nil)
		if len(problems) == 0 {
			break
		}
		if time.Since(told) > 5*time.Second {
			told = time.Now()
			a.log.Info("not ready yet", "problems", problems)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
	_, port, err := net.SplitHostPort(a.listener.Addr().String())
	if err != nil {
		return err
	}
	base := "localhost:" + port
	fmt.Fprintf(a.stdout, "nexus is listening on http://%s\n", base)
	if a.embedded() {
		fmt.Fprintf(a.stdout, "embedded Kafka is listening on %s\n", strings.Join(a.kafka.Brokers, ","))
	}
	if a.c.Demo {
		return a.printDemo(base)
	}
	return nil
}
