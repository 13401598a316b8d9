package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

func message(c echo.Context, text string) error {
	return c.JSON(http.StatusOK, map[string]string{"message": text})
}

// own makes an event of the request's user about itself.
func own(c echo.Context, t topics.Topic, typ string, value []byte) *topics.Event {
	user := userOf(c)
	return topics.New(t, topics.UserKey(user), topics.Meta{Type: typ, Source: topics.SourceOf(user), ID: topics.NewID()}, value)
}

// append appends an event and waits until this node has read it, so that what the user reads next can wait for it.
func (a *API) append(c echo.Context, ev *topics.Event) error {
	if err := topics.Valid(ev); err != nil {
		return apierr.Invalid(err.Error())
	}
	_, err := a.o.Tail.Append(c.Request().Context(), ev)
	return err
}

// accept appends an event that no read of its user waits for, and answers with its id.
func (a *API) accept(c echo.Context, ev *topics.Event) error {
	if err := topics.Valid(ev); err != nil {
		return apierr.Invalid(err.Error())
	}
	if err := a.o.Producer.Append(c.Request().Context(), ev); err != nil {
		return err
	}
	return c.JSON(http.StatusAccepted, map[string]string{"id": ev.ID})
}

// settled waits until the inbox has what this node has read of a key's partition. One that is further behind is read
// as it is, and the answer says that it is stale.
func (a *API) settled(c echo.Context, t topics.Topic, key string) error {
	return a.settledAt(c, t, a.o.Tail.NextOf(t, key))
}

// settledAll is settled for every partition of a topic.
func (a *API) settledAll(c echo.Context, t topics.Topic) error {
	return a.settledAt(c, t, a.o.Tail.Next(t))
}

func (a *API) settledAt(c echo.Context, t topics.Topic, ends map[int32]int64) error {
	request := c.Request().Context()
	ctx, cancel := context.WithTimeout(request, settleWait)
	defer cancel()
	err := a.o.Inbox.Await(ctx, t, ends)
	if ctx.Err() != nil && request.Err() == nil {
		c.Set(keyStale, true)
		return nil
	}
	return err
}

const keyStale = "stale"

// settleWait bounds how long a read waits for the projection.
const settleWait = 2 * time.Second

func (a *API) registerDevice(c echo.Context) error {
	var body struct {
		Token    string  `json:"token"`
		Platform *string `json:"platform"`
	}
	if err := read(c, &body); err != nil {
		return err
	}
	if err := a.o.AllowPublish(userOf(c)); err != nil {
		return err
	}
	if err := reading(c, func() error { return a.roomForDevice(c, body.Token) }); err != nil {
		return err
	}
	var platform any
	if body.Platform != nil {
		platform = *body.Platform
	}
	ev := own(c, topics.Devices, topics.TypeDeviceRegistered, topics.Fields("token", body.Token, "platform", platform))
	if err := a.append(c, ev); err != nil {
		return err
	}
	return message(c, "Device token registered successfully")
}

// maxDevices bounds the device tokens of a user.
const maxDevices = 20

// roomForDevice refuses one device too many; one that is registered already may be registered again.
func (a *API) roomForDevice(c echo.Context, token string) error {
	devices, err := a.o.Inbox.Devices(c.Request().Context(), userOf(c))
	if err != nil {
		return err
	}
	known := slices.ContainsFunc(devices, func(d inbox.Device) bool { return d.Token == token })
	if len(devices) >= maxDevices && !known {
		return apierr.Invalid("this user has as many devices as are allowed; unregister one")
	}
	return nil
}

// unregisterDevice forgets the body's token; without a body all of the user's.
func (a *API) unregisterDevice(c echo.Context) error {
	text, err := io.ReadAll(c.Request().Body)
	if err != nil {
		return err
	}
	var token any
	if len(bytes.TrimSpace(text)) > 0 {
		if token, err = oneToken(text); err != nil {
			return err
		}
	}
	if err := a.o.AllowPublish(userOf(c)); err != nil {
		return err
	}
	if err := a.append(c, own(c, topics.Devices, topics.TypeDeviceUnregistered, topics.Fields("token", token))); err != nil {
		return err
	}
	return message(c, "Device token unregistered successfully")
}

// oneToken reads which device is meant; a client that has lost its token must not log all of the user's out.
func oneToken(text []byte) (string, error) {
	var body struct {
		Token *string `json:"token"`
	}
	if err := decode(text, &body); err != nil {
		return "", err
	}
	if body.Token == nil {
		return "", apierr.Invalid("field token is missing; only an empty body means all devices")
	}
	return *body.Token, nil
}

// settledNotifications waits for the user's own notifications and for the announcements.
func (a *API) settledNotifications(c echo.Context) error {
	if err := a.settled(c, topics.Notifications, topics.UserKey(userOf(c))); err != nil {
		return err
	}
	return a.settled(c, topics.Broadcasts, topics.EveryoneKey)
}

