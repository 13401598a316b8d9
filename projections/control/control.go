// Package control folds topic control, in memory: which tokens are revoked, and the directory of devices' keys. Every
// node folds all of it before it admits anybody; nothing is written back.
package control

import (
	"context"
	"sync"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// Fold is the state. It is safe for concurrent use; a pipeline.Consumer feeds it.
type Fold struct {
	// Revoked is told of a user some of whose tokens were revoked, from Apply's goroutine. May be nil. Set it before the
	// fold is fed.
	Revoked func(user string)

	taken pipeline.Answers[bool] // by the id of a key.taken: whether it was the first for its one-time key

	mu      sync.Mutex
	devices map[string]map[string]*device // by user and device id
	users   map[string]int64              // user → record time, Unix milliseconds: tokens issued until then are revoked
	tokens  map[token]bool
}

type token struct{ user, id string }

// New makes an empty fold.
func New() *Fold {
	return &Fold{devices: make(map[string]map[string]*device), users: make(map[string]int64), tokens: make(map[token]bool)}
}

// Position is the topic's beginning (pipeline.Sink): the state lives in memory alone.
func (f *Fold) Position(context.Context, topics.Topic, int32) (pipeline.Position, error) {
	return pipeline.Position{}, nil
}

// Apply folds a batch (pipeline.Sink).
func (f *Fold) Apply(_ context.Context, b pipeline.Batch) error {
	for e := range b.Live {
		switch e.Type {
		case topics.TypeSessionRevoked:
			f.revoke(e)
			if f.Revoked != nil {
				f.Revoked(e.Audience.A)
			}
		case topics.TypeKeyPublished:
			f.publish(e)
		case topics.TypeKeyTaken:
			f.taken.Give(e.ID, f.take(e))
		}
	}
	return nil
}

func (f *Fold) revoke(e *topics.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	user := e.Audience.A
	if id := e.Body.Text("tokenId"); id != "" {
		f.tokens[token{user, id}] = true
		return
	}
	f.users[user] = max(f.users[user], e.Time)
}

// IsRevoked tells whether a user's token is revoked: by its id (jti), or because it was issued before the user's tokens
// were. Issue times have whole seconds: one issued within the second of the revocation counts as issued before, and so
// does one that does not say when (the zero time).
func (f *Fold) IsRevoked(user, id string, issued time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id != "" && f.tokens[token{user, id}] {
		return true
	}
	at, revoked := f.users[user]
	return revoked && (issued.IsZero() || issued.UnixMilli() <= at)
}
