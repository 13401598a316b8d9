package push

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// queue keeps jobs in the inbox's database, for all nodes that share it: tables push_jobs, push_pause and push_quarantine. A job
// brings one note to one target of one channel. Each change is one statement, so what is told here holds over nodes and crashes.
//
//	           add                claim: attempts+1                     end
//	(nothing) ─────▶ due ─────────────────────────────▶ leased ─────────────▶ (gone)
//	                 ▲ ▲                                 │ │ │   accepted, dead, refused, set aside, too old
//	                 │ └── giveBack: attempts-1 ─────────┘ │ │
//	                 └──── the lease runs out ─────────────┘ │
//	                 ▲                                       │
//	                 └─ its time comes ── waiting ◀── again ─┘   retry, pause
//
// A job is claimed while its due has come, its lease (0: nobody's) is over, and its channel does not pause. The lease that a
// claim sets says whose claim it is: whoever has lost it changes the job no more, except that he may end it, since what the
// service has taken over is done, whoever sent it.
type queue struct {
	db    *sqldb.DB
	lease time.Duration
	now   func() time.Time
}

// storeFor bounds a statement, also while the node is shutting down.
const storeFor = 5 * time.Second

// storing is a context for a statement that must not be cut off by the node's end.
func storing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), storeFor)
}

// job is a note for one target.
type job struct {
	channel, id  string
	user, target string
	at           topics.Place
	key          string // of the delivery
	note         Note
	attempts     int   // this one included
	lease        int64 // until when it is this claim's, Unix milliseconds
}

// unreadable stands for a note that another build has written and this one cannot read: of no time, so too old.
var unreadable = Note{Event: "unreadable"}

// jobsTable has the columns that add writes. A target stands in column token: nodes of an earlier version, which know FCM
// alone, work on the table while nodes are upgraded.
var jobsTable = sqldb.Table{Name: "push_jobs", Columns: []string{"channel text", "id text", "user_id text", "token text", "topic text",
	"part bigint",
	"pos bigint", "at bigint", "note bytea", "attempts bigint", "due bigint", "lease bigint"}}

// add makes jobs, in the transaction that moves the position past their events. One that is there already stays as it is.
func (q *queue) add(ctx context.Context, tx *sql.Tx, jobs []job) error {
	now, rows := q.now().UnixMilli(), make([][]any, 0, len(jobs))
	for _, j := range jobs {
		note, err := json.Marshal(j.note)
		if err != nil {
			return fmt.Errorf("note of %s: %w", j.note.ID, err)
		}
		rows = append(rows, []any{j.channel, j.note.ID + "/" + topics.DeviceHash(j.target), j.user, j.target, string(j.at.Topic),
			int64(j.at.ID),
			j.at.Offset, j.note.RecordTime, note, int64(0), now, int64(0)})
	}
	if err := q.db.Insert(ctx, tx, jobsTable, rows); err != nil {
		return fmt.Errorf("make jobs: %w", err)
	}
	return nil
}

// claim leases at most n jobs of a channel that are due, those first that are due longest; none while the channel pauses,
// whichever node its service told that.
func (q *queue) claim(ctx context.Context, channel string, n int) (list []job, err error) {
	lock := ""
	if q.db.Postgres() {
		lock = " FOR UPDATE SKIP LOCKED"
	}
	// Not cut off by the node's end: the jobs would be leased, and nobody would know of it.
	ctx, cancel := storing(ctx)
	defer cancel()
	now := q.now()
	lease := now.Add(q.lease).UnixMilli()
	rows, err := q.db.Write.QueryContext(ctx, `UPDATE push_jobs SET lease=$1, attempts=attempts+1
		WHERE channel=$2 AND id IN (SELECT id FROM push_jobs WHERE channel=$2 AND due<=$3 AND lease<$3
			AND NOT EXISTS (SELECT 1 FROM push_pause WHERE channel=$2 AND ends>$3)
			ORDER BY due LIMIT $4`+lock+`)
		RETURNING id, user_id, token, topic, part, pos, note, attempts`, lease, channel, now.UnixMilli(), n)
	if err != nil {
		return nil, fmt.Errorf("claim jobs of %s: %w", channel, err)
	}
	defer rows.Close()
	for rows.Next() {
		j := job{channel: channel, lease: lease}
		var note []byte
		var topic string
		if err := rows.Scan(&j.id, &j.user, &j.target, &topic, &j.at.ID, &j.at.Offset, &note, &j.attempts); err != nil {
			return nil, fmt.Errorf("claim jobs of %s: %w", channel, err)
		}
		if json.Unmarshal(note, &j.note) != nil { // of another build: it never gets better, and must not hold up the rest
			j.note = unreadable
		}
		j.at.Topic, j.key = topics.Topic(topic), topics.UserKey(j.user)
		list = append(list, j)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("claim jobs of %s: %w", channel, err)
	}
	return list, nil
}

