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
	var body RevokedTokens
	if err := read(c, &body); err != nil {
		return err
	}
	if err := topics.CheckUserID(body.UserID); err != nil {
		return apierr.Invalid("userId: " + err.Error())
	}
	var r topics.Revocation
	if body.TokenID != nil {
		if r.TokenID = *body.TokenID; r.TokenID == "" {
			return apierr.Invalid("field tokenId must not be empty; leave it out to revoke all of the user's tokens")
		}
	}
	return a.accept(c, r.Event(body.UserID, userOf(c)))
}

// diagnose shows an operator what a user's case looks like from here: sessions on all nodes with their channels, devices,
// and whether push is on.
func (a *API) diagnose(c echo.Context) error {
	user, err := param(c, pathUser.Name)
	if err != nil {
		return err
	}
	d := Diagnosis{AllowedOrigins: a.o.Origins.texts(), Devices: []DiagnosedDevice{}, Push: a.o.Push, Sessions: []DiagnosedSession{}, UserID: user}
	for _, s := range a.o.Presence.Sessions(user) {
		d.Sessions = append(d.Sessions, DiagnosedSession{s.ID, s.Node, string(s.Namespace), topics.FormatTime(s.Since), append([]string{}, s.Channels...)})
	}
	d.Connections = len(d.Sessions)
	devices, err := a.o.Inbox.Devices(c.Request().Context(), user)
	if err != nil {
		return err
	}
	for _, x := range devices {
		d.Devices = append(d.Devices, DiagnosedDevice{topics.DeviceHash(x.Token), x.Platform})
	}
	return c.JSON(http.StatusOK, d)
}
