package live

import (
	"runtime/debug"
	"slices"
	"time"

	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

// Route hands what the tail has read to the sessions concerned. The key alone decides whether a record is looked into.
func (v *Live) Route(b pipeline.Batch) {
	for _, ev := range b.Events {
		if !ev.Stray {
			v.routeOne(ev)
		}
	}
}

// routeOne hands one event on. A panic costs that event alone: a batch that is routed again would be shown twice.
func (v *Live) routeOne(ev *topics.Event) {
	defer func() {
		if p := recover(); p != nil { // its value may quote contents; the stack does not
			v.o.Logger.Error("an event could not be shown", "topic", ev.Topic, "partition", ev.Partition, "offset", ev.Offset, "stack",
				string(debug.Stack()))
		}
	}()
	v.o.Seen(ev)
	a, err := topics.ParseAudience(string(ev.Key))
	if err != nil || !v.o.Sessions.Concerns(a) || topics.Valid(ev) != nil {
		return
	}
	frames := ev.Kind().Frames
	for i := range frames {
		v.show(&frames[i], ev)
	}
	if ev.Duplicate {
		return
	}
	if users := stats.Affects(ev); users != nil {
		v.stats.changed(users, ev)
	}
}

// show sends a frame of an event's kind to the sessions here that are to get it.
func (v *Live) show(f *topics.Frame, ev *topics.Event) {
	switch a := ev.Audience; {
	case ev.Duplicate && !f.Repeated:
	case ev.Type == topics.TypeTypingStart, ev.Type == topics.TypeTypingStop:
		v.typed(f, ev)
	case a.Kind == topics.User:
		m := v.messageOf(f, ev)
		v.shown(f, ev, string(ev.Key), v.o.Sessions.ToUser(a.A, m))
	case a.Kind == topics.Channel:
		m := v.messageOf(f, ev)
		v.shown(f, ev, string(ev.Key), v.o.Sessions.ToChannel(a.A, m))
	case a.Kind == topics.Everyone:
		m := v.messageOf(f, ev)
		v.shown(f, ev, string(ev.Key), v.o.Sessions.ToAll(m))
	case a.Kind == topics.Conversation:
		v.showConversation(f, ev)
	}
}

// showConversation sends a frame to those of a conversation's two users who are to get it. To whom alone it is to reach, that one's
// key is the delivery's.
func (v *Live) showConversation(f *topics.Frame, ev *topics.Event) {
	k, actor, a := ev.Kind(), ev.Actor(), ev.Audience
	var m *wire.Message
	for i, user := range [...]string{a.A, a.B} {
		if i == 1 && a.B == a.A || k.FrameTo(user, actor) != f || !v.o.Sessions.HasUser(f.Namespace, user) {
			continue
		}
		if m == nil {
			m = v.messageOf(f, ev)
		}
		v.shown(f, ev, topics.UserKey(user), v.o.Sessions.ToUser(user, m))
	}
}

// shown counts an event as delivered to sessions that it is to reach: in a conversation with oneself, its sender's.
func (v *Live) shown(f *topics.Frame, ev *topics.Event, key string, sessions int) {
	a := ev.Audience
	self := a.Kind == topics.Conversation && a.A == a.B && slices.ContainsFunc(ev.Kind().Frames, reaches)
	if sessions > 0 && !ev.Duplicate && (f.Reached || self) {
		v.delivered(delivery{ev.At(), ev.Time, ev.Type, key}, sessions)
	}
}

func reaches(f topics.Frame) bool { return f.Reached }

// messageOf is a frame with the data of its event. Of the feed it has the offset at which a session stands after it; a repeat is
// not of the feed, which has the first one alone.
func (v *Live) messageOf(f *topics.Frame, ev *topics.Event) *wire.Message {
	var m *wire.Message
	if ev.Duplicate {
		m = v.framed(f, ev.RepeatData())
	} else {
		m = v.framed(f, ev.Data())
		if ev.Kind().Feed {
			m.Of = ev
		}
	}
	if ev.Kind().Feed {
		m.Offset = v.offset(f.Namespace, ev)
	}
	return m
}

// delivery is an event that reached sessions here.
type delivery struct {
	at   topics.Place
	time int64 // record time, Unix milliseconds
	typ  string
	key  string // of the delivery: the user's, or the event's own
}

// delivered appends, for the statistics, that an event stands in the queues of sessions here. Nobody waits for that.
func (v *Live) delivered(d delivery, sessions int) {
	latency := max(0, time.Now().UnixMilli()-d.time) // the broker's clock may be ahead
	v.metrics.latency.WithLabelValues(d.typ).Observe(float64(latency) / 1000)
	v.o.Post(topics.Delivery{Event: d.typ, At: d.at, Node: v.o.NodeName,
		Sessions: int64(sessions), LatencyMs: latency}.ToSessions(d.key, v.o.Sessions.Source()))
}

// typed shows that a user types to another, as long as that holds.
func (v *Live) typed(f *topics.Frame, ev *topics.Event) {
	from := ev.Actor()
	to := ev.Audience.Other(from)
	if v.o.Sessions.HasUser(f.Namespace, to) {
		v.typing.shown(typingPair{from, to}, topics.ReadTyping(ev).IsTyping, f, ev.Data())
	}
}

// showTyping sends the receiver what the log says of a user who types, or what follows from it.
func (v *Live) showTyping(to string, f *topics.Frame, data []byte) {
	v.o.Sessions.ToUser(to, v.framed(f, data))
}

// PresenceChanged shows who came and who went (presence.Options.Changed).
func (v *Live) PresenceChanged(changes []presence.Change) {
	for _, ns := range topics.Namespaces() {
		var ms []*wire.Message
		var users []string
		for _, c := range changes {
			if c.Namespace == ns {
				event, data := topics.PresenceFrame(ns, c.User, c.Online, c.At)
				ms, users = append(ms, v.plain(ns, event, data)), append(users, c.User)
			}
		}
		if len(ms) > 0 {
			v.o.Sessions.ToOthers(ns, ms, users)
		}
	}
}
