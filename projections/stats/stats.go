// Package stats is the columnar projection: a row for every event of every topic and user it concerns, the per-user
// counts of stats_update, and views that people query. It runs on ClickHouse and, embedded, on SQLite. It never writes
// to the log.
package stats

import (
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// Counts are a user's statistics.
type Counts = topics.Stats

// Topics are those the statistics are folded from: all.
func Topics() (list []topics.Topic) {
	for _, s := range topics.Specs() {
		list = append(list, s.Topic)
	}
	return list
}

// The details that Counts are made of, and the two sides of a message.
const (
	detailConnection = topics.NotificationConnectionAccepted
	detailPost       = topics.ActivityPostCreated
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
	if e.Type == topics.TypeMessage {
		return messageRows(r, e)
	}
	if r.detail = e.Detail(); e.Topic == topics.Deliveries {
		d := topics.ReadDelivery(e)
		r.refTopic, r.refPart, r.refPos = string(d.At.Topic), d.At.ID, d.At.Offset
		r.sessions, r.delay = d.Sessions, d.LatencyMs
	}
	switch e.Audience.Kind {
	case topics.User:
		r.user = e.Audience.A
	case topics.Channel: // who acted is not whom it is for
	default:
		r.user = e.Actor()
	}
	return []row{r}
}

// messageRows: a message is one event of its sender's and one of its receiver's.
func messageRows(r row, e *topics.Event) []row {
	sent, received := r, r
	sent.user, sent.detail = e.Actor(), detailSent
	received.user, received.detail = e.Audience.Other(sent.user), detailReceived
	if sent.user == received.user {
		return []row{sent}
	}
	return []row{sent, received}
}

func clip(s string) string { return s[:min(len(s), 64)] }

// Affects lists the users whose Counts an event changes.
func Affects(e *topics.Event) []string {
	c := e.Kind().Counter
	switch a := e.Audience; {
	case c == nil, c.Detail != "" && e.Detail() != c.Detail:
		return nil
	case a.Kind == topics.Conversation && a.A != a.B:
		return []string{a.A, a.B}
	case a.Kind == topics.User, a.Kind == topics.Conversation:
		return []string{a.A}
	}
	return nil
}