func (a *API) listNotifications(c echo.Context) error {
	limit, err := limitOf(c)
	if err != nil {
		return err
	}
	unread := c.QueryParam("unread")
	if unread != "" && unread != "true" && unread != "false" {
		return apierr.Invalid("unread must be true or false")
	}
	if err := a.settledNotifications(c); err != nil {
		return err
	}
	list, next, err := a.o.Inbox.Notifications(c.Request().Context(), userOf(c), unread == "true", limit, c.QueryParam("cursor"))
	if err != nil {
		return err
	}
	out := make([]json.RawMessage, 0, len(list))
	for _, n := range list {
		out = append(out, notificationItem(n))
	}
	return page(c, "notifications", out, next)
}

// notificationItem is a notification as clients got it, and whether it is read. An announcement is one of type SYSTEM.
func notificationItem(n inbox.Notification) json.RawMessage {
	more := `,"read":` + strconv.FormatBool(n.Read) + `}`
	if n.Announcement {
		more = `,"type":"SYSTEM","priority":"normal","data":{}` + more
	}
	return spliced(n.Value, more)
}

// spliced puts more before an object's last brace.
func spliced(object []byte, more string) json.RawMessage {
	return append(append(make([]byte, 0, len(object)+len(more)), object[:len(object)-1]...), more...)
}

// orNull is a cursor, or null where there is none.
func orNull(cursor string) any {
	if cursor == "" {
		return json.RawMessage("null")
	}
	return cursor
}

func page(c echo.Context, name string, items []json.RawMessage, next string) error {
	return c.Blob(http.StatusOK, echo.MIMEApplicationJSON, topics.Fields(name, items, "next", orNull(next), keyStale, c.Get(keyStale)))
}

func limitOf(c echo.Context) (int, error) {
	text := c.QueryParam("limit")
	if text == "" {
		return 50, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 200 {
		return 0, apierr.Invalid("limit must be a number from 1 to 200")
	}
	return n, nil
}

func (a *API) unreadCount(c echo.Context) error {
	if err := a.settledNotifications(c); err != nil {
		return err
	}
	n, err := a.o.Inbox.Unread(c.Request().Context(), userOf(c))
	if err != nil {
		return err
	}
	return c.Blob(http.StatusOK, echo.MIMEApplicationJSON, topics.Fields("count", n, keyStale, c.Get(keyStale)))
}

// markNotification appends that the user read or deleted one of its notifications.
func (a *API) markNotification(typ string) echo.HandlerFunc {
	return func(c echo.Context) error {
		id, err := param(c, "id")
		if err != nil {
			return err
		}
		err = reading(c, func() error {
			if err := a.settledNotifications(c); err != nil {
				return err
			}
			return a.o.Inbox.HasNotification(c.Request().Context(), userOf(c), id)
		})
		if errors.Is(err, inbox.ErrNotFound) {
			return apierr.NotFound("notification") // the same for another's
		}
		if err != nil {
			return err
		}
		if err := a.append(c, own(c, topics.Notifications, typ, topics.Fields("notificationId", id))); err != nil {
			return err
		}
		return c.JSON(http.StatusOK, map[string]string{"id": id})
	}
}

// readAll marks everything that the inbox has at this moment.
func (a *API) readAll(c echo.Context) error {
	var newest int64
	err := reading(c, func() (err error) {
		if err := a.settledNotifications(c); err != nil {
			return err
		}
		newest, err = a.o.Inbox.Newest(c.Request().Context(), userOf(c))
		return err
	})
	if errors.Is(err, inbox.ErrNotFound) {
		return c.JSON(http.StatusOK, map[string]int{"count": 0})
	}
	if err != nil {
		return err
	}
	ev := own(c, topics.Notifications, topics.TypeNotificationRead, topics.Fields("upTo", topics.FormatTime(newest)))
	if err := a.append(c, ev); err != nil {
		return err
	}
	return reading(c, func() error { return a.unreadCount(c) })
}

func (a *API) listMessages(c echo.Context) error {
	limit, err := limitOf(c)
	if err != nil {
		return err
	}
	with := c.QueryParam("with")
	if err := topics.CheckUserID(with); err != nil {
		return apierr.Invalid("with: " + err.Error())
	}
	if err := a.settled(c, topics.Messages, topics.ConversationKey(userOf(c), with)); err != nil {
		return err
	}
	p := inbox.Page{Limit: limit, Before: c.QueryParam("cursor"), After: c.QueryParam("after")}
	if p.Before != "" && p.After != "" {
		return apierr.Invalid("name either cursor or after")
	}
	list, older, newer, err := a.o.Inbox.Messages(c.Request().Context(), userOf(c), with, p)
	if err != nil {
		return err
	}
	out := make([]json.RawMessage, 0, len(list))
	for _, m := range list {
		out = append(out, messageItem(m))
	}
	return c.Blob(http.StatusOK, echo.MIMEApplicationJSON, topics.Fields("messages", out, "next", orNull(older), "newer", orNull(newer), keyStale, c.Get(keyStale)))
}

// messageItem is a message as clients got it, and whether its receiver has read it.
func messageItem(m inbox.Message) json.RawMessage {
	return spliced(m.Value, `,"read":`+strconv.FormatBool(m.Read)+`}`)
}

func (a *API) listConversations(c echo.Context) error {
	limit, err := limitOf(c)
	if err != nil {
		return err
	}
	if err := a.settledAll(c, topics.Messages); err != nil {
		return err
	}
	list, next, err := a.o.Inbox.Conversations(c.Request().Context(), userOf(c), limit, c.QueryParam("cursor"))
	if err != nil {
		return err
	}
	out := make([]json.RawMessage, 0, len(list))
	for _, v := range list {
		out = append(out, topics.Fields("userId", v.Other, "unread", v.Unread, "lastMessage", messageItem(v.Last)))
	}
	return page(c, "conversations", out, next)
}

func (a *API) sendMessage(c echo.Context) error {
	var d topics.Draft
	if err := read(c, &d); err != nil {
		return err
	}
	if key := c.Request().Header.Get("Idempotency-Key"); d.ClientMessageID == "" {
		d.ClientMessageID = key
	}
	r, err := a.o.Messages.Send(c.Request().Context(), userOf(c), d)
	if err != nil {
		return err
	}
	var duplicate any
	if r.Duplicate {
		duplicate = true
	}
	return c.Blob(http.StatusAccepted, echo.MIMEApplicationJSON, topics.Fields("id", r.ID, "duplicate", duplicate))
}

const maxPresence = 500

func (a *API) presence(c echo.Context) error {
	list := c.QueryParam("userIds")
	if list == "" {
		return c.JSON(http.StatusOK, map[string]int{"online": a.o.Presence.OnlineUsers(topics.Dashboard),
			"dashboard": a.o.Presence.OnlineUsers(topics.Dashboard), "messaging": a.o.Presence.OnlineUsers(topics.Messaging)})
	}
	users := strings.Split(list, ",")
	if len(users) > maxPresence {
		return apierr.Invalid("userIds: at most " + strconv.Itoa(maxPresence))
	}
	out := make(map[string]any, len(users))
	for _, u := range users {
		if err := topics.CheckUserID(u); err != nil {
			return apierr.Invalid("userIds: " + err.Error())
		}
		out[u] = a.statusOf(u)
	}
	return c.JSON(http.StatusOK, out)
}

func (a *API) presenceOf(c echo.Context) error {
	user, err := userParam(c)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, a.statusOf(user))
}

