package edge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/topics"
)

const (
	// resumeWait bounds how long a session that comes back waits for the projection to have what it missed.
	resumeWait = 2 * time.Second
	// maxMissed bounds the events that a session is given at once; whoever missed more reads the inbox.
	maxMissed = 1000
)

// held is what came for a session while it was being given what it had missed: the bytes for each wire.
type held struct {
	frames [wires][]byte
	marks  [wires]mark
	ev     *topics.Event // of the feed; nil: it is shown whatever happens
}

func (h *held) frame(s style) []byte { return h.frames[s.wire] }

func (h *held) mark(s style) mark { return h.marks[s.wire] }

// suspension holds back what comes for a session. It is safe for concurrent use.
type suspension struct {
	limit int // bytes

	mu    sync.Mutex
	held  []*held
	size  int
	ended bool
}

// suspend has everything wait that is sent to the session from now on.
func (e *Edge) suspend(s *session) *suspension {
	p := &suspension{limit: e.o.MaxQueueBytes}
	s.suspended.Store(p)
	return p
}

// hold keeps what is sent, unless the session goes on already. Frames are made here and now: whoever made the message
// uses it for other sessions.
func (p *suspension) hold(s *session, f framer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	h := &held{}
	if m, ok := f.(*message); ok {
		h.ev = m.ev
	}
	st := s.style
	for w := range wires {
		st.wire = w
		h.frames[w], h.marks[w] = f.frame(st), f.mark(st)
	}
	p.size += len(h.frames[wirePlain])
	if p.size > p.limit {
		p.held = nil
		s.out.close(closeTooSlow, "more came than can be held back; it may resume")
		return true
	}
	p.held = append(p.held, h)
	return true
}

// release sends what was held back, but for events that the session has been given, and lets the session go on.
func (p *suspension) release(s *session, given func(*topics.Event) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.held {
		if h.ev == nil || !given(h.ev) {
			s.out.deliver(h, s.style)
		}
	}
	p.held, p.ended = nil, true
	s.suspended.Store(nil)
}

func nothing(*topics.Event) bool { return false }

// missed are the events that a session has not got.
type missed struct {
	list []inbox.Entry
	to   map[topics.Topic][]int64 // everything below is in list, or the session has it
}

// has tells whether an event stands among the topics and audiences that were looked through.
func (m *missed) has(ev *topics.Event) bool {
	v := m.to[ev.Topic]
	return int(ev.Partition) < len(v) && ev.Offset < v[ev.Partition]
}

// lookUp finds what a session missed: of each topic what is for its audiences, from a cursor up to what may have been sent
// before the session was suspended. The latest is taken from memory, what stands before that from the feed.
func (e *Edge) lookUp(from cursor, audiences map[topics.Topic][]string) (*missed, error) {
	ctx, cancel := context.WithTimeout(e.working, resumeWait)
	defer cancel()
	m := &missed{to: make(map[topics.Topic][]int64)}
	if err := e.verify(ctx, from, audiences); err != nil {
		return nil, err
	}
	for t := range audiences {
		m.to[t] = e.tail.Begun(nil, t)
	}
	bytes := e.o.MaxQueueBytes / 4 // the rest of the queue is for what comes meanwhile, and for second names
	for t, of := range audiences {
		list, err := e.lookUpTopic(ctx, t, of, from.nexts(t), m.to[t], maxMissed-len(m.list), bytes)
		if err != nil {
			return nil, err
		}
		for _, x := range list {
			bytes -= len(x.Value)
		}
		if m.list = append(m.list, list...); len(m.list) > maxMissed || bytes < 0 {
			return nil, inbox.ErrTooMuch
		}
	}
	m.list = inOrderOfTime(m.list)
	return m, nil
}

