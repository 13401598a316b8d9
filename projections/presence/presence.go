// Package presence folds topic presence, in memory, into who is online. Every edge folds the same records in the same
// order, so all agree; nothing is written back.
package presence

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// Change says that a user came online or went offline in a namespace.
type Change struct {
	User      string
	Namespace topics.Namespace
	Online    bool
	At        int64 // record time of the cause, Unix milliseconds
}

// Verdict is what the log says of a session that asks for a place.
type Verdict uint8

// The verdicts.
const (
	Admitted Verdict = iota
	UserFull
	NamespaceFull
)

// Limits bound the sessions of a user in a namespace, and of a namespace, over all nodes. All nodes must have the same.
type Limits struct {
	PerUser, PerNamespace int
	// EvictOldest ends a user's oldest session in place of refusing a new one.
	EvictOldest bool
}

// Kind is what a Notice tells.
type Kind uint8

// The kinds of a Notice.
const (
	// Said: a record says that a session lives, and the fold has it, with this pid and these channels.
	Said Kind = iota
	// Left: a record says that a session has ended. The fold may not have known it.
	Left
	// Judged: the verdict on a session that asks for a slot.
	Judged
	// Evicted: a session has lost its slot to a newer one of its user.
	Evicted
	// NodeLost: the others took a node for dead. If it lives, it says again what sessions it has.
	NodeLost
	// NodeSuperseded: a newer boot of the same node's name has begun; what the older one says counts no more.
	NodeSuperseded
)

// Notice is something that a fold has read in the log.
type Notice struct {
	Kind      Kind
	Node      string // the id of the node whose session it is; of NodeLost and NodeSuperseded: of that node
	Session   string // empty for NodeLost and NodeSuperseded, as all that follows
	Namespace topics.Namespace
	User      string
	Verdict   Verdict  // of Judged
	PID       string   // of Said
	Channels  []string // of Said; not to be changed
}

// Options of a fold.
type Options struct {
	Limits Limits
	// Notify is told what the fold has read, in the log's order, from Apply's goroutine. May be nil.
	Notify func(Notice)
	// Start is where to read from: far enough back to meet every live session's last record. whole tells that nothing that
	// may still live stands before it.
	Start func(ctx context.Context) (start int64, whole bool, err error)
	// End is the offset up to which the fold must have read before it shows anything.
	End func(ctx context.Context) (int64, error)
	// Grace is how long a user who is gone is still shown as online.
	Grace time.Duration
	// Changed is told what is to be shown, from Run's goroutine, at most every 250 ms.
	Changed func([]Change)
}

// Keep is how far back a fold reads, and how long it keeps what a session was subscribed to: sessions are repeated more
// often than that.
const Keep = 5 * time.Minute

// blind is how long, in record time, a fold that has not read everything counts every session and judges none: until then
// each live one has been said again.
const blind = 2 * time.Minute

// deadAfter is how many heartbeats of some single other node without a record of a node's own mean that it is dead.
const deadAfter = 4

const coalesce = 250 * time.Millisecond

// Fold is the state. It is safe for concurrent use; a pipeline.Consumer feeds it.
type Fold struct {
	o     Options
	ready chan struct{} // closed once End has been reached

	mu       sync.Mutex
	goal     int64
	whole    bool
	judgesAt int64                    // record time from which on sessions are judged; 0 until the first record
	nodes    map[string]*node         // by id
	ended    map[string]bool          // ids of earlier boots
	sessions map[string]*session      // by id
	users    map[place]members        // those who have sessions
	totals   map[topics.Namespace]int // sessions
	online   map[topics.Namespace]int // users who have sessions, or are still shown
	shown    map[place]bool
	dirty    map[place]departure
	traces   map[string]*trace // by pid
	now      int64             // the latest record time
	prunedAt int64             // the record time at which traces were last pruned
}

type node struct {
	name     string
	beats    map[string]int // other node → its heartbeats since this node's last record
	sessions members
}

// members are sessions by id.
type members map[string]*session

