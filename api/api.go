// Package api is the HTTP face: REST for users and product services, and the server on which the edge's WebSocket
// handlers stand. Who a request is from comes from its token alone.
package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

// Inbox answers queries of a user's notifications, messages and devices.
type Inbox interface {
	Notifications(ctx context.Context, user string, unread bool, limit int, cursor string) ([]inbox.Notification, string, error)
	Unread(ctx context.Context, user string) (int, error)
	Newest(ctx context.Context, user string) (int64, error)
	HasNotification(ctx context.Context, user, id string) error
	Messages(ctx context.Context, a, b string, p inbox.Page) (list []inbox.Message, older, newer string, err error)
	Conversations(ctx context.Context, user string, limit int, cursor string) ([]inbox.Conversation, string, error)
	Devices(ctx context.Context, user string) ([]inbox.Device, error)
	Await(ctx context.Context, t topics.Topic, ends map[int32]int64) error
}

// Messages sends chat messages; errors are *topics.Error.
type Messages interface {
	Send(ctx context.Context, sender string, d topics.Draft) (topics.Receipt, error)
}

// Presence tells who is online.
type Presence interface {
	Online(ns presence.Namespace, user string) bool
	OnlineUsers(ns presence.Namespace) int
	Sessions(user string) []presence.Session
}

// Stats answers a user's counts.
type Stats interface {
	Counts(ctx context.Context, users []string) (map[string]stats.Counts, error)
	Reached(ctx context.Context, ends stats.Ends) (bool, error)
}

// Options are what an API needs.
type Options struct {
	// Verify checks a token; the error is a *topics.Error.
	Verify   func(token string) (Claims, error)
	Producer *pipeline.Producer
	Tail     *pipeline.Tail
	Inbox    Inbox
	Messages Messages
	Presence Presence
	Stats    Stats
	Logger   *slog.Logger
	// Origins that browsers may come from; nil lets any in.
	Origins []string
	Keys    Keys
	// AllowLookup and AllowPublish limit how often a user may ask for and publish keys; the error is a *topics.Error.
	AllowLookup, AllowPublish func(user string) error
	// Push tells whether events are pushed to devices.
	Push bool
	// Problems says what is behind or cannot be reached, by part; empty when all is well.
	Problems func(ctx context.Context) map[string]string
	// Metrics takes in what is shown to Prometheus.
	Metrics prometheus.Registerer
	// Handlers are served beside REST, by path: the edge's.
	Handlers map[string]http.Handler
	// MaxBody bounds a request's body, in bytes.
	MaxBody int64
}

// API is the HTTP server. Make it with New, then Serve.
type API struct {
	o    Options
	echo *echo.Echo
}

// New makes the server's routes.
func New(o Options) *API {
	a := &API{o: o, echo: echo.New()}
	e := a.echo
	e.HideBanner, e.HidePort = true, true
	e.Logger.SetOutput(io.Discard) // it would print URLs, which carry tokens
	e.IPExtractor = echo.ExtractIPDirect()
	e.HTTPErrorHandler = a.fail
	e.Server.ReadHeaderTimeout = 5 * time.Second
	e.Server.ReadTimeout = 30 * time.Second // lifted where a connection becomes a WebSocket
	e.Server.IdleTimeout = 2 * time.Minute
	e.Server.MaxHeaderBytes = 32 << 10
	e.Server.ErrorLog = slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug)
	e.Use(a.counted(o.Metrics), a.recovered)
	for path, h := range o.Handlers {
		e.Any(path, echo.WrapHandler(h), a.cors)
	}
	for _, prefix := range []string{"", "/api"} {
		a.routes(e.Group(prefix, a.cors, a.bounded))
	}
	e.GET("/healthz", func(c echo.Context) error { return c.JSON(http.StatusOK, map[string]string{"status": "ok"}) })
	e.GET("/readyz", a.ready)
	return a
}

func (a *API) routes(g *echo.Group) {
	user, service, admin := a.authenticated(""), a.authenticated(ScopePublish), a.authenticated(ScopeAdmin)
	g.POST("/notifications/device-token", a.registerDevice, user)
	g.DELETE("/notifications/device-token", a.unregisterDevice, user)
	g.GET("/notifications", a.listNotifications, user)
	g.GET("/notifications/unread-count", a.unreadCount, user)
	g.POST("/notifications/read-all", a.readAll, user)
	g.POST("/notifications/:id/read", a.markNotification(topics.NotificationRead), user)
	g.DELETE("/notifications/:id", a.markNotification(topics.NotificationDeleted), user)
	g.GET("/conversations", a.listConversations, user)
	g.GET("/messages", a.listMessages, user)
	g.POST("/messages", a.sendMessage, user)
	g.PUT("/keys", a.putKeys, user)
	g.GET("/keys", a.ownKeys, user)
	g.DELETE("/keys/:deviceId", a.deleteKeys, user)
	g.GET("/users/:userId/keys", a.keysOf, user)
	g.GET("/presence", a.presence, user)
	g.GET("/presence/:userId", a.presenceOf, user)
	g.GET("/stats", a.stats, user)

	g.POST("/notifications", a.publishNotification, service)
	g.POST("/activities", a.publishActivity, service)
	g.POST("/announcements", a.publishAnnouncement, service)
	g.POST("/events", a.publishEvents, service)

	g.POST("/revocations", a.revoke, admin)
	g.GET("/diagnostics/:userId", a.diagnose, admin)
	g.OPTIONS("/*", func(c echo.Context) error { return c.NoContent(http.StatusNoContent) })
}