func (e *Edge) lookUpTopic(ctx context.Context, t topics.Topic, audiences []string, from, to []int64, entries, bytes int) ([]inbox.Entry, error) {
	for !e.tail.Passed(t, to) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	var latest []inbox.Entry
	wanted := concerning(t, audiences)
	older, ends := inbox.Span{Topic: t, Audiences: audiences, From: slices.Clone(from), To: slices.Clone(from)}, make(map[int32]int64)
	for p := range from {
		if from[p] >= to[p] || !concernsPartition(t, audiences, int32(p), int32(len(to))) {
			continue
		}
		list, low := e.tail.Recent(t, int32(p), from[p], to[p], wanted)
		for _, ev := range list {
			latest = append(latest, entryOf(ev, audiences))
		}
		if low > from[p] {
			older.To[p], ends[int32(p)] = low, low
		}
	}
	if len(ends) == 0 {
		return latest, nil
	}
	if err := e.o.Inbox.Await(ctx, t, ends); err != nil {
		return nil, err
	}
	list, err := e.o.Inbox.Feed(ctx, older, entries, bytes)
	return append(list, latest...), err
}

// concerning tells, by the key alone, which events of a topic are for the audiences; conversations are their users'.
func concerning(t topics.Topic, audiences []string) func(*topics.Event) bool {
	if t != topics.Messages {
		return func(ev *topics.Event) bool { return slices.Contains(audiences, string(ev.Key)) }
	}
	user, _ := topics.ParseAudience(audiences[0]) // made by UserKey
	return func(ev *topics.Event) bool {
		a, err := topics.ParseAudience(string(ev.Key))
		return err == nil && a.Has(user.A)
	}
}

// entryOf is what the feed has of an event.
func entryOf(ev *topics.Event, audiences []string) inbox.Entry {
	x := inbox.Entry{Topic: ev.Topic, Partition: ev.Partition, Offset: ev.Offset, Time: ev.Time, Audience: string(ev.Key), Type: ev.Type, Value: ev.Data()}
	if ev.Topic == topics.Messages {
		x.Audience = audiences[0]
	}
	return x
}

// inOrderOfTime merges partitions by record time; each keeps its own order, whatever its times.
func inOrderOfTime(list []inbox.Entry) []inbox.Entry {
	type part struct {
		topic topics.Topic
		id    int32
	}
	type dated struct {
		inbox.Entry
		at int64
	}
	latest, all := make(map[part]int64), make([]dated, len(list))
	for i, x := range list {
		of := part{x.Topic, x.Partition}
		latest[of] = max(latest[of], x.Time)
		all[i] = dated{x, latest[of]}
	}
	slices.SortStableFunc(all, func(a, b dated) int { return cmp.Compare(a.at, b.at) })
	for i, x := range all {
		list[i] = x.Entry
	}
	return list
}

// comeback is what a client that comes back claims.
type comeback struct {
	claims   bool     // it claims an earlier session
	pid      string   // that session's, where it is known
	offset   string   // from which on it has nothing; empty: nothing can be given
	channels []string // that the session had
}

// recall finds the session that a Socket.IO client claims ("Connection state recovery").
func (e *Edge) recall(ns topics.Namespace, user, pid, offset string) comeback {
	if pid == "" {
		return comeback{}
	}
	channels, known := e.fold.Recall(pid, user, ns)
	if !known || offset == "" {
		return comeback{claims: true}
	}
	return comeback{claims: true, pid: pid, offset: offset, channels: channels}
}

// rejoin makes a session reachable that comes back: first it gets what it missed, then what came meanwhile, then it goes
// on. welcome is told whether that was possible, and where the session stands. It reports false where the session has ended
// before it could join.
func (e *Edge) rejoin(s *session, back comeback, welcome func(recovered any, offset string)) bool {
	p := e.suspend(s)
	if !e.hub.join(s, func() {}) {
		return false
	}
	for _, name := range back.channels {
		if s.mayJoin(name) {
			e.hub.subscribe(s, name)
		}
	}
	e.say(s) // its token may allow fewer channels than it had
	start := e.offset(s.namespace, nil)
	from, m, err := e.missedBy(s, back.offset)
	e.metrics.resumed.WithLabelValues(outcomeOf(err)).Inc()
	if err != nil {
		e.o.Logger.Info("session not recovered", "session", s.id, "user", s.user, "namespace", s.namespace, "reason", outcomeOf(err))
		e.forgetState(s)
		welcome(false, start)
		p.release(s, nothing)
		return true
	}
	welcome(true, back.offset) // not a later one: what follows may not arrive
	for _, x := range m.list {
		from[x.Topic][x.Partition] = pipeline.PointAt(x.Offset+1, x.Time)
		e.give(s, x, e.offsetOf(s.namespace, from))
	}
	p.release(s, m.has)
	return true
}

