package api

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// Route is one way to call the API. Routes is the table of them: the server registers what stands there and the OpenAPI document
// is made from it (internal/contract), so that the two cannot differ.
type Route struct {
	// Method and Path are as echo has them: /notifications/:id/read. A GET answers HEAD as well.
	Method, Path string
	// Doc says in a sentence what the route does; More, which may be empty, what a caller must know beside.
	Doc, More string
	// Public: no token is asked for, and the route is not served under /api.
	Public bool
	// Scope is what the token must have; empty: any token will do.
	Scope string
	// Params are those of the path, the query and the headers.
	Params []Param
	// Body is what the request carries; the zero Body: nothing.
	Body Body
	// Answers are the good ones, and bad ones that are no error of internal/apierr.
	Answers []Answer
	// Errors are codes that the route answers with beside those that every route of its kind has (Codes).
	Errors []string

	handle func(*API, echo.Context) error
	reads  bool // it only reads: readTime bounds it
}

// Param is a part of the path or the query, or a header. What its field says of a part of the path or the query is checked before
// the handler runs.
type Param struct {
	In string // path, query or header
	topics.Field
	// Least, Most and Default are a number's. Default is what an absent one counts as.
	Least, Most, Default int
	// Free: the handler itself says what is wrong with it.
	Free bool
}

// Where a Param stands, in OpenAPI's words.
const (
	InPath   = "path"
	InQuery  = "query"
	InHeader = "header"
)

// Body is what a request carries.
type Body struct {
	// Kind: the members of an event that product services hand in, and whom it is for.
	Kind *topics.Kind
	// Type is a zero value of the Go type that it is decoded into.
	Type any
	// Fields, where they are given, say more of the type's members than the Go type does.
	Fields []topics.Field
	// Optional: the request may have no body.
	Optional bool
	// CloudEvents: it is a CloudEvent, in any of the three content modes of the HTTP binding.
	CloudEvents bool
}

// Answer is a response.
type Answer struct {
	Status int
	Doc    string
	// Type is a zero value of the Go type that it is encoded from; nil: a text of the type in Media.
	Type  any
	Media string
}

// Codes are the codes of internal/apierr that the route may answer with.
func (r Route) Codes() []string {
	codes := []string{apierr.CodeUnavailable, apierr.CodeForbidden} // an engine is away; a foreign origin
	if r.Public {
		codes = nil
	} else {
		codes = append(codes, apierr.CodeTokenInvalid, apierr.CodeTokenExpired, apierr.CodeTokenRevoked)
	}
	if slices.ContainsFunc(r.Params, func(p Param) bool { return p.In == InQuery || p.In == InPath }) || r.Body.given() {
		codes = append(codes, apierr.CodeInvalidPayload)
	}
	if r.Body.given() {
		codes = append(codes, apierr.CodeTooLarge)
	}
	if slices.ContainsFunc(r.Params, func(p Param) bool { return p.In == InPath }) {
		codes = append(codes, apierr.CodeNotFound) // an empty part of a path makes another path
	}
	for _, code := range r.Errors {
		if !slices.Contains(codes, code) {
			codes = append(codes, code)
		}
	}
	return codes
}

func (b Body) given() bool { return b.Kind != nil || b.Type != nil || b.CloudEvents }

// Parameters that more than one route has.
var (
	limitParam = Param{In: InQuery, Field: topics.Field{Name: "limit", Kind: topics.ANumber, Doc: "how many at most"}, Least: 1, Most: 200,
		Default: 50}
	cursor = Param{In: InQuery, Field: topics.Field{Name: "cursor", Doc: "next of the page before; left out: from the newest on"},
		Free: true}
	pathUser   = Param{In: InPath, Field: topics.Field{Name: "userId", Required: true, Format: topics.UserID, Doc: "the user"}}
	idempotent = Param{In: InHeader, Field: topics.Field{Name: "Idempotency-Key", Bytes: topics.Bounds{Max: maxIdempotencyKey},
		Doc: "the caller's own id of the event; sent again with it within five minutes, it is the same event and reaches nobody twice"}}
	traced = Param{In: InHeader, Field: topics.Field{Name: "traceparent", Doc: "W3C trace context; it goes into the record's header"}}
)

// maxIdempotencyKey bounds Idempotency-Key, in bytes.
const maxIdempotencyKey = 256

func pathID(name, doc string) Param {
	return Param{In: InPath, Field: topics.Field{Name: name, Required: true, Doc: doc}}
}

func ok(doc string, answer any) []Answer {
	return []Answer{{Status: http.StatusOK, Doc: doc, Type: answer}}
}

func accepted(doc string, answer any) []Answer {
	return []Answer{{Status: http.StatusAccepted, Doc: doc, Type: answer}}
}