// end removes a job; ours is false where it was gone already, and what became of it is told.
func (q *queue) end(ctx context.Context, j job) (ours bool, err error) {
	n, err := q.change(ctx, `DELETE FROM push_jobs WHERE channel=$1 AND id=$2`, j.channel, j.id)
	if err != nil {
		return false, fmt.Errorf("end job %s of %s: %w", j.id, j.channel, err)
	}
	return n > 0, nil
}

// again lets a job wait until a time. One whose lease another has by now is left to him.
func (q *queue) again(ctx context.Context, j job, at time.Time) error {
	_, err := q.change(ctx, `UPDATE push_jobs SET due=$4, lease=0 WHERE channel=$1 AND id=$2 AND lease=$3`, j.channel, j.id, j.lease,
		at.UnixMilli())
	if err != nil {
		return fmt.Errorf("put off job %s of %s: %w", j.id, j.channel, err)
	}
	return nil
}

// giveBack undoes a claim: another node, or the next start, takes the job at once and not when its lease has run out.
func (q *queue) giveBack(ctx context.Context, j job) error {
	_, err := q.change(ctx, `UPDATE push_jobs SET lease=0, attempts=attempts-1 WHERE channel=$1 AND id=$2 AND lease=$3`, j.channel, j.id,
		j.lease)
	if err != nil {
		return fmt.Errorf("give back job %s of %s: %w", j.id, j.channel, err)
	}
	return nil
}

// pause has no node claim jobs of a channel until a time; a later one that stands there already stays.
func (q *queue) pause(ctx context.Context, channel string, until time.Time) error {
	_, err := q.change(ctx, `INSERT INTO push_pause (channel, ends) VALUES ($1,$2)
		ON CONFLICT (channel) DO UPDATE SET ends=excluded.ends WHERE push_pause.ends<excluded.ends`, channel, until.UnixMilli())
	if err != nil {
		return fmt.Errorf("pause %s: %w", channel, err)
	}
	return nil
}

// setAside has a channel make no more jobs for a target.
func (q *queue) setAside(ctx context.Context, channel, target string) error {
	_, err := q.change(ctx, `INSERT INTO push_quarantine (channel, hash, at) VALUES ($1,$2,$3) ON CONFLICT DO NOTHING`,
		channel, topics.DeviceKey(target), q.now().UnixMilli())
	if err != nil {
		return fmt.Errorf("set a target of %s aside: %w", channel, err)
	}
	return nil
}

func (q *queue) change(ctx context.Context, statement string, args ...any) (int64, error) {
	ctx, cancel := storing(ctx)
	defer cancel()
	r, err := q.db.Write.ExecContext(ctx, statement, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// askedAtOnce bounds the targets of one query.
const askedAtOnce = 500

// usable is targets without those that a channel has set aside.
func (q *queue) usable(ctx context.Context, channel string, targets map[string][]string) (map[string][]string, error) {
	keys := make(map[string]string) // by target
	for _, list := range targets {
		for _, t := range list {
			keys[t] = topics.DeviceKey(t)
		}
	}
	aside := make(map[string]bool)
	for some := range slices.Chunk(slices.Collect(maps.Values(keys)), askedAtOnce) {
		args, marks := []any{channel}, make([]string, len(some))
		for n, key := range some {
			args, marks[n] = append(args, key), fmt.Sprintf("$%d", n+2)
		}
		err := q.db.Query(ctx, func(rows *sql.Rows) error {
			var key string
			err := rows.Scan(&key)
			aside[key] = true
			return err
		}, `SELECT hash FROM push_quarantine WHERE channel=$1 AND hash IN (`+strings.Join(marks, ",")+`)`, args...)
		if err != nil {
			return nil, fmt.Errorf("targets of %s that are set aside: %w", channel, err)
		}
	}
	usable := make(map[string][]string, len(targets))
	for user, list := range targets {
		for _, t := range list {
			if !aside[keys[t]] {
				usable[user] = append(usable[user], t)
			}
		}
	}
	return usable, nil
}
