package live

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nexus/nexus/edge/session"
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
func (v *Live) lookUp(from cursor, audiences map[topics.Topic][]string) (*missed, error) {
	ctx, cancel := context.WithTimeout(v.o.Working, resumeWait)
	defer cancel()
	m := &missed{to: make(map[topics.Topic][]int64)}
	if err := v.verify(ctx, from, audiences); err != nil {
		return nil, err
	}
	for t := range audiences {
		m.to[t] = v.o.Tail.Begun(nil, t)
	}
	bytes := v.o.MaxQueueBytes / 4 // the rest of the queue is for what comes meanwhile, and for second names
	for t, of := range audiences {
		list, err := v.lookUpTopic(ctx, t, of, from.nexts(t), m.to[t], maxMissed-len(m.list), bytes)
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

func (v *Live) lookUpTopic(ctx context.Context, t topics.Topic, audiences []string, from, to []int64, entries, bytes int) ([]inbox.Entry,
	error) {
	if err := v.o.Tail.Await(ctx, t, to); err != nil {
		return nil, err
	}
	var latest []inbox.Entry
	wanted := concerning(t, audiences)
	older, ends := inbox.Span{Topic: t, Audiences: audiences, From: slices.Clone(from), To: slices.Clone(from)}, make(topics.Ends)
	for p := range from {
		of := t.Partition(int32(p))
		if from[p] >= to[p] || !concernsPartition(of, audiences, int32(len(to))) {
			continue
		}
		list, low := v.o.Tail.Recent(of, from[p], to[p], wanted)
		for _, ev := range list {
			latest = append(latest, entryOf(ev, audiences))
		}
		if low > from[p] {
			older.To[p], ends[of] = low, low
		}
	}
	if len(ends) == 0 {
		return latest, nil
	}
	if err := v.o.Inbox.Await(ctx, ends); err != nil {
		return nil, err
	}
	list, err := v.o.Inbox.Feed(ctx, older, entries, bytes)
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
	x := inbox.Entry{At: ev.At(), Time: ev.Time, Audience: string(ev.Key), Type: ev.Type,
		Value: ev.Data()}
	if ev.Topic == topics.Messages {
		x.Audience = audiences[0]
	}
	return x
}

// inOrderOfTime merges partitions by record time; each keeps its own order, whatever its times.
func inOrderOfTime(list []inbox.Entry) []inbox.Entry {
	type dated struct {
		inbox.Entry
		at int64
	}
	latest, all := make(map[topics.Partition]int64), make([]dated, len(list))
	for i, x := range list {
		of := x.At.Partition
		latest[of] = max(latest[of], x.Time)
		all[i] = dated{x, latest[of]}
	}
	slices.SortStableFunc(all, func(a, b dated) int { return cmp.Compare(a.at, b.at) })
	for i, x := range all {
		list[i] = x.Entry
	}
	return list
}

// rejoin makes a session reachable that comes back: first it gets what it missed, then what came meanwhile, then it goes
// on. welcome is told whether that was possible, and where the session stands. It reports false where the session has ended
// before it could join.
func (v *Live) rejoin(s *session.Session, back session.Comeback, welcome func(recovered *bool, offset string)) bool {
	p := s.Suspend(v.o.MaxQueueBytes)
	if !v.o.Sessions.Join(s, func() {}) {
		return false
	}
	for _, name := range back.Channels {
		if s.MayJoin(name) {
			v.o.Sessions.Subscribe(s, name)
		}
	}
	v.o.Sessions.Say(s) // its token may allow fewer channels than it had
	start := v.offset(s.Namespace, nil)
	from, m, err := v.missedBy(s, back.Offset)
	v.metrics.resumed.WithLabelValues(outcomeOf(err)).Inc()
	if err != nil {
		v.o.Logger.Info("session not recovered", "session", s.ID, "user", s.User, "namespace", s.Namespace, "reason", outcomeOf(err))
		v.o.Sessions.Forget(s)
		welcome(new(bool), start)
		p.Release(nothing)
		return true
	}
	recovered := true
	welcome(&recovered, back.Offset) // not a later one: what follows may not arrive
	for _, x := range m.list {
		from[x.At.Topic][x.At.ID] = pipeline.PointAt(x.At.Offset+1, x.Time)
		v.give(s, x, v.offsetOf(s.Namespace, from))
	}
	p.Release(m.has)
	return true
}

// missedBy reads what a session missed since an offset, in everything that it gets.
func (v *Live) missedBy(s *session.Session, offset string) (from cursor, m *missed, err error) {
	if from, err = v.parseOffset(s.Namespace, offset); err != nil {
		return nil, nil, err
	}
	user := []string{topics.UserKey(s.User)}
	audiences := map[topics.Topic][]string{topics.Messages: user}
	if s.Namespace == topics.Dashboard {
		broadcasts := []string{topics.EveryoneKey}
		for _, name := range v.o.Sessions.ChannelsOf(s) {
			broadcasts = append(broadcasts, topics.ChannelKey(name))
		}
		audiences = map[topics.Topic][]string{topics.Notifications: user, topics.Broadcasts: broadcasts}
	}
	m, err = v.lookUp(from, audiences)
	return from, m, err
}

// CatchUp subscribes a session to channels and gives it what they had since an offset; the error says why it could not.
func (v *Live) CatchUp(s *session.Session, offset string, subscribe func() []string) (err error) {
	p, given := s.Suspend(v.o.MaxQueueBytes), nothing
	defer func() {
		p.Release(given)
		v.metrics.resumed.WithLabelValues(outcomeOf(err)).Inc()
	}()
	var audiences []string
	for _, name := range subscribe() {
		audiences = append(audiences, topics.ChannelKey(name))
	}
	from, err := v.parseOffset(s.Namespace, offset)
	if err != nil || len(audiences) == 0 {
		return err
	}
	m, err := v.lookUp(from, map[topics.Topic][]string{topics.Broadcasts: audiences})
	if err != nil {
		return err
	}
	for _, x := range m.list {
		v.give(s, x, "") // where the session stands in all else is further on
	}
	given = func(ev *topics.Event) bool { return m.has(ev) && slices.Contains(audiences, string(ev.Key)) }
	return nil
}

// give sends an event that the session missed: the same frame that show would have sent.
func (v *Live) give(s *session.Session, x inbox.Entry, offset string) {
	k := topics.KindOf(x.Type)
	if k == nil {
		return // of an earlier build that knew more
	}
	f := k.FrameTo(s.User, k.ActorOf(x.Value))
	if f == nil {
		return
	}
	m := v.framed(f, x.Value)
	m.Offset = offset
	s.Out.Deliver(m, s.Style)
	if f.Reached {
		v.delivered(delivery{x.At, x.Time, x.Type, x.Audience}, 1)
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