// userParam is the user that a path names.
func userParam(c echo.Context) (string, error) {
	user, err := param(c, "userId")
	if err != nil {
		return "", err
	}
	if err := topics.CheckUserID(user); err != nil {
		return "", apierr.Invalid("userId: " + err.Error())
	}
	return user, nil
}

func (a *API) statusOf(user string) map[string]any {
	dashboard, messaging := a.o.Presence.Online(topics.Dashboard, user), a.o.Presence.Online(topics.Messaging, user)
	return map[string]any{"userId": user, "online": dashboard, "dashboard": dashboard, "messaging": messaging}
}

func (a *API) stats(c echo.Context) error {
	user := userOf(c)
	s, stale, err := a.countsOf(c, user)
	if err != nil {
		var known bool
		if s, known = a.o.Stats.Last(user); !known {
			return err
		}
		stale = true // the store is away
	}
	return c.Blob(http.StatusOK, echo.MIMEApplicationJSON, topics.Fields("connections", s.Connections, "messages", s.Messages, "posts", s.Posts, keyStale, stale))
}

func (a *API) countsOf(c echo.Context, user string) (s stats.Counts, stale any, err error) {
	if stale, err = a.statsBehind(c); err != nil {
		return s, nil, err
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), settleWait)
	defer cancel()
	counts, err := a.o.Stats.Counts(ctx, []string{user})
	return counts[user], stale, err
}

// statsBehind waits until the statistics have what this node has read; it is true where they take too long.
func (a *API) statsBehind(c echo.Context) (stale any, err error) {
	request := c.Request().Context()
	ctx, cancel := context.WithTimeout(request, settleWait)
	defer cancel()
	ends := stats.Ends{topics.Messages: a.o.Tail.Next(topics.Messages), topics.Notifications: a.o.Tail.Next(topics.Notifications)}
	for {
		reached, err := a.o.Stats.Reached(ctx, ends)
		switch {
		case reached:
			return nil, nil
		case request.Err() != nil:
			return nil, request.Err()
		case ctx.Err() != nil:
			return true, nil
		case err != nil:
			return nil, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(statsStep):
		}
	}
}

const statsStep = 20 * time.Millisecond
