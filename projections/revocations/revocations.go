// Package revocations folds which tokens are revoked, in memory. Every node reads all of topic control before it admits
// anybody; nothing is written back.
package revocations

import (
	"context"
	"sync"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// Revocations are the tokens that are revoked. It is safe for concurrent use; a pipeline.Consumer feeds it.
type Revocations struct {
	// Revoked is told of a user some of whose tokens were revoked, from Apply's goroutine. May be nil. Set it before the
	// first Apply.
	Revoked func(user string)

	mu     sync.Mutex
	users  map[string]int64 // user → record time, Unix milliseconds: tokens issued until then are revoked
	tokens map[token]bool
}

type token struct{ user, id string }

// Topics are those that revocations are folded from.
func Topics() []topics.Topic { return []topics.Topic{topics.Control} }

// New makes one in which no token is revoked.
func New() *Revocations {
	return &Revocations{users: make(map[string]int64), tokens: make(map[token]bool)}
}

// Position is the topic's beginning (pipeline.Sink): the state lives in memory alone.
func (r *Revocations) Position(context.Context, topics.Partition) (pipeline.Position, error) {
	return pipeline.Position{}, nil
}

// Apply folds a batch (pipeline.Sink). It never fails.
func (r *Revocations) Apply(_ context.Context, b pipeline.Batch) error {
	for e := range b.Live {
		if e.Type != topics.TypeSessionRevoked {
			continue
		}
		r.revoke(e.Audience.A, topics.ReadRevocation(e).TokenID, e.Time)
		if r.Revoked != nil {
			r.Revoked(e.Audience.A)
		}
	}
	return nil
}

func (r *Revocations) revoke(user, id string, at int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id != "" {
		r.tokens[token{user, id}] = true
		return
	}
	r.users[user] = max(r.users[user], at)
}

// IsRevoked tells whether a user's token is revoked: by its id (jti), or because it was issued before the user's tokens
// were. Issue times have whole seconds: one issued within the second of the revocation counts as issued before, and so
// does one that does not say when (the zero time).
func (r *Revocations) IsRevoked(user, id string, issued time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id != "" && r.tokens[token{user, id}] {
		return true
	}
	at, revoked := r.users[user]
	return revoked && (issued.IsZero() || issued.UnixMilli() <= at)
}
