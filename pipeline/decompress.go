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

// batchDecompressor decompresses batches up to a weight. It is safe for concurrent use.
type batchDecompressor struct {
	inner kgo.Decompressor
	most  int64
}

// newBatchDecompressor takes franz-go's own decompressor, which is bounded only where a client makes it.
func newBatchDecompressor(most int) (d batchDecompressor, err error) {
	cl, err := kgo.NewClient(kgo.MaxDecompressBatchBytes(most))
	if err != nil {
		return d, err
	}
	defer cl.Close()
	inner, ok := cl.OptValue(kgo.WithDecompressor).(kgo.Decompressor)
	if !ok {
		return d, errors.New("pipeline: the Kafka client shows no decompressor")
	}
	return batchDecompressor{inner, int64(most)}, nil
}

// Decompress implements kgo.Decompressor.
func (d batchDecompressor) Decompress(src []byte, codec kgo.CompressionCodecType) ([]byte, error) {
	out, _, err := d.weigh(src, codec)
	return out, err
}

// weigh decompresses a batch, and tells its weight.
func (d batchDecompressor) weigh(src []byte, codec kgo.CompressionCodecType) (out []byte, weight int64, err error) {
	if out, err = d.inner.Decompress(src, codec); err != nil {
		return nil, 0, err
	}
	if weight = int64(len(out)) + recordBytes*recordsIn(out); weight > d.most {
		return nil, 0, fmt.Errorf("%d bytes: %w", weight, kgo.ErrMaxDecompress)
	}
	return out, weight, nil
}

// decompressor decompresses within the bounds. One belongs to one client.
type decompressor struct {
	batchDecompressor
	left atomic.Int64 // of fetchBytes, in the response that is being read
}

func newDecompressor() (*decompressor, error) {
	batches, err := newBatchDecompressor(maxBatchBytes)
	if err != nil {
		return nil, err
	}
	d := &decompressor{batchDecompressor: batches}
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
	out, weight, err := d.weigh(src, codec)
	if err != nil {
		return nil, err
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
