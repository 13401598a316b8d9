package topics

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Prekey is a one-time key of a device: opaque, handed out once.
type Prekey struct {
	ID  string `json:"id"`
	Key string `json:"key"`
}

// DeviceKeys are the keys that a device of a user's publishes, for others to begin encrypted conversations with.
type DeviceKeys struct {
	DeviceID    string
	IdentityKey string
	Prekeys     []Prekey
	// Removed: the device is no more; it has no keys then.
	Removed bool
}

// KeyTaken says that a user was handed out another's one-time key. The first in the log that names a key has it.
type KeyTaken struct {
	DeviceID, PrekeyID string
	// By is who has it.
	By string
}

// The types of keys' events.
const (
	TypeKeyPublished = "key.published"
	TypeKeyTaken     = "key.taken"
)

// Bounds of what a device publishes at once, and of a device's and a key's id.
const (
	maxKey     = 256
	maxKeyID   = 64
	MaxPrekeys = 100
)

// inKeys is where keys' events stand. Nexus appends them to topic keys; earlier versions appended them to control, and what
// stands there holds.
var inKeys = []In{{Topic: Keys, Keys: []AudienceKind{User}}, {Topic: Control, Keys: []AudienceKind{User}}}

var keyPublishedKind = Kind{
	Type: TypeKeyPublished, Doc: "a device has published keys, or is no more",
	In: inKeys,
	Fields: []Field{
		{Name: "deviceId", Required: true, Chars: Bounds{1, maxKeyID}, Doc: "the device, a name of the client's"},
		{Name: "identityKey", Chars: Bounds{1, maxKey}, Doc: "its long-lived key; another one begins the device anew"},
		{Name: "prekeys", Kind: AnArray, Of: AnObject, Count: Bounds{Max: MaxPrekeys}, Doc: "one-time keys, at most 100 at once", Items: []Field{
			{Name: "id", Required: true, Bytes: Bounds{1, maxKeyID}, Doc: "a name that no other of the device has"},
			{Name: "key", Required: true, Bytes: Bounds{1, maxKey}, Doc: "the key"}}},
		{Name: "removed", Kind: ABool, Doc: "true: the device is no more"},
		timestamp},
	Check: checkKeys, Sender: byKeyUser,
}

var keyTakenKind = Kind{
	Type: TypeKeyTaken, Doc: "a user was handed out another's one-time key",
	In: inKeys,
	Fields: []Field{
		{Name: "deviceId", Required: true, Chars: Bounds{1, maxKeyID}, Doc: "whose key it is: a device of the key's user"},
		{Name: "prekeyId", Required: true, Chars: Bounds{1, maxKeyID}, Doc: "the key's id"},
		{Name: "by", Required: true, Format: UserID, Doc: "who has it"},
		timestamp},
	Sender: byMember("by"), Actor: "by",
}

func checkKeys(e *Event) error {
	removed := e.body.True("removed")
	if e.body.Has("identityKey") == removed {
		return errors.New("a device has an identityKey, unless it is removed")
	}
	raw := e.body.Raw("prekeys")
	if raw == nil {
		return nil
	}
	var list []Prekey
	if err := json.Unmarshal(raw, &list); err != nil || removed {
		return errors.New("prekeys must be objects with id and key")
	}
	if len(list) > MaxPrekeys {
		return fmt.Errorf("prekeys: at most %d at once", MaxPrekeys)
	}
	seen := make(map[string]bool, len(list))
	for _, k := range list {
		if k.ID == "" || len(k.ID) > maxKeyID || k.Key == "" || len(k.Key) > maxKey || seen[k.ID] {
			return fmt.Errorf("a prekey has an id of 1 to %d bytes that no other has, and a key of 1 to %d", maxKeyID, maxKey)
		}
		seen[k.ID] = true
	}
	return nil
}

// ReadDeviceKeys reads a valid event.
func ReadDeviceKeys(e *Event) DeviceKeys {
	k := DeviceKeys{DeviceID: e.body.Text("deviceId"), IdentityKey: e.body.Text("identityKey"), Removed: e.body.True("removed")}
	_ = json.Unmarshal(e.body.Raw("prekeys"), &k.Prekeys) // absent: none
	return k
}

// Event makes the event that a user's device has published them.
func (k DeviceKeys) Event(user string) *Event {
	m := Meta{Type: TypeKeyPublished, Source: SourceOf(user), ID: NewID()}
	if k.Removed {
		return New(Keys, UserKey(user), m, Fields("deviceId", k.DeviceID, "removed", true))
	}
	return New(Keys, UserKey(user), m, Fields("deviceId", k.DeviceID, "identityKey", k.IdentityKey, "prekeys", k.Prekeys))
}

// ReadKeyTaken reads a valid event.
func ReadKeyTaken(e *Event) KeyTaken {
	return KeyTaken{DeviceID: e.body.Text("deviceId"), PrekeyID: e.body.Text("prekeyId"), By: e.body.Text("by")}
}

// Event makes the event; user is whose key it is.
func (k KeyTaken) Event(user string) *Event {
	return New(Keys, UserKey(user), Meta{Type: TypeKeyTaken, Source: SourceOf(k.By), ID: NewID()},
		Fields("deviceId", k.DeviceID, "prekeyId", k.PrekeyID, "by", k.By))
}
