package topics

import (
	"crypto/sha256"
	"encoding/hex"
)

// Device is a device of a user's that pushes go to.
type Device struct {
	// Token is the push service's name of the device; empty: all that are the user's then.
	Token    string
	Platform string
}

// MaxToken bounds a device token, in bytes (FCM's have some 200).
const MaxToken = 4096

// MaxPlatform bounds a device's platform, in characters.
const MaxPlatform = 32

// The types of a Device's events.
const (
	TypeDeviceRegistered   = "device.registered"
	TypeDeviceUnregistered = "device.unregistered"
)

var deviceRegisteredKind = Kind{
	Type: TypeDeviceRegistered, Doc: "a device of a user's may be sent pushes",
	In: []In{{Topic: Devices, Keys: []AudienceKind{User}}},
	Fields: []Field{
		{Name: "token", Required: true, Bytes: Bounds{1, MaxToken}, Doc: "the push service's name of the device"},
		{Name: "platform", Chars: Bounds{1, MaxPlatform}, Doc: "what kind of device it is, a word of the client's"},
		timestamp},
	Sender: byKeyUser,
}

var deviceUnregisteredKind = Kind{
	Type: TypeDeviceUnregistered, Doc: "a device of a user's, or all of them, may be sent no pushes any more",
	In: []In{{Topic: Devices, Keys: []AudienceKind{User}}},
	Fields: []Field{
		{Name: "token", Bytes: Bounds{1, MaxToken}, Doc: "the push service's name of the device; left out: all that are the user's then"},
		timestamp},
	Sender: either(byKeyUser, byNode), // a node removes a token that the push service knows no more
}

// ReadDevice reads a valid event.
func ReadDevice(e *Event) Device {
	return Device{Token: e.body.Text("token"), Platform: e.body.Text("platform")}
}

// Registered makes the event that the user has registered the device.
func (d Device) Registered(user string) *Event {
	return New(Devices, UserKey(user), Meta{Type: TypeDeviceRegistered, Source: SourceOf(user), ID: NewID()},
		Fields("token", d.Token, "platform", orNil(nonZero(d.Platform))))
}

// Unregistered makes the event that a source (SourceOf the user, or NodeSource) has taken the user's device off the list.
func (d Device) Unregistered(user, source string) *Event {
	return New(Devices, UserKey(user), Meta{Type: TypeDeviceUnregistered, Source: source, ID: NewID()},
		Fields("token", orNil(nonZero(d.Token))))
}

// DeviceKey is what a device token is found by in stores: tokens are longer than their indexes take.
func DeviceKey(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// DeviceHash stands for a device token where it is to be recognised and not shown.
func DeviceHash(token string) string {
	return DeviceKey(token)[:16]
}
