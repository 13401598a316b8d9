package push

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/nexus/nexus/topics"
)

const (
	workers = 16
	// sendFor bounds one attempt, with the retries that the SDK makes of itself: a server that hangs holds a worker no longer.
	sendFor = 20 * time.Second
	// quotaWait is how long nothing is sent after a 429 that names no time (FCM, "Error handling": 60 s by default).
	quotaWait = time.Minute
	// storeFor bounds noting what became of an attempt, also while the node is shutting down.
	storeFor = 5 * time.Second
	// idle is how often jobs are looked for that nobody in this process has made.
	idle = time.Second
)

// job is a push to one device.
type job struct {
	id, user, token string
	at              place
	note            Note
	attempts        int
}

// Run does jobs until ctx ends, and keeps the positions. Sends under way are cut off; their jobs, and those claimed and not
// begun, are given back.
func (p *Pusher) Run(ctx context.Context) error {
	var keeping sync.WaitGroup
	keeping.Go(func() { p.keep(ctx) })
	defer keeping.Wait()
	if !p.On() {
		<-ctx.Done()
		return nil
	}
	limit := rate.NewLimiter(rate.Limit(p.o.Rate), max(1, p.o.Rate/10))
	free := make(chan struct{}, workers)
	var busy sync.WaitGroup
	defer busy.Wait()
	for ctx.Err() == nil {
		// A job is claimed only when it may be sent at once: what waits for the rate stays free for other nodes.
		may := min(workers-len(free), int(limit.Tokens()))
		jobs, err := p.claim(ctx, may)
		if err != nil && ctx.Err() == nil {
			p.o.Logger.Warn("push jobs cannot be claimed", "err", err)
		}
		for _, j := range jobs {
			old := p.tooOld(j) // takes nothing of the rate: a backlog of old ones holds nobody up
			if !old {
				limit.Allow() // there is one: this loop alone takes them
			}
			free <- struct{}{}
			busy.Go(func() {
				defer func() { <-free; p.nudge() }()
				switch {
				case old:
					p.finish(ctx, j, expired)
				case ctx.Err() != nil:
					p.giveBack(ctx, j)
				default:
					p.do(ctx, j)
				}
			})
		}
		if len(jobs) > 0 {
			continue
		}
		pause := idle
		if may < 1 && workers > len(free) { // for the rate
			pause = min(idle, time.Duration(float64(time.Second)/float64(p.o.Rate)))
		}
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-time.After(pause):
		}
	}
	return nil
}

// claim leases jobs that are due; none while FCM wants to be left alone, whichever node it told that.
func (p *Pusher) claim(ctx context.Context, n int) (list []job, err error) {
	now := p.o.Now()
	if n <= 0 || p.pause.on(now) {
		return nil, nil
	}
	lock := ""
	if p.o.DB.Postgres() {
		lock = " FOR UPDATE SKIP LOCKED"
	}
	// Not cut off by the node's end: the jobs would be leased, and nobody would know of it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeFor)
	defer cancel()
	rows, err := p.o.DB.Write.QueryContext(ctx, `UPDATE push_jobs SET lease=$1, attempts=attempts+1
		WHERE id IN (SELECT id FROM push_jobs WHERE due<=$2 AND lease<$2 AND NOT EXISTS (SELECT 1 FROM push_pause WHERE ends>$2)
			ORDER BY due LIMIT `+fmt.Sprint(n)+lock+`)
		RETURNING id, user_id, token, topic, part, pos, note, attempts`, now.Add(p.o.Lease).UnixMilli(), now.UnixMilli())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var j job
		var note []byte
		var topic string
		if err := rows.Scan(&j.id, &j.user, &j.token, &topic, &j.at.partition, &j.at.offset, &note, &j.attempts); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(note, &j.note); err != nil { // of another build; it never gets better, and must not hold up the rest
			p.o.Logger.Error("a push job cannot be read; it is dropped", "job", j.id)
			j.note = Note{Event: "unreadable"} // of no time, so too old
		}
		j.at.topic, j.at.key = topics.Topic(topic), topics.UserKey(j.user)
		list = append(list, j)
	}
	return list, rows.Err()
}

// tooOld tells that a job's event is not worth a push any more.
func (p *Pusher) tooOld(j job) bool {
	return p.o.Now().Sub(time.UnixMilli(j.note.RecordTime)) > p.o.TTL
}

// do makes one attempt. What it finds is told by typed errors of the SDK alone.
func (p *Pusher) do(ctx context.Context, j job) {
	now := p.o.Now()
	if p.pause.on(now) { // since it was claimed FCM has asked to be left alone
		p.again(ctx, j, p.pause.until())
		return
	}
	send, cancel := context.WithTimeout(ctx, sendFor)
	verdict := p.o.Sender.Send(send, j.note.message(j.token, now, p.o.TTL))
	cancel()
	switch verdict.Kind {
	case Accepted:
		p.finish(ctx, j, accepted)
	case Unregistered:
		p.removeToken(ctx, j, unregistered)
	case Invalid:
		p.judgeInvalid(ctx, j)
	case Mismatch:
		p.o.Logger.Error("a device token belongs to another Firebase project; it is set aside (FIREBASE_PROJECT_ID)", "user", j.user, "device", topics.DeviceHash(j.token))
		p.quarantine(ctx, j)
	case Quota:
		until := p.o.Now().Add(wait(cmp.Or(verdict.RetryAfter, quotaWait), j.attempts))
		p.rest(ctx, until)
		p.again(ctx, j, until)
	default:
		if ctx.Err() != nil { // the node ends, FCM is not to blame
			p.giveBack(ctx, j)
			return
		}
		p.o.Metrics.retry()
		p.o.Logger.Warn("a push failed, it will be tried again", "device", topics.DeviceHash(j.token), "attempt", j.attempts, "err", verdict.Err)
		p.again(ctx, j, p.o.Now().Add(wait(verdict.RetryAfter, j.attempts)))
	}
}

