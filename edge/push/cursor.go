package push

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// cursor is where push stands in a partition. While nothing is to be pushed its row is moved not at every batch but by flush,
// lazily: at the latest a moment after the last batch, and when Run ends. So a restart does not judge by who is away then what
// was judged before, but for that moment before a crash.
//
//	         Apply, nothing due                      flush, or Apply with something due
//	stored ─────────────────────▶ ahead of its row ─────────────────────────────────────▶ stored
type cursor struct {
	mu     sync.Mutex     // held while the row is moved
	row    int64          // the row's next
	at     time.Time      // when the row was moved
	behind pipeline.Batch // the last batch that the row does not know of; none where To is 0
}

// lazily is how long a position may wait to be stored while nothing is to be pushed.
const lazily = time.Second

// Position is where push stands (pipeline.Sink).
func (p *Pusher) Position(ctx context.Context, of topics.Partition) (pipeline.Position, error) {
	p.flushOne(ctx, p.cursor(of)) // of an earlier time as the partition's owner
	at, err := p.positions.Next(ctx, of)
	if err != nil {
		return at, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cursors[of] = &cursor{row: at.Next, at: p.o.Now()}
	return at, nil
}

func (p *Pusher) cursor(of topics.Partition) *cursor {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cursors[of] == nil {
		p.cursors[of] = &cursor{}
	}
	return p.cursors[of]
}

// mayWait notes that the row is behind a batch, if it may be for now.
func (p *Pusher) mayWait(c *cursor, b pipeline.Batch) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing || p.o.Now().Sub(c.at) >= lazily {
		return false
	}
	c.behind = b
	c.behind.Events, c.behind.Records = nil, nil // the position alone is of use
	return true
}

// store moves the row past a batch, with what belongs to that, also while the node ends. The cursor is locked.
func (p *Pusher) store(ctx context.Context, c *cursor, b pipeline.Batch, with func(context.Context, *sql.Tx) error) error {
	ctx, cancel := storing(ctx)
	defer cancel()
	err := p.o.DB.Tx(ctx, func(tx *sql.Tx) error {
		if err := p.positions.Move(ctx, tx, b, c.row); err != nil {
			return err
		}
		return with(ctx, tx)
	})
	if err == nil {
		c.row, c.at, c.behind = b.To, p.o.Now(), pipeline.Batch{}
	}
	return err
}

// flush moves the rows that are behind. One that another node has moved is that node's now.
func (p *Pusher) flush(ctx context.Context) {
	p.mu.Lock()
	cursors := slices.Collect(maps.Values(p.cursors))
	p.mu.Unlock()
	for _, c := range cursors {
		p.flushOne(ctx, c)
	}
}

func (p *Pusher) flushOne(ctx context.Context, c *cursor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.behind.To == 0 {
		return
	}
	err := p.store(ctx, c, c.behind, func(context.Context, *sql.Tx) error { return nil })
	switch {
	case errors.Is(err, pipeline.ErrMoved):
		c.behind = pipeline.Batch{}
	case err != nil:
		p.o.Logger.Warn("push could not store how far it came; it tries again", "err", err)
	}
}

// keep stores positions until ctx ends, and then a last time.
func (p *Pusher) keep(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(lazily):
			p.flush(ctx)
		}
	}
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	p.flush(ctx)
}
