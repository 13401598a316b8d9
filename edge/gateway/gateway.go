package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/topics"
)

// Tail appends clients' events and reads them back (pipeline.Tail).
type Tail interface {
	TryAppend(ev *topics.Event, done func(duplicate bool, err error))
	Next(t topics.Topic) topics.Ends
}

// Inbox finds stored messages.
type Inbox interface {
	// Message finds a message of the user, or returns inbox.ErrNotFound.
	Message(ctx context.Context, user, id string) (inbox.Message, error)
	// Await returns once everything below ends is folded.
	Await(ctx context.Context, ends topics.Ends) error
}

// Live shows sessions what the log says.
type Live interface {
	// Greet makes a session reachable; its first frame comes after what before sends.
	Greet(s *session.Session, back session.Comeback, before func())
	// CatchUp subscribes a session to channels and gives it what they had since an offset; the error says why it could not.
	CatchUp(s *session.Session, offset string, subscribe func() []string) error
}

// Options are what a gateway needs. Zero values are not replaced.
type Options struct {
	Server   *wire.Server
	Sessions *session.Sessions
	Live     Live
	Tail     Tail
	Log      session.Log // takes typing, which nobody reads back
	Inbox    Inbox
	Logger   *slog.Logger
	// Metrics takes in what is shown to Prometheus; nil: nothing is.
	Metrics prometheus.Registerer
	// Verify checks a token; the error is a *apierr.Error fit for the client.
	Verify func(token string) (session.Identity, error)
	// Ready reports whether sessions are admitted.
	Ready func() bool
	// Working ends when no client is served any more.
	Working context.Context
	// RateLimit is how many messages a user may send within RateWindow, over all nodes; ten times that is how often he may try to
	// connect here, and how many frames a session may send.
	RateLimit  int
	RateWindow time.Duration
	// ContentWindow is how long a repeat of a message without a clientMessageId is the same message; at most DedupWindow, the log's.
	ContentWindow, DedupWindow time.Duration
	// MaxMessageBytes bounds a packet's attachments, MaxContentBytes a chat message's content.
	MaxMessageBytes, MaxContentBytes int
}

// Gateway takes what clients say. It is safe for concurrent use.
type Gateway struct {
	o       Options
	metrics *metrics
	ids     *contentIDs
	typing  *typing
	// rates counts messages over all nodes; connects, lookups and publishes count what users do on this one: attempts to
	// connect, and keys asked for and published.
	rates, connects, lookups, publishes *limiter
	draining                            atomic.Bool
	unacked                             wire.Tally // appends of clients that wait for their answer
}

// New makes a gateway; its handlers may be called as soon as the parts it was given run.
func New(o Options) *Gateway {
	g := &Gateway{o: o, ids: newContentIDs(o.ContentWindow, o.DedupWindow), typing: newTyping(o.Log.TryAppend),
		rates: newLimiter(o.RateLimit, o.RateWindow), connects: newLimiter(10*o.RateLimit, o.RateWindow),
		lookups: newLimiter(o.RateLimit, o.RateWindow), publishes: newLimiter(max(1, o.RateLimit/10), o.RateWindow)}
	g.metrics = newMetrics(g, o.Metrics)
	return g
}

// Run forgets what has had its time, once a second, until ctx ends.
func (g *Gateway) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			g.sweep(now)
		case <-ctx.Done():
			return nil
		}
	}
}

func (g *Gateway) sweep(now time.Time) {
	g.typing.sweep(now)
	for _, l := range []*limiter{g.rates, g.connects, g.lookups, g.publishes} {
		l.sweep(now)
	}
	g.ids.sweep(now)
}

// Seen takes in an event that the log shows: users' messages count for their limits, whichever node they came by.
func (g *Gateway) Seen(ev *topics.Event) {
	now := time.Now()
	g.ids.note(ev, now)
	if user := topics.UserOf(ev.Source); ev.Type == topics.TypeMessage && user != "" {
		g.rates.shown(user, ev.NexusID, now)
	}
}

// Shutdown carries out no command any more.
func (g *Gateway) Shutdown() {
	g.draining.Store(true)
	g.unacked.Shutdown()
}

// Wait returns once every command under way has been answered, or when ctx ends.
func (g *Gateway) Wait(ctx context.Context) { g.unacked.Wait(ctx) }

