package topics

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// Prekey is a one-time key of a device: opaque, handed out once.
type Prekey struct {
	ID  string `json:"id"`
	Key string `json:"key"`
}

// Bounds of what a device publishes at once.
const (
	maxKey     = 256
	MaxPrekeys = 100
)

// Prekeys reads the one-time keys of a key.published.
func Prekeys(e *Event) (list []Prekey) {
	_ = json.Unmarshal(e.Body.Raw("prekeys"), &list) // absent: none
	return list
}

func checkKeys(e *Event) error {
	removed := string(e.Body.Raw("removed")) == "true"
	if e.Body.Has("identityKey") == removed {
		return errors.New("a device has an identityKey, unless it is removed")
	}
	raw := e.Body.Raw("prekeys")
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
		if k.ID == "" || len(k.ID) > 64 || k.Key == "" || len(k.Key) > maxKey || seen[k.ID] {
			return fmt.Errorf("a prekey has an id of 1 to 64 bytes that no other has, and a key of 1 to %d", maxKey)
		}
		seen[k.ID] = true
	}
	return nil
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
