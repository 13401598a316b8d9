package api

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/errgroup"

	"github.com/nexus/nexus/internal/apierr"
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
			return nil, apierr.Invalid("channel: " + err.Error())
		}
		return []string{topics.ChannelKey(t.Channel)}, nil
	case len(t.UserIDs) > maxFanOut:
		return nil, apierr.Invalid("userIds: at most 1000")
	case len(t.UserIDs) > 0 && t.UserID != "":
		return nil, apierr.Invalid("name either userId or userIds")
	case len(t.UserIDs) > 0:
		return userKeys(t.UserIDs)
	case t.UserID != "":
		return userKeys([]string{t.UserID})
	}
	return nil, apierr.Invalid("name userId, userIds or channel")
}

func userKeys(users []string) ([]string, error) {
	keys := make([]string, 0, len(users))
	for _, u := range users {
		if err := topics.CheckUserID(u); err != nil {
			return nil, apierr.Invalid("userId: " + err.Error())
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
		Time     *string         `json:"timestamp"`
	}
	if err := read(c, &body); err != nil {
		return err
	}
	if body.Channel != "" && (body.UserID != "" || len(body.UserIDs) > 0) {
		return apierr.Invalid("name userId, userIds or channel, and only one of them")
	}
	keys, err := body.keys()
	if err != nil {
		return err
	}
	return a.publish(c, topics.TypeNotification, keys, len(body.UserIDs) > 0, func(_, id string) []byte {
		return topics.Fields("id", id, "title", body.Title, "body", body.Body, "type", body.Type, "priority", given(body.Priority),
			"data", body.Data, "icon", given(body.Icon), "badge", given(body.Badge), "timestamp", given(body.Time))
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
		Time    *string         `json:"timestamp"`
	}
	if err := read(c, &body); err != nil {
		return err
	}
	keys, err := body.keys()
	if err != nil {
		return err
	}
	return a.publish(c, topics.TypeActivity, keys, len(body.UserIDs) > 0, func(key, id string) []byte {
		user, personal := strings.CutPrefix(key, "user:")
		if !personal {
			user = body.UserID
			if user == "" {
				user = userOf(c)
			}
		}
		return topics.Fields("id", id, "type", body.Type, "userId", user, "message", body.Message, "data", body.Data,
			"timestamp", given(body.Time))
	})
}

func (a *API) publishAnnouncement(c echo.Context) error {
	var body struct {
		Title string  `json:"title"`
		Body  string  `json:"body"`
		Time  *string `json:"timestamp"`
	}
	if err := read(c, &body); err != nil {
		return err
	}
	return a.publish(c, topics.TypeAnnouncement, []string{topics.EveryoneKey}, false, func(_, id string) []byte {
		return topics.Fields("id", id, "title", body.Title, "body", body.Body, "timestamp", given(body.Time))
	})
}

// publish appends one event for each key and answers 202 once the log has all of them. Nothing is appended where any of
// them is not valid.
func (a *API) publish(c echo.Context, typ string, keys []string, many bool, value func(key, id string) []byte) error {
	idem := c.Request().Header.Get("Idempotency-Key")
	if len(idem) > 256 {
		return apierr.Invalid("Idempotency-Key has at most 256 bytes")
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
			return apierr.Invalid(err.Error())
		}
	}
	g, ctx := errgroup.WithContext(c.Request().Context())
	for _, ev := range events {
		g.Go(func() error { return a.o.Producer.Append(ctx, ev) })
	}
	return g.Wait()
}
