package api

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/projections/keys"
	"github.com/nexus/nexus/topics"
)

// Keys is the directory of devices' keys, and who got a one-time key.
type Keys interface {
	Devices(ctx context.Context, user string) ([]keys.Device, error)
	// Left lists ids of one-time keys of a device that nobody has, the oldest first.
	Left(ctx context.Context, user, device string, limit int) ([]string, error)
	// Outcome waits until an appended key.taken is folded; nil: another had the key already.
	Outcome(ctx context.Context, taken *topics.Event) (*keys.Handed, error)
}

// putKeys publishes a device's keys: its identity key, and further one-time keys.
func (a *API) putKeys(c echo.Context) error {
	var body PublishedKeys
	if err := read(c, &body); err != nil {
		return err
	}
	devices, err := a.o.Keys.Devices(c.Request().Context(), userOf(c))
	if err != nil {
		return err
	}
	known := slices.ContainsFunc(devices, func(d keys.Device) bool { return d.ID == body.DeviceID })
	if len(devices) >= keys.MaxDevices && !known {
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
	devices, err := a.o.Keys.Devices(c.Request().Context(), userOf(c))
	if err != nil {
		return err
	}
	for _, d := range devices {
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
	ctx, cancel := context.WithTimeout(c.Request().Context(), handOutTimeout)
	defer cancel()
	devices, err := a.o.Keys.Devices(ctx, user)
	if err != nil {
		return err
	}
	list := []DeviceKeys{}
	for _, d := range devices {
		k := DeviceKeys{DeviceID: d.ID, IdentityKey: d.IdentityKey}
		if hand {
			handed, err := a.takePrekey(ctx, user, d.ID, userOf(c))
			if err != nil {
				return err // never "none is left", which would weaken the conversation
			}
			if handed != nil {
				k.IdentityKey, k.Prekey = handed.IdentityKey, &handed.Prekey
			}
		}
		list = append(list, k)
	}
	return c.JSON(http.StatusOK, UserKeys{list, user})
}

const (
	// handOutTimeout bounds how long a request waits for its one-time keys: until the directory has folded what was appended.
	handOutTimeout = 5 * time.Second
	// mostAmong bounds among how many one-time keys a request picks that has lost to others.
	mostAmong = 64
	// mostTries bounds how many key.taken a request appends for a one-time key. Where others were faster so often, although it picked at
	// random, it is not others: something is wrong, and the log must not be filled with more.
	mostTries = 32
)

// takePrekey takes a one-time key of a device; nil where none is left. It tries the oldest; where others were faster it picks at random
// among twice as many each time, so that many who ask at once do not all want the same. ctx and mostTries end it with an error, which
// names the place in the log of what was appended last.
func (a *API) takePrekey(ctx context.Context, user, device, by string) (*keys.Handed, error) {
	var ev *topics.Event
	for try := range mostTries {
		left, err := a.o.Keys.Left(ctx, user, device, min(1<<try, mostAmong))
		if err != nil || len(left) == 0 {
			return nil, err
		}
		ev = topics.KeyTaken{DeviceID: device, PrekeyID: left[rand.IntN(len(left))], By: by}.Event(user)
		if err := a.o.Producer.Append(ctx, ev); err != nil {
			return nil, err
		}
		if handed, err := a.o.Keys.Outcome(ctx, ev); err != nil || handed != nil {
			return handed, err
		}
	}
	return nil, fmt.Errorf("%d %s in succession got no one-time key though some are left; the last is %s/%d at offset %d", mostTries, ev.Type,
		ev.Topic, ev.Partition, ev.Offset)
}
