package pipeline

import (
	"context"

	"github.com/nexus/nexus/topics"
)

// RecordsBelow finds, by partition, the time of the last record below each offset: the fast way, which may leave some out, and
// the slow way.
func (l *Log) RecordsBelow(ctx context.Context, next topics.Ends) (fast, slow map[topics.Partition]int64, err error) {
	all, err := l.extents(ctx, next, true)
	fast, slow = make(map[topics.Partition]int64), make(map[topics.Partition]int64)
	for of, r := range l.timesAt(ctx, next) {
		fast[of] = r.time
	}
	for of, x := range all {
		if x.before.found {
			slow[of] = x.before.time
		}
	}
	return fast, slow, err
}
