package live

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/edge/session/sessiontest"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// What is routed while a session is being given what it missed waits, and is not sent a second timv.
func TestNothingTwice(t *testing.T) {
	v, tail := onLog(t)
	s, out := sessiontest.Admit(v.o.Sessions, "alice", topics.Dashboard)
	s.Style.Offsets = true
	start := v.offset(topics.Dashboard, nil)
	var events []*topics.Event
	for k := range 3 {
		ev := topics.New(topics.Notifications, topics.UserKey("alice"), topics.Meta{Type: topics.TypeNotification}, topics.Fields("title",
			fmt.Sprint(k), "body", "", "type", "SYSTEM"))
		if _, err := tail.Append(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
		events = append(events, ev)
	}
	last := *events[2]
	next := last
	next.Offset, next.Value = last.Offset+1, topics.Fields("title", "3", "body", "", "type", "SYSTEM")
	v.rejoin(s, session.Comeback{Offset: start}, func(recovered *bool, offset string) {
		if !*recovered || offset != start {
			t.Errorf("recovered %v, at %s; want true, at %s", *recovered, offset, start)
		}
		// A batch that was being routed when the session joined goes on.
		v.Route(pipeline.Batch{Topic: topics.Notifications, Partition: last.Partition, From: last.Offset, To: next.Offset + 1,
			Events: []*topics.Event{&last, &next}})
		v.o.Sessions.ToUser("alice", v.plain(topics.Dashboard, topics.EventStatsUpdate, []byte(`{}`)))
		if queue := out.Texts(); len(queue) != 0 {
			t.Errorf("sent ahead of what was missed: %q", queue)
		}
	})
	var titles []string
	for _, text := range out.Texts() {
		_, title, is := strings.Cut(text, `"title":"`)
		if !is {
			title = "stats"
		}
		titles = append(titles, title[:min(len(title), 1)])
	}
	if got := strings.Join(titles, " "); got != "0 1 2 3 s" {
		t.Errorf("got %s", got)
	}
	before := len(out.Texts())
	if v.o.Sessions.ToUser("alice", v.plain(topics.Dashboard, topics.EventStatsUpdate, []byte(`{}`))); len(out.Texts()) != before+1 {
		t.Error("still suspended")
	}
}

// The latest events are had from memory, without repeats.
func TestRecentEvents(t *testing.T) {
	v, tail := onLog(t)
	from := tail.Vector(nil, topics.Messages)
	for k := range 2 {
		for range 2 { // a repeat each
			ev := topics.Draft{ReceiverID: "bob", Content: "x", ClientMessageID: fmt.Sprint(k)}.Message("alice", "")
			if _, err := tail.Append(t.Context(), ev); err != nil {
				t.Fatal(err)
			}
		}
	}
	for user, want := range map[string]int{"alice": 2, "bob": 2, "carol": 0} {
		m, err := v.lookUp(cursor{topics.Messages: from}, map[topics.Topic][]string{topics.Messages: {topics.UserKey(user)}})
		if err != nil || len(m.list) != want {
			t.Errorf("%s missed %d events (%v), want %d", user, len(m.list), err, want)
		}
	}
}
