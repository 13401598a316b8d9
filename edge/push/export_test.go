package push

import (
	"context"

	"github.com/nexus/nexus/topics"
)

// What tests of the queue need beside what cmd/nexus does.
const (
	Workers = workers
	Lazily  = lazily
)

// The words of outcomes.
const (
	WordAccepted = accepted
	WordExpired  = expired
)

// Wait is the pause before another attempt.
var Wait = wait

// Job is a job that was claimed.
type Job struct {
	User, Target string
	l            *lane
	j            job
}

// Now makes the attempt.
func (j Job) Now(ctx context.Context) { j.l.do(ctx, j.j) }

// SetAside has the job's target be sent nothing again.
func (j Job) SetAside(ctx context.Context) { j.l.setAside(ctx, j.j, "set_aside") }

// Due claims what may be sent now by a channel; empty: by all.
func (p *Pusher) Due(ctx context.Context, channel string) (list []Job, err error) {
	for _, l := range p.lanes {
		if channel != "" && channel != l.name {
			continue
		}
		jobs, err := l.claim(ctx, workers)
		if err != nil {
			return nil, err
		}
		for _, j := range jobs {
			list = append(list, Job{j.user, j.target, l, j})
		}
	}
	return list, nil
}

// Options are those that the pusher was made with.
func (p *Pusher) Options() *Options { return &p.o }

// Flush and Keep store positions.
func (p *Pusher) Flush(ctx context.Context) { p.flush(ctx) }

// Keep stores positions until ctx ends, and then a last time.
func (p *Pusher) Keep(ctx context.Context) { p.keep(ctx) }

// Row is the position that is stored.
func (p *Pusher) Row(ctx context.Context, t topics.Topic) (int64, error) {
	at, err := p.positions.Peek(ctx, t.Partition(0))
	return at.Next, err
}
