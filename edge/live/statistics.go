package live

import (
	"context"
	"sync"
	"time"

	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

// statistics sends stats_update: on connect, soon after a change once the projection has counted it, and regularly.
type statistics struct {
	v *Live

	mu      sync.Mutex
	pending *round // gathers what the next round shows
}

// round is a set of users to be told once the projection has reached every end.
type round struct {
	users map[string]bool
	ends  topics.Ends
	since time.Time
}

const (
	statsStep = 200 * time.Millisecond
	// staleAfter is how long the projection may be behind before clients are told so.
	staleAfter = 5 * time.Second
)

func newRound() *round { return &round{users: make(map[string]bool), ends: make(topics.Ends)} }

func newStatistics(v *Live) *statistics {
	return &statistics{v: v, pending: newRound()}
}

// changed notes that an event changes the counts of users.
func (s *statistics) changed(users []string, ev *topics.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range users {
		if s.v.o.Sessions.HasUser(topics.Dashboard, u) {
			s.pending.users[u] = true
			s.pending.ends.Add(ev.At().Partition, ev.Offset+1)
		}
	}
}

// show has a user told at the next occasion.
func (s *statistics) show(users ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range users {
		s.pending.users[u] = true
	}
}

func (s *statistics) take() *round {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.pending
	if len(r.users) == 0 {
		return nil
	}
	s.pending = newRound()
	r.since = time.Now()
	return r
}

func (s *statistics) run(ctx context.Context) error {
	step, regular := time.NewTicker(statsStep), time.NewTicker(s.v.o.StatsInterval)
	defer step.Stop()
	defer regular.Stop()
	var current *round
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-regular.C:
			s.show(s.v.o.Sessions.Users(topics.Dashboard)...)
		case <-step.C:
		}
		if current == nil {
			current = s.take()
		}
		if current != nil && s.tell(ctx, current) {
			current = nil
		}
	}
}

// tell sends a round if the projection has counted it, or marked as stale if that takes too long; it reports whether
// the round is over.
func (s *statistics) tell(ctx context.Context, r *round) bool {
	ctx, cancel := context.WithTimeout(ctx, staleAfter)
	defer cancel()
	reached, late := s.reached(ctx, r), time.Since(r.since) >= staleAfter
	if !reached && !late {
		return false
	}
	users := make([]string, 0, len(r.users))
	for u := range r.users {
		users = append(users, u)
	}
	counts, err := s.v.o.Stats.Counts(ctx, users)
	if err != nil {
		if !late {
			return false
		}
		s.v.o.Logger.Warn("statistics cannot be read, clients are shown the last ones as stale", "err", err)
		counts, reached = s.known(users), false
	}
	for u, c := range counts {
		s.send(u, c, !reached)
	}
	if !reached {
		s.again(r)
	}
	return true
}

// known are the counts last shown to users.
func (s *statistics) known(users []string) map[string]stats.Counts {
	out := make(map[string]stats.Counts)
	for _, u := range users {
		if c, ok := s.v.o.Stats.Last(u); ok {
			out[u] = c
		}
	}
	return out
}

// again puts a round that could not be shown as it should into the next one.
func (s *statistics) again(r *round) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for u := range r.users {
		s.pending.users[u] = true
	}
	for of, end := range r.ends {
		s.pending.ends.Add(of, end)
	}
}

func (s *statistics) reached(ctx context.Context, r *round) bool {
	ok, err := s.v.o.Stats.Reached(ctx, r.ends)
	return err == nil && ok
}

func (s *statistics) send(user string, c stats.Counts, stale bool) {
	s.v.o.Sessions.ToUser(user, s.v.plain(topics.Dashboard, topics.EventStatsUpdate, c.Data(time.Now().UnixMilli(), stale)))
}
