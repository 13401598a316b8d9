package pipeline

import (
	"context"

	"github.com/nexus/nexus/topics"
)

// RecordsBelow finds, by partition, the time of the last record below each offset: the fast way, which may leave some out, and
// the slow way.
func (l *Log) RecordsBelow(ctx context.Context, t topics.Topic, next map[int32]int64) (fast, slow map[int32]int64, err error) {
	all, err := l.extents(ctx, ofTopic(t, next), true)
	fast, slow = make(map[int32]int64), make(map[int32]int64)
	for of, r := range l.timesAt(ctx, ofTopic(t, next)) {
		fast[of.id] = r.time
	}
	for of, x := range all {
		if x.before.found {
			slow[of.id] = x.before.time
		}
	}
	return fast, slow, err
}
