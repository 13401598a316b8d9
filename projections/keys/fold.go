package keys

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// fold does what events say, in a transaction.
type fold struct {
	db *sqldb.DB
	tx *sql.Tx
}

func (f fold) all(ctx context.Context, b pipeline.Batch) error {
	for e := range b.Live {
		var err error
		switch e.Type {
		case topics.TypeKeyPublished:
			err = f.published(ctx, e.Audience.A, topics.ReadDeviceKeys(e), e.Time)
		case topics.TypeKeyTaken:
			err = f.taken(ctx, e.Audience.A, topics.ReadKeyTaken(e), e.EventID(), e.Time)
		}
		if err != nil {
			return fmt.Errorf("%s at offset %d: %w", e.Type, e.Offset, err)
		}
	}
	return nil
}

// state is what is known of a device before it publishes.
type state struct {
	identity sql.NullString // null: there is no such device
	devices  int            // of the user
	stored   int64          // one-time keys of the device so far, which numbers the next ones
	left     int            // of them, those that wait to be handed out
}

func (f fold) state(ctx context.Context, user, device string) (s state, err error) {
	err = f.tx.QueryRowContext(ctx, `SELECT
		(SELECT identity_key FROM key_devices WHERE user_id=$1 AND device_id=$2),
		(SELECT count(*) FROM key_devices WHERE user_id=$1),
		COALESCE((SELECT stored FROM key_devices WHERE user_id=$1 AND device_id=$2), 0),
		(SELECT count(*) FROM prekeys WHERE user_id=$1 AND device_id=$2 AND taken_by IS NULL)`, user, device).
		Scan(&s.identity, &s.devices, &s.stored, &s.left)
	return s, err
}

// published enters a device's keys, or removes the device. A new identity key begins anew: it is another device.
func (f fold) published(ctx context.Context, user string, d topics.DeviceKeys, at int64) error {
	s, err := f.state(ctx, user, d.DeviceID)
	if err != nil {
		return err
	}
	known := s.identity.Valid
	if known && (d.Removed || s.identity.String != d.IdentityKey) {
		if err := f.remove(ctx, user, d.DeviceID); err != nil {
			return err
		}
		s = state{devices: s.devices - 1}
		known = false
	}
	if d.Removed || !known && s.devices >= MaxDevices {
		return nil
	}
	if err := f.spend(ctx, user, d.DeviceID, at-spentAfter.Milliseconds()); err != nil {
		return err
	}
	fresh, err := f.fresh(ctx, user, d, known)
	if err != nil {
		return err
	}
	return f.store(ctx, user, d, s.stored, fresh[:min(len(fresh), max(0, maxLeft-s.left))])
}

func (f fold) remove(ctx context.Context, user, device string) error {
	for _, table := range []string{"prekeys", "key_devices"} {
		if _, err := f.tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE user_id=$1 AND device_id=$2`, user, device); err != nil {
			return err
		}
	}
	return nil
}

// fresh are the one-time keys whose ids the device has not used before: one that was handed out does not come back.
func (f fold) fresh(ctx context.Context, user string, d topics.DeviceKeys, known bool) ([]topics.Prekey, error) {
	if !known || len(d.Prekeys) == 0 {
		return d.Prekeys, nil
	}
	args, marks := []any{user, d.DeviceID}, make([]string, 0, len(d.Prekeys))
	for _, k := range d.Prekeys {
		args = append(args, k.ID)
		marks = append(marks, fmt.Sprintf("$%d", len(args)))
	}
	used := make(map[string]bool)
	rows, err := f.tx.QueryContext(ctx, `SELECT id FROM prekeys WHERE user_id=$1 AND device_id=$2 AND id IN (`+strings.Join(marks, ",")+`)`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		used[id] = true
	}
	return slices.DeleteFunc(d.Prekeys, func(k topics.Prekey) bool { return used[k.ID] }), rows.Err()
}

var (
	devicesTable = sqldb.Table{Name: "key_devices", Columns: []string{"user_id text", "device_id text", "identity_key text", "stored bigint"},
		Conflict: "(user_id, device_id) DO UPDATE SET stored=excluded.stored"}
	prekeysTable = sqldb.Table{Name: "prekeys", Columns: []string{"user_id text", "device_id text", "id text", "n bigint", "key text"}}
)

// store writes the device, and its new one-time keys, of which stored went before.
func (f fold) store(ctx context.Context, user string, d topics.DeviceKeys, stored int64, fresh []topics.Prekey) error {
	rows := make([][]any, len(fresh))
	for i, k := range fresh {
		rows[i] = []any{user, d.DeviceID, k.ID, stored + int64(i), k.Key}
	}
	if err := f.db.Insert(ctx, f.tx, devicesTable, [][]any{{user, d.DeviceID, d.IdentityKey, stored + int64(len(fresh))}}); err != nil {
		return err
	}
	return f.db.Insert(ctx, f.tx, prekeysTable, rows)
}

// taken hands a one-time key out. Where somebody has it already, or there is none of that id, nothing happens.
func (f fold) taken(ctx context.Context, user string, k topics.KeyTaken, by string, at int64) error {
	_, err := f.tx.ExecContext(ctx, `UPDATE prekeys SET taken_by=$1, taken_at=$2
		WHERE user_id=$3 AND device_id=$4 AND id=$5 AND taken_by IS NULL`, by, at, user, k.DeviceID, k.PrekeyID)
	return err
}

// spentAfter is how long, in record time, what was handed out is kept for whoever appended the key.taken (Outcome): many times as long as
// anybody waits for it.
const spentAfter = time.Minute

// spend deletes the texts of a device's one-time keys that were handed out before then: nobody reads them any more. Their ids stay, so that
// none comes back. It is done when the device publishes further ones, so that it depends on the log alone, and rows with texts are bounded.
func (f fold) spend(ctx context.Context, user, device string, before int64) error {
	_, err := f.tx.ExecContext(ctx, `UPDATE prekeys SET key='', taken_by='' WHERE user_id=$1 AND device_id=$2 AND taken_by<>'' AND taken_at<$3`,
		user, device, before)
	return err
}
