package push

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/nexus/nexus/topics"
)

const (
	// workers bounds the attempts of a channel that are under way at once.
	workers = 16
	// sendFor bounds one attempt: a service that hangs holds a worker no longer.
	sendFor = 20 * time.Second
	// idle is how often jobs are looked for that nobody in this process has made.
	idle = time.Second
	// mostAsked bounds what is believed of a service that asks to be left alone.
	mostAsked = time.Hour
)

// lane does the jobs of one channel, with workers, a rate and a pause of its own: a channel that hangs, or whose service wants
// to be left alone, holds up no other.
type lane struct {
	p     *Pusher
	ch    Channel
	name  string
	log   *slog.Logger
	wake  chan struct{} // there may be jobs
	pause pause
}

// run does jobs until ctx ends.
func (l *lane) run(ctx context.Context) {
	limit := rate.NewLimiter(rate.Limit(l.p.o.Rate), max(1, l.p.o.Rate/10))
	free := make(chan struct{}, workers)
	var busy sync.WaitGroup
	defer busy.Wait()
	for ctx.Err() == nil {
		// A job is claimed only when it may be sent at once: what waits for the rate stays free for other nodes.
		may := min(workers-len(free), int(limit.Tokens()))
		jobs, err := l.claim(ctx, may)
		if err != nil && ctx.Err() == nil {
			l.log.Warn("push jobs cannot be claimed", "err", err)
		}
		for _, j := range jobs {
			old := l.p.left(j.note) <= 0 // takes nothing of the rate: a backlog of old ones holds nobody up
			if !old {
				limit.Allow() // there is one: this loop alone takes them
			}
			free <- struct{}{}
			busy.Go(func() {
				defer func() { <-free; l.nudge() }()
				switch {
				case old:
					l.finish(ctx, j, expired)
				case ctx.Err() != nil:
					l.giveBack(ctx, j)
				default:
					l.do(ctx, j)
				}
			})
		}
		if len(jobs) > 0 {
			continue
		}
		wait := idle
		if may < 1 && workers > len(free) { // for the rate
			wait = min(idle, time.Duration(float64(time.Second)/float64(l.p.o.Rate)))
		}
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-time.After(wait):
		}
	}
}

func (l *lane) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// claim leases at most n jobs that are due; none while the channel's service wants to be left alone.
func (l *lane) claim(ctx context.Context, n int) ([]job, error) {
	if n <= 0 || l.pause.on(l.p.o.Now()) {
		return nil, nil
	}
	jobs, err := l.p.queue.claim(ctx, l.name, n)
	for _, j := range jobs {
		if j.note.Event == unreadable.Event {
			l.log.Error("a push job cannot be read; it is dropped", "job", j.id)
		}
	}
	return jobs, err
}

// do makes one attempt.
func (l *lane) do(ctx context.Context, j job) {
	if l.pause.on(l.p.o.Now()) { // since it was claimed the service has asked to be left alone
		l.again(ctx, j, l.pause.until())
		return
	}
	send, cancel := context.WithTimeout(ctx, sendFor)
	r := l.ch.Send(send, j.target, j.note, max(time.Second, l.p.left(j.note)))
	cancel()
	r.After = min(r.After, mostAsked)
	told := cmp.Or(r.Outcome, r.Kind.String())
	switch r.Kind {
	case Accepted:
		l.finish(ctx, j, accepted)
	case Dead:
		l.forget(ctx, j, told)
	case Refused:
		l.log.Error("a push is refused and given up", "event", j.note.ID, "err", r.Err)
		l.finish(ctx, j, told)
	case SetAside:
		l.log.Error("a device is set aside: nothing is sent to it again", "user", j.user, "device", topics.DeviceHash(j.target), "err", r.Err)
		l.setAside(ctx, j, told)
	case Pause:
		until := l.p.o.Now().Add(wait(r.After, j.attempts))
		l.rest(ctx, until)
		l.again(ctx, j, until)
	default:
		if ctx.Err() != nil { // the node ends, the service is not to blame
			l.giveBack(ctx, j)
			return
		}
		l.p.o.Metrics.retry(l.name)
		l.log.Warn("a push failed, it will be tried again", "device", topics.DeviceHash(j.target), "attempt", j.attempts, "err", r.Err)
		l.again(ctx, j, l.p.o.Now().Add(wait(r.After, j.attempts)))
	}
}

// wait is what the service asks for, or else 1 s doubling to 60 s; with half of it at random on top of the first, or in
// the second, so that not all come back together.
func wait(asked time.Duration, attempts int) time.Duration {
	if asked > 0 {
		return asked + rand.N(asked/10+time.Second)
	}
	d := min(time.Second<<min(attempts-1, 6), time.Minute)
	return d/2 + rand.N(d/2)
}

// rest has no node send anything by the channel for a while. Others see it when they claim.
func (l *lane) rest(ctx context.Context, until time.Time) {
	l.pause.extend(until)
	l.log.Warn("the service's quota is used up, nothing is sent for a while", "until", until)
	if err := l.p.queue.pause(ctx, l.name, until); err != nil {
		l.log.Warn("other nodes could not be told of the quota", "err", err)
	}
}

// forget has the channel forget a dead target, and ends the job.
func (l *lane) forget(ctx context.Context, j job, why string) {
	if err := l.ch.Forget(ctx, j.user, j.target); err != nil {
		l.log.Warn("a dead device could not be forgotten; the push is tried again", "device", topics.DeviceHash(j.target), "err", err)
		l.again(ctx, j, l.p.o.Now().Add(wait(0, j.attempts)))
		return
	}
	l.finish(ctx, j, why)
}

func (l *lane) setAside(ctx context.Context, j job, why string) {
	if err := l.p.queue.setAside(ctx, l.name, j.target); err != nil {
		l.log.Warn("a device could not be set aside", "err", err)
	}
	l.finish(ctx, j, why)
}

// finish ends a job, and tells what became of it. Where that fails its lease runs out and it is sent again, under the same id.
func (l *lane) finish(ctx context.Context, j job, what string) {
	ours, err := l.p.queue.end(ctx, j)
	if err != nil {
		l.log.Warn("a push job could not be ended", "err", err)
		return
	}
	if !ours { // whoever ended it has told
		return
	}
	var sessions int64
	if what == accepted {
		sessions = 1
	}
	l.p.report(j, what, sessions)
}

func (l *lane) giveBack(ctx context.Context, j job) {
	if err := l.p.queue.giveBack(ctx, j); err != nil {
		l.log.Warn("a push job could not be given back; its lease will run out", "err", err)
	}
}

func (l *lane) again(ctx context.Context, j job, at time.Time) {
	if err := l.p.queue.again(ctx, j, at); err != nil {
		l.log.Warn("a push job could not be put off; its lease will run out", "err", err)
	}
}

// pause is how long a service wants to be left alone. It is safe for concurrent use.
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
