package gateway

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nexus/nexus/topics"
)

// contentIDs names messages whose senders named none. A copy of one that was sent within the span is the same message, and has its id
// and its identity; any other is a message of its own. Where the span is the log's dedup window the content alone is the identity.
// Where it is shorter the identity carries a number besides, that of the span in which the first copy was sent: copies that reach two
// nodes at once are still one message.
type contentIDs struct {
	span, window time.Duration // span is at most window, the log's dedup window

	mu  sync.Mutex
	all map[contentKey]firstCopy
}

type contentKey struct{ key, content string }

type firstCopy struct {
	id, idempotency string
	at              time.Time // when a copy was last sent
}

func newContentIDs(span, window time.Duration) *contentIDs {
	return &contentIDs{span: span, window: window, all: make(map[contentKey]firstCopy)}
}

// spanMark stands between a content's hash and the number of its span.
const spanMark = "~"

// keyOf is where a message is kept; false where its sender named it.
func keyOf(e *topics.Event) (contentKey, bool) {
	content, _, _ := strings.Cut(e.IdempotencyKey, spanMark)
	return contentKey{string(e.Key), content}, e.Type == topics.TypeMessage && topics.IsContentKey(content) && e.NexusID != ""
}

// note enters a message, unless an earlier copy is there.
func (c *contentIDs) note(e *topics.Event, now time.Time) {
	k, ok := keyOf(e)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.all[k]
	if !ok || now.Sub(known.at) >= c.span {
		known = firstCopy{id: e.NexusID, idempotency: e.IdempotencyKey}
	}
	known.at = now // the span slides
	c.all[k] = known
}

// message makes a message of a draft without a clientMessageId.
func (c *contentIDs) message(sender string, d topics.Draft, now time.Time) *topics.Event {
	content := d.ContentKey(sender)
	c.mu.Lock()
	known, ok := c.all[contentKey{topics.ConversationKey(sender, d.ReceiverID), content}]
	c.mu.Unlock()
	if ok && now.Sub(known.at) < c.span {
		ev := d.Message(sender, known.id)
		ev.IdempotencyKey = known.idempotency
		return ev
	}
	ev := d.Message(sender, "")
	switch {
	case c.span <= 0:
		ev.IdempotencyKey = content + spanMark + ev.NexusID
	case c.span < c.window:
		ev.IdempotencyKey = content + spanMark + strconv.FormatInt(now.UnixMilli()/c.span.Milliseconds(), 10)
	}
	return ev
}

func (c *contentIDs) sweep(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range c.all {
		if now.Sub(v.at) >= c.span {
			delete(c.all, k)
		}
	}
}
