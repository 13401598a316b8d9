package inbox

import (
	"sync"
	"time"

	"github.com/nexus/nexus/topics"
)

// clocks remember the latest record time of each partition, to notice a record whose time is earlier than that of one before it. The
// zero value is ready. It is safe for concurrent use.
type clocks struct {
	mu  sync.Mutex
	all map[topics.Partition]clock
}

type clock struct{ next, latest int64 }

// clockSkew is how far the clocks of brokers are taken to differ at most. For so long, in record time, after a partition was taken
// over every record counts as out of order: what times those before it had is not known.
const clockSkew = int64(time.Minute / time.Millisecond)

// at is the latest time of what stands before an offset; where it is not known, 0.
func (c *clocks) at(of topics.Partition, next int64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x, ok := c.all[of]; ok && x.next == next {
		return x.latest
	}
	return 0
}

// set notes the latest time of what stands before an offset.
func (c *clocks) set(of topics.Partition, next, latest int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = make(map[topics.Partition]clock)
	}
	c.all[of] = clock{next, latest}
}