// Routes is the table of routes.
func Routes() []Route {
	list := []Route{
		{Method: http.MethodPost, Path: "/notifications/device-token", handle: (*API).registerDevice, Doc: "Registers a device that pushes go to",
			More: "A user has at most 20 devices.", Body: Body{Type: DeviceRegistration{},
				Fields: topics.KindOf(topics.TypeDeviceRegistered).Fields},
			Answers: ok("the device is registered", Told{}), Errors: []string{apierr.CodeRateLimited}},
		{Method: http.MethodDelete, Path: "/notifications/device-token", handle: (*API).unregisterDevice, Doc: "Takes a device off the list",
			More:    "Without a body it takes all of the user's devices off.",
			Body:    Body{Type: DeviceRemoval{}, Fields: topics.KindOf(topics.TypeDeviceUnregistered).Fields, Optional: true},
			Answers: ok("the device is off the list", Told{}), Errors: []string{apierr.CodeRateLimited}},
		{Method: http.MethodGet, Path: "/notifications", handle: (*API).listNotifications, reads: true,
			Doc:  "Lists the user's notifications and the announcements",
			More: "The newest come first. What went to a channel is not here.",
			Params: []Param{limitParam, {In: InQuery, Field: topics.Field{Name: "unread", Kind: topics.ABool,
				Doc: "true: only what is unread"}}, cursor},
			Answers: ok("a page", NotificationPage{})},
		{Method: http.MethodGet, Path: "/notifications/unread-count", handle: (*API).unreadCount, reads: true, Doc: "Counts what is unread",
			Answers: ok("how many", Count{})},
		{Method: http.MethodPost, Path: "/notifications/read-all", handle: (*API).readAll, Doc: "Marks all notifications as read",
			Answers: ok("how many are unread afterwards", Count{})},
		{Method: http.MethodPost, Path: "/notifications/:id/read", handle: (*API).markRead, Doc: "Marks a notification as read",
			Params: []Param{pathID("id", "the notification's id")}, Answers: ok("it is marked", ID{}), Errors: []string{apierr.CodeNotFound}},
		{Method: http.MethodDelete, Path: "/notifications/:id", handle: (*API).markDeleted, Doc: "Deletes a notification from the user's list",
			Params: []Param{pathID("id", "the notification's id")}, Answers: ok("it is deleted", ID{}), Errors: []string{apierr.CodeNotFound}},
		{Method: http.MethodGet, Path: "/conversations", handle: (*API).listConversations, reads: true, Doc: "Lists the user's conversations",
			More: "That with the newest message comes first.", Params: []Param{limitParam, cursor}, Answers: ok("a page", ConversationPage{})},
		{Method: http.MethodGet, Path: "/messages", handle: (*API).listMessages, reads: true, Doc: "Lists the messages of a conversation",
			More: "A page is in the order of the log; the latest page comes first. cursor goes back, after goes forward: give one of the two.",
			Params: []Param{limitParam, {In: InQuery, Field: topics.Field{Name: "with", Required: true, Format: topics.UserID,
				Doc: "the other user"}},
				{In: InQuery, Field: topics.Field{Name: "cursor", Doc: "next of a page: what is older"}, Free: true},
				{In: InQuery, Field: topics.Field{Name: "after", Doc: "newer of a page: what has come since"}, Free: true}},
			Answers: ok("a page", MessagePage{})},
		{Method: http.MethodPost, Path: "/messages", handle: (*API).sendMessage, Doc: "Sends a chat message",
			Params: []Param{{In: InHeader, Field: topics.Field{Name: "Idempotency-Key", Chars: topics.Bounds{Max: maxIdempotencyKey},
				Doc: "counts as clientMessageId where the body has none"}}},
			Body:    Body{Type: topics.Draft{}, Fields: commandFields(topics.Messaging, topics.CommandSendMessage)},
			Answers: accepted("the log has the message", Sent{}), Errors: []string{apierr.CodeRateLimited, apierr.CodeTooLarge}},
		{Method: http.MethodPut, Path: "/keys", handle: (*API).putKeys, Doc: "Publishes keys of a device, for end-to-end encryption",
			Body:    Body{Type: PublishedKeys{}, Fields: topics.KindOf(topics.TypeKeyPublished).Fields},
			Answers: accepted("the log has the keys", ID{}), Errors: []string{apierr.CodeRateLimited}},
		{Method: http.MethodGet, Path: "/keys", handle: (*API).ownKeys, reads: true,
			Doc:     "Tells how many one-time keys each of the user's devices has left",
			Answers: ok("the devices", OwnKeys{})},
		{Method: http.MethodDelete, Path: "/keys/:deviceId", handle: (*API).deleteKeys, Doc: "Removes a device and its keys",
			Params: []Param{pathID("deviceId", "the device")}, Answers: accepted("the log has it", ID{}), Errors: []string{apierr.CodeRateLimited}},
		{Method: http.MethodGet, Path: "/users/:userId/keys", handle: (*API).keysOf, reads: true, Doc: "Hands out keys of a user's devices",
			More: "A one-time key of each device is handed out once and is null where none is left. HEAD takes none.",
			Params: []Param{pathUser, {In: InQuery, Field: topics.Field{Name: "prekeys", Kind: topics.ABool,
				Doc: "false: no one-time keys are taken"}}},
			Answers: ok("the keys", UserKeys{}), Errors: []string{apierr.CodeRateLimited}},
		{Method: http.MethodGet, Path: "/presence", handle: (*API).presence, reads: true,
			Doc: "Tells how many users are online, or of some users whether they are",
			Params: []Param{{In: InQuery, Free: true, Field: topics.Field{Name: "userIds", Kind: topics.AnArray, Of: topics.AString,
				Format: topics.UserID,
				Count:  topics.Bounds{Max: maxPresence}, Doc: "user ids with commas between them"}}},
			Answers: ok("numbers; or with userIds each user's status, by user", PresenceAnswer{})},
		{Method: http.MethodGet, Path: "/presence/:userId", handle: (*API).presenceOf, reads: true, Doc: "Tells whether a user is online",
			Params: []Param{pathUser}, Answers: ok("the user's status", UserStatus{})},
		{Method: http.MethodGet, Path: "/stats", handle: (*API).stats, reads: true, Doc: "Tells the user's numbers",
			Answers: ok("the numbers", Numbers{})},
	}
	for _, k := range topics.Kinds() {
		if k.Ingest != "" {
			list = append(list, ingestRoute(k))
		}
	}
	return append(list,
		Route{Method: http.MethodPost, Path: "/events", handle: (*API).publishEvents, Scope: ScopePublish, Doc: "Takes CloudEvents",
			More: "subject is the audience key (user:alice, channel:news or all), type the kind of event. A batch answers with ids, a single " +
				"event with id. " +
				"Nothing is appended where any event of a batch is not valid.",
			Params: []Param{idempotent}, Body: Body{CloudEvents: true}, Answers: accepted("the log has it", Published{})},
		Route{Method: http.MethodPost, Path: "/revocations", handle: (*API).revoke, Scope: ScopeAdmin, Doc: "Revokes a user's tokens",
			More: "All that were issued until now, or the one of tokenId. Sessions that live on them end with close code 4401 on every node.",
			Body: Body{Type: RevokedTokens{}, Fields: topics.KindOf(topics.TypeSessionRevoked).Fields}, Answers: accepted("the log has it", ID{})},
		Route{Method: http.MethodGet, Path: "/diagnostics/:userId", handle: (*API).diagnose, reads: true, Scope: ScopeAdmin,
			Doc: "Shows a user's sessions and devices", Params: []Param{pathUser}, Answers: ok("what this node knows", Diagnosis{})},
		Route{Method: http.MethodGet, Path: "/healthz", handle: (*API).healthy, Public: true, Doc: "Tells that the process serves",
			Answers: ok("it serves", Health{})},
		Route{Method: http.MethodGet, Path: "/readyz", handle: (*API).ready, Public: true,
			Doc: "Tells whether the node has caught up and reaches its engines",
			Params: []Param{{In: InQuery, Field: topics.Field{Name: "exclude", Doc: "parts that are not asked, with commas between them"},
				Free: true}},
			Answers: []Answer{{Status: http.StatusOK, Doc: "it is ready", Type: Readiness{}},
				{Status: http.StatusServiceUnavailable, Doc: "it is not, and why", Type: Readiness{}}}},
		Route{Method: http.MethodGet, Path: "/openapi.yaml", handle: document("openapi.yaml", mediaYAML), Public: true,
			Doc:     "Answers with this document",
			Answers: []Answer{{Status: http.StatusOK, Doc: "OpenAPI 3.1", Media: mediaYAML}}},
		Route{Method: http.MethodGet, Path: "/asyncapi.yaml", handle: document("asyncapi.yaml", mediaYAML), Public: true,
			Doc:     "Answers with the AsyncAPI document: the topics and the two sockets",
			Answers: []Answer{{Status: http.StatusOK, Doc: "AsyncAPI 3", Media: mediaYAML}}},
		Route{Method: http.MethodGet, Path: "/schemas/:name", handle: (*API).schema, Public: true,
			Doc: "Answers with the JSON Schema of a record, a frame or a command",
			Params: []Param{{In: InPath, Field: topics.Field{Name: "name", Required: true, Example: `"record.notification.json"`,
				Doc: "the schema's name"}, Free: true}},
			Answers: []Answer{{Status: http.StatusOK, Doc: "JSON Schema 2020-12", Media: mediaSchema}}, Errors: []string{apierr.CodeNotFound}},
		Route{Method: http.MethodGet, Path: "/docs", handle: document("docs.html", mediaHTML), Public: true,
			Doc:     "Shows both documents to people",
			Answers: []Answer{{Status: http.StatusOK, Doc: "a page", Media: mediaHTML}}})
}

