package keys_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/nexus/nexus/projections/keys"
	"github.com/nexus/nexus/topics"
)

// model is what events mean, one by one: users' devices.
type model map[string]map[string]*device

type device struct {
	identity string
	keys     map[string]*key // by id
}

// key is a one-time key.
type key struct {
	n       int // its number among the device's
	text    string
	taken   string // id of the event that has it
	takenAt int64
}

// Bounds that are not exported, and that the model has of its own: docs/e2e.md, decision 0094.
const (
	most  = 500
	spent = 60_000 // ms
)

func (d *device) left() (ids []string) {
	for _, id := range slices.SortedFunc(maps.Keys(d.keys), func(a, b string) int { return cmp.Compare(d.keys[a].n, d.keys[b].n) }) {
		if d.keys[id].taken == "" && d.keys[id].text != "" {
			ids = append(ids, id)
		}
	}
	return ids
}

func (m model) fold(e *topics.Event) {
	if e.Duplicate || e.Stray {
		return
	}
	user := e.Audience.A
	if m[user] == nil {
		m[user] = map[string]*device{}
	}
	if e.Type == topics.TypeKeyTaken {
		k := topics.ReadKeyTaken(e)
		if d := m[user][k.DeviceID]; d != nil && slices.Contains(d.left(), k.PrekeyID) {
			d.keys[k.PrekeyID].taken, d.keys[k.PrekeyID].takenAt = e.EventID(), e.Time
		}
		return
	}
	m.publish(m[user], topics.ReadDeviceKeys(e), e.Time)
}

func (model) publish(devices map[string]*device, k topics.DeviceKeys, at int64) {
	d := devices[k.DeviceID]
	if k.Removed || d != nil && d.identity != k.IdentityKey {
		delete(devices, k.DeviceID)
	}
	if k.Removed || devices[k.DeviceID] == nil && len(devices) == keys.MaxDevices {
		return
	}
	if d = devices[k.DeviceID]; d == nil {
		d = &device{k.IdentityKey, map[string]*key{}}
		devices[k.DeviceID] = d
	}
	for _, old := range d.keys {
		if old.taken != "" && old.takenAt < at-spent {
			old.text, old.taken = "", ""
		}
	}
	for _, p := range k.Prekeys {
		if d.keys[p.ID] == nil && len(d.left()) < most {
			d.keys[p.ID] = &key{n: len(d.keys), text: p.Key}
		}
	}
}

// rows are what the tables must hold, in the form of rowsOf.
func (m model) rows() string {
	var lines []string
	for user, devices := range m {
		for id, d := range devices {
			lines = append(lines, rowOf(user, id, d.identity, int64(len(d.keys)), "", ""))
			for name, k := range d.keys {
				taken := k.taken
				if taken == "" && k.text != "" {
					taken = "-"
				}
				lines = append(lines, rowOf(user, id, name, int64(k.n), k.text, taken))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// outcome is what an event's asker must be given: the identity key and the text.
func (m model) outcome(e *topics.Event) string {
	for _, d := range m[e.Audience.A] {
		for _, k := range d.keys {
			if k.taken == e.EventID() {
				return d.identity + " " + k.text
			}
		}
	}
	return ""
}

// randomEvent is an event of a user: of many devices with few one-time keys, or of few devices with many, so that both bounds are met.
func randomEvent(r *rand.Rand, user string, many bool) *topics.Event {
	devices, publish, ids := 1, topics.MaxPrekeys, 700
	if many {
		devices, publish, ids = keys.MaxDevices+2, 5, 12
	}
	id := fmt.Sprintf("device%d", r.IntN(devices))
	switch r.IntN(20) {
	case 0:
		return topics.DeviceKeys{DeviceID: id, Removed: true}.Event(user)
	case 1, 2, 3, 4, 5, 6, 7, 8:
		return topics.KeyTaken{DeviceID: id, PrekeyID: fmt.Sprint(r.IntN(ids)), By: "b"}.Event(user)
	}
	k := topics.DeviceKeys{DeviceID: id, IdentityKey: fmt.Sprint("i", r.IntN(40)/39)}
	for first, n := r.IntN(ids), 0; n < publish; n++ {
		k.Prekeys = append(k.Prekeys, topics.Prekey{ID: fmt.Sprint(first + n), Key: fmt.Sprintf("k%x", r.Uint32())})
	}
	return k.Event(user)
}