// Unanswered is how many appends of clients wait for the log.
func (g *Gateway) Unanswered() int { return g.unacked.Count() }

// AllowLookup limits how often a user may ask for keys of others, AllowPublish how often it may publish its own, which
// are kept forever: a *apierr.Error where it is too often.
func (g *Gateway) AllowLookup(user string) error { return allowed(g.lookups, user) }

// AllowPublish limits how often a user may publish keys.
func (g *Gateway) AllowPublish(user string) error { return allowed(g.publishes, user) }

func allowed(l *limiter, user string) error {
	if wait, ok := l.allow(user, time.Now()); !ok {
		return rateLimited(wait)
	}
	return nil
}

func rateLimited(wait time.Duration) *apierr.Error {
	return &apierr.Error{Code: apierr.CodeRateLimited, Message: fmt.Sprintf("too many at once; try again in %s", wait.Round(time.Second)),
		RetryAfter: wait}
}

// identify checks the token of a handshake, and that it is that of the user whom the handshake names.
func (g *Gateway) identify(said topics.Handshake) (session.Identity, *apierr.Error) {
	id, err := g.o.Verify(said.Token)
	if err != nil {
		var known *apierr.Error
		if !errors.As(err, &known) {
			known = &apierr.Error{Code: apierr.CodeTokenInvalid, Message: "the token is not valid"}
		}
		return id, known
	}
	if said.UserID != id.User {
		return id, &apierr.Error{Code: apierr.CodeForbidden, Message: "userId is not the token's user"}
	}
	return id, nil
}

// admit makes a session of a verified identity, which must be dismissed.
func (g *Gateway) admit(ctx context.Context, ns topics.Namespace, id session.Identity, out wire.Transport,
	back session.Comeback) (*client, *apierr.Error) {
	if !g.o.Ready() {
		return nil, apierr.Unavailable()
	}
	if wait, ok := g.connects.allow(id.User, time.Now()); !ok {
		return nil, rateLimited(wait)
	}
	s, refusal := g.o.Sessions.Admit(ctx, ns, id, out, back)
	if refusal != nil {
		return nil, refusal
	}
	return g.newClient(s), nil
}

// Raw serves a namespace to bare WebSocket clients: text frames {"event":…,"data":…} both ways.
func (g *Gateway) Raw(ns topics.Namespace) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !g.o.Server.Precheck(w, r) {
			return
		}
		said := topics.ReadHandshake(r.URL.Query())
		back := session.Comeback{Offset: said.Offset}
		id, refusal := g.identify(said)
		var s *client
		if refusal == nil {
			s, refusal = g.admit(r.Context(), ns, id, nil, back)
		}
		if refusal != nil {
			g.metrics.refusal(refusal)
			refusal.WriteHTTP(w)
			return
		}
		s.Style = wire.Style{Canonical: said.Canonical, Offsets: said.WantsOffsets}
		g.o.Server.Upgrade(w, r, func(c *wire.Conn) { g.serveRaw(c, s, back) }, func() { g.o.Sessions.Dismiss(s.Session, s.Reason()) })
	})
}

// tryAppend appends a client's event; Wait waits for its answer. After Shutdown it appends nothing: a command that was under way then
// would not be waited for.
func (g *Gateway) tryAppend(ev *topics.Event, done func(duplicate bool, err error)) {
	if !g.unacked.Begin() {
		done(false, apierr.Unavailable())
		return
	}
	g.o.Tail.TryAppend(ev, func(duplicate bool, err error) {
		defer g.unacked.End()
		done(duplicate, err)
	})
}

// requestContext bounds what a command asks of others.
func (g *Gateway) requestContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(g.o.Working, 10*time.Second)
}

// problem maps an append's error to what a client is told.
func problem(err error) *apierr.Error {
	var known *apierr.Error
	switch {
	case errors.As(err, &known):
		return known
	case pipeline.TooLarge(err):
		return &apierr.Error{Code: apierr.CodeTooLarge, Message: "the event is larger than the log takes"}
	}
	return apierr.Unavailable()
}

// checked judges an event that is about to be appended as every consumer will judge it.
func checked(ev *topics.Event) error {
	if err := topics.Valid(ev); err != nil {
		return apierr.Invalid(err.Error())
	}
	return nil
}
