package api

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/projections/control"
	"github.com/nexus/nexus/topics"
)

// Keys is the directory of devices' keys, and who got a one-time key.
type Keys interface {
	Devices(user string) []control.Device
	// Expect answers whether the key.taken of this id was the first; Forget ends the wait.
	Expect(id string) <-chan bool
	Forget(id string)
}

// putKeys publishes a device's keys: its identity key, and further one-time keys.
func (a *API) putKeys(c echo.Context) error {
	var body PublishedKeys
	if err := read(c, &body); err != nil {
		return err
	}
	devices := a.o.Keys.Devices(userOf(c))
	known := slices.ContainsFunc(devices, func(d control.Device) bool { return d.ID == body.DeviceID })
	if len(devices) >= control.MaxDevices && !known {
		return apierr.Invalid("this user has keys of as many devices as are allowed; remove one")
	}
	return a.publishKeys(c, topics.DeviceKeys{DeviceID: body.DeviceID, IdentityKey: body.IdentityKey, Prekeys: body.Prekeys}.Event(userOf(c)))
}

func (a *API) deleteKeys(c echo.Context) error {
	device, err := param(c, "deviceId")
	if err != nil {
		return err
	}
	return a.publishKeys(c, topics.DeviceKeys{DeviceID: device, Removed: true}.Event(userOf(c)))
}

func (a *API) publishKeys(c echo.Context, ev *topics.Event) error {
	if err := a.o.AllowPublish(userOf(c)); err != nil {
		return err
	}
	return a.accept(c, ev)
}

// ownKeys tells a user which devices have keys, and how many one-time keys each has left.
func (a *API) ownKeys(c echo.Context) error {
	list := []DeviceWithKeys{}
	for _, d := range a.o.Keys.Devices(userOf(c)) {
		list = append(list, DeviceWithKeys{d.ID, d.Prekeys})
	}
	return c.JSON(http.StatusOK, OwnKeys{list})
}

// keysOf hands out the keys of a user's devices, a one-time key of each, which nobody else gets; ?prekeys=false leaves
// those alone.
func (a *API) keysOf(c echo.Context) error {
	user, err := param(c, pathUser.Name)
	if err != nil {
		return err
	}
	if err := a.o.AllowLookup(userOf(c)); err != nil {
		return err
	}
	hand := c.QueryParam("prekeys") != "false" && c.Request().Method != http.MethodHead // nobody sees what HEAD would use up
	list := []DeviceKeys{}
	for _, d := range a.o.Keys.Devices(user) {
		k := DeviceKeys{DeviceID: d.ID, IdentityKey: d.IdentityKey}
		if hand {
			if k.Prekey, err = a.takePrekey(c, user, d.ID); err != nil {
				return err
			}
		}
		list = append(list, k)
	}
	return c.JSON(http.StatusOK, UserKeys{list, user})
}

// takePrekey takes the next one-time key of a device; nil where none is left, or where others are always faster.
func (a *API) takePrekey(c echo.Context, user, deviceID string) (*topics.Prekey, error) {
	for range 20 {
		var next *topics.Prekey
		for _, d := range a.o.Keys.Devices(user) {
			if d.ID == deviceID {
				next = d.Next
			}
		}
		if next == nil {
			return nil, nil
		}
		won, err := a.tryTake(c, user, deviceID, next.ID)
		if err != nil {
			return nil, err
		}
		if won {
			return next, nil
		}
	}
	return nil, nil
}

// takenWait bounds how long a request waits for this node to read what it has appended.
const takenWait = 5 * time.Second

func (a *API) tryTake(c echo.Context, user, deviceID, prekeyID string) (bool, error) {
	ev := topics.KeyTaken{DeviceID: deviceID, PrekeyID: prekeyID, By: userOf(c)}.Event(user)
	answer := a.o.Keys.Expect(ev.ID)
	defer a.o.Keys.Forget(ev.ID)
	ctx, cancel := context.WithTimeout(c.Request().Context(), takenWait)
	defer cancel()
	if err := a.o.Producer.Append(ctx, ev); err != nil {
		return false, err
	}
	select {
	case won := <-answer:
		return won, nil
	case <-ctx.Done():
		return false, apierr.Unavailable()
	}
}
