// Package sessiontest gives tests sessions on a log that takes everything at once and admits everybody.
package sessiontest

import (
	"context"
	"log/slog"
	"time"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/edge/wire/wiretest"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

// Log takes what sessions say, and has them read it.
type Log struct{ sessions *session.Sessions }

// TryAppend implements session.Log.
func (l *Log) TryAppend(ev *topics.Event, done func(error)) {
	go func() {
		done(nil)
		if topics.Valid(ev) != nil {
			return
		}
		s := topics.ReadSession(ev)
		n := presence.Notice{Node: s.Node, Session: s.ID, Namespace: s.Namespace, User: s.UserID, PID: s.PID, Channels: s.Channels}
		switch ev.Type {
		case topics.TypeConnected:
			n.Kind = presence.Judged
			l.sessions.Notice(n)
			n.Kind = presence.Said
		case topics.TypeSessionChannels:
			n.Kind = presence.Said
		case topics.TypeDisconnected:
			n.Kind = presence.Left
		default:
			return
		}
		l.sessions.Notice(n)
	}()
}

// nobody is a presence that knows of nobody.
type nobody struct{}

// Sessions implements session.Presence.
func (nobody) Sessions(string) []presence.Session { return nil }

// Count implements session.Presence.
func (nobody) Count(topics.Namespace, string) int { return 0 }

// Connections implements session.Presence.
func (nobody) Connections(topics.Namespace) int { return 0 }

// Recall implements session.Presence.
func (nobody) Recall(string, string, topics.Namespace) (channels []string, known bool) {
	return nil, false
}

// New makes the sessions of a node, none of whose tokens is ever revoked.
func New() *session.Sessions {
	l := &Log{}
	l.sessions = session.New(session.Options{Log: l, Presence: nobody{}, Logger: slog.New(slog.DiscardHandler), NodeName: "n",
		Revoked: func(session.Identity) bool { return false }, Limits: presence.Limits{PerUser: 100,
			PerNamespace: 1000}, PingTimeout: time.Minute,
		CompressionThreshold: 1 << 20})
	return l.sessions
}

// Admit makes a session of a user, whose token may join these channels; none: all. It has yet to join.
func Admit(l *session.Sessions, user string, ns topics.Namespace, channels ...string) (*session.Session, *wiretest.Recorder) {
	out := &wiretest.Recorder{}
	id := session.Identity{User: user, Channels: channels, Expires: time.Now().Add(time.Hour)}
	s, refusal := l.Admit(context.Background(), ns, id, out, session.Comeback{})
	if refusal != nil {
		panic(refusal) // it admits everybody
	}
	return s, out
}

// Join makes a session that has joined.
func Join(l *session.Sessions, user string, ns topics.Namespace, channels ...string) (*session.Session, *wiretest.Recorder) {
	s, out := Admit(l, user, ns, channels...)
	l.Join(s, func() {})
	return s, out
}