type session struct {
	node     string
	at       place
	name     string // of the node
	since    int64  // record time, Unix milliseconds
	order    int64  // offset of the record by which it came
	pid      string // by which its client claims its channels later; may be empty
	channels []string
}

// trace is a session, kept for a client that comes back.
type trace struct {
	*session
	id   string
	gone int64 // record time of the session's end; 0 while it lives
}

type place struct {
	namespace topics.Namespace
	user      string
}

// departure is a change that waits to be shown.
type departure struct {
	since time.Time
	at    int64
}

// New makes an empty fold.
func New(o Options) *Fold {
	return &Fold{o: o, ready: make(chan struct{}), goal: -1, nodes: make(map[string]*node), ended: make(map[string]bool),
		sessions: make(map[string]*session), users: make(map[place]members), totals: make(map[topics.Namespace]int),
		online: make(map[topics.Namespace]int),
		shown:  make(map[place]bool), dirty: make(map[place]departure), traces: make(map[string]*trace)}
}

// Ready is closed once the fold has read what stood in the log when it began.
func (f *Fold) Ready() <-chan struct{} { return f.ready }

// Position begins where every live session will be met (pipeline.Sink).
func (f *Fold) Position(ctx context.Context, _ topics.Partition) (at pipeline.Position, err error) {
	start, whole, err := f.o.Start(ctx)
	if err != nil {
		return at, err
	}
	end, err := f.o.End(ctx)
	if err != nil {
		return at, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.goal, f.whole, f.judgesAt = end, whole, 0
	f.reach(start)
	return pipeline.Position{Next: start}, nil
}

// Apply folds a batch (pipeline.Sink).
func (f *Fold) Apply(_ context.Context, b pipeline.Batch) error {
	notices := f.foldAll(b)
	if f.o.Notify == nil {
		return nil
	}
	for _, n := range notices {
		f.o.Notify(n)
	}
	return nil
}

// foldAll folds a batch and returns what is to be told of it once the lock is free.
func (f *Fold) foldAll(b pipeline.Batch) (notices []Notice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for e := range b.Live {
		notices = append(notices, f.fold(e)...)
	}
	f.reach(b.To)
	return notices
}

// reach shows what has been folded once the goal is met. f.mu is held.
func (f *Fold) reach(next int64) {
	select {
	case <-f.ready:
		return
	default:
	}
	if next < f.goal {
		return
	}
	for p := range f.users {
		f.shown[p] = true
	}
	clear(f.dirty)
	close(f.ready)
}

func (f *Fold) fold(e *topics.Event) (notices []Notice) {
	if f.judgesAt == 0 {
		f.judgesAt = e.Time
		if !f.whole {
			f.judgesAt += blind.Milliseconds()
		}
	}
	f.now = max(f.now, e.Time)
	f.prune()
	of := topics.ReadHeartbeat(e)
	if f.ended[of.Node] {
		return nil
	}
	notices = f.alive(e, of.Node, of.Name)
	if e.Type == topics.TypeNodeHeartbeat {
		return append(notices, f.heartbeat(e, of.Node)...)
	}
	s := topics.ReadSession(e)
	n := Notice{Node: s.Node, Session: s.ID, Namespace: s.Namespace, User: s.UserID}
	switch e.Type {
	case topics.TypeConnected:
		notices = append(notices, f.connect(e, n, s)...)
	case topics.TypeDisconnected:
		f.disconnect(n.Session, e.Time)
		notices = append(notices, n.of(Left))
	case topics.TypeSessionChannels:
		notices = append(notices, f.correct(n, s)...)
	}
	return notices
}

// of is the notice as one of another kind.
func (n Notice) of(k Kind) Notice {
	n.Kind = k
	return n
}

// alive notes a record of a node; the first of a new boot ends the earlier ones of its name.
func (f *Fold) alive(e *topics.Event, id, name string) (notices []Notice) {
	if n := f.nodes[id]; n != nil {
		clear(n.beats)
		return nil
	}
	for other, n := range f.nodes {
		if n.name == name {
			f.ended[other] = true
			f.end(other, e.Time)
			notices = append(notices, Notice{Kind: NodeSuperseded, Node: other})
		}
	}
	f.nodes[id] = &node{name: name, beats: make(map[string]int), sessions: make(members)}
	return notices
}

func (f *Fold) heartbeat(e *topics.Event, id string) (notices []Notice) {
	for other, n := range f.nodes {
		if other == id {
			continue
		}
		if n.beats[id]++; n.beats[id] >= deadAfter {
			f.end(other, e.Time)
			notices = append(notices, Notice{Kind: NodeLost, Node: other})
		}
	}
	return notices
}

// end removes a node and its sessions.
func (f *Fold) end(id string, at int64) {
	for session := range f.nodes[id].sessions {
		f.disconnect(session, at)
	}
	delete(f.nodes, id)
}

// connect gives a session its slot, or does not: every fold judges alike, from the log alone. One that is said again has
// its slot already; what is said of it holds from now on.
func (f *Fold) connect(e *topics.Event, n Notice, said topics.Session) (notices []Notice) {
	if f.sessions[n.Session] != nil {
		return f.correct(n, said)
	}
	p := place{n.Namespace, n.User}
	if !said.Repeated {
		notices = f.succeed(p, said.PID, e.Time)
		n.Verdict = Admitted
		if e.Time >= f.judgesAt {
			var evicted []Notice
			n.Verdict, evicted = f.judge(p, e.Time)
			notices = append(notices, evicted...)
		}
		notices = append(notices, n.of(Judged))
		if n.Verdict != Admitted {
			return notices
		}
	}
	f.enter(n.Session, &session{node: n.Node, name: said.Name, at: p, since: e.Time, order: e.Offset})
	f.touch(p, e.Time)
	return append(notices, f.correct(n, said)...)
}

// correct notes what a record says of a session that the fold has.
func (f *Fold) correct(n Notice, said topics.Session) []Notice {
	s := f.sessions[n.Session]
	if s == nil {
		return nil
	}
	s.channels = said.Channels
	f.name(n.Session, said.PID)
	n.PID, n.Channels = s.pid, s.channels
	return []Notice{n.of(Said)}
}

// succeed ends the session that a new one claims by its pid, and gives its slot back: it is the same client's, whose
// connection broke and was not missed yet.
func (f *Fold) succeed(p place, pid string, at int64) []Notice {
	t := f.traces[pid]
	if t == nil || t.gone != 0 || t.at != p {
		return nil
	}
	return []Notice{f.evict(t.id, at)}
}

func (f *Fold) judge(p place, at int64) (Verdict, []Notice) {
	l := f.o.Limits
	switch count := len(f.users[p]); {
	case count >= l.PerUser && (!l.EvictOldest || count == 0):
		return UserFull, nil
	case count >= l.PerUser:
		return Admitted, []Notice{f.evict(f.users[p].oldest(), at)}
	case f.totals[p.namespace] >= l.PerNamespace:
		return NamespaceFull, nil
	}
	return Admitted, nil
}

// oldest is the session whose record stands first in the log.
func (m members) oldest() (id string) {
	for other, s := range m {
		if id == "" || s.order < m[id].order {
			id = other
		}
	}
	return id
}

// evict ends a session whose slot is given to another.
func (f *Fold) evict(id string, at int64) Notice {
	s := f.sessions[id]
	f.disconnect(id, at)
	return Notice{Kind: Evicted, Node: s.node, Session: id, Namespace: s.at.namespace, User: s.at.user}
}

// enter has a session counted, disconnect no more.
func (f *Fold) enter(id string, s *session) {
	f.sessions[id], f.nodes[s.node].sessions[id] = s, s
	f.totals[s.at.namespace]++
	if f.users[s.at] == nil {
		f.users[s.at] = make(members)
		if !f.shown[s.at] {
			f.online[s.at.namespace]++
		}
	}
	f.users[s.at][id] = s
}

func (f *Fold) disconnect(id string, at int64) {
	s, known := f.sessions[id]
	if !known {
		return
	}
	delete(f.sessions, id)
	delete(f.nodes[s.node].sessions, id)
	if t := f.traces[s.pid]; t != nil && t.id == id {
		t.gone = at
	}
	f.totals[s.at.namespace]--
	if delete(f.users[s.at], id); len(f.users[s.at]) == 0 {
		delete(f.users, s.at)
		if !f.shown[s.at] {
			f.online[s.at.namespace]--
		}
	}
	f.touch(s.at, at)
}

func (f *Fold) touch(p place, at int64) { f.dirty[p] = departure{time.Now(), at} }

// name has a session found by a pid, which may have been an earlier session's, and by no other.
func (f *Fold) name(id, pid string) {
	s := f.sessions[id]
	if pid == s.pid {
		return
	}
	if old := f.traces[s.pid]; old != nil && old.id == id {
		delete(f.traces, s.pid)
	}
	s.pid = pid
	if pid != "" {
		f.traces[pid] = &trace{session: s, id: id}
	}
}

// prune forgets, once in a while, the traces of sessions that are long gone.
func (f *Fold) prune() {
	if f.now-f.prunedAt < time.Minute.Milliseconds() {
		return
	}
	f.prunedAt = f.now
	maps.DeleteFunc(f.traces, func(_ string, t *trace) bool { return f.expired(t) })
}

func (f *Fold) expired(t *trace) bool { return t.gone != 0 && f.now-t.gone > Keep.Milliseconds() }

// Recall finds the channels of the user's session that had this pid in a namespace and lives, or ended within Keep.
func (f *Fold) Recall(pid, user string, ns topics.Namespace) (channels []string, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.traces[pid]
	if t == nil || t.at != (place{ns, user}) || f.expired(t) {
		return nil, false
	}
	return t.channels, true
}

// Run shows changes until ctx ends.
func (f *Fold) Run(ctx context.Context) error {
	tick := time.NewTicker(coalesce)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if changes := f.due(time.Now()); len(changes) > 0 {
			f.o.Changed(changes)
		}
	}
}

