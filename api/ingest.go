package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/errgroup"

	"github.com/nexus/nexus/topics"
)

// to is whom an ingested event is for.
type to struct {
	UserID  string   `json:"userId"`
	UserIDs []string `json:"userIds"`
	Channel string   `json:"channel"`
}

// maxFanOut bounds userIds and the events of a batch.
const maxFanOut = 1000

// keys lists the audience keys; channel first, because an activity in a channel may name its userId as well.
func (t to) keys() ([]string, error) {
	switch {
	case t.Channel != "":
		if err := topics.CheckChannel(t.Channel); err != nil {
			return nil, topics.Invalid("channel: " + err.Error())
		}
		return []string{topics.ChannelKey(t.Channel)}, nil
	case len(t.UserIDs) > maxFanOut:
		return nil, topics.Invalid("userIds: at most 1000")
	case len(t.UserIDs) > 0 && t.UserID != "":
		return nil, topics.Invalid("name either userId or userIds")
	case len(t.UserIDs) > 0:
		return userKeys(t.UserIDs)
	case t.UserID != "":
		return userKeys([]string{t.UserID})
	}
	return nil, topics.Invalid("name userId, userIds or channel")
}

func userKeys(users []string) ([]string, error) {
	keys := make([]string, 0, len(users))
	for _, u := range users {
		if err := topics.CheckUserID(u); err != nil {
			return nil, topics.Invalid("userId: " + err.Error())
		}
		keys = append(keys, topics.UserKey(u))
	}
	return keys, nil
}

// topicOf is the topic that an audience's notifications and activities go to.
func topicOf(key string) topics.Topic {
	if strings.HasPrefix(key, "user:") {
		return topics.Notifications
	}
	return topics.Broadcasts
}

func (a *API) publishNotification(c echo.Context) error {
	var body struct {
		to
		Title    string          `json:"title"`
		Body     string          `json:"body"`
		Type     string          `json:"type"`
		Priority *string         `json:"priority"`
		Data     json.RawMessage `json:"data"`
		Icon     *string         `json:"icon"`
		Badge    *string         `json:"badge"`
	}
	if err := read(c, &body, false); err != nil {
		return err
	}
	if body.Channel != "" && (body.UserID != "" || len(body.UserIDs) > 0) {
		return topics.Invalid("name userId, userIds or channel, and only one of them")
	}
	keys, err := body.keys()
	if err != nil {
		return err
	}
	return a.publish(c, topics.Notification, keys, len(body.UserIDs) > 0, func(_, id string) []byte {
		return topics.Fields("id", id, "title", body.Title, "body", body.Body, "type", body.Type, "priority", given(body.Priority),
			"data", body.Data, "icon", given(body.Icon), "badge", given(body.Badge))
	})
}

func given(s *string) any {
	if s == nil {
		return nil
	}
	return *s
}

func (a *API) publishActivity(c echo.Context) error {
	var body struct {
		to
		Type    string          `json:"type"`
		Message string          `json:"message"`
		Data    json.RawMessage `json:"data"`
	}
	if err := read(c, &body, false); err != nil {
		return err
	}
	keys, err := body.keys()
	if err != nil {
		return err
	}
	return a.publish(c, topics.Activity, keys, len(body.UserIDs) > 0, func(key, id string) []byte {
		user, personal := strings.CutPrefix(key, "user:")
		if !personal {
			user = body.UserID
			if user == "" {
				user = userOf(c)
			}
		}
		return topics.Fields("id", id, "type", body.Type, "userId", user, "message", body.Message, "data", body.Data)
	})
}

func (a *API) publishAnnouncement(c echo.Context) error {
	var body struct {
		Title string `json:"title"`
		Body  string `json:"body"`
	}
	if err := read(c, &body, false); err != nil {
		return err
	}
	return a.publish(c, topics.Announcement, []string{topics.EveryoneKey}, false, func(_, id string) []byte {
		return topics.Fields("id", id, "title", body.Title, "body", body.Body)
	})
}

// publish appends one event for each key and answers 202 once the log has all of them. Nothing is appended where any of
// them is not valid.
func (a *API) publish(c echo.Context, typ string, keys []string, many bool, value func(key, id string) []byte) error {
	idem := c.Request().Header.Get("Idempotency-Key")
	if len(idem) > 256 {
		return topics.Invalid("Idempotency-Key has at most 256 bytes")
	}
	events := make([]*topics.Event, 0, len(keys))
	ids := make(map[string]string)
	for _, key := range keys {
		user := strings.TrimPrefix(key, "user:")
		if ids[user] != "" { // named twice
			continue
		}
		m := topics.Meta{Type: typ, Source: topics.SourceOf(userOf(c)), IdempotencyKey: idem, TraceParent: traceParent(c)}
		if m.NexusID = topics.NewID(); idem != "" {
			m.NexusID = topics.EventID(key, typ, m.Source, idem)
		}
		ids[user] = m.NexusID
		events = append(events, topics.New(topicOf(key), key, m, value(key, m.NexusID)))
	}
	if err := a.appendAll(c, events); err != nil {
		return err
	}
	if many {
		return c.JSON(http.StatusAccepted, map[string]any{"ids": ids})
	}
	return c.JSON(http.StatusAccepted, map[string]any{"id": events[0].NexusID})
}

// traceParent is the request's trace context (W3C Trace Context: 55 bytes), if it is one.
func traceParent(c echo.Context) string {
	if h := c.Request().Header.Get("traceparent"); len(h) == 55 {
		return h
	}
	return ""
}

