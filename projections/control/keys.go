package control

import (
	"cmp"
	"slices"

	"github.com/nexus/nexus/topics"
)

// MaxDevices bounds the devices of a user that have keys; maxStored the one-time keys that are kept of each.
const (
	MaxDevices = 10
	maxStored  = 500
)

// Device is a device's entry in the directory.
type Device struct {
	ID, IdentityKey string
	Prekeys         int            // that are left
	Next            *topics.Prekey // the one to be handed out next; nil where none is left
}

type device struct {
	identityKey string
	prekeys     []topics.Prekey // oldest first
	gone        map[string]bool // ids of those handed out: publishing one again does not bring it back
}

// publish enters a device's keys, or removes the device. A new identity key begins anew: it is another device.
func (f *Fold) publish(e *topics.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	user, id := e.Audience.A, e.Body.Text("deviceId")
	all := f.devices[user]
	if string(e.Body.Raw("removed")) == "true" {
		if delete(all, id); len(all) == 0 {
			delete(f.devices, user)
		}
		return
	}
	if all == nil {
		all = make(map[string]*device)
		f.devices[user] = all
	}
	d := all[id]
	if d == nil && len(all) >= MaxDevices {
		return
	}
	if d == nil || d.identityKey != e.Body.Text("identityKey") {
		d = &device{identityKey: e.Body.Text("identityKey"), gone: make(map[string]bool)}
		all[id] = d
	}
	for _, k := range topics.ReadDeviceKeys(e).Prekeys {
		known := slices.ContainsFunc(d.prekeys, func(old topics.Prekey) bool { return old.ID == k.ID })
		if !known && !d.gone[k.ID] && len(d.prekeys) < maxStored {
			d.prekeys = append(d.prekeys, k)
		}
	}
}

// take hands a one-time key out: the first key.taken in the log has it, every node agrees on which that is.
func (f *Fold) take(e *topics.Event) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.devices[e.Audience.A][e.Body.Text("deviceId")]
	if d == nil {
		return false
	}
	id := e.Body.Text("prekeyId")
	i := slices.IndexFunc(d.prekeys, func(k topics.Prekey) bool { return k.ID == id })
	if i < 0 {
		return false
	}
	d.prekeys = slices.Delete(d.prekeys, i, i+1)
	d.gone[id] = true
	return true
}

// Devices lists a user's devices that have keys, by id.
func (f *Fold) Devices(user string) (list []Device) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, d := range f.devices[user] {
		x := Device{ID: id, IdentityKey: d.identityKey, Prekeys: len(d.prekeys)}
		if len(d.prekeys) > 0 {
			next := d.prekeys[0]
			x.Next = &next
		}
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b Device) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Expect waits for whether the key.taken of this id was the first; call Forget afterwards.
func (f *Fold) Expect(id string) <-chan bool { return f.taken.Expect(id) }

// Forget ends the wait.
func (f *Fold) Forget(id string) { f.taken.Forget(id) }