// ingestRoute is the route at which product services hand in events of a kind.
func ingestRoute(k *topics.Kind) Route {
	r := Route{Method: http.MethodPost, Path: k.Ingest, Scope: ScopePublish, Doc: "Publishes events of type " + k.Type + ": " + k.Doc,
		Params: []Param{idempotent, traced},
		handle: func(a *API, c echo.Context) error { return a.ingest(c, k) }, Body: Body{Kind: k},
		Answers: accepted("the log has the event", ID{})}
	if addressed(k) {
		r.More = "Name userId, userIds (at most 1000) or channel. With userIds the answer has ids, by user. Nothing is appended where any " +
			"part is not valid."
		r.Answers = accepted("the log has the event", PublishedByUser{})
	}
	return r
}

// commandFields are the members of what a client may say.
func commandFields(ns topics.Namespace, event string) []topics.Field {
	c, _ := topics.CommandOf(ns, event)
	return c.Fields
}

// register makes the server's routes from the table.
func (a *API) register(e *echo.Echo) {
	public, v1 := []*echo.Group{e.Group("")}, []*echo.Group{e.Group("", a.cors, a.bounded), e.Group("/api", a.cors, a.bounded)}
	for _, r := range Routes() {
		groups := v1
		if r.Public {
			groups = public
		}
		for _, g := range groups {
			g.Match(r.methods(), r.Path, func(c echo.Context) error { return r.handle(a, c) }, a.before(r)...)
		}
	}
	for _, g := range v1 {
		g.OPTIONS("/*", func(c echo.Context) error { return c.NoContent(http.StatusNoContent) })
	}
}