// forgetState makes the session one that has nothing of an earlier one.
func (e *Edge) forgetState(s *session) {
	for _, name := range e.hub.channelsOf(s) {
		e.hub.unsubscribe(s, name)
	}
	e.hub.renew(s, randomID())
	e.say(s)
}

// missedBy reads what a session missed since an offset, in everything that it gets.
func (e *Edge) missedBy(s *session, offset string) (from cursor, m *missed, err error) {
	if from, err = e.parseOffset(s.namespace, offset); err != nil {
		return nil, nil, err
	}
	user := []string{topics.UserKey(s.user)}
	audiences := map[topics.Topic][]string{topics.Messages: user}
	if s.namespace == topics.Dashboard {
		broadcasts := []string{topics.EveryoneKey}
		for _, name := range e.hub.channelsOf(s) {
			broadcasts = append(broadcasts, topics.ChannelKey(name))
		}
		audiences = map[topics.Topic][]string{topics.Notifications: user, topics.Broadcasts: broadcasts}
	}
	m, err = e.lookUp(from, audiences)
	return from, m, err
}

// catchUp subscribes a session to channels and gives it what they had since an offset.
func (e *Edge) catchUp(s *session, offset string, subscribe func() []string) (err error) {
	p, given := e.suspend(s), nothing
	defer func() {
		p.release(s, given)
		e.metrics.resumed.WithLabelValues(outcomeOf(err)).Inc()
	}()
	var audiences []string
	for _, name := range subscribe() {
		audiences = append(audiences, topics.ChannelKey(name))
	}
	from, err := e.parseOffset(s.namespace, offset)
	if err != nil || len(audiences) == 0 {
		return err
	}
	m, err := e.lookUp(from, map[topics.Topic][]string{topics.Broadcasts: audiences})
	if err != nil {
		return err
	}
	for _, x := range m.list {
		e.give(s, x, "") // where the session stands in all else is further on
	}
	given = func(ev *topics.Event) bool { return m.has(ev) && slices.Contains(audiences, string(ev.Key)) }
	return nil
}

// give sends an event that the session missed.
func (e *Edge) give(s *session, x inbox.Entry, offset string) {
	event, alias, reached := x.Type, "", true
	switch x.Type {
	case topics.TypeMessageRead:
		event, reached = "message:read", false
	case topics.TypeMessage:
		var of struct {
			SenderID, ReceiverID string
		}
		_ = json.Unmarshal(x.Value, &of) // it was valid when it was stored
		if reached = of.ReceiverID == s.user; of.SenderID == s.user {
			event = "message:sent"
		} else {
			event, alias = "message:new", "MESSAGE_BROADCAST"
		}
	}
	m := e.plain(s.namespace, event, x.Value)
	m.alias, m.offset = alias, offset
	s.out.deliver(m, s.style)
	if reached {
		e.delivered(delivery{x.Topic, x.Partition, x.Offset, x.Time, x.Type, x.Audience}, 1)
	}
}

// outcomeOf names what became of a session's asking for what it missed, in metrics and in the event log.
func outcomeOf(err error) string {
	switch {
	case err == nil:
		return "recovered"
	case errors.Is(err, errOffset):
		return "unknown_offset"
	case errors.Is(err, inbox.ErrTrimmed):
		return "too_old"
	case errors.Is(err, inbox.ErrTooMuch):
		return "too_much"
	case errors.Is(err, context.DeadlineExceeded):
		return "inbox_behind"
	}
	return "inbox_away"
}
