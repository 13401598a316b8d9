package pipeline

import (
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// leastFree is how much of the disk the embedded log leaves free, in bytes. kfake answers a write that fails by
// UNKNOWN_SERVER_ERROR, which Kafka's clients take for final; below this bound they are answered KAFKA_STORAGE_ERROR, and try
// again until there is room.
const leastFree = 1 << 20

// freeEvery is how often the disk is asked.
const freeEvery = 100 * time.Millisecond

// disk knows whether the disk of a directory is full. It is safe for concurrent use.
type disk struct {
	free func() (bytes uint64, err error)
	keep func() // keeps the control function for the next request (kfake.Cluster.KeepControl)

	mu   sync.Mutex
	at   time.Time
	full bool
}

// freeIn asks the file system (statfs).
func freeIn(dir string) func() (uint64, error) {
	return func() (uint64, error) {
		var s syscall.Statfs_t
		if err := syscall.Statfs(dir, &s); err != nil {
			return 0, err
		}
		return s.Bavail * uint64(s.Bsize), nil
	}
}

// isFull is false where the disk cannot be asked.
func (d *disk) isFull() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.at) >= freeEvery {
		n, err := d.free()
		d.at, d.full = time.Now(), err == nil && n < leastFree
	}
	return d.full
}

// guarded refuses what is produced while the disk is full, and hands everything else on (kfake.Cluster.ControlKey). Who asks
// for no answer (acks=0) gets none of ours either.
func (d *disk) guarded(next func(kmsg.Request) (kmsg.Response, error, bool)) func(kmsg.Request) (kmsg.Response, error, bool) {
	return func(r kmsg.Request) (kmsg.Response, error, bool) {
		req := r.(*kmsg.ProduceRequest)
		if req.Acks == 0 || !d.isFull() {
			return next(r)
		}
		d.keep()
		resp := req.ResponseKind().(*kmsg.ProduceResponse)
		for _, t := range req.Topics {
			topic := kmsg.NewProduceResponseTopic()
			topic.Topic, topic.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				part := kmsg.NewProduceResponseTopicPartition()
				part.Partition, part.ErrorCode = p.Partition, kerr.KafkaStorageError.Code
				topic.Partitions = append(topic.Partitions, part)
			}
			resp.Topics = append(resp.Topics, topic)
		}
		return resp, nil, true
	}
}
