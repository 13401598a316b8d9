package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/errgroup"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// Recipients is whom an event that is handed in is for: one of the three.
type Recipients struct {
	UserID  string   `json:"userId" doc:"a user"`
	UserIDs []string `json:"userIds" doc:"users, at most 1000: each gets an event of its own"`
	Channel string   `json:"channel" doc:"a channel: whoever is subscribed"`
}

// Names of the members of Recipients.
const (
	memberUser    = "userId"
	memberUsers   = "userIds"
	memberChannel = "channel"
)

// maxFanOut bounds userIds and the events of a batch.
const maxFanOut = 1000

// RecipientFields are the members that say whom an event of a kind is for; none where it is for everybody.
func RecipientFields(k *topics.Kind) []topics.Field {
	if !addressed(k) {
		return nil
	}
	return []topics.Field{
		{Name: memberUser, Format: topics.UserID, Doc: "the user whom it is for"},
		{Name: memberUsers, Kind: topics.AnArray, Of: topics.AString, Format: topics.UserID, Count: topics.Bounds{Min: 1, Max: maxFanOut},
			Doc: "the users whom it is for, at most 1000: each gets an event of its own"},
		{Name: memberChannel, Format: topics.ChannelName, Doc: "the channel whose subscribers it is for"}}
}

// addressed tells whether events of a kind are for somebody and not for everybody.
func addressed(k *topics.Kind) bool {
	return slices.ContainsFunc(k.In, func(in topics.In) bool {
		return slices.Contains(in.Keys, topics.User) || slices.Contains(in.Keys, topics.Channel)
	})
}

// check tells what is wrong with them for a kind of event.
func (to Recipients) check(k *topics.Kind) error {
	both := to.Channel != "" && (to.UserID != "" || len(to.UserIDs) > 0)
	if both && !slices.ContainsFunc(k.Fields, func(f topics.Field) bool { return f.Name == memberUser }) {
		return apierr.Invalid("name userId, userIds or channel, and only one of them")
	}
	return nil
}

// audiences lists whom the event is for; channel first, because an activity in a channel may name its userId as well.
func (to Recipients) audiences() ([]topics.Audience, error) {
	switch {
	case to.Channel != "":
		if err := topics.CheckChannel(to.Channel); err != nil {
			return nil, apierr.Invalid("channel: " + err.Error())
		}
		return []topics.Audience{{Kind: topics.Channel, A: to.Channel}}, nil
	case len(to.UserIDs) > maxFanOut:
		return nil, apierr.Invalid("userIds: at most " + strconv.Itoa(maxFanOut))
	case len(to.UserIDs) > 0 && to.UserID != "":
		return nil, apierr.Invalid("name either userId or userIds")
	case len(to.UserIDs) > 0:
		return users(to.UserIDs)
	case to.UserID != "":
		return users([]string{to.UserID})
	}
	return nil, apierr.Invalid("name userId, userIds or channel")
}

// users are audiences of a user each, without those that are named twice.
func users(names []string) (list []topics.Audience, err error) {
	seen := make(map[string]bool, len(names))
	for _, u := range names {
		if err := topics.CheckUserID(u); err != nil {
			return nil, apierr.Invalid("userId: " + err.Error())
		}
		if !seen[u] {
			list = append(list, topics.Audience{Kind: topics.User, A: u})
		}
		seen[u] = true
	}
	return list, nil
}

