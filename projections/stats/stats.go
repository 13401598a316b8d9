// Package stats is the columnar projection: a row for every event and user it concerns, and the per-user counts of
// stats_update. It runs on ClickHouse and, embedded, on SQLite. It never writes to the log.
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

// Topics are those the statistics are folded from.
func Topics() []topics.Topic {
	return []topics.Topic{topics.Messages, topics.Notifications, topics.Broadcasts}
}

// The details that Counts are made of.
const (
	detailConnection = "CONNECTION_ACCEPTED"
	detailPost       = "post_created"
)

// row is one event as it concerns one user; user is empty for what goes to a channel or to all.
type row struct {
	user, typ, detail, topic string
	part                     int32
	pos, at                  int64
}

func rowsOf(b pipeline.Batch) (rows []row) {
	for e := range b.Live {
		r := row{typ: e.Type, topic: string(e.Topic), part: e.Partition, pos: e.Offset, at: e.Time}
		if e.Type == topics.Notification || e.Type == topics.Activity {
			r.detail = e.Body.Text("type")
		}
		for _, r.user = range usersOf(e) {
			rows = append(rows, r)
		}
	}
	return rows
}

func usersOf(e *topics.Event) []string {
	switch a := e.Audience; {
	case e.Type == topics.MessageRead:
		return []string{e.Body.Text("userId")}
	case a.Kind == topics.Conversation && a.A != a.B:
		return []string{a.A, a.B}
	case a.Kind == topics.Conversation, a.Kind == topics.User:
		return []string{a.A}
	}
	return []string{""}
}

// Affects lists the users whose Counts an event changes.
func Affects(e *topics.Event) []string {
	switch {
	case e.Type == topics.Message,
		e.Type == topics.Notification && e.Audience.Kind == topics.User && e.Body.Text("type") == detailConnection,
		e.Type == topics.Activity && e.Audience.Kind == topics.User && e.Body.Text("type") == detailPost:
		return usersOf(e)
	}
	return nil
}
