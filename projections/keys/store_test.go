package keys_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/keys"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

func TestMain(m *testing.M) { testenv.Exit(m) }

// ends is a log whose topic control has so many records. asked is closed once somebody wants to know.
type ends struct {
	control int64
	once    *sync.Once
	asked   chan struct{}
}

func (l ends) Ends(context.Context, topics.Topic) (topics.Ends, error) {
	l.once.Do(func() { close(l.asked) })
	return topics.Ends{topics.Control.Partition(0): l.control}, nil
}

// model is what a user's events mean, one by one.
type model map[string]*device

type device struct {
	identity string
	left     []string
	used     map[string]bool
}

func (m model) fold(e *topics.Event) {
	if e.Type == topics.TypeKeyTaken {
		k := topics.ReadKeyTaken(e)
		if d := m[k.DeviceID]; d != nil {
			d.left = slices.DeleteFunc(d.left, func(id string) bool { return id == k.PrekeyID })
		}
		return
	}
	k := topics.ReadDeviceKeys(e)
	if k.Removed || m[k.DeviceID] != nil && m[k.DeviceID].identity != k.IdentityKey {
		delete(m, k.DeviceID)
	}
	if k.Removed || m[k.DeviceID] == nil && len(m) == keys.MaxDevices {
		return
	}
	if m[k.DeviceID] == nil {
		m[k.DeviceID] = &device{identity: k.IdentityKey, used: map[string]bool{}}
	}
	d := m[k.DeviceID]
	for _, p := range k.Prekeys {
		if !d.used[p.ID] && len(d.left) < 500 {
			d.used[p.ID], d.left = true, append(d.left, p.ID)
		}
	}
}

func (m model) String() string {
	var lines []string
	for _, id := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, fmt.Sprintf("%q %s %v", id, m[id].identity, m[id].left))
	}
	return strings.Join(lines, "\n")
}

// TestFold folds random events of a log that an earlier version began, in random batches, topic keys first: what comes of it is what a
// model says of control's events and then those of keys, on both stores.
func TestFold(t *testing.T) {
	for name, open := range map[string]func(*testing.T) (*sqldb.DB, error){
		"sqlite":   func(t *testing.T) (*sqldb.DB, error) { return sqldb.OpenSQLite(filepath.Join(t.TempDir(), "k.db")) },
		"postgres": func(t *testing.T) (*sqldb.DB, error) { return sqldb.OpenPostgres(testenv.Postgres(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			db, err := open(t)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			for range 4 {
				testFold(t, db, rand.Uint64())
			}
		})
	}
}

func testFold(t *testing.T, db *sqldb.DB, seed uint64) {
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	log := map[topics.Topic][]*topics.Event{}
	want := model{}
	for _, topic := range []topics.Topic{topics.Control, topics.Keys} {
		for n := range 120 {
			e := randomEvent(r)
			e.Topic, e.Offset, e.Time = topic, int64(n), 1764583200000
			if err := topics.Valid(e); err != nil {
				t.Fatal(err)
			}
			want.fold(e)
			log[topic] = append(log[topic], e)
		}
	}
	of := ends{int64(len(log[topics.Control])), new(sync.Once), make(chan struct{})}
	d, err := keys.Open(t.Context(), db, of)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, topic := range keys.Topics() {
		if _, err := d.Position(t.Context(), topic.Partition(0)); err != nil {
			t.Fatal(err)
		}
	}
	var folding sync.WaitGroup
	folding.Go(func() { applyAll(t, d, log[topics.Keys], 7) })
	<-of.asked
	applyAll(t, d, log[topics.Control], 1+r.IntN(40))
	folding.Wait()
	if got := stored(t, d); got != want.String() {
		t.Errorf("stored\n%s\nwant\n%s", got, want)
	}
}

func applyAll(t *testing.T, d *keys.Directory, events []*topics.Event, size int) {
	for batch := range slices.Chunk(events, size) {
		from := batch[0].Offset
		b := pipeline.Batch{Topic: batch[0].Topic, From: from, To: from + int64(len(batch)), Events: batch}
		if err := d.Apply(t.Context(), b); err != nil {
			t.Error(err)
			return
		}
	}
}

func randomEvent(r *rand.Rand) *topics.Event {
	id := fmt.Sprintf("device %d", r.IntN(keys.MaxDevices+2))
	switch r.IntN(12) {
	case 0:
		return topics.DeviceKeys{DeviceID: id, Removed: true}.Event("a")
	case 1, 2, 3, 4, 5:
		return topics.KeyTaken{DeviceID: id, PrekeyID: fmt.Sprint(r.IntN(700)), By: "b"}.Event("a")
	}
	k := topics.DeviceKeys{DeviceID: id, IdentityKey: fmt.Sprint("i", r.IntN(40)/39)}
	for first, n := r.IntN(600), 0; n < topics.MaxPrekeys; n++ {
		k.Prekeys = append(k.Prekeys, topics.Prekey{ID: fmt.Sprint(first + n), Key: "k"})
	}
	return k.Event("a")
}

func stored(t *testing.T, d *keys.Directory) string {
	list, err := d.Devices(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	got := model{}
	for _, x := range list {
		left, err := d.Left(t.Context(), "a", x.ID, 1000)
		if err != nil || len(left) != x.Prekeys {
			t.Errorf("%d one-time keys, counted %d, %v", len(left), x.Prekeys, err)
		}
		got[x.ID] = &device{identity: x.IdentityKey, left: left}
	}
	return got.String()
}