// rest has no node send anything for a while. Others see it when they claim.
func (p *Pusher) rest(ctx context.Context, until time.Time) {
	p.pause.extend(until)
	p.o.Logger.Warn("FCM's quota is used up, nothing is sent for a while", "until", until)
	store, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeFor)
	defer cancel()
	if _, err := p.o.DB.Write.ExecContext(store, `INSERT INTO push_pause (id, ends) VALUES (1,$1)
		ON CONFLICT (id) DO UPDATE SET ends=excluded.ends WHERE push_pause.ends<excluded.ends`, until.UnixMilli()); err != nil {
		p.o.Logger.Warn("other nodes could not be told of FCM's quota", "err", err)
	}
}

// wait is what the server asks for, or else 1 s doubling to 60 s; with half of it at random on top of the first, or in
// the second, so that not all come back together.
func wait(asked time.Duration, attempts int) time.Duration {
	if asked > 0 {
		return asked + rand.N(asked/10+time.Second)
	}
	d := min(time.Second<<min(attempts-1, 6), time.Minute)
	return d/2 + rand.N(d/2)
}

// judgeInvalid finds out whether the token or the payload is at fault: a plain message decides.
func (p *Pusher) judgeInvalid(ctx context.Context, j job) {
	send, cancel := context.WithTimeout(ctx, sendFor)
	defer cancel()
	switch p.o.Sender.Validate(send, probe(j.token)).Kind {
	case Accepted:
		p.o.Logger.Error("FCM takes a plain message for a device and not this one: the push is given up", "event", j.note.ID)
		p.finish(ctx, j, invalidPayload)
	case Invalid, Unregistered:
		p.removeToken(ctx, j, invalidToken)
	default:
		p.again(ctx, j, p.o.Now().Add(wait(0, j.attempts)))
	}
}

// removeToken appends that the token is not registered any more; the inbox folds that like any other's.
func (p *Pusher) removeToken(ctx context.Context, j job, why string) {
	ev := topics.New(topics.Devices, topics.UserKey(j.user), topics.Meta{Type: topics.TypeDeviceUnregistered, Source: topics.NodeSource(p.o.Node), ID: topics.NewID()},
		topics.Fields("token", j.token))
	if err := p.o.Producer.Append(ctx, ev); err != nil {
		p.again(ctx, j, p.o.Now().Add(wait(0, j.attempts)))
		return
	}
	p.finish(ctx, j, why)
}

func (p *Pusher) quarantine(ctx context.Context, j job) {
	store, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeFor)
	defer cancel()
	_, err := p.o.DB.Write.ExecContext(store, `INSERT INTO push_quarantine (hash, at) VALUES ($1,$2) ON CONFLICT DO NOTHING`,
		topics.DeviceKey(j.token), p.o.Now().UnixMilli())
	if err != nil {
		p.o.Logger.Warn("a token could not be set aside", "err", err)
	}
	p.finish(ctx, j, mismatch)
}

// finish ends a job. Where that fails its lease runs out and it is sent again, under the same collapse id.
func (p *Pusher) finish(ctx context.Context, j job, what string) {
	store, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeFor)
	defer cancel()
	if _, err := p.o.DB.Write.ExecContext(store, `DELETE FROM push_jobs WHERE id=$1`, j.id); err != nil {
		p.o.Logger.Warn("a push job could not be ended", "err", err)
		return
	}
	sessions := 0
	if what == accepted {
		sessions = 1
	}
	p.report(j.at, j.note, j.token, what, sessions)
}

// giveBack undoes a claim: another node, or the next start, takes the job at once and not when its lease has run out.
func (p *Pusher) giveBack(ctx context.Context, j job) {
	store, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeFor)
	defer cancel()
	if _, err := p.o.DB.Write.ExecContext(store, `UPDATE push_jobs SET lease=0, attempts=attempts-1 WHERE id=$1`, j.id); err != nil {
		p.o.Logger.Warn("a push job could not be given back; its lease will run out", "err", err)
	}
}

// again gives a job back, to be done at a time.
func (p *Pusher) again(ctx context.Context, j job, at time.Time) {
	store, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeFor)
	defer cancel()
	_, err := p.o.DB.Write.ExecContext(store, `UPDATE push_jobs SET due=$1, lease=0 WHERE id=$2`, at.UnixMilli(), j.id)
	if err != nil && !errors.Is(err, sql.ErrConnDone) {
		p.o.Logger.Warn("a push job could not be given back; its lease will run out", "err", err)
	}
}

// pause is how long FCM wants to be left alone. It is safe for concurrent use.
type pause struct {
	mu  sync.Mutex
	end time.Time
}

func (p *pause) on(now time.Time) bool { return now.Before(p.until()) }

func (p *pause) until() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end
}

func (p *pause) extend(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if until.After(p.end) {
		p.end = until
	}
}