// appendAll judges all events, then appends them side by side.
func (a *API) appendAll(c echo.Context, events []*topics.Event) error {
	for _, ev := range events {
		if err := topics.Valid(ev); err != nil {
			return topics.Invalid(err.Error())
		}
	}
	g, ctx := errgroup.WithContext(c.Request().Context())
	for _, ev := range events {
		g.Go(func() error { return a.o.Producer.Append(ctx, ev) })
	}
	return g.Wait()
}

// cloudEvent is a CloudEvents 1.0 event in the JSON event format (structured or batched), or of a binary-mode request.
type cloudEvent struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            string          `json:"type"`
	Subject         string          `json:"subject"`
	Time            string          `json:"time"`
	DataContentType string          `json:"datacontenttype"`
	DataSchema      string          `json:"dataschema"`
	IdempotencyKey  string          `json:"idempotencykey"`
	TraceParent     string          `json:"traceparent"`
	Data            json.RawMessage `json:"data"`
}

// maxAttributes bounds what a CloudEvent puts into a record's headers, in bytes.
const maxAttributes = 2048

// publishEvents takes CloudEvents in the three content modes of the HTTP protocol binding.
func (a *API) publishEvents(c echo.Context) error {
	events, batch, err := cloudEvents(c)
	if err != nil {
		return err
	}
	var out []*topics.Event
	var ids []string
	for _, ce := range events {
		ev, err := ce.event(userOf(c), c.Request().Header.Get("Idempotency-Key"))
		if err != nil {
			return err
		}
		out, ids = append(out, ev), append(ids, ev.NexusID)
	}
	if err := a.appendAll(c, out); err != nil {
		return err
	}
	if batch {
		return c.JSON(http.StatusAccepted, map[string]any{"ids": ids})
	}
	return c.JSON(http.StatusAccepted, map[string]any{"id": ids[0]})
}

func cloudEvents(c echo.Context) (events []cloudEvent, batch bool, err error) {
	h := c.Request().Header
	switch kind, _, _ := strings.Cut(h.Get("Content-Type"), ";"); {
	case kind == "application/cloudevents-batch+json":
		err = read(c, &events, false)
		if err == nil && (len(events) == 0 || len(events) > maxFanOut) {
			err = topics.Invalid("a batch has 1 to 1000 events")
		}
		return events, true, err
	case kind == "application/cloudevents+json":
		events = make([]cloudEvent, 1)
		return events, false, read(c, &events[0], false)
	case h.Get("ce-specversion") != "":
		ce := cloudEvent{SpecVersion: h.Get("ce-specversion"), ID: h.Get("ce-id"), Source: h.Get("ce-source"), Type: h.Get("ce-type"),
			Subject: h.Get("ce-subject"), Time: h.Get("ce-time"), TraceParent: h.Get("ce-traceparent"), IdempotencyKey: h.Get("ce-idempotencykey")}
		err := read(c, &ce.Data, false)
		return []cloudEvent{ce}, false, err
	}
	return nil, false, topics.Invalid("send a CloudEvent: Content-Type application/cloudevents+json, application/cloudevents-batch+json, or headers ce-id, ce-source, ce-specversion, ce-type, ce-subject")
}

// event makes the record: subject is the audience key, and the source is the token's user with the event's own.
func (ce cloudEvent) event(user, idem string) (*topics.Event, error) {
	if ce.SpecVersion != "1.0" || ce.ID == "" || ce.Source == "" || ce.Type == "" || ce.Subject == "" {
		return nil, topics.Invalid("a CloudEvent needs specversion 1.0, id, source, type, and the audience key as its subject")
	}
	if len(ce.ID)+len(ce.Source)+len(ce.IdempotencyKey)+len(ce.Time)+len(ce.TraceParent) > maxAttributes {
		return nil, topics.Invalid("the attributes of a CloudEvent have at most 2048 bytes together")
	}
	if ce.Type != topics.Notification && ce.Type != topics.Activity && ce.Type != topics.Announcement {
		return nil, topics.Invalid("type must be notification, activity or announcement")
	}
	if len(ce.Data) < 2 || ce.Data[0] != '{' {
		return nil, topics.Invalid("data must be a JSON object")
	}
	if ce.IdempotencyKey == "" {
		ce.IdempotencyKey = idem
	}
	m := topics.Meta{ID: ce.ID, Type: ce.Type, Source: topics.SourceOf(user) + "#" + ce.Source, Time: ce.Time, TraceParent: ce.TraceParent,
		IdempotencyKey: ce.IdempotencyKey}
	key := ce.IdempotencyKey
	if key == "" {
		key = ce.ID
	}
	m.NexusID = topics.EventID(ce.Subject, m.Type, m.Source, key)
	value, err := withID(ce.Data, m.NexusID)
	if err != nil {
		return nil, err
	}
	return topics.New(topicOf(ce.Subject), ce.Subject, m, value), nil
}

// withID puts an id in front of an object's members.
func withID(object []byte, id string) ([]byte, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(object, &members); err != nil {
		return nil, topics.Invalid("data must be a JSON object")
	}
	if _, has := members["id"]; has {
		return nil, topics.Invalid("data must not have an id; Nexus gives it one")
	}
	if len(members) == 0 {
		return nil, topics.Invalid(errors.New("data must not be empty").Error())
	}
	return append([]byte(`{"id":"`+id+`",`), object[1:]...), nil
}