// Serve answers requests on ln until ctx ends; then it lets those under way finish, for at most grace.
func (a *API) Serve(ctx context.Context, ln net.Listener, grace time.Duration) error {
	a.echo.Listener = ln
	a.echo.Server.Handler = a.echo
	failed := make(chan error, 1)
	go func() { failed <- a.echo.Server.Serve(ln) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	wind, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := a.echo.Server.Shutdown(wind)
	if errors.Is(err, context.DeadlineExceeded) {
		a.o.Logger.Warn("requests were still under way when the time to stop was over; they are cut", "after", grace)
		err = a.echo.Server.Close()
	}
	<-failed
	return err
}

// cors refuses foreign origins and answers preflights (Fetch standard, "CORS protocol").
func (a *API) cors(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r, h := c.Request(), c.Response().Header()
		origin := r.Header.Get("Origin")
		if origin == "" {
			return next(c)
		}
		h.Add("Vary", "Origin")
		if !allowedOrigin(r, a.o.Origins) {
			return &topics.Error{Code: topics.CodeForbidden, Message: "this origin is not allowed (ALLOWED_ORIGIN)"}
		}
		h.Set("Access-Control-Allow-Origin", origin)
		if r.Method == http.MethodOptions {
			h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE")
			h.Set("Access-Control-Allow-Headers", "authorization, content-type, idempotency-key")
			h.Set("Access-Control-Max-Age", "600")
			return c.NoContent(http.StatusNoContent)
		}
		return next(c)
	}
}

// allowedOrigin tells whether a page may use the server: one of no Origin (not a browser), the server's own, or one of
// allowed; nil allows any.
func allowedOrigin(r *http.Request, allowed []string) bool {
	origin := r.Header.Get("Origin")
	if allowed == nil {
		return true
	}
	u, err := url.Parse(origin)
	if err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host) {
		return true
	}
	return slices.ContainsFunc(allowed, func(a string) bool { return strings.EqualFold(a, origin) })
}

// bounded bounds the body.
func (a *API) bounded(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		r.Body = http.MaxBytesReader(c.Response(), r.Body, a.o.MaxBody)
		return next(c)
	}
}

const keyClaims = "claims"

// authenticated demands a bearer token (RFC 6750), with a scope where one is named.
func (a *API) authenticated(scope string) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			kind, token, _ := strings.Cut(c.Request().Header.Get("Authorization"), " ")
			if !strings.EqualFold(kind, "Bearer") {
				return tokenInvalid("send the header Authorization: Bearer <token>")
			}
			claims, err := a.o.Verify(strings.TrimSpace(token))
			if err != nil {
				return err
			}
			if scope != "" && !claims.Has(scope) {
				return &topics.Error{Code: topics.CodeForbidden, Message: "the token lacks the scope " + scope}
			}
			c.Set(keyClaims, claims)
			return next(c)
		}
	}
}

func claimsOf(c echo.Context) Claims { return c.Get(keyClaims).(Claims) }

func userOf(c echo.Context) string { return claimsOf(c).User }

// fail answers with an error (echo.HTTPErrorHandler).
func (a *API) fail(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	a.explain(err).WriteHTTP(c.Response())
}

// explain finds what may be said of an error. Unknown ones are logged, and an engine's being away is what they nearly
// always are.
func (a *API) explain(err error) *topics.Error {
	var known *topics.Error
	var tooBig *http.MaxBytesError
	var he *echo.HTTPError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &tooBig):
		return &topics.Error{Code: topics.CodeTooLarge, Message: "the body is too large"}
	case errors.Is(err, inbox.ErrNotFound):
		return topics.NotFound("notification")
	case errors.Is(err, inbox.ErrCursor):
		return topics.Invalid("cursor: not one that this server gave out")
	case pipeline.TooLarge(err):
		return &topics.Error{Code: topics.CodeTooLarge, Message: "the event is larger than the log takes"}
	case errors.As(err, &he) && he.Code < http.StatusInternalServerError:
		return &topics.Error{Code: topics.CodeNotFound, Message: "there is no such route"}
	}
	a.o.Logger.Warn("a request failed", "err", err)
	return topics.Unavailable()
}

// ready answers 503 while anything is behind or unreachable, and says what. ?exclude=stats,… leaves parts out, for whoever
// wants to go on serving without them.
func (a *API) ready(c echo.Context) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), 3*time.Second)
	defer cancel()
	problems := a.o.Problems(ctx)
	for part := range strings.SplitSeq(c.QueryParam("exclude"), ",") {
		delete(problems, part)
	}
	if len(problems) > 0 {
		return c.JSON(http.StatusServiceUnavailable, map[string]any{"status": "not ready", "problems": problems})
	}
	return c.JSON(http.StatusOK, map[string]any{"status": "ready"})
}

// counted counts requests and their time, by route: a path may name a user.
func (a *API) counted(reg prometheus.Registerer) echo.MiddlewareFunc {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "nexus_http_request_seconds", Help: "Requests that were answered.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}, []string{"method", "route", "status"})
	reg.MustRegister(seconds)
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if c.IsWebSocket() { // lasts as long as the connection does
				return next(c)
			}
			begin := time.Now()
			if err := next(c); err != nil {
				c.Error(err)
			}
			route := c.Path()
			if route == "" {
				route = "none"
			}
			method := c.Request().Method
			if !slices.Contains([]string{"GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"}, method) {
				method = "other"
			}
			seconds.WithLabelValues(method, route, strconv.Itoa(c.Response().Status)).Observe(time.Since(begin).Seconds())
			return nil
		}
	}
}

// recovered answers for a handler that panicked. The panic's value may quote contents; the stack does not.
func (a *API) recovered(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				a.o.Logger.Error("a handler panicked", "route", c.Path(), "stack", string(debug.Stack()))
				err = topics.Unavailable()
			}
		}()
		return next(c)
	}
}
