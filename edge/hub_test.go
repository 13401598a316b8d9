package edge

import (
	"fmt"
	"slices"
	"testing"

	"github.com/nexus/nexus/topics"
)

func member(user string, ns topics.Namespace) *session {
	return &session{id: user, user: user, namespace: ns, out: &conn{writing: true, maxQueue: 1 << 20}}
}

// got is what waits in a session's queue.
func got(t *testing.T, s *session) (out []string) {
	c := s.out.(*conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.queue {
		texts, _ := unframe(t, f)
		out = append(out, texts...)
	}
	return out
}

func TestHubFindsWhomAnEventConcerns(t *testing.T) {
	h := newHub(newMetrics(nil, nil).sent)
	a1, a2, b, chat := member("a", topics.Dashboard), member("a", topics.Dashboard), member("b", topics.Dashboard), member("a", topics.Messaging)
	for _, s := range []*session{a1, a2, b, chat} {
		h.join(s, func() {})
	}
	h.subscribe(a1, "c")
	h.subscribe(b, "c")
	h.unsubscribe(b, "c")
	send := func(to func(m *message)) {
		to(&message{namespace: topics.Dashboard, event: "e", data: []byte(`{}`)})
	}
	send(func(m *message) { h.toUser("a", m) })
	send(func(m *message) { h.toChannel("c", m) })
	send(func(m *message) { h.toAll(m) })
	status := func(user string) *message {
		return &message{namespace: topics.Dashboard, event: "status", data: topics.Fields("userId", user)}
	}
	h.toOthers(topics.Dashboard, []*message{status("a"), status("x")}, []string{"a", "x"})
	event, aboutA, aboutX := `{"event":"e","data":{}}`, `{"event":"status","data":{"userId":"a"}}`, `{"event":"status","data":{"userId":"x"}}`
	for s, want := range map[*session][]string{a1: {event, event, event, aboutX}, a2: {event, event, aboutX}, b: {event, aboutA, aboutX}, chat: nil} {
		if got := got(t, s); !slices.Equal(got, want) {
			t.Errorf("%s in %s got %q, want %q", s.user, s.namespace, got, want)
		}
	}
	for key, want := range map[string]bool{"user:a": true, "user:x": false, "dm:a:x": true, "dm:x:y": false, "channel:c": true, "channel:d": false, "all": true} {
		a, err := topics.ParseAudience(key)
		if err != nil || h.concerns(a) != want {
			t.Errorf("concerns(%s) = %v, want %v", key, !want, want)
		}
	}
	for _, s := range []*session{a1, a2, b, chat} {
		h.leave(s)
		h.leave(s)
	}
	if len(h.users)+len(h.channels)+len(h.sessions()) != 0 {
		t.Error("sessions that left are still indexed")
	}
}

func TestHubBoundsChannels(t *testing.T) {
	h, s := newHub(newMetrics(nil, nil).sent), member("a", topics.Dashboard)
	h.join(s, func() {})
	for i := range maxChannels {
		if !h.subscribe(s, fmt.Sprint(i)) {
			t.Fatalf("channel %d refused", i)
		}
	}
	if h.subscribe(s, "one more") {
		t.Error("one channel too many")
	}
	if !h.subscribe(s, "0") {
		t.Error("a channel that was joined already is refused")
	}
}

// A client that does not read is closed as too slow; nothing is dropped silently.
func TestQueueIsBounded(t *testing.T) {
	c := &conn{writing: true, maxQueue: 1000}
	for range 11 {
		c.send(make([]byte, 100))
	}
	if !c.closing || len(c.queue) != 1 {
		t.Fatalf("closing %v with %d frames queued, want the close frame alone", c.closing, len(c.queue))
	}
	if code := int(c.queue[0][2])<<8 | int(c.queue[0][3]); code != closeTooSlow {
		t.Errorf("close code %d, want %d", code, closeTooSlow)
	}
	if c.send(make([]byte, 10)); len(c.queue) != 1 {
		t.Error("something follows the close frame")
	}
}
