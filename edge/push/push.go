// Package push tells users' devices of events by Firebase Cloud Messaging. A consumer of its own makes jobs, in the
// inbox's database and in one transaction with its position; workers claim them with a lease and send. Which events
// are pushed is told in docs/push.md.
package push

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
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

// Inbox tells when the devices that were registered before an event are known.
type Inbox interface {
	Await(ctx context.Context, t topics.Topic, ends map[int32]int64) error
}

// Appender appends what became of pushes.
type Appender interface {
	Post(e *topics.Event, failed func(error))
	Append(ctx context.Context, e *topics.Event) error
}

// Options are what a pusher needs.
type Options struct {
	DB       *sqldb.DB
	Log      *pipeline.Log
	Producer Appender
	Inbox    Inbox
	Presence Presence
	// Sender sends to FCM; nil: push is off, and what would have been pushed is recorded as skipped.
	Sender Sender
	Settings
	Node    string
	Logger  *slog.Logger
	Metrics *Metrics
	// Now is the clock; nil means the system's.
	Now func() time.Time
}

// Pusher is a pipeline.Sink that makes jobs, and the workers that do them.
type Pusher struct {
	o         Options
	positions sqldb.Positions
	wake      chan struct{}
	pause     pause

	mu       sync.Mutex
	closing  bool // Run is ending: from now on a position is stored at once
	cursors  map[part]*cursor
	gaveUpAt map[int32]int64 // ends of devices that were waited for in vain
}

type part struct {
	topic     topics.Topic
	partition int32
}

// cursor is where push stands in a partition. While nothing is to be pushed its row is moved not at every batch but by flush,
// lazily: at the latest a moment after the last batch, and when Run ends. So a restart does not judge by who is away then what
// was judged before, but for that moment before a crash.
//
//	         Apply, nothing due                      flush, or Apply with something due
//	stored ─────────────────────▶ ahead of its row ─────────────────────────────────────▶ stored
type cursor struct {
	mu     sync.Mutex     // held while the row is moved
	row    int64          // the row's next
	at     time.Time      // when the row was moved
	behind pipeline.Batch // the last batch that the row does not know of; none where To is 0
}

// lazily is how long a position may wait to be stored while nothing is to be pushed.
const lazily = time.Second

// Topics are those that pushes come of.
func Topics() []topics.Topic { return []topics.Topic{topics.Messages, topics.Notifications} }

// New prepares the tables.
func New(ctx context.Context, o Options) (*Pusher, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	p := &Pusher{o: o, positions: sqldb.Positions{DB: o.DB, Projection: "push"}, wake: make(chan struct{}, 1),
		cursors: make(map[part]*cursor), gaveUpAt: make(map[int32]int64)}
	if err := o.DB.Migrate(ctx, "push", migrations); err != nil {
		return nil, fmt.Errorf("push: %w", err)
	}
	return p, p.begin(ctx)
}

// begin makes the positions that are missing, at the log's end: nobody wants a push for every event there ever was. It is
// done before the node serves anybody, so that no event after that is missed.
func (p *Pusher) begin(ctx context.Context) error {
	for _, t := range Topics() {
		ends, err := p.o.Log.Ends(ctx, t)
		if err != nil {
			return fmt.Errorf("push: %w", err)
		}
		for partition, end := range ends {
			if _, err := p.positions.Begin(ctx, t, partition, pipeline.Position{Next: end}); err != nil {
				return fmt.Errorf("push: %w", err)
			}
		}
	}
	return nil
}

// On tells whether anything is sent.
func (p *Pusher) On() bool { return p.o.Sender != nil }

