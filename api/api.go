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
	"unicode/utf8"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/internal/apierr"
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
	Await(ctx context.Context, ends topics.Ends) error
}

// Messages sends chat messages; errors are *apierr.Error.
type Messages interface {
	Send(ctx context.Context, sender string, d topics.Draft) (topics.Receipt, error)
}

// Presence tells who is online.
type Presence interface {
	Online(ns topics.Namespace, user string) bool
	OnlineUsers(ns topics.Namespace) int
	Sessions(user string) []presence.Session
}

// Stats answers a user's counts.
type Stats interface {
	Counts(ctx context.Context, users []string) (map[string]stats.Counts, error)
	Reached(ctx context.Context, ends topics.Ends) (bool, error)
	// Last is what Counts answered last for a user.
	Last(user string) (c stats.Counts, known bool)
}

// Producer appends an event to the log and returns once the log has it.
type Producer interface {
	Append(ctx context.Context, e *topics.Event) error
}

// Tail is this node's reading of the log.
type Tail interface {
	// Append appends an event and returns once this node has read it.
	Append(ctx context.Context, e *topics.Event) (duplicate bool, err error)
	// Next and NextOf are what a projection must have reached to know all that this node has shown of a topic,
	// or of a key.
	Next(t topics.Topic) topics.Ends
	NextOf(t topics.Topic, key string) topics.Ends
}

// Options are what an API needs.
type Options struct {
	// Verify checks a token; the error is a *apierr.Error.
	Verify   func(token string) (Claims, error)
	Producer Producer
	Tail     Tail
	Inbox    Inbox
	Messages Messages
	Presence Presence
	Stats    Stats
	Logger   *slog.Logger
	// Origins that browsers may come from; nil lets any in.
	Origins Origins
	Keys    Keys
	// AllowLookup and AllowPublish limit how often a user may ask for keys, and append what is kept for ever: keys and
	// device tokens. The error is a *apierr.Error.
	AllowLookup, AllowPublish func(user string) error
	// Push tells whether events are pushed to devices.
	Push bool
	// Parts are the names that Problems knows. Problems says within a second what is behind or cannot be reached, by part;
	// it asks nothing of those excluded.
	Parts    []string
	Problems func(ctx context.Context, exclude []string) map[string]string
	// Build is which build serves, for /healthz.
	Build Build
	// Metrics takes in what is shown to Prometheus.
	Metrics prometheus.Registerer
	// Handlers are served beside REST, by path: the edge's.
	Handlers map[string]http.Handler
	// MaxBody bounds a request's body, in bytes.
	MaxBody int64
}

// Build is which build of Nexus runs. It holds nothing of the machine.
type Build struct {
	// Version is a tag, or what Go says of a commit without one; "devel" where neither is known.
	Version string `json:"version" doc:"a tag, or what Go says of a commit without one"`
	// Commit is the whole hash of the commit; "unknown" where the build did not know it. Dirty: files were changed since.
	Commit string `json:"commit" doc:"the whole hash of the commit; unknown where the build did not know it"`
	Dirty  bool   `json:"dirty" doc:"files were changed since the commit"`
	// GoVersion is the compiler's; Platform is GOOS/GOARCH.
	GoVersion string `json:"goVersion" doc:"the compiler's version"`
	Platform  string `json:"platform" doc:"system and architecture"`
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
	e.Pre(escaped)
	e.Use(a.counted(o.Metrics), a.recovered)
	for path, h := range o.Handlers {
		e.Any(path, echo.WrapHandler(h), a.cors)
	}
	a.register(e)
	return a
}

// ServeHTTP answers one request (http.Handler).
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.echo.ServeHTTP(w, r) }

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

// escaped has the routes found by the path as it was sent, so that param decodes every id alike: %2F is no end of a segment.
func escaped(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		u := c.Request().URL
		u.RawPath = u.EscapedPath()
		return next(c)
	}
}

// param is a part of the path, decoded once (RFC 3986, section 2.4).
func param(c echo.Context, name string) (string, error) {
	v, err := url.PathUnescape(c.Param(name))
	if err != nil || !utf8.ValidString(v) {
		return "", apierr.Invalid(name + " in the path: an escape is broken; write a percent sign as %25")
	}
	return v, nil
}

