// Package push tells users who are away of events. The policy is here: which events, who, when; and a durable queue of jobs, in
// the inbox's database and in one transaction with the consumer's position. What carries a note to a device is a Channel, in
// a package of its own (push/fcm); this one knows none of them. docs/push.md tells what is pushed.
package push

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Presence tells whether a user has an open session.
type Presence interface {
	Connected(ns topics.Namespace, user string) bool
	// Ready is closed once it knows.
	Ready() <-chan struct{}
}

// Log tells where the log ends.
type Log interface {
	Ends(ctx context.Context, t topics.Topic) (topics.Ends, error)
}

// Recorder appends what became of pushes; nobody waits for that.
type Recorder interface {
	Post(e *topics.Event, failed func(error))
}

// Options are what a pusher needs.
type Options struct {
	Settings
	DB       *sqldb.DB // the inbox's; the caller closes it
	Log      Log
	Producer Recorder
	Presence Presence
	// Channels carry the notes, each to its own targets. Their names differ.
	Channels []Channel
	Node     string
	Logger   *slog.Logger
	Metrics  *Metrics // nil: none
	// Now is the clock; nil: the system's.
	Now func() time.Time
}

// Pusher is a pipeline.Sink that makes jobs, and the workers that do them. It is safe for concurrent use.
type Pusher struct {
	o         Options
	positions sqldb.Positions
	queue     queue
	lanes     []*lane // one for each channel

	mu      sync.Mutex
	closing bool // Run is ending: from now on a position is stored at once
	cursors map[topics.Partition]*cursor
}

// Topics are those that pushes come of.
func Topics() []topics.Topic { return []topics.Topic{topics.Messages, topics.Notifications} }

// channelName is what a channel may be called: it becomes a label, a column's value and a field.
var channelName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

