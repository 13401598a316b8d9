package gateway

import (
	"strings"
	"sync"
	"time"

	"github.com/nexus/nexus/topics"
)

// contentIDs remembers the id of the first copy of a message whose sender named none, so that a copy sent again through
// this node carries it too. It is a help beside the dedup window, which alone judges: forgetting costs a second id for
// what is dropped as a duplicate anyway.
type contentIDs struct {
	span time.Duration

	mu  sync.Mutex
	ids map[contentKey]contentID
}

type contentKey struct{ key, idempotency string }

type contentID struct {
	id string
	at time.Time
}

func newContentIDs(span time.Duration) *contentIDs {
	return &contentIDs{span: span, ids: make(map[contentKey]contentID)}
}

// note enters a message's id, unless an earlier copy's is there.
func (c *contentIDs) note(e *topics.Event) {
	if e.Type != topics.TypeMessage || !strings.HasPrefix(e.IdempotencyKey, "sha256:") || e.NexusID == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k, now := contentKey{string(e.Key), e.IdempotencyKey}, time.Now()
	known, ok := c.ids[k]
	if ok && now.Sub(known.at) <= c.span {
		known.at = now // the window slides
		c.ids[k] = known
		return
	}
	c.ids[k] = contentID{e.NexusID, now}
}

// first is the id of an earlier copy, or empty.
func (c *contentIDs) first(key, idempotency string, now time.Time) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := contentKey{key, idempotency}
	if known, ok := c.ids[k]; ok && now.Sub(known.at) <= c.span {
		return known.id
	}
	return ""
}

func (c *contentIDs) sweep(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range c.ids {
		if now.Sub(v.at) > c.span {
			delete(c.ids, k)
		}
	}
}
