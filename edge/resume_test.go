package edge

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// What is routed while a session is being given what it missed waits, and is not sent a second time.
func TestNothingTwice(t *testing.T) {
	e, _ := running(t)
	s := member("alice", topics.Dashboard)
	s.style.offsets = true
	s.identity.Store(&Identity{User: "alice"})
	start := e.offset(topics.Dashboard, nil)
	var events []*topics.Event
	for k := range 3 {
		ev := topics.New(topics.Notifications, topics.UserKey("alice"), topics.Meta{Type: topics.TypeNotification}, topics.Fields("title", fmt.Sprint(k), "body", "", "type", "SYSTEM"))
		if _, err := e.tail.Append(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
		events = append(events, ev)
	}
	last := *events[2]
	next := last
	next.Offset, next.Value = last.Offset+1, topics.Fields("title", "3", "body", "", "type", "SYSTEM")
	e.rejoin(s, comeback{offset: start}, func(recovered any, offset string) {
		if recovered != true || offset != start {
			t.Errorf("recovered %v, at %s; want true, at %s", recovered, offset, start)
		}
		// A batch that was being routed when the session joined goes on.
		e.route(pipeline.Batch{Topic: topics.Notifications, Partition: last.Partition, From: last.Offset, To: next.Offset + 1, Events: []*topics.Event{&last, &next}})
		e.hub.toUser("alice", e.plain(topics.Dashboard, "stats_update", []byte(`{}`)))
		if queue := got(t, s); len(queue) != 0 {
			t.Errorf("sent ahead of what was missed: %q", queue)
		}
	})
	var titles []string
	for _, text := range got(t, s) {
		_, title, is := strings.Cut(text, `"title":"`)
		if !is {
			title = "stats"
		}
		titles = append(titles, title[:min(len(title), 1)])
	}
	if got := strings.Join(titles, " "); got != "0 1 2 3 s" {
		t.Errorf("got %s", got)
	}
	if s.suspended.Load() != nil {
		t.Error("still suspended")
	}
}

// More than a queue may hold ends the session: it is not kept waiting in memory without bound.
func TestSuspensionIsBounded(t *testing.T) {
	e, _ := running(t)
	s := member("alice", topics.Dashboard)
	p := e.suspend(s)
	e.hub.join(s, func() {})
	big := []byte(`{"x":"` + strings.Repeat("x", e.o.MaxQueueBytes/4) + `"}`)
	for range 6 {
		e.hub.toUser("alice", e.plain(topics.Dashboard, "stats_update", big))
	}
	if len(p.held) != 0 || s.out.reason() != "too_slow" {
		t.Errorf("%d held, reason %s", len(p.held), s.out.reason())
	}
	p.release(s, nothing)
}

// The latest events are had from memory, without repeats.
func TestRecentEvents(t *testing.T) {
	e, _ := running(t)
	from := e.tail.Vector(nil, topics.Messages)
	for k := range 2 {
		for range 2 { // a repeat each
			ev := topics.Draft{ReceiverID: "bob", Content: "x", ClientMessageID: fmt.Sprint(k)}.Message("alice", "")
			if _, err := e.tail.Append(t.Context(), ev); err != nil {
				t.Fatal(err)
			}
		}
	}
	for user, want := range map[string]int{"alice": 2, "bob": 2, "carol": 0} {
		m, err := e.lookUp(cursor{topics.Messages: from}, map[topics.Topic][]string{topics.Messages: {topics.UserKey(user)}})
		if err != nil || len(m.list) != want {
			t.Errorf("%s missed %d events (%v), want %d", user, len(m.list), err, want)
		}
	}
}
