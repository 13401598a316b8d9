package pipeline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Kafka bounds a batch by its compressed size alone: 54 KB of zstd may be 400 MB. These bounds hold for every reader; what
// is beyond them is stepped over by all and becomes one dead letter, so they are part of what the log means.
const (
	// maxBatchBytes is what a batch may weigh once it is decompressed, recordBytes for each record included.
	maxBatchBytes = 32 << 20
	// recordBytes is about what a client's record takes beside its key and value. Without it a batch of millions of empty
	// records would weigh nothing.
	recordBytes = 200
	// fetchBytes is about what the batches of one fetch may weigh together; the rest is fetched again.
	fetchBytes = 4 << 20
)

// decompressor decompresses within the bounds. One belongs to one client.
type decompressor struct {
	inner kgo.Decompressor
	left  atomic.Int64 // of fetchBytes, in the response that is being read
}

// newDecompressor takes franz-go's own decompressor, which is bounded only where a client makes it.
func newDecompressor() (*decompressor, error) {
	cl, err := kgo.NewClient(kgo.MaxDecompressBatchBytes(maxBatchBytes))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	inner, ok := cl.OptValue(kgo.WithDecompressor).(kgo.Decompressor)
	if !ok {
		return nil, errors.New("pipeline: the Kafka client shows no decompressor")
	}
	d := &decompressor{inner: inner}
	d.left.Store(fetchBytes)
	return d, nil
}

// errFetchFull ends the reading of a response: what follows is fetched again.
var errFetchFull = errors.New("pipeline: a fetch decompresses to more than is taken at once")

// Decompress implements kgo.Decompressor.
func (d *decompressor) Decompress(src []byte, codec kgo.CompressionCodecType) ([]byte, error) {
	if codec == kgo.CodecNone {
		return src, nil
	}
	if d.left.Load() <= 0 {
		return nil, errFetchFull
	}
	out, err := d.inner.Decompress(src, codec)
	if err != nil {
		return nil, err
	}
	weight := int64(len(out)) + recordBytes*recordsIn(out)
	if weight > maxBatchBytes {
		return nil, fmt.Errorf("%d bytes: %w", weight, kgo.ErrMaxDecompress)
	}
	d.left.Add(-weight)
	return out, nil
}

// recordsIn counts the records of a decompressed batch: each is a varint length and so many bytes (Kafka protocol,
// "Record"). A batch that is malformed counts up to where it is.
func recordsIn(b []byte) (n int64) {
	for len(b) > 0 {
		length, size := binary.Varint(b)
		if size <= 0 || length < 0 || length > int64(len(b)-size) {
			return n
		}
		b = b[size+int(length):]
		n++
	}
	return n
}

// OnBrokerRead begins a response (kgo.HookBrokerRead).
func (d *decompressor) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	if key == int16(kmsg.Fetch) {
		d.left.Store(fetchBytes)
	}
}
