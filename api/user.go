package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
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
	return c.JSON(http.StatusAccepted, ID{ev.ID})
}

// settled waits until the inbox has what this node has read of a key's partition. One that is further behind is read
// as it is, and the answer says that it is stale.
func (a *API) settled(c echo.Context, t topics.Topic, key string) error {
	return a.settledAt(c, a.o.Tail.NextOf(t, key))
}

// settledAll is settled for every partition of a topic.
func (a *API) settledAll(c echo.Context, t topics.Topic) error {
	return a.settledAt(c, a.o.Tail.Next(t))
}

func (a *API) settledAt(c echo.Context, ends topics.Ends) error {
	request := c.Request().Context()
	ctx, cancel := context.WithTimeout(request, settleWait)
	defer cancel()
	err := a.o.Inbox.Await(ctx, ends)
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
	var body DeviceRegistration
	if err := read(c, &body); err != nil {
		return err
	}
	d := topics.Device{Token: body.Token}
	if body.Platform != nil {
		if d.Platform = *body.Platform; d.Platform == "" {
			return apierr.Invalid("field platform must not be empty; leave it out")
		}
	}
	if err := a.o.AllowPublish(userOf(c)); err != nil {
		return err
	}
	if err := reading(c, func() error { return a.roomForDevice(c, d.Token) }); err != nil {
		return err
	}
	if err := a.append(c, d.Registered(userOf(c))); err != nil {
		return err
	}
	return told(c, "Device token registered successfully")
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
	var d topics.Device
	if len(bytes.TrimSpace(text)) > 0 {
		if d.Token, err = oneToken(text); err != nil {
			return err
		}
	}
	if err := a.o.AllowPublish(userOf(c)); err != nil {
		return err
	}
	if err := a.append(c, d.Unregistered(userOf(c), topics.SourceOf(userOf(c)))); err != nil {
		return err
	}
	return told(c, "Device token unregistered successfully")
}

// oneToken reads which device is meant; a client that has lost its token must not log all of the user's out.
func oneToken(text []byte) (string, error) {
	var body DeviceRemoval
	if err := decode(text, &body); err != nil {
		return "", err
	}
	switch {
	case body.Token == nil:
		return "", apierr.Invalid("field token is missing; only an empty body means all devices")
	case *body.Token == "":
		return "", apierr.Invalid("field token must not be empty; only an empty body means all devices")
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
	if err := a.settledNotifications(c); err != nil {
		return err
	}
	list, next, err := a.o.Inbox.Notifications(c.Request().Context(), userOf(c), c.QueryParam("unread") == "true", limitParam.number(c),
		c.QueryParam(cursor.Name))
	if err != nil {
		return err
	}
	page := NotificationPage{Notifications: make([]InboxNotification, 0, len(list)), Next: orNull(next), Stale: isStale(c)}
	for _, n := range list {
		page.Notifications = append(page.Notifications, notificationItem(n))
	}
	return compact(c, http.StatusOK, page)
}

// notificationItem is a notification as clients got it, and whether it is read. An announcement is one of type SYSTEM.
func notificationItem(n inbox.Notification) InboxNotification {
	more := `,"read":` + strconv.FormatBool(n.Read) + `}`
	if n.Announcement {
		more = `,"type":"SYSTEM","priority":"normal","data":{}` + more
	}
	return InboxNotification{spliced(n.Value, more)}
}

// spliced puts more before an object's last brace.
func spliced(object []byte, more string) json.RawMessage {
	return append(append(make([]byte, 0, len(object)+len(more)), object[:len(object)-1]...), more...)
}

// isStale tells whether the store was further behind than the request has waited.
func isStale(c echo.Context) bool { return c.Get(keyStale) != nil }

func (a *API) unreadCount(c echo.Context) error {
	if err := a.settledNotifications(c); err != nil {
		return err
	}
	n, err := a.o.Inbox.Unread(c.Request().Context(), userOf(c))
	if err != nil {
		return err
	}
	return compact(c, http.StatusOK, Count{n, isStale(c)})
}

func (a *API) markRead(c echo.Context) error {
	return a.mark(c, func(m topics.NotificationMark) *topics.Event { return m.Read(userOf(c)) })
}

func (a *API) markDeleted(c echo.Context) error {
	return a.mark(c, func(m topics.NotificationMark) *topics.Event { return m.Deleted(userOf(c)) })
}

// mark appends that the user read or deleted one of its notifications.
func (a *API) mark(c echo.Context, event func(topics.NotificationMark) *topics.Event) error {
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
	if id == "" || errors.Is(err, inbox.ErrNotFound) {
		return apierr.NotFound("notification") // the same for another's
	}
	if err != nil {
		return err
	}
	if err := a.append(c, event(topics.NotificationMark{NotificationID: id})); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, ID{id})
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
		return c.JSON(http.StatusOK, Count{})
	}
	if err != nil {
		return err
	}
	if err := a.append(c, topics.NotificationMark{UpTo: newest}.Read(userOf(c))); err != nil {
		return err
	}
	return reading(c, func() error { return a.unreadCount(c) })
}