// ingest appends an event of a kind for everyone that the body names, and answers 202 once the log has all of them. Nothing is
// appended where any of them is not valid.
func (a *API) ingest(c echo.Context, k *topics.Kind) error {
	var members map[string]json.RawMessage
	if err := read(c, &members); err != nil {
		return err
	}
	given, to, err := handedIn(k, members)
	if err != nil {
		return err
	}
	audiences := []topics.Audience{{Kind: topics.Everyone}}
	if addressed(k) {
		if audiences, err = to.audiences(); err != nil {
			return err
		}
	}
	idem := c.Request().Header.Get(idempotent.Name)
	if len(idem) > maxIdempotencyKey {
		return apierr.Invalid("Idempotency-Key has at most " + strconv.Itoa(maxIdempotencyKey) + " bytes")
	}
	events := make([]*topics.Event, 0, len(audiences))
	ids := make(map[string]string)
	for _, audience := range audiences {
		key := audience.Key()
		m := topics.Meta{Type: k.Type, Source: topics.SourceOf(userOf(c)), IdempotencyKey: idem, TraceParent: traceParent(c)}
		if m.NexusID = topics.NewID(); idem != "" {
			m.NexusID = topics.EventID(key, k.Type, m.Source, idem)
		}
		topic, _ := k.TopicFor(audience.Kind)
		ids[audience.A] = m.NexusID
		events = append(events, topics.New(topic, key, m, given.value(m.NexusID, audience, userOf(c))))
	}
	if err := a.appendAll(c, events); err != nil {
		return err
	}
	if len(to.UserIDs) > 0 && to.Channel == "" {
		return c.JSON(http.StatusAccepted, PublishedByUser{IDs: ids})
	}
	return c.JSON(http.StatusAccepted, PublishedByUser{ID: events[0].NexusID})
}

// members are those of an event that is handed in, in the order of its kind's fields. The value is what topics.Fields takes: nil
// for what was left out.
type members struct {
	kind   *topics.Kind
	values []any
}

// handedIn reads the members of a body: those of a kind of event, and whom the event is for. Names are found in any case, as
// encoding/json finds them.
func handedIn(k *topics.Kind, body map[string]json.RawMessage) (given members, to Recipients, err error) {
	given = members{k, make([]any, len(k.Fields))}
	recipients := map[string]any{memberUser: &to.UserID, memberUsers: &to.UserIDs, memberChannel: &to.Channel}
	for i, f := range k.Fields {
		if f.Kind == topics.AString && f.Required {
			given.values[i] = "" // Valid says where it must not be empty
		}
	}
	for name, raw := range body {
		known := false
		for _, f := range RecipientFields(k) {
			if strings.EqualFold(f.Name, name) {
				known = true
				if json.Unmarshal(raw, recipients[f.Name]) != nil {
					return given, to, wrongKind(f)
				}
			}
		}
		for i, f := range k.Fields {
			if !strings.EqualFold(f.Name, name) {
				continue
			}
			known = true
			if given.values[i], err = valueOf(f, raw, given.values[i]); err != nil {
				return given, to, err
			}
		}
		if !known {
			return given, to, apierr.Invalid("unknown field " + strconv.Quote(clip(name)))
		}
	}
	return given, to, to.check(k)
}

// valueOf is a member as topics.Fields takes it. A text that is null counts as left out; what is no text is for Valid to judge.
func valueOf(f topics.Field, raw json.RawMessage, absent any) (any, error) {
	if f.Kind != topics.AString {
		return raw, nil
	}
	var text *string
	switch err := json.Unmarshal(raw, &text); {
	case err != nil:
		return nil, wrongKind(f)
	case text == nil:
		return absent, nil
	}
	return *text, nil
}

func wrongKind(f topics.Field) error {
	return apierr.Invalid("field " + f.Name + " must be " + f.Kind.String())
}

// value is the record's value of the event for one audience.
func (m members) value(id string, to topics.Audience, sender string) []byte {
	pairs := []any{"id", id}
	for i, f := range m.kind.Fields {
		v := m.values[i]
		if f.Fill != nil {
			text, _ := v.(string)
			v = f.Fill(to, text, sender)
		}
		pairs = append(pairs, f.Name, v)
	}
	return topics.Fields(pairs...)
}

// traceParent is the request's trace context (W3C Trace Context: 55 bytes), if it is one.
func traceParent(c echo.Context) string {
	if h := c.Request().Header.Get(traced.Name); len(h) == 55 {
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
