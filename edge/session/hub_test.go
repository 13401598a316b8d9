package session

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/edge/wire/wiretest"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

func member(user string, ns topics.Namespace) *Session {
	return &Session{ID: user, User: user, Namespace: ns, Out: &wiretest.Recorder{}}
}

func got(s *Session) []string { return s.Out.(*wiretest.Recorder).Texts() }

func TestHubFindsWhomAnEventConcerns(t *testing.T) {
	h := newHub(newMetrics(nil, nil).sent)
	a1, a2, b, chat := member("a", topics.Dashboard), member("a", topics.Dashboard), member("b", topics.Dashboard), member("a",
		topics.Messaging)
	for _, s := range []*Session{a1, a2, b, chat} {
		h.Join(s, func() {})
	}
	h.Subscribe(a1, "c")
	h.Subscribe(b, "c")
	h.Unsubscribe(b, "c")
	send := func(to func(m *wire.Message)) {
		to(&wire.Message{Namespace: topics.Dashboard, Event: "e", Data: []byte(`{}`)})
	}
	send(func(m *wire.Message) { h.ToUser("a", m) })
	send(func(m *wire.Message) { h.ToChannel("c", m) })
	send(func(m *wire.Message) { h.ToAll(m) })
	status := func(user string) *wire.Message {
		return &wire.Message{Namespace: topics.Dashboard, Event: "status", Data: topics.Fields("userId", user)}
	}
	h.ToOthers(topics.Dashboard, []*wire.Message{status("a"), status("x")}, []string{"a", "x"})
	event, aboutA, aboutX := `{"event":"e","data":{}}`, `{"event":"status","data":{"userId":"a"}}`, `{"event":"status","data":{"userId":"x"}}`
	for s, want := range map[*Session][]string{a1: {event, event, event, aboutX}, a2: {event, event, aboutX}, b: {event, aboutA, aboutX},
		chat: nil} {
		if got := got(s); !slices.Equal(got, want) {
			t.Errorf("%s in %s got %q, want %q", s.User, s.Namespace, got, want)
		}
	}
	for key, want := range map[string]bool{"user:a": true, "user:x": false, "dm:a:x": true, "dm:x:y": false, "channel:c": true,
		"channel:d": false, "all": true} {
		a, err := topics.ParseAudience(key)
		if err != nil || h.Concerns(a) != want {
			t.Errorf("concerns(%s) = %v, want %v", key, !want, want)
		}
	}
	for _, s := range []*Session{a1, a2, b, chat} {
		h.leave(s)
		h.leave(s)
	}
	if len(h.users)+len(h.channels)+len(h.Sessions()) != 0 {
		t.Error("sessions that left are still indexed")
	}
}

func TestHubBoundsChannels(t *testing.T) {
	h, s := newHub(newMetrics(nil, nil).sent), member("a", topics.Dashboard)
	h.Join(s, func() {})
	for i := range topics.MaxChannels {
		if !h.Subscribe(s, fmt.Sprint(i)) {
			t.Fatalf("channel %d refused", i)
		}
	}
	if h.Subscribe(s, "one more") {
		t.Error("one channel too many")
	}
	if !h.Subscribe(s, "0") {
		t.Error("a channel that was joined already is refused")
	}
}

// A session that is renewed while its token runs out goes on, or is told that it does not; never both.
func TestRenewOrExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Options{Revoked: func(Identity) bool { return false }})
		for range 200 {
			s := member("u0", topics.Messaging)
			s.identity.Store(&Identity{User: "u0", Expires: time.Now()})
			l.Join(s, func() {})
			refused := make(chan bool)
			go func() { refused <- l.Renew(s, Identity{User: "u0", Expires: time.Now().Add(time.Hour)}) != nil }()
			l.Expire(s, time.Now())
			if closed := s.Out.(*wiretest.Recorder).Code() != 0; <-refused != closed {
				t.Fatalf("renewal refused %v, closed %v", !closed, closed)
			}
			l.leave(s)
		}
	})
}

// More than a queue may hold ends the session: it is not kept waiting in memory without bound.
func TestSuspensionIsBounded(t *testing.T) {
	s, h := member("alice", topics.Dashboard), newHub(newMetrics(nil, nil).sent)
	p := s.Suspend(1 << 20)
	h.Join(s, func() {})
	big := []byte(`{"x":"` + strings.Repeat("x", 1<<18) + `"}`)
	for range 6 {
		h.ToUser("alice", &wire.Message{Namespace: topics.Dashboard, Event: "e", Data: big, Threshold: 1024})
	}
	if code := s.Out.(*wiretest.Recorder).Code(); len(p.held) != 0 || code != apierr.CloseTooSlow {
		t.Errorf("%d held, code %d", len(p.held), code)
	}
	p.Release(func(*topics.Event) bool { return false })
}
