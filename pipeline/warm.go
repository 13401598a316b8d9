package pipeline

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/nexus/nexus/topics"
)

// Warm reads, once for all consumers of this process, what a topic's windows need to know before the consumers go on from their
// positions; positions has several for each partition. Whoever starts the consumers calls it before, and calls release once they have
// attached. Each record that is read is shown to the warmers as well. Where Warm fails, or finds less than it should, every consumer
// warms on its own: that costs time, and changes nothing of what is a duplicate. Its errors are those of the log, or ctx's.
func (w *Windows) Warm(ctx context.Context, l *Log, t topics.Topic, positions map[topics.Partition][]int64,
	show ...Warmer) (release func(), err error) {
	readers, err := w.Expect(positions, func(at topics.Ends) (topics.Ends, error) { return l.Rewind(ctx, at, w.span) })
	if err != nil {
		return nil, err
	}
	release = func() {
		for _, r := range readers {
			r.Close()
		}
	}
	if err := l.warm(ctx, t, readers, show); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// maxWarmPoll is how many records are taken in at once: enough to spread the cost of a poll.
const maxWarmPoll = 10_000

// warm gives each reader the records from its Start on and below its Until, and some more.
func (l *Log) warm(ctx context.Context, t topics.Topic, readers map[topics.Partition]*Reader, show []Warmer) error {
	cold, from := make(map[topics.Partition]*Reader), make(map[int32]kgo.Offset)
	for of, r := range readers {
		if r.Start < r.Until {
			cold[of], from[of.ID] = r, kgo.NewOffset().At(r.Start)
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
		next := l.steppedOver(cl, fs)
		if err := fatalFetchError(fs); err != nil {
			return err
		}
		fs.EachPartition(func(p kgo.FetchTopicPartition) {
			if n := len(p.Records); n > 0 {
				of := t.Partition(p.Partition)
				_, err = readers[of].Judge(p.Records)
				for _, s := range show {
					showAll(s, of, p.Records)
				}
				next[of] = max(next[of], p.Records[n-1].Offset+1)
			}
		})
		if err != nil {
			return err
		}
		if len(next) == 0 {
			return nil // nobody is given anything more
		}
		for of, at := range next {
			if r := cold[of]; r != nil && at >= r.Until {
				delete(cold, of)
			}
		}
	}
	return nil
}

func showAll(s Warmer, of topics.Partition, records []*kgo.Record) {
	for _, r := range records {
		if !r.Attrs.IsControl() {
			s.Warm(of.At(r.Offset), r.Timestamp.UnixMilli())
		}
	}
}

// Prepare calls Warm for every topic that is deduplicated, with the positions of all consumers of this process. Call it before they run,
// and call release, also after an error, once they have taken their partitions over. Its errors are those of Warm and Sink.Position.
func (w *Windows) Prepare(ctx context.Context, l *Log, consumers []*Consumer) (release func(), err error) {
	var releases []func()
	release = func() {
		for _, r := range releases {
			r()
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	for _, s := range topics.Specs() {
		if !s.Judged {
			continue
		}
		g.Go(func() error {
			positions, show, err := standings(ctx, l, s.Topic, consumers)
			if err != nil {
				return err
			}
			r, err := w.Warm(ctx, l, s.Topic, positions, show...)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			releases = append(releases, r)
			return nil
		})
	}
	err = g.Wait()
	return release, err
}

// standings are where the consumers of a topic will begin, by partition, and those that want to be shown what is read.
func standings(ctx context.Context, l *Log, t topics.Topic, consumers []*Consumer) (positions map[topics.Partition][]int64,
	show []Warmer, err error) {
	starts, err := l.Starts(ctx, t)
	if err != nil {
		return nil, nil, err
	}
	positions = make(map[topics.Partition][]int64)
	for _, c := range consumers {
		if !slices.Contains(c.Topics, t) {
			continue
		}
		for of, start := range starts {
			at, err := c.Sink.Position(ctx, of)
			if err != nil {
				return nil, nil, fmt.Errorf("position of %s: %w", of, err)
			}
			positions[of] = append(positions[of], max(at.Next, start))
		}
		if warmer, ok := c.Sink.(Warmer); ok {
			show = append(show, warmer)
		}
	}
	return positions, show, nil
}
