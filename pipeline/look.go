package pipeline

import (
	"context"
	"encoding/binary"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/nexus/nexus/topics"
)

const (
	// lookTimeout bounds the fast look, so that time is left for the slow one: longer than a leader takes to answer.
	lookTimeout = 500 * time.Millisecond
	// lookPartitionBytes is what a leader is asked for of a partition at first: about an event. Each further round asks for
	// lookGrowth times that. A leader reads as much as it is asked for, and one batch is wanted.
	lookPartitionBytes = 1 << 10
	lookGrowth         = 16
	// lookBytes is what an answer has of all partitions together.
	lookBytes = 1 << 20
	// lookBatchBytes is what a batch may weigh that is read for one record of it, its records' own memory included: more than
	// those of our own producers do.
	lookBatchBytes = 4 << 20
	// leaderAge is how long a partition's leader is believed to be the same. One that is not any more answers with an error.
	leaderAge = time.Second
)

// look asks for the record at an offset.
type look struct {
	of     topics.Partition
	offset int64
	epoch  int32 // of the leader: another one does not answer (KIP-320)
}

// timesAt finds the record right below each position with a fetch from each leader, over the connections that are there. It
// is exact: it reads as a consumer reads. Whatever is in doubt is missing from the answer: no consumer is given a record there,
// its batch is large, its leader is another one or does not answer. before finds those, which takes clients of their own.
func (l *Log) timesAt(ctx context.Context, positions topics.Ends) map[topics.Partition]record {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var (
		mu   sync.Mutex
		wait sync.WaitGroup
		out  = make(map[topics.Partition]record)
	)
	ids, leaders := l.leaders(ctx, positions)
	for leader, looks := range leaders {
		wait.Go(func() {
			found := l.lookAt(ctx, leader, ids, looks)
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(out, found)
		})
	}
	wait.Wait()
	return out
}

// leaders groups looks by who leads their partitions, and tells the ids of their topics, by name. It leaves out what has no
// leader, or is not known to the cluster.
func (l *Log) leaders(ctx context.Context, positions topics.Ends) (ids map[string][16]byte, leaders map[int32][]look) {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range l.namesOf(positions) {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = new(name)
		req.Topics = append(req.Topics, topic)
	}
	resp, err := l.cl.RequestCachedMetadata(ctx, req, leaderAge)
	if err != nil {
		return nil, nil
	}
	ids, leaders = make(map[string][16]byte), make(map[int32][]look)
	for _, topic := range resp.Topics {
		if topic.Topic == nil || topic.ErrorCode != 0 {
			continue
		}
		ids[*topic.Topic] = topic.TopicID
		t, _ := l.kafka.Names.Topic(*topic.Topic)
		for _, part := range topic.Partitions {
			of := t.Partition(part.Partition)
			if next, asked := positions[of]; asked && next > 0 && part.ErrorCode == 0 && part.Leader >= 0 {
				leaders[part.Leader] = append(leaders[part.Leader], look{of, next - 1, part.LeaderEpoch})
			}
		}
	}
	return ids, leaders
}

// lookAt asks a leader for records. What an answer leaves out for want of room is asked for again: of the partitions that have
// something the first one always gets a whole batch (KIP-74), so each round settles one at least, or is the last.
func (l *Log) lookAt(ctx context.Context, leader int32, ids map[string][16]byte, looks []look) map[topics.Partition]record {
	found := make(map[topics.Partition]record)
	for room := int32(lookPartitionBytes); len(looks) > 0; room = min(room*lookGrowth, lookBytes) {
		resp, err := l.cl.Broker(int(leader)).RetriableRequest(ctx, l.fetch(ids, looks, room))
		if err != nil {
			return found
		}
		answers := l.answersIn(resp.(*kmsg.FetchResponse), ids)
		var left []look
		for _, k := range looks {
			answer, ok := answers[k.of]
			if !ok {
				continue
			}
			if answer.ErrorCode == 0 && firstBatch(answer.RecordBatches) == nil {
				left = append(left, k)
				continue
			}
			if r := l.recordAt(k, answer); r.found {
				found[k.of] = r
			}
		}
		if len(left) == len(looks) {
			return found
		}
		looks = left
	}
	return found
}

// fetch asks for so many bytes of each partition, without a session and without a wait.
func (l *Log) fetch(ids map[string][16]byte, looks []look, room int32) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID, req.SessionEpoch, req.IsolationLevel, req.MaxBytes = -1, -1, 1, lookBytes
	places := make(map[string]int)
	for _, k := range looks {
		name := l.nameOf(k.of.Topic)
		if _, ok := places[name]; !ok {
			places[name] = len(req.Topics)
			topic := kmsg.NewFetchRequestTopic()
			topic.Topic, topic.TopicID = name, ids[name]
			req.Topics = append(req.Topics, topic)
		}
		part := kmsg.NewFetchRequestTopicPartition()
		part.Partition, part.FetchOffset, part.CurrentLeaderEpoch, part.PartitionMaxBytes = k.of.ID, k.offset, k.epoch, room
		topic := &req.Topics[places[name]]
		topic.Partitions = append(topic.Partitions, part)
	}
	return req
}

// answersIn are a response's partitions. From version 13 on it has the topics' ids alone, before that their names.
func (l *Log) answersIn(resp *kmsg.FetchResponse, ids map[string][16]byte) map[topics.Partition]*kmsg.FetchResponseTopicPartition {
	names := make(map[[16]byte]string, len(ids))
	for name, id := range ids {
		names[id] = name
	}
	out := make(map[topics.Partition]*kmsg.FetchResponseTopicPartition)
	if resp.ErrorCode != 0 {
		return out
	}
	for i := range resp.Topics {
		topic := &resp.Topics[i]
		name := topic.Topic
		if name == "" {
			name = names[topic.TopicID]
		}
		t, _ := l.kafka.Names.Topic(name)
		for j := range topic.Partitions {
			part := &topic.Partitions[j]
			out[t.Partition(part.Partition)] = part
		}
	}
	return out
}

// firstBatch is the first of the batches of an answer; nil where it has none that is whole.
func firstBatch(b []byte) []byte {
	if len(b) < batchHeader {
		return nil
	}
	end := batchLength + 4 + int64(int32(binary.BigEndian.Uint32(b[batchLength:])))
	if end < batchHeader || end > int64(len(b)) {
		return nil
	}
	return b[:end]
}

// recordAt reads the record that a look asks for out of an answer, as consumers read it. It is not found where a consumer is
// not given it, and where its batch weighs more than lookBatchBytes.
func (l *Log) recordAt(k look, answer *kmsg.FetchResponseTopicPartition) record {
	batch := firstBatch(answer.RecordBatches)
	if answer.ErrorCode != 0 || batch == nil || batch[batchMagic] != 2 ||
		int64(len(batch))+recordBytes*int64(binary.BigEndian.Uint32(batch[batchCount:])) > lookBatchBytes {
		return record{}
	}
	one := *answer
	one.RecordBatches = batch
	read, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Offset: k.offset, IsolationLevel: kgo.ReadCommitted(),
		Topic: l.nameOf(k.of.Topic), Partition: k.of.ID}, &one, l.small, nil)
	if read.Err != nil || len(read.Records) == 0 || read.Records[0].Offset != k.offset {
		return record{}
	}
	return record{k.offset, read.Records[0].Timestamp.UnixMilli(), true}
}
