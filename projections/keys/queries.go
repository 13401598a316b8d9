package keys

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/nexus/nexus/topics"
)

// Device is a device's entry in the directory.
type Device struct {
	ID, IdentityKey string
	Prekeys         int // one-time keys that wait to be handed out
}

// Handed is a one-time key that was handed out, with the identity key of the device as it was then.
type Handed struct {
	IdentityKey string
	Prekey      topics.Prekey
}

// Devices lists a user's devices that have keys, by id. An error is the database's.
func (d *Directory) Devices(ctx context.Context, user string) (list []Device, err error) {
	err = d.db.Query(ctx, func(rows *sql.Rows) error {
		var x Device
		err := rows.Scan(&x.ID, &x.IdentityKey, &x.Prekeys)
		list = append(list, x)
		return err
	}, `SELECT device_id, identity_key, (SELECT count(*) FROM prekeys p
			WHERE p.user_id=d.user_id AND p.device_id=d.device_id AND p.taken_by IS NULL)
		FROM key_devices d WHERE user_id=$1`, user)
	if err != nil {
		return nil, fmt.Errorf("keys: devices: %w", err)
	}
	slices.SortFunc(list, func(a, b Device) int { return cmp.Compare(a.ID, b.ID) }) // not in SQL: databases collate differently
	return list, nil
}

// Left lists the ids of one-time keys of a device that wait to be handed out, the oldest first, at most limit.
func (d *Directory) Left(ctx context.Context, user, device string, limit int) (ids []string, err error) {
	err = d.db.Query(ctx, func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		ids = append(ids, id)
		return err
	}, `SELECT id FROM prekeys WHERE user_id=$1 AND device_id=$2 AND taken_by IS NULL ORDER BY n LIMIT $3`, user, device, limit)
	if err != nil {
		return nil, fmt.Errorf("keys: one-time keys that are left: %w", err)
	}
	return ids, nil
}

// Outcome returns what an appended key.taken has got; nil where another had the key already, or it is no more. It first waits until the
// directory, on whichever node, has folded the event, or until ctx ends.
func (d *Directory) Outcome(ctx context.Context, taken *topics.Event) (*Handed, error) {
	if err := d.waiters.Await(ctx, topics.Ends{taken.At().Partition: taken.Offset + 1}); err != nil {
		return nil, fmt.Errorf("keys: wait until %s at offset %d is folded: %w", taken.Type, taken.Offset, err)
	}
	if err := topics.Valid(taken); err != nil { // reads key and value, too
		return nil, fmt.Errorf("keys: %s: %w", taken.Type, err)
	}
	k := topics.ReadKeyTaken(taken)
	h := Handed{Prekey: topics.Prekey{ID: k.PrekeyID}}
	err := d.db.Get(ctx, []any{&h.IdentityKey, &h.Prekey.Key}, `SELECT d.identity_key, p.key
		FROM prekeys p JOIN key_devices d ON d.user_id=p.user_id AND d.device_id=p.device_id
		WHERE p.user_id=$1 AND p.device_id=$2 AND p.id=$3 AND p.taken_by=$4`, taken.Audience.A, k.DeviceID, k.PrekeyID, taken.EventID())
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("keys: who has a one-time key: %w", err)
	}
	return &h, nil
}
