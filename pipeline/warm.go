package pipeline

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// Warm reads, once for all consumers of this process, what a topic's windows need to know before the consumers go on from
// their positions, of which each partition has several. Whoever starts the consumers calls it before, and release once they
// have attached. Where it fails, or finds less than it should, every consumer warms on its own: that costs time and changes
// no verdict.
func (w *Windows) Warm(ctx context.Context, l *Log, t topics.Topic, positions map[int32][]int64) (release func(), err error) {
	readers, err := w.Expect(t, positions, func(at map[int32]int64) (map[int32]int64, error) { return l.Rewind(ctx, t, at, w.span) })
	if err != nil {
		return nil, err
	}
	release = func() {
		for _, r := range readers {
			r.Close()
		}
	}
	if err := l.warm(ctx, t, readers); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// maxWarmPoll is how many records are judged at once: enough to spread the cost of a poll.
const maxWarmPoll = 10_000

// warm gives each reader the records from its Start on and below its Until, and some more.
func (l *Log) warm(ctx context.Context, t topics.Topic, readers map[int32]*Reader) error {
	cold, from := make(map[int32]*Reader), make(map[int32]kgo.Offset)
	for p, r := range readers {
		if r.Start < r.Until {
			cold[p], from[p] = r, kgo.NewOffset().At(r.Start)
		}
	}
	if len(cold) == 0 {
		return nil
	}
	cl, err := l.kafka.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{l.nameOf(t): from}), kgo.KeepControlRecords())
	if err != nil {
		return err
	}
	defer cl.CloseAllowingRebalance()
	for len(cold) > 0 {
		poll, cancel := context.WithTimeout(ctx, scanQuiet)
		fs := cl.PollRecords(poll, maxWarmPoll)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		next := steppedOver(cl, fs)
		if err := lasting(fs); err != nil {
			return err
		}
		fs.EachPartition(func(p kgo.FetchTopicPartition) {
			if n := len(p.Records); n > 0 {
				_, err = readers[p.Partition].Judge(p.Records)
				next[p.Partition] = max(next[p.Partition], p.Records[n-1].Offset+1)
			}
		})
		if err != nil {
			return err
		}
		if len(next) == 0 {
			return nil // nobody is given anything more
		}
		for p, at := range next {
			if r := cold[p]; r != nil && at >= r.Until {
				delete(cold, p)
			}
		}
	}
	return nil
}