// Position is where push stands (pipeline.Sink).
func (p *Pusher) Position(ctx context.Context, t topics.Topic, partition int32) (pipeline.Position, error) {
	p.flushOne(ctx, p.cursor(part{t, partition})) // of an earlier time as the partition's owner
	at, err := p.positions.Next(ctx, t, partition)
	if err != nil {
		return at, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cursors[part{t, partition}] = &cursor{row: at.Next, at: p.o.Now()}
	return at, nil
}

// Adopt takes another log on: pushes go on from these positions.
func (p *Pusher) Adopt(ctx context.Context, to map[topics.Topic]map[int32]pipeline.Position) error {
	return p.positions.Adopt(ctx, to, func(*sql.Tx) error { return nil })
}

func (p *Pusher) cursor(of part) *cursor {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cursors[of] == nil {
		p.cursors[of] = &cursor{}
	}
	return p.cursors[of]
}

// due is a push to be made: to all devices of a user.
type due struct {
	e    *topics.Event
	user string
	note Note
}

// Apply makes jobs of a batch (pipeline.Sink).
func (p *Pusher) Apply(ctx context.Context, b pipeline.Batch) error {
	list, err := p.wanted(ctx, b)
	if err != nil {
		return err
	}
	c := p.cursor(part{b.Topic, b.Partition})
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(list) == 0 && p.mayWait(c, b) {
		return nil
	}
	err = p.store(ctx, c, b, func(ctx context.Context, tx *sql.Tx) error {
		devices, err := devicesOf(ctx, tx, list)
		if err != nil {
			return err
		}
		for _, d := range list {
			if err := p.makeJobs(ctx, tx, d, devices[d.user]); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && len(list) > 0 {
		p.nudge()
	}
	return err
}

// mayWait notes that the row is behind a batch, if it may be for now.
func (p *Pusher) mayWait(c *cursor, b pipeline.Batch) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing || p.o.Now().Sub(c.at) >= lazily {
		return false
	}
	c.behind = b
	c.behind.Events, c.behind.Records = nil, nil // the position alone is of use
	return true
}

// store moves the row past a batch, with what belongs to that, also while the node ends. The cursor is locked.
func (p *Pusher) store(ctx context.Context, c *cursor, b pipeline.Batch, with func(context.Context, *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeFor)
	defer cancel()
	err := p.o.DB.Tx(ctx, func(tx *sql.Tx) error {
		if err := p.positions.Move(ctx, tx, b, c.row); err != nil {
			return err
		}
		return with(ctx, tx)
	})
	if err == nil {
		c.row, c.at, c.behind = b.To, p.o.Now(), pipeline.Batch{}
	}
	return err
}

// flush moves the rows that are behind. One that another node has moved is that node's now.
func (p *Pusher) flush(ctx context.Context) {
	p.mu.Lock()
	cursors := slices.Collect(maps.Values(p.cursors))
	p.mu.Unlock()
	for _, c := range cursors {
		p.flushOne(ctx, c)
	}
}

func (p *Pusher) flushOne(ctx context.Context, c *cursor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.behind.To == 0 {
		return
	}
	err := p.store(ctx, c, c.behind, func(context.Context, *sql.Tx) error { return nil })
	switch {
	case errors.Is(err, pipeline.ErrMoved):
		c.behind = pipeline.Batch{}
	case err != nil:
		p.o.Logger.Warn("push could not store how far it came; it tries again", "err", err)
	}
}

// keep stores positions until ctx ends, and then a last time.
func (p *Pusher) keep(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(lazily):
			p.flush(ctx)
		}
	}
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	p.flush(ctx)
}

// wanted lists the pushes that a batch gives rise to, once everything that they depend on is known.
func (p *Pusher) wanted(ctx context.Context, b pipeline.Batch) (list []due, err error) {
	select {
	case <-p.o.Presence.Ready():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	now := p.o.Now()
	for e := range b.Live {
		user, n, ok := noteOf(e)
		if !ok || !p.absent(user, n) {
			continue
		}
		if now.Sub(time.UnixMilli(e.Time)) > p.o.TTL {
			p.outcome(e, n, "", expired)
			continue
		}
		list = append(list, due{e, user, n})
	}
	if len(list) == 0 {
		return nil, nil
	}
	return list, p.devicesKnown(ctx)
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

// deviceWait bounds how long a batch waits for the inbox to know the devices registered until now, the question to the log
// included.
const deviceWait = 2 * time.Second

// devicesKnown waits for the inbox to know the devices registered until now. An inbox that is further behind is not waited
// for again until there are newer devices: its pushes go to those that it knows.
func (p *Pusher) devicesKnown(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	ends, err := p.o.Log.Ends(wait, topics.Devices)
	if err != nil {
		return fmt.Errorf("push: %w", err)
	}
	p.mu.Lock()
	maps.DeleteFunc(ends, func(partition int32, end int64) bool { return end <= p.gaveUpAt[partition] })
	p.mu.Unlock()
	err = p.o.Inbox.Await(wait, topics.Devices, ends)
	switch {
	case err == nil || ctx.Err() != nil:
		return ctx.Err()
	case wait.Err() == nil:
		return err
	}
	p.o.Logger.Warn("the inbox is behind on devices; pushes go to those that it knows", "waited", deviceWait)
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.Copy(p.gaveUpAt, ends)
	return nil
}

// askedAtOnce bounds the users of one query for devices.
const askedAtOnce = 500

// devicesOf finds the tokens that a batch's pushes go to, by user: a query for many events, not one for each.
func devicesOf(ctx context.Context, tx *sql.Tx, list []due) (map[string][]string, error) {
	set := make(map[string]bool)
	for _, d := range list {
		set[d.user] = true
	}
	devices := make(map[string][]string)
	for users := range slices.Chunk(slices.Sorted(maps.Keys(set)), askedAtOnce) {
		args, marks := make([]any, len(users)), make([]string, len(users))
		for n, u := range users {
			args[n], marks[n] = u, fmt.Sprintf("$%d", n+1)
		}
		rows, err := tx.QueryContext(ctx, `SELECT user_id, token FROM registered_devices d WHERE user_id IN (`+strings.Join(marks, ",")+`)
			AND NOT EXISTS (SELECT 1 FROM push_quarantine q WHERE q.hash=d.hash)`, args...)
		if err != nil {
			return nil, fmt.Errorf("push: devices: %w", err)
		}
		for rows.Next() {
			var user, token string
			if err := rows.Scan(&user, &token); err != nil {
				return nil, errors.Join(fmt.Errorf("push: devices: %w", err), rows.Close())
			}
			devices[user] = append(devices[user], token)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, fmt.Errorf("push: devices: %w", err)
		}
	}
	return devices, nil
}

// makeJobs inserts a job for each of the user's devices.
func (p *Pusher) makeJobs(ctx context.Context, tx *sql.Tx, d due, tokens []string) error {
	if !p.On() {
		for _, t := range tokens {
			p.outcome(d.e, d.note, t, skipped)
		}
		return nil
	}
	note, err := json.Marshal(d.note.fit())
	if err != nil {
		return fmt.Errorf("push: note: %w", err)
	}
	for _, t := range tokens {
		_, err := tx.ExecContext(ctx, `INSERT INTO push_jobs (id, user_id, token, topic, part, pos, at, note, attempts, due, lease)
			VALUES ($1,$2,$3,$4,$5,$6,$7,$8,0,$9,0) ON CONFLICT DO NOTHING`,
			d.note.ID+"/"+topics.DeviceHash(t), d.user, t, string(d.e.Topic), int64(d.e.Partition), d.e.Offset, d.e.Time, note, p.o.Now().UnixMilli())
		if err != nil {
			return fmt.Errorf("push: make a job: %w", err)
		}
	}
	return nil
}

// What became of a push to one device, in delivery.push and in metrics.
const (
	accepted       = "accepted"
	skipped        = "skipped"         // push is off
	expired        = "expired"         // too old
	unregistered   = "unregistered"    // FCM says that the token is dead; it is removed
	invalidToken   = "invalid_token"   // FCM takes nothing for this token; it is removed
	invalidPayload = "invalid_payload" // FCM takes a plain message for this token, but not this one
	mismatch       = "sender_mismatch" // the token is another project's; it is set aside
)

// outcome appends what became of a push. Nobody waits for that.
func (p *Pusher) outcome(e *topics.Event, n Note, token, what string) {
	p.report(place{e.Topic, e.Partition, e.Offset, string(e.Key)}, n, token, what, 0)
}

// place is where an event stands.
type place struct {
	topic     topics.Topic
	partition int32
	offset    int64
	key       string
}

func (p *Pusher) report(at place, n Note, token, what string, sessions int) {
	p.o.Metrics.outcome(what)
	var device any
	if token != "" {
		device = topics.DeviceHash(token)
	}
	latency := max(0, p.o.Now().UnixMilli()-n.RecordTime)
	p.o.Producer.Post(topics.New(topics.Deliveries, at.key, topics.Meta{Type: topics.TypeDeliveryPush, Source: topics.NodeSource(p.o.Node), ID: topics.NewID()},
		topics.Fields("event", n.Event, "topic", string(at.topic), "partition", at.partition, "offset", at.offset, "node", p.o.Node,
			"outcome", what, "device", device, "sessions", sessions, "latencyMs", latency)),
		func(err error) { p.o.Logger.Warn("what became of a push could not be appended", "err", err) })
}

func (p *Pusher) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
