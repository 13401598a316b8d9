package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// SettleWindow returns the dedup window of this log. It is the first record of topic control, written at the first
// start, because every consumer must judge alike for ever: wanted is recorded where nothing is; where set says that an
// operator asked for it and another window is recorded, that is an error; otherwise the recorded one counts.
func SettleWindow(ctx context.Context, l *Log, p *Producer, wanted time.Duration, set bool) (time.Duration, error) {
	recorded, err := l.recordedWindow(ctx)
	if err == nil && recorded == 0 {
		e := &topics.Event{Topic: topics.Control, Key: []byte(topics.EveryoneKey), Meta: topics.Meta{Type: topics.DedupWindow},
			Value: fmt.Appendf(nil, `{"window":%q}`, wanted)}
		if err := p.Append(ctx, e); err != nil {
			return 0, fmt.Errorf("record the dedup window: %w", err)
		}
		recorded, err = l.recordedWindow(ctx) // another node may have been first
	}
	if err != nil {
		return 0, err
	}
	if set && recorded != wanted {
		return 0, fmt.Errorf("DEDUP_WINDOW is %s, but this log was begun with %s, and a change would judge its records anew: "+
			"set DEDUP_WINDOW=%s (or unset it), or begin a new log with another NEXUS_TOPIC_PREFIX", wanted, recorded, recorded)
	}
	return recorded, nil
}

// recordedWindow is the window in the first record of control; 0 if the topic is empty.
func (l *Log) recordedWindow(ctx context.Context) (time.Duration, error) {
	ends, err := l.Ends(ctx, topics.Control)
	if err != nil || ends[0] == 0 {
		return 0, err
	}
	name := l.nameOf(topics.Control)
	cl, err := l.kafka.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		fs := cl.PollRecords(ctx, 1)
		for _, r := range fs.Records() {
			var v struct{ Window string }
			e := EventOf(topics.Control, r)
			if e.Type != topics.DedupWindow || json.Unmarshal(r.Value, &v) != nil {
				return 0, fmt.Errorf("the first record of topic %s is not the dedup window: the topic is not Nexus's own", name)
			}
			return time.ParseDuration(v.Window)
		}
	}
	return 0, errors.New("the dedup window could not be read from topic " + name)
}
