// Package stats is the columnar projection: a row for every event of every topic and user it concerns, the per-user
// counts of stats_update, and views that people query. It runs on ClickHouse and, embedded, on SQLite. It never writes
// to the log.
package stats

import (
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// Counts are a user's statistics.
type Counts struct {
	// Connections are the CONNECTION_ACCEPTED notifications, Messages those sent or received, Posts the activities of
	// type post_created, each addressed to the user.
	Connections, Messages, Posts int64
}

// Topics are those the statistics are folded from: all.
func Topics() (list []topics.Topic) {
	for _, s := range topics.Specs() {
		list = append(list, s.Topic)
	}
	return list
}

// Ends are offsets by topic and partition: everything below them.
type Ends map[topics.Topic]map[int32]int64

// Add raises the end of a partition.
func (e Ends) Add(t topics.Topic, partition int32, end int64) {
	if e[t] == nil {
		e[t] = make(map[int32]int64)
	}
	e[t][partition] = max(e[t][partition], end)
}

// reached tells whether positions have passed every end.
func (e Ends) reached(positions Ends) bool {
	for t, ps := range e {
		for p, end := range ps {
			if positions[t][p] < end {
				return false
			}
		}
	}
	return true
}

// The details that Counts are made of, and the two sides of a message.
const (
	detailConnection = "CONNECTION_ACCEPTED"
	detailPost       = "post_created"
	detailSent       = "sent"
	detailReceived   = "received"
)

// typeDeadLetter is the type of every row of topic dead-letters.
const typeDeadLetter = "dead-letter"

// row is one event as it concerns one user; user is empty for what goes to a channel or to all, and for what is about a
// node.
type row struct {
	user, typ, detail, topic string
	part                     int32
	pos, at                  int64
	// Of a delivery: where the event stands that was delivered, to how many sessions and how long after its record time.
	refTopic        string
	refPart         int32
	refPos          int64
	sessions, delay int64
}

func rowsOf(b pipeline.Batch) (rows []row) {
	if b.Topic == topics.DeadLetters { // none is valid: that is why it is there
		for _, e := range b.Events {
			rows = append(rows, row{typ: typeDeadLetter, detail: clip(e.Type), topic: string(b.Topic), part: b.Partition, pos: e.Offset, at: e.Time})
		}
		return rows
	}
	for e := range b.Live {
		rows = append(rows, rowsOfEvent(e)...)
	}
	return rows
}

func rowsOfEvent(e *topics.Event) []row {
	r := row{typ: e.Type, topic: string(e.Topic), part: e.Partition, pos: e.Offset, at: e.Time}
	switch e.Type {
	case topics.TypeMessage:
		sent, received := r, r
		sent.user, sent.detail = e.Body.Text("senderId"), detailSent
		received.user, received.detail = e.Body.Text("receiverId"), detailReceived
		if sent.user == received.user {
			return []row{sent}
		}
		return []row{sent, received}
	case topics.TypeNotification, topics.TypeActivity:
		r.detail = e.Body.Text("type")
	case topics.TypeDeliveryWebSocket, topics.TypeDeliveryPush:
		r.detail, r.refTopic = e.Body.Text("event"), e.Body.Text("topic")
		r.refPart, r.refPos = int32(e.Body.Int("partition")), e.Body.Int("offset")
		r.sessions, r.delay = e.Body.Int("sessions"), e.Body.Int("latencyMs")
	case topics.TypeConnected, topics.TypeDisconnected, topics.TypeSessionChannels:
		r.detail = e.Body.Text("namespace")
	}
	if r.user = e.Body.Text("userId"); e.Audience.Kind == topics.User {
		r.user = e.Audience.A
	}
	if e.Audience.Kind == topics.Channel { // an activity's userId is who acted, not whom it is for
		r.user = ""
	}
	return []row{r}
}

func clip(s string) string { return s[:min(len(s), 64)] }

// Affects lists the users whose Counts an event changes.
func Affects(e *topics.Event) []string {
	switch {
	case e.Type == topics.TypeMessage && e.Audience.A != e.Audience.B:
		return []string{e.Audience.A, e.Audience.B}
	case e.Type == topics.TypeMessage,
		e.Type == topics.TypeNotification && e.Audience.Kind == topics.User && e.Body.Text("type") == detailConnection,
		e.Type == topics.TypeActivity && e.Audience.Kind == topics.User && e.Body.Text("type") == detailPost:
		return []string{e.Audience.A}
	}
	return nil
}
