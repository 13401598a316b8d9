package pipeline

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// SetAside appends a record that a projection can never apply to dead-letters, with the reason (Consumer.SetAside). A dead
// letter itself stands there already: its copy could not be applied either, and so without end.
func (p *Producer) SetAside(ctx context.Context, e *topics.Event, r *kgo.Record, reason error) error {
	if e.Topic == topics.DeadLetters {
		return nil
	}
	return p.produceRecord(ctx, p.deadLetter(e, r, reason))
}

// maxDead bounds how much is kept of a refused record's value, and of its key and headers.
const maxDead = 64 << 10

func (p *Producer) deadLetter(e *topics.Event, r *kgo.Record, reason error) *kgo.Record {
	d := &kgo.Record{Topic: p.names.Name(topics.DeadLetters), Key: r.Key, Value: r.Value}
	cut := len(d.Value) > maxDead
	if cut {
		d.Value = d.Value[:maxDead]
	}
	if len(d.Key) > maxDead {
		d.Key, cut = d.Key[:maxDead], true
	}
	size := 0
	for _, h := range r.Headers {
		if size += len(h.Key) + len(h.Value); size > maxDead {
			cut = true
			break
		}
		d.Headers = append(d.Headers, h)
	}
	if cut {
		d.Headers = append(d.Headers, kgo.RecordHeader{Key: topics.HeaderTruncated, Value: []byte("true")})
	}
	d.Headers = append(d.Headers,
		kgo.RecordHeader{Key: topics.HeaderOrigin, Value: []byte(e.At().String())},
		kgo.RecordHeader{Key: topics.HeaderReason, Value: []byte(reason.Error())})
	return d
}
