package session_test

import (
	"testing"
	"testing/synctest"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/edge/session/sessiontest"
	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/topics"
)

// A session that ends before it joins, or as it does, is nowhere afterwards: not in the hub, in no channel, and its slot is given back.
func TestJoinMeetsTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := sessiontest.New()
		for n := range 500 {
			s, out := sessiontest.Admit(l, "alice", topics.Dashboard)
			ended := make(chan struct{})
			go func() {
				l.Dismiss(s, wire.ReasonLost)
				close(ended)
			}()
			before := n%2 == 0
			if before {
				<-ended
			}
			if l.Join(s, func() {}) && before {
				t.Fatal("a session joined that had ended")
			}
			l.Subscribe(s, "news")
			l.Say(s)
			<-ended
			m := &wire.Message{Namespace: topics.Dashboard, Event: "e", Data: []byte(`{}`)}
			if reached := l.ToUser("alice", m) + l.ToChannel("news", m) + l.ToAll(m); reached != 0 {
				t.Fatalf("%d of a session that has ended are reached: %q", reached, out.Texts())
			}
		}
		synctest.Wait()
		if c := l.Counts(); c != (session.Counts{}) {
			t.Errorf("left: %+v", c)
		}
	})
}
