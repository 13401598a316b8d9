package stats

import (
	"context"
	"sync"

	"github.com/nexus/nexus/topics"
)

// Counter counts for users.
type Counter interface {
	Counts(ctx context.Context, users []string) (map[string]Counts, error)
	Reached(ctx context.Context, ends topics.Ends) (bool, error)
}

// maxRemembered bounds how many users' counts are remembered; about 100 bytes each.
const maxRemembered = 100_000

// Memory is a Counter that remembers what it answered last, for when the store is away: stale numbers are better than none.
// It is safe for concurrent use.
type Memory struct {
	Counter

	mu   sync.Mutex
	last map[string]Counts
}

// Remember makes the memory of a store.
func Remember(c Counter) *Memory { return &Memory{Counter: c, last: make(map[string]Counts)} }

// Counts asks the store, and remembers its answer.
func (m *Memory) Counts(ctx context.Context, users []string) (map[string]Counts, error) {
	counts, err := m.Counter.Counts(ctx, users)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for user, c := range counts {
		if _, known := m.last[user]; !known && len(m.last) >= maxRemembered {
			m.forgetOne()
		}
		m.last[user] = c
	}
	return counts, nil
}

func (m *Memory) forgetOne() {
	for user := range m.last {
		delete(m.last, user)
		return
	}
}

// Last is what Counts answered last for a user; known is false where it never has, or has forgotten.
func (m *Memory) Last(user string) (c Counts, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, known = m.last[user]
	return c, known
}