// readTime bounds a read: a store that hangs costs a client this long.
const readTime = 5 * time.Second

// reading bounds the reads of fn, which go by the request's context.
func reading(c echo.Context, fn func() error) error {
	r := c.Request()
	ctx, cancel := context.WithTimeout(r.Context(), readTime)
	defer cancel()
	c.SetRequest(r.WithContext(ctx))
	defer c.SetRequest(r)
	return fn()
}

// read bounds a route that only reads.
func (a *API) read(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error { return reading(c, func() error { return next(c) }) }
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
		if !a.o.Origins.allows(r) {
			return &apierr.Error{Code: apierr.CodeForbidden, Message: "this origin is not allowed (ALLOWED_ORIGIN)"}
		}
		h.Set("Access-Control-Allow-Origin", origin)
		if a.o.Origins != nil { // never for whoever comes along
			h.Set("Access-Control-Allow-Credentials", "true")
		}
		if r.Method == http.MethodOptions {
			h.Add("Vary", "Access-Control-Request-Headers")
			h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, DELETE")
			h.Set("Access-Control-Allow-Headers", allowedHeaders(r.Header.Get("Access-Control-Request-Headers")))
			h.Set("Access-Control-Max-Age", "600")
			return c.NoContent(http.StatusNoContent)
		}
		h.Set("Access-Control-Expose-Headers", "Retry-After")
		return next(c)
	}
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
				return &apierr.Error{Code: apierr.CodeForbidden, Message: "the token lacks the scope " + scope}
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
	a.explain(c, err).WriteHTTP(c.Response())
}

// explain finds what may be said of an error. Unknown ones are logged, and an engine's being away is what they nearly
// always are.
func (a *API) explain(c echo.Context, err error) *apierr.Error {
	var known *apierr.Error
	var tooBig *http.MaxBytesError
	var he *echo.HTTPError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &tooBig):
		return &apierr.Error{Code: apierr.CodeTooLarge, Message: "the body is too large"}
	case errors.Is(err, inbox.ErrNotFound):
		return apierr.NotFound("thing")
	case errors.Is(err, inbox.ErrCursor):
		return apierr.Invalid("cursor: not one that this server gave out")
	case pipeline.TooLarge(err):
		return &apierr.Error{Code: apierr.CodeTooLarge, Message: "the event is larger than the log takes"}
	case errors.As(err, &he) && he.Code < http.StatusInternalServerError:
		return &apierr.Error{Code: apierr.CodeNotFound, Message: "there is no route " + c.Request().Method +
			" with this path; docs/rest.md lists them"}
	}
	a.o.Logger.Warn("a request failed", "method", c.Request().Method, "route", c.Path(), "err", err)
	return apierr.Unavailable()
}

// ready answers 503 while anything is behind or unreachable, and says what. ?exclude=stats,… leaves parts out, for whoever
// wants to go on serving without them.
func (a *API) ready(c echo.Context) error {
	var exclude []string
	for part := range strings.SplitSeq(c.QueryParam("exclude"), ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		if !slices.Contains(a.o.Parts, part) {
			return apierr.Invalid("exclude: there is no part " + strconv.Quote(clip(part)) + "; there are " + strings.Join(a.o.Parts, ", "))
		}
		exclude = append(exclude, part)
	}
	problems := a.o.Problems(c.Request().Context(), exclude)
	if len(problems) > 0 {
		return c.JSON(http.StatusServiceUnavailable, Readiness{Problems: problems, Status: "not ready"})
	}
	return c.JSON(http.StatusOK, Readiness{Status: "ready"})
}

// healthy answers as long as the process serves, with which build it is.
func (a *API) healthy(c echo.Context) error { return c.JSON(http.StatusOK, Health{"ok", a.o.Build}) }

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
				if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares with == as well
					panic(p)
				}
				a.o.Logger.Error("a handler panicked", "route", c.Path(), "stack", string(debug.Stack()))
				err = apierr.Unavailable()
			}
		}()
		return next(c)
	}
}
