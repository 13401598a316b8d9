package edge

import (
	"encoding/base64"
	"encoding/binary"
	"slices"
	"strconv"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

// route hands what the tail has read to the sessions concerned. The key alone decides whether a record is looked into.
func (e *Edge) route(b pipeline.Batch) {
	now := time.Now()
	for _, ev := range b.Events {
		if ev.Stray {
			continue
		}
		e.ids.note(ev)
		if user := topics.UserOf(ev.Source); ev.Type == topics.Message && user != "" {
			e.rates.shown(user, ev.NexusID, now)
		}
		a, err := topics.ParseAudience(string(ev.Key))
		if err != nil || !e.hub.concerns(a) || topics.Valid(ev) != nil {
			continue
		}
		if ev.Duplicate {
			e.routeDuplicate(ev)
			continue
		}
		if sessions := e.deliver(ev); sessions > 0 {
			e.delivered(ev, sessions)
		}
		if users := stats.Affects(ev); users != nil {
			e.stats.changed(users, ev)
		}
	}
}

// routeDuplicate shows a repeat to its sender alone.
func (e *Edge) routeDuplicate(ev *topics.Event) {
	if ev.Type == topics.Message {
		e.hub.toUser(ev.Body.Text("senderId"), e.feed(presence.Messaging, "message:sent", ev, `"duplicate":true`))
	}
}

// deliver hands an event to the sessions it is for and tells how many of those whom it is to reach have it.
func (e *Edge) deliver(ev *topics.Event) (sessions int) {
	switch ev.Type {
	case topics.Message:
		return e.deliverMessage(ev)
	case topics.MessageRead:
		m := e.feed(presence.Messaging, "message:read", ev)
		for _, user := range slices.Compact([]string{ev.Audience.A, ev.Audience.B}) {
			e.hub.toUser(user, m)
		}
	case topics.Notification, topics.Activity, topics.Announcement:
		return e.deliverNotice(ev)
	case topics.NotificationRead:
		e.hub.toUser(ev.Audience.A, e.plain(presence.Dashboard, "notification:read", ev.Data(false)))
	case topics.NotificationDeleted:
		e.hub.toUser(ev.Audience.A, e.plain(presence.Dashboard, "notification:deleted", ev.Data(false)))
	case topics.TypingStart, topics.TypingStop:
		e.deliverTyping(ev)
	}
	return 0
}

// deliverMessage: the source's sessions get message:sent, the other participant's message:new.
func (e *Edge) deliverMessage(ev *topics.Event) int {
	sender, receiver := ev.Body.Text("senderId"), ev.Body.Text("receiverId")
	sent := e.hub.toUser(sender, e.feed(presence.Messaging, "message:sent", ev))
	if receiver == sender {
		return sent
	}
	m := e.feed(presence.Messaging, "message:new", ev)
	m.alias = "MESSAGE_BROADCAST"
	return e.hub.toUser(receiver, m)
}

func (e *Edge) deliverNotice(ev *topics.Event) int {
	m := e.feed(presence.Dashboard, ev.Type, ev)
	switch ev.Audience.Kind {
	case topics.User:
		return e.hub.toUser(ev.Audience.A, m)
	case topics.Channel:
		return e.hub.toChannel(ev.Audience.A, m)
	case topics.Everyone:
		return e.hub.toAll(m)
	}
	return 0
}

// delivered appends, for the statistics, that an event stands in the queues of sessions here. Nobody waits for that.
func (e *Edge) delivered(ev *topics.Event, sessions int) {
	key := string(ev.Key)
	if ev.Type == topics.Message {
		key = topics.UserKey(ev.Body.Text("receiverId"))
	}
	latency := max(0, time.Now().UnixMilli()-ev.Time) // the broker's clock may be ahead
	e.metrics.latency.WithLabelValues(ev.Type).Observe(float64(latency) / 1000)
	// Written by hand: there is one for every event that reaches anybody.
	at := make([]byte, 0, 48)
	at = append(append(at, ev.Topic...), '/')
	at = append(strconv.AppendInt(at, int64(ev.Partition), 10), '/')
	at = strconv.AppendInt(at, ev.Offset, 10)
	b := make([]byte, 0, 192)
	b = append(append(append(b, `{"event":"`...), ev.Type...), `","topic":"`...)
	b = append(append(b, ev.Topic...), `","partition":`...)
	b = append(strconv.AppendInt(b, int64(ev.Partition), 10), `,"offset":`...)
	b = append(strconv.AppendInt(b, ev.Offset, 10), `,"node":`...)
	b = append(append(b, e.nameJSON...), `,"sessions":`...)
	b = append(strconv.AppendInt(b, int64(sessions), 10), `,"latencyMs":`...)
	b = append(strconv.AppendInt(b, latency, 10), '}')
	e.appendLater(topics.New(topics.Deliveries, key, topics.Meta{Type: topics.DeliveryWebSocket, Source: e.source(), ID: string(at)}, b))
}

// typingPair is who types to whom.
type typingPair struct{ from, to string }

// typingFor is how long a user types after the last typing.start, if no typing.stop comes.
const typingFor = 6 * time.Second

func (e *Edge) deliverTyping(ev *topics.Event) {
	from := ev.Body.Text("userId")
	to := ev.Audience.Other(from)
	if !e.hub.hasUser(presence.Messaging, to) {
		return
	}
	pair := typingPair{from, to}
	e.mu.Lock()
	if t := e.typing[pair]; t != nil {
		t.Stop()
		delete(e.typing, pair)
	}
	if ev.Type == topics.TypingStart && !e.draining.Load() {
		e.typing[pair] = time.AfterFunc(typingFor, func() { e.typingEnds(pair) })
	}
	e.mu.Unlock()
	e.sendTyping(to, ev.Type == topics.TypingStart, ev.Data(false))
}

func (e *Edge) typingEnds(pair typingPair) {
	e.mu.Lock()
	delete(e.typing, pair)
	e.mu.Unlock()
	e.sendTyping(pair.to, false, topics.Fields("userId", pair.from, "isTyping", false, "timestamp", topics.FormatTime(time.Now().UnixMilli())))
}

func (e *Edge) sendTyping(to string, start bool, data []byte) {
	event := "typing:stop"
	if start {
		event = "typing:start"
	}
	m := e.plain(presence.Messaging, event, data)
	m.alias = "TYPING_INDICATOR"
	e.hub.toUser(to, m)
}

// presenceChanged shows who came and who went (presence.Options.Changed).
func (e *Edge) presenceChanged(changes []presence.Change) {
	for _, ns := range []presence.Namespace{presence.Dashboard, presence.Messaging} {
		var ms []*message
		var users []string
		for _, c := range changes {
			if c.Namespace == ns {
				ms, users = append(ms, e.status(c)), append(users, c.User)
			}
		}
		if len(ms) > 0 {
			e.hub.toOthers(ns, ms, users)
		}
	}
}

func (e *Edge) status(c presence.Change) *message {
	status, at := "offline", topics.FormatTime(c.At)
	if c.Online {
		status = "online"
	}
	if c.Namespace == presence.Dashboard {
		return e.plain(c.Namespace, "user_status", topics.Fields("userId", c.User, "status", status, "timestamp", at))
	}
	return e.plain(c.Namespace, "presence:"+status, topics.Fields("userId", c.User, "timestamp", at))
}

// plain is a message that is not resumed.
func (e *Edge) plain(ns presence.Namespace, event string, data []byte) *message {
	return &message{namespace: ns, event: event, data: data, threshold: e.o.CompressionThreshold}
}

// feed is a message of the feed, with the offset at which a session stands after it. Only what has an id of its own
// shows one.
func (e *Edge) feed(ns presence.Namespace, event string, ev *topics.Event, extra ...string) *message {
	m := e.plain(ns, event, ev.Data(ev.Type != topics.MessageRead, extra...))
	m.offset = e.offset(ns, ev)
	return m
}

// feedTopics are the topics behind each namespace's feed.
var feedTopics = map[presence.Namespace][]topics.Topic{
	presence.Dashboard: {topics.Notifications, topics.Broadcasts},
	presence.Messaging: {topics.Messages},
}

// offset is where a session of a namespace stands once it has got ev (nil: what the tail has passed): the topics'
// identities and the tail's position in each of their partitions. To clients it is opaque.
func (e *Edge) offset(ns presence.Namespace, ev *topics.Event) string {
	b := make([]byte, 0, 64)
	var v []int64
	for _, t := range feedTopics[ns] {
		id := e.topicIDs[t]
		b = append(b, id[:]...)
		v = e.tail.Vector(v[:0], t)
		b = binary.AppendUvarint(b, uint64(len(v)))
		for p, next := range v {
			if ev != nil && ev.Topic == t && int(ev.Partition) == p {
				next = ev.Offset + 1
			}
			b = binary.AppendUvarint(b, uint64(next))
		}
	}
	return base64.RawURLEncoding.EncodeToString(b)
}