// methods are those that the route answers: HEAD too where it is GET, which net/http answers without the body (RFC 9110,
// section 9.3.2).
func (r Route) methods() []string {
	if r.Method == http.MethodGet {
		return []string{http.MethodGet, http.MethodHead}
	}
	return []string{r.Method}
}

// before is what a request goes through before its handler.
func (a *API) before(r Route) (list []echo.MiddlewareFunc) {
	if !r.Public {
		list = append(list, a.authenticated(r.Scope))
	}
	if r.reads {
		list = append(list, a.read)
	}
	return append(list, checked(r.Params))
}

// checked refuses parameters that are not what the table says.
func checked(params []Param) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			for _, p := range params {
				if err := p.check(c); err != nil {
					return err
				}
			}
			return next(c)
		}
	}
}

// check tells what is wrong with the parameter's value. An absent one of the query is right unless it is required.
func (p Param) check(c echo.Context) error {
	var value string
	switch p.In {
	case InPath:
		v, err := param(c, p.Name)
		if err != nil {
			return err
		}
		value = v
	case InQuery:
		if value = c.QueryParam(p.Name); value == "" && !p.Required {
			return nil
		}
	default:
		return nil // handlers read headers
	}
	switch {
	case p.Free:
		return nil
	case p.Kind == topics.ABool && value != "true" && value != "false":
		return apierr.Invalid(p.Name + " must be true or false")
	case p.Kind == topics.ANumber:
		if n, err := strconv.Atoi(value); err != nil || n < p.Least || n > p.Most {
			return apierr.Invalid(p.Name + " must be a number from " + strconv.Itoa(p.Least) + " to " + strconv.Itoa(p.Most))
		}
	case p.Format == topics.UserID:
		if err := topics.CheckUserID(value); err != nil {
			return apierr.Invalid(p.Name + ": " + err.Error())
		}
	}
	return nil
}

// number is a parameter's value, which was checked.
func (p Param) number(c echo.Context) int {
	n, err := strconv.Atoi(c.QueryParam(p.Name))
	if err != nil {
		return p.Default
	}
	return n
}

// OpenPath is the route's path as OpenAPI has it: /notifications/{id}/read.
func (r Route) OpenPath() string {
	parts := strings.Split(r.Path, "/")
	for i, part := range parts {
		if name, ok := strings.CutPrefix(part, ":"); ok {
			parts[i] = "{" + name + "}"
		}
	}
	return strings.Join(parts, "/")
}
