package live

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// cursor is where a session stands: in every partition of the topics behind its namespace, the offset of the first record
// that it has not got, with a check of what stands before it.
type cursor map[topics.Topic][]pipeline.Point

// nexts are the offsets of a topic's partitions.
func (c cursor) nexts(t topics.Topic) []int64 {
	v := make([]int64, len(c[t]))
	for p, at := range c[t] {
		v[p] = at.Next
	}
	return v
}

// offset is a cursor as clients see it, which to them is opaque: the topics' identities and the positions. It is that of
// a session which has just got ev; nil: which has what the tail has passed.
func (v *Live) offset(ns topics.Namespace, ev *topics.Event) string {
	b := make([]byte, 0, 64)
	var at []pipeline.Point
	for _, t := range v.feedTopics[ns] {
		at = v.o.Tail.Vector(at[:0], t)
		if ev != nil && ev.Topic == t {
			at[ev.Partition] = pipeline.PointAt(ev.Offset+1, ev.Time)
		}
		b = appendPositions(b, v.o.TopicIDs[t], at)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// offsetOf is a cursor as clients see it.
func (v *Live) offsetOf(ns topics.Namespace, c cursor) string {
	var b []byte
	for _, t := range v.feedTopics[ns] {
		b = appendPositions(b, v.o.TopicIDs[t], c[t])
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func appendPositions(b []byte, id [4]byte, v []pipeline.Point) []byte {
	b = append(b, id[:]...)
	b = binary.AppendUvarint(b, uint64(len(v)))
	for _, at := range v {
		b = binary.BigEndian.AppendUint16(binary.AppendUvarint(b, uint64(at.Next)), at.Check)
	}
	return b
}

// errOffset reports an offset that is not of this namespace's topics as they are now: they may have been made anew.
var errOffset = errors.New("live: the offset is not one of these topics")

// parseOffset reads what offset wrote.
func (v *Live) parseOffset(ns topics.Namespace, text string) (cursor, error) {
	return v.parsePositions(ns, text, v.o.Tail.Partitions)
}

// verify makes sure that a cursor is one of this log in everything that the audiences concern: a log that was truncated or
// restored from a backup has other records below it, or none.
func (v *Live) verify(ctx context.Context, from cursor, audiences map[topics.Topic][]string) error {
	points := make(map[topics.Partition]pipeline.Point)
	for t, of := range audiences {
		for p, at := range from[t] {
			if concernsPartition(t.Partition(int32(p)), of, int32(len(from[t]))) {
				points[t.Partition(int32(p))] = at
			}
		}
	}
	good, err := v.o.Tail.Verify(ctx, points)
	if err == nil && !good {
		err = errOffset
	}
	return err
}

// concernsPartition tells whether a partition can hold events for the audiences: a user's own stand in one.
func concernsPartition(of topics.Partition, audiences []string, count int32) bool {
	return of.Topic != topics.Notifications || topics.PartitionOf([]byte(audiences[0]), count) == of.ID
}

func (v *Live) parsePositions(ns topics.Namespace, text string, partitions func(topics.Topic) int) (cursor, error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil, errOffset
	}
	c := make(cursor)
	for _, t := range v.feedTopics[ns] {
		id := v.o.TopicIDs[t]
		if len(b) < len(id) || [4]byte(b) != id {
			return nil, errOffset
		}
		n, rest, ok := uvarint(b[len(id):])
		if b = rest; !ok || n != int64(partitions(t)) {
			return nil, errOffset
		}
		c[t] = make([]pipeline.Point, n)
		for p := range c[t] {
			at := &c[t][p]
			if at.Next, b, ok = uvarint(b); !ok || len(b) < 2 {
				return nil, errOffset
			}
			at.Check, b = binary.BigEndian.Uint16(b), b[2:]
		}
	}
	if len(b) > 0 {
		return nil, errOffset
	}
	return c, nil
}

func uvarint(b []byte) (n int64, rest []byte, ok bool) {
	u, size := binary.Uvarint(b)
	if size <= 0 || u > 1<<62 {
		return 0, nil, false
	}
	return int64(u), b[size:], true
}
