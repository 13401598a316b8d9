package api

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// revoke revokes a user's tokens: one by its id, or all that were issued until now. Sessions that live on them end on
// every node.
func (a *API) revoke(c echo.Context) error {
	var body struct {
		UserID  string  `json:"userId"`
		TokenID *string `json:"tokenId"`
	}
	if err := read(c, &body); err != nil {
		return err
	}
	if err := topics.CheckUserID(body.UserID); err != nil {
		return apierr.Invalid("userId: " + err.Error())
	}
	ev := topics.New(topics.Control, topics.UserKey(body.UserID),
		topics.Meta{Type: topics.TypeSessionRevoked, Source: topics.SourceOf(userOf(c)), ID: topics.NewID()},
		topics.Fields("tokenId", given(body.TokenID)))
	return a.accept(c, ev)
}

// diagnose shows an operator what a user's case looks like from here: sessions on all nodes with their channels, devices,
// and whether push is on.
func (a *API) diagnose(c echo.Context) error {
	user, err := userParam(c)
	if err != nil {
		return err
	}
	type session struct {
		ID        string   `json:"id"`
		Node      string   `json:"node"`
		Namespace string   `json:"namespace"`
		Since     string   `json:"since"`
		Channels  []string `json:"channels"`
	}
	type device struct {
		Hash     string `json:"hash"` // the token itself is nobody's business
		Platform string `json:"platform"`
	}
	sessions := []session{}
	for _, s := range a.o.Presence.Sessions(user) {
		sessions = append(sessions, session{s.ID, s.Node, string(s.Namespace), topics.FormatTime(s.Since), append([]string{}, s.Channels...)})
	}
	devices, err := a.o.Inbox.Devices(c.Request().Context(), user)
	if err != nil {
		return err
	}
	registered := []device{}
	for _, d := range devices {
		registered = append(registered, device{topics.DeviceHash(d.Token), d.Platform})
	}
	var origins any = a.o.Origins
	if a.o.Origins == nil {
		origins = []string{"any"}
	}
	return c.JSON(http.StatusOK, map[string]any{"userId": user, "connections": len(sessions), "sessions": sessions, "devices": registered,
		"push": a.o.Push, "allowedOrigins": origins})
}
