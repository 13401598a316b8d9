package edge

import (
	"runtime/debug"
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
		if !ev.Stray {
			e.routeOne(ev, now)
		}
	}
}

// routeOne hands one event on. A panic costs that event alone: a batch that is routed again would be shown twice.
func (e *Edge) routeOne(ev *topics.Event, now time.Time) {
	defer func() {
		if p := recover(); p != nil { // its value may quote contents; the stack does not
			e.o.Logger.Error("an event could not be shown", "topic", ev.Topic, "partition", ev.Partition, "offset", ev.Offset, "stack", string(debug.Stack()))
		}
	}()
	e.ids.note(ev)
	if user := topics.UserOf(ev.Source); ev.Type == topics.TypeMessage && user != "" {
		e.rates.shown(user, ev.NexusID, now)
	}
	a, err := topics.ParseAudience(string(ev.Key))
	if err != nil || !e.hub.concerns(a) || topics.Valid(ev) != nil {
		return
	}
	if ev.Duplicate {
		e.routeDuplicate(ev)
		return
	}
	if sessions := e.deliver(ev); sessions > 0 {
		e.delivered(deliveryOf(ev), sessions)
	}
	if users := stats.Affects(ev); users != nil {
		e.stats.changed(users, ev)
	}
}

// routeDuplicate shows a repeat to its sender alone.
func (e *Edge) routeDuplicate(ev *topics.Event) {
	if ev.Type == topics.TypeMessage {
		m := e.feed(topics.Messaging, "message:sent", ev, `"duplicate":true`)
		m.ev = nil // the feed has the first one alone
		e.hub.toUser(ev.Body.Text("senderId"), m)
	}
}

// deliver hands an event to the sessions it is for and tells how many of those whom it is to reach have it.
func (e *Edge) deliver(ev *topics.Event) (sessions int) {
	switch ev.Type {
	case topics.TypeMessage:
		return e.deliverMessage(ev)
	case topics.TypeMessageRead:
		m := e.feed(topics.Messaging, "message:read", ev)
		for _, user := range slices.Compact([]string{ev.Audience.A, ev.Audience.B}) {
			e.hub.toUser(user, m)
		}
	case topics.TypeNotification, topics.TypeActivity, topics.TypeAnnouncement:
		return e.deliverNotice(ev)
	case topics.TypeNotificationRead:
		e.hub.toUser(ev.Audience.A, e.plain(topics.Dashboard, "notification:read", ev.Data()))
	case topics.TypeNotificationDeleted:
		e.hub.toUser(ev.Audience.A, e.plain(topics.Dashboard, "notification:deleted", ev.Data()))
	case topics.TypeTypingStart, topics.TypeTypingStop:
		e.deliverTyping(ev)
	}
	return 0
}

// deliverMessage: the source's sessions get message:sent, the other participant's message:new.
func (e *Edge) deliverMessage(ev *topics.Event) int {
	sender, receiver := ev.Body.Text("senderId"), ev.Body.Text("receiverId")
	sent := e.hub.toUser(sender, e.feed(topics.Messaging, "message:sent", ev))
	if receiver == sender {
		return sent
	}
	m := e.feed(topics.Messaging, "message:new", ev)
	m.alias = "MESSAGE_BROADCAST"
	return e.hub.toUser(receiver, m)
}

func (e *Edge) deliverNotice(ev *topics.Event) int {
	m := e.feed(topics.Dashboard, ev.Type, ev)
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

// delivery is an event that reached sessions here.
type delivery struct {
	topic     topics.Topic
	partition int32
	offset    int64
	time      int64 // record time, Unix milliseconds
	typ       string
	key       string // of the delivery: the user's, or the event's own
}

func deliveryOf(ev *topics.Event) delivery {
	d := delivery{ev.Topic, ev.Partition, ev.Offset, ev.Time, ev.Type, string(ev.Key)}
	if ev.Type == topics.TypeMessage {
		d.key = topics.UserKey(ev.Body.Text("receiverId"))
	}
	return d
}

// delivered appends, for the statistics, that an event stands in the queues of sessions here. Nobody waits for that.
func (e *Edge) delivered(d delivery, sessions int) {
	latency := max(0, time.Now().UnixMilli()-d.time) // the broker's clock may be ahead
	e.metrics.latency.WithLabelValues(d.typ).Observe(float64(latency) / 1000)
	// Written by hand: there is one for every event that reaches anybody.
	at := make([]byte, 0, 48)
	at = append(append(at, d.topic...), '/')
	at = append(strconv.AppendInt(at, int64(d.partition), 10), '/')
	at = strconv.AppendInt(at, d.offset, 10)
	b := make([]byte, 0, 192)
	b = append(append(append(b, `{"event":"`...), d.typ...), `","topic":"`...)
	b = append(append(b, d.topic...), `","partition":`...)
	b = append(strconv.AppendInt(b, int64(d.partition), 10), `,"offset":`...)
	b = append(strconv.AppendInt(b, d.offset, 10), `,"node":`...)
	b = append(append(b, e.nameJSON...), `,"sessions":`...)
	b = append(strconv.AppendInt(b, int64(sessions), 10), `,"latencyMs":`...)
	b = append(strconv.AppendInt(b, latency, 10), '}')
	e.appendLater(topics.New(topics.Deliveries, d.key, topics.Meta{Type: topics.TypeDeliveryWebSocket, Source: e.source(), ID: string(at)}, b))
}

func (e *Edge) deliverTyping(ev *topics.Event) {
	from := ev.Body.Text("userId")
	to := ev.Audience.Other(from)
	if e.hub.hasUser(topics.Messaging, to) {
		e.typing.shown(typingPair{from, to}, ev.Type == topics.TypeTypingStart, ev.Data())
	}
}

func (e *Edge) sendTyping(to string, start bool, data []byte) {
	event := "typing:stop"
	if start {
		event = "typing:start"
	}
	m := e.plain(topics.Messaging, event, data)
	m.alias = "TYPING_INDICATOR"
	e.hub.toUser(to, m)
}

// presenceChanged shows who came and who went (presence.Options.Changed).
func (e *Edge) presenceChanged(changes []presence.Change) {
	for _, ns := range []topics.Namespace{topics.Dashboard, topics.Messaging} {
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
	if c.Namespace == topics.Dashboard {
		return e.plain(c.Namespace, "user_status", topics.Fields("userId", c.User, "status", status, "timestamp", at))
	}
	return e.plain(c.Namespace, "presence:"+status, topics.Fields("userId", c.User, "timestamp", at))
}

// plain is a message that is not resumed.
func (e *Edge) plain(ns topics.Namespace, event string, data []byte) *message {
	return &message{namespace: ns, event: event, data: data, threshold: e.o.CompressionThreshold}
}

// feed is a message of the feed, with the offset at which a session stands after it. Only what has an id of its own
// shows one.
func (e *Edge) feed(ns topics.Namespace, event string, ev *topics.Event, extra ...string) *message {
	m := e.plain(ns, event, ev.Data(extra...))
	m.ev, m.offset = ev, e.offset(ns, ev)
	return m
}