func (a *API) listMessages(c echo.Context) error {
	with := c.QueryParam("with")
	if err := a.settled(c, topics.Messages, topics.ConversationKey(userOf(c), with)); err != nil {
		return err
	}
	p := inbox.Page{Limit: limitParam.number(c), Before: c.QueryParam(cursor.Name), After: c.QueryParam("after")}
	if p.Before != "" && p.After != "" {
		return apierr.Invalid("name either cursor or after")
	}
	list, older, newer, err := a.o.Inbox.Messages(c.Request().Context(), userOf(c), with, p)
	if err != nil {
		return err
	}
	page := MessagePage{Messages: make([]InboxMessage, 0, len(list)), Next: orNull(older), Newer: orNull(newer), Stale: isStale(c)}
	for _, m := range list {
		page.Messages = append(page.Messages, messageItem(m))
	}
	return compact(c, http.StatusOK, page)
}

// messageItem is a message as clients got it, and whether its receiver has read it.
func messageItem(m inbox.Message) InboxMessage {
	return InboxMessage{spliced(m.Value, `,"read":`+strconv.FormatBool(m.Read)+`}`)}
}

func (a *API) listConversations(c echo.Context) error {
	if err := a.settledAll(c, topics.Messages); err != nil {
		return err
	}
	list, next, err := a.o.Inbox.Conversations(c.Request().Context(), userOf(c), limitParam.number(c), c.QueryParam(cursor.Name))
	if err != nil {
		return err
	}
	page := ConversationPage{Conversations: make([]Conversation, 0, len(list)), Next: orNull(next), Stale: isStale(c)}
	for _, v := range list {
		page.Conversations = append(page.Conversations, Conversation{v.Other, v.Unread, messageItem(v.Last)})
	}
	return compact(c, http.StatusOK, page)
}

func (a *API) sendMessage(c echo.Context) error {
	var d topics.Draft
	if err := read(c, &d); err != nil {
		return err
	}
	if key := c.Request().Header.Get(idempotent.Name); d.ClientMessageID == "" {
		d.ClientMessageID = key
	}
	r, err := a.o.Messages.Send(c.Request().Context(), userOf(c), d)
	if err != nil {
		return err
	}
	return compact(c, http.StatusAccepted, Sent{r.ID, r.Duplicate})
}

const maxPresence = 500

func (a *API) presence(c echo.Context) error {
	list := c.QueryParam("userIds")
	if list == "" {
		dashboard := a.o.Presence.OnlineUsers(topics.Dashboard)
		return c.JSON(http.StatusOK, OnlineUsers{Dashboard: dashboard, Messaging: a.o.Presence.OnlineUsers(topics.Messaging), Online: dashboard})
	}
	users := strings.Split(list, ",")
	if len(users) > maxPresence {
		return apierr.Invalid("userIds: at most " + strconv.Itoa(maxPresence))
	}
	out := make(map[string]UserStatus, len(users))
	for _, u := range users {
		if err := topics.CheckUserID(u); err != nil {
			return apierr.Invalid("userIds: " + err.Error())
		}
		out[u] = a.statusOf(u)
	}
	return c.JSON(http.StatusOK, out)
}

func (a *API) presenceOf(c echo.Context) error {
	user, err := param(c, pathUser.Name)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, a.statusOf(user))
}

func (a *API) statusOf(user string) UserStatus {
	dashboard := a.o.Presence.Online(topics.Dashboard, user)
	return UserStatus{Dashboard: dashboard, Messaging: a.o.Presence.Online(topics.Messaging, user), Online: dashboard, UserID: user}
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
	return compact(c, http.StatusOK, Numbers{s.Connections, s.Messages, s.Posts, stale})
}

func (a *API) countsOf(c echo.Context, user string) (s stats.Counts, stale bool, err error) {
	if stale, err = a.statsBehind(c); err != nil {
		return s, false, err
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), settleWait)
	defer cancel()
	counts, err := a.o.Stats.Counts(ctx, []string{user})
	return counts[user], stale, err
}

// statsBehind waits until the statistics have what this node has read; it is true where they take too long.
func (a *API) statsBehind(c echo.Context) (stale bool, err error) {
	request := c.Request().Context()
	ctx, cancel := context.WithTimeout(request, settleWait)
	defer cancel()
	ends := a.o.Tail.Next(topics.Messages)
	maps.Copy(ends, a.o.Tail.Next(topics.Notifications))
	for {
		reached, err := a.o.Stats.Reached(ctx, ends)
		switch {
		case reached:
			return false, nil
		case request.Err() != nil:
			return false, request.Err()
		case ctx.Err() != nil:
			return true, nil
		case err != nil:
			return false, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(statsStep):
		}
	}
}

const statsStep = 20 * time.Millisecond