// due takes the changes that are to be shown now: who came, and who has been gone for the grace.
func (f *Fold) due(now time.Time) (changes []Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.ready:
	default:
		return nil
	}
	for p, d := range f.dirty {
		online := len(f.users[p]) > 0
		if !online && f.shown[p] && now.Sub(d.since) < f.o.Grace {
			continue
		}
		delete(f.dirty, p)
		if online == f.shown[p] {
			continue
		}
		if online {
			f.shown[p] = true
		} else {
			delete(f.shown, p)
			f.online[p.namespace]--
		}
		changes = append(changes, Change{User: p.user, Namespace: p.namespace, Online: online, At: d.at})
	}
	return changes
}

// Online tells whether a user is online in a namespace; one who left within the grace still is.
func (f *Fold) Online(ns topics.Namespace, user string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := place{ns, user}
	return len(f.users[p]) > 0 || f.shown[p]
}

// Connected tells whether a user has an open session in a namespace; unlike Online it is false at once after the last.
func (f *Fold) Connected(ns topics.Namespace, user string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.users[place{ns, user}]) > 0
}

// Count is how many sessions a user has in a namespace.
func (f *Fold) Count(ns topics.Namespace, user string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.users[place{ns, user}])
}

// Session is a live session as the log shows it.
type Session struct {
	ID, Node  string // Node is the name of the node that serves it
	Namespace topics.Namespace
	Since     int64 // record time, Unix milliseconds
	Channels  []string
}

// Sessions lists a user's live sessions on all nodes, oldest first.
func (f *Fold) Sessions(user string) (list []Session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ns := range topics.Namespaces() {
		for id, s := range f.users[place{ns, user}] {
			list = append(list, Session{ID: id, Node: s.name, Namespace: s.at.namespace, Since: s.since, Channels: s.channels})
		}
	}
	slices.SortFunc(list, func(a, b Session) int { return cmp.Or(cmp.Compare(a.Since, b.Since), cmp.Compare(a.ID, b.ID)) })
	return list
}

// Connections is how many sessions a namespace has on all nodes.
func (f *Fold) Connections(ns topics.Namespace) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.totals[ns]
}

// OnlineUsers is how many users are online in a namespace.
func (f *Fold) OnlineUsers(ns topics.Namespace) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.online[ns]
}