// New prepares the tables.
func New(ctx context.Context, o Options) (*Pusher, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	p := &Pusher{o: o, positions: sqldb.Positions{DB: o.DB, Projection: "push"}, queue: queue{db: o.DB, lease: o.Lease, now: o.Now},
		cursors: make(map[topics.Partition]*cursor)}
	for _, ch := range o.Channels {
		name := ch.Name()
		if !channelName.MatchString(name) {
			return nil, fmt.Errorf("push: a channel is named %q: use a lower-case letter, then up to 31 letters, digits and underscores", name)
		}
		if slices.ContainsFunc(p.lanes, func(l *lane) bool { return l.name == name }) {
			return nil, fmt.Errorf("push: two channels are named %q", name)
		}
		p.lanes = append(p.lanes, &lane{p: p, ch: ch, name: name, log: o.Logger.With("channel", name), wake: make(chan struct{}, 1)})
	}
	if err := o.DB.Migrate(ctx, "push", migrations); err != nil {
		return nil, fmt.Errorf("push: %w", err)
	}
	if err := p.begin(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// begin makes the positions that are missing, at the log's end: nobody wants a push for every event there ever was. It is
// done before the node serves anybody, so that no event after that is missed.
func (p *Pusher) begin(ctx context.Context) error {
	for _, t := range Topics() {
		ends, err := p.o.Log.Ends(ctx, t)
		if err != nil {
			return fmt.Errorf("push: the ends of %s: %w", t, err)
		}
		for of, end := range ends {
			if _, err := p.positions.Begin(ctx, of, pipeline.Position{Next: end}); err != nil {
				return fmt.Errorf("push: %w", err)
			}
		}
	}
	return nil
}

// On tells whether any channel can send.
func (p *Pusher) On() bool {
	return slices.ContainsFunc(p.lanes, func(l *lane) bool { return l.ch.On() })
}

// Run does the jobs of all channels that are on until ctx ends, and keeps the positions. Attempts under way are cut off; their
// jobs, and those claimed and not begun, are given back. It returns nil.
func (p *Pusher) Run(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() { p.keep(ctx) })
	for _, l := range p.lanes {
		if l.ch.On() {
			running.Go(func() { l.run(ctx) })
		}
	}
	running.Wait()
	return nil
}

// Adopt takes another log on: pushes go on from these positions.
func (p *Pusher) Adopt(ctx context.Context, to map[topics.Partition]pipeline.Position) error {
	return p.positions.Adopt(ctx, to, func(*sql.Tx) error { return nil })
}

// due is a push to be made: to all targets of a user.
type due struct {
	at   topics.Place
	key  string // of the event at
	user string
	note Note
}

// Apply makes jobs of a batch (pipeline.Sink).
func (p *Pusher) Apply(ctx context.Context, b pipeline.Batch) error {
	list, err := p.wanted(ctx, b)
	if err != nil {
		return err
	}
	var jobs, skips []job
	for _, l := range p.lanes {
		made, err := l.jobs(ctx, list)
		if err != nil {
			return err
		}
		if l.ch.On() {
			jobs = append(jobs, made...)
		} else {
			skips = append(skips, made...)
		}
	}
	c := p.cursor(b.Of())
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(list) == 0 && p.mayWait(c, b) {
		return nil
	}
	if err := p.store(ctx, c, b, func(ctx context.Context, tx *sql.Tx) error { return p.queue.add(ctx, tx, jobs) }); err != nil {
		return fmt.Errorf("push: %s from %d to %d: %w", b.Of(), b.From, b.To, err)
	}
	for _, j := range skips {
		p.report(j, skipped, 0)
	}
	if len(jobs) > 0 {
		for _, l := range p.lanes {
			l.nudge()
		}
	}
	return nil
}

// wanted lists the pushes that a batch gives rise to, by who is away now. What is too old already is recorded as such.
func (p *Pusher) wanted(ctx context.Context, b pipeline.Batch) (list []due, err error) {
	select {
	case <-p.o.Presence.Ready():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for e := range b.Live {
		user, n, ok := NoteOf(e)
		if !ok || !p.absent(user, n) {
			continue
		}
		d := due{e.At(), string(e.Key), user, n}
		if p.left(n) > 0 {
			list = append(list, d)
			continue
		}
		for _, l := range p.lanes {
			p.report(job{channel: l.name, user: user, at: d.at, key: d.key, note: n}, expired, 0)
		}
	}
	return list, nil
}

// absent tells whether a push is wanted: a notification of high priority always is, others where the user has no open
// session that shows them.
func (p *Pusher) absent(user string, n Note) bool {
	switch n.Event {
	case topics.TypeMessage:
		return !p.o.Presence.Connected(topics.Messaging, user)
	default:
		return n.High || !p.o.Presence.Connected(topics.Dashboard, user)
	}
}

// left is how much longer a note is worth a push; not above 0: it is too old.
func (p *Pusher) left(n Note) time.Duration {
	return p.o.TTL - p.o.Now().Sub(time.UnixMilli(n.RecordTime)) + time.Millisecond // at its TTL it is still sent
}

// jobs are those that a list of pushes makes for a channel, one for each target that is not set aside.
func (l *lane) jobs(ctx context.Context, list []due) (jobs []job, err error) {
	if len(list) == 0 {
		return nil, nil
	}
	users := make(map[string]bool)
	for _, d := range list {
		users[d.user] = true
	}
	targets, err := l.ch.Targets(ctx, slices.Sorted(maps.Keys(users)))
	if err != nil {
		return nil, fmt.Errorf("push: targets of %s: %w", l.name, err)
	}
	if targets, err = l.p.queue.usable(ctx, l.name, targets); err != nil {
		return nil, fmt.Errorf("push: %w", err)
	}
	for _, d := range list {
		if len(targets[d.user]) == 0 {
			continue
		}
		n := l.ch.Fit(d.note)
		for _, t := range targets[d.user] {
			jobs = append(jobs, job{channel: l.name, user: d.user, target: t, at: d.at, key: d.key, note: n})
		}
	}
	return jobs, nil
}

// What became of a push to one target, in delivery.push and in metrics; channels have words of their own beside these.
const (
	accepted = "accepted"
	skipped  = "skipped" // the channel is off
	expired  = "expired" // too old
)

// report appends what became of a push. Nobody waits for that.
func (p *Pusher) report(j job, what string, sessions int64) {
	p.o.Metrics.outcome(j.channel, what)
	var device string
	if j.target != "" {
		device = topics.DeviceHash(j.target)
	}
	d := topics.Delivery{Event: j.note.Event, At: j.at, Node: p.o.Node,
		Sessions:  sessions,
		LatencyMs: max(0, p.o.Now().UnixMilli()-j.note.RecordTime), Channel: j.channel, Outcome: what, Device: device}
	p.o.Producer.Post(d.Push(j.key, topics.NodeSource(p.o.Node)),
		func(err error) { p.o.Logger.Warn("what became of a push could not be appended", "err", err) })
}
