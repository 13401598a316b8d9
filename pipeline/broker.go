package pipeline

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Broker is the embedded Kafka: kfake on loopback, its log in a directory that it alone holds. It survives kill -9 of
// the process, and with Fsync the loss of power. Kafka clients of any language can use it.
type Broker struct {
	cluster *kfake.Cluster
	lock    *os.File
	addr    string
}

// BrokerOptions are the settings of an embedded broker.
type BrokerOptions struct {
	// Dir holds the log; it is made where it is missing.
	Dir string
	// Port is the port on loopback (EMBEDDED_KAFKA_PORT); 0 takes a free one.
	Port int
	// Fsync has every append wait for the disk (DURABILITY=fsync): the log then survives a loss of power. Default: it does not.
	Fsync bool
	// KeepTimes leaves records the times that their producers gave them: for nexus repartition alone.
	KeepTimes bool
	// MinSession is the shortest session that a member of a group may ask for (Kafka: group.min.session.timeout.ms). Default, which 0
	// means: 6 s, as Kafka's.
	MinSession time.Duration
	// Log is told what the broker has to say. Required.
	Log  *slog.Logger
	free func() (uint64, error) // of the disk, in bytes; nil: what the file system says
}

// brokerSegmentBytes keeps segments small: kfake drops and compacts whole ones.
const brokerSegmentBytes = 8 << 20

// StartBroker opens the log in o.Dir and serves it; Close ends it. Errors are sentences for the operator: another process holds the
// directory, the port is in use, or the log cannot be read.
func StartBroker(o BrokerOptions) (*Broker, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded Kafka: %w", err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.Ports(o.Port),
		kfake.DataDir(filepath.Join(o.Dir, "log")),
		kfake.ClusterID("nexus-embedded"),
		kfake.WithLogger(kfakeLogger{o.Log}),
		kfake.BrokerConfigs(map[string]string{"log.segment.bytes": strconv.Itoa(brokerSegmentBytes)}),
	}
	if o.MinSession > 0 {
		opts = append(opts, kfake.GroupMinSessionTimeout(o.MinSession))
	}
	if o.Fsync {
		opts = append(opts, kfake.SyncWrites())
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		lock.Close()
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("embedded Kafka: port %d is in use; stop what listens there or set EMBEDDED_KAFKA_PORT to another port: %w",
				o.Port, err)
		}
		return nil, fmt.Errorf("embedded Kafka in %s: %w", o.Dir, err)
	}
	produce := func(kmsg.Request) (kmsg.Response, error, bool) { return nil, nil, false }
	if !o.KeepTimes {
		stamps, err := newStamper(time.Now)
		if err != nil {
			cluster.Close()
			lock.Close()
			return nil, fmt.Errorf("embedded Kafka: %w", err)
		}
		produce = stamps.produce
	}
	if o.free == nil {
		o.free = freeIn(o.Dir)
	}
	cluster.ControlKey(int16(kmsg.Produce), (&disk{free: o.free, keep: cluster.KeepControl}).guarded(produce))
	return &Broker{cluster: cluster, lock: lock, addr: cluster.ListenAddrs()[0]}, nil
}

// Addr is the broker's address, host:port.
func (b *Broker) Addr() string { return b.addr }

// Close saves the broker's state, so that the next start is fast, and releases the directory. Nothing that was acknowledged is lost
// without it.
func (b *Broker) Close() error {
	b.cluster.Close()
	return b.lock.Close()
}

// FreePort reports whether nothing listens on this port of loopback now.
func FreePort(port int) bool {
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return ln.Close() == nil
}

// lockDir takes the directory for this process (flock) and writes its pid there; it is free again when the process ends,
// however it ends. kfake itself would let two processes ruin one log.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("embedded Kafka: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		f.Close()
		return nil, fmt.Errorf("embedded Kafka: %s is in use by process %s; stop it or choose another DATA_DIR", dir,
			strings.TrimSpace(string(holder)))
	}
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("embedded Kafka: %w", err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, fmt.Errorf("embedded Kafka: %w", err)
	}
	return f, nil
}

// stamper gives records the broker's time, which kfake does not although the topics ask for LogAppendTime: all records of a
// batch the same one, as Kafka does.
type stamper struct {
	now          func() time.Time
	decompressor kgo.Decompressor // bounded
	compressors  map[kgo.CompressionCodecType]kgo.Compressor
}

func newStamper(now func() time.Time) (*stamper, error) {
	d, err := newDecompressor()
	if err != nil {
		return nil, err
	}
	s := &stamper{now: now, decompressor: d.inner, compressors: make(map[kgo.CompressionCodecType]kgo.Compressor)}
	for codec, c := range map[kgo.CompressionCodecType]kgo.CompressionCodec{kgo.CodecGzip: kgo.GzipCompression(),
		kgo.CodecSnappy: kgo.SnappyCompression(),
		kgo.CodecLz4:    kgo.Lz4Compression(), kgo.CodecZstd: kgo.ZstdCompression()} {
		if s.compressors[codec], err = kgo.DefaultCompressor(c); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// produce stamps a request before kfake has it (kfake.Cluster.ControlKey).
func (s *stamper) produce(r kmsg.Request) (kmsg.Response, error, bool) {
	ms := s.now().UnixMilli()
	for _, t := range r.(*kmsg.ProduceRequest).Topics {
		for i := range t.Partitions {
			t.Partitions[i].Records = s.stamp(t.Partitions[i].Records, ms)
		}
	}
	return nil, nil, false
}

// Places in a record batch (Kafka protocol, "Record Batch", magic 2).
const (
	batchLength     = 8
	batchMagic      = 16
	batchCRC        = 17
	batchAttributes = 21
	batchFirstTime  = 27
	batchMaxTime    = 35
	batchCount      = 57
	batchHeader     = 61

	attrCompression   = 7
	attrLogAppendTime = 1 << 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stamp sets the time of a batch and of its records to ms, clears the bit by which a client claims LogAppendTime (it would ruin
// the partition in kfake), and mends the checksum. A batch whose checksum is wrong, or that is none, is left for the broker to
// refuse. One whose records cannot be read gets a wrong checksum, so that it is refused as Kafka refuses it: every reader would
// stand before it for ever. One that is too large to be decompressed is stepped over by all; only its own times are set.
func (s *stamper) stamp(b []byte, ms int64) []byte {
	if len(b) < batchHeader || b[batchMagic] != 2 || int64(binary.BigEndian.Uint32(b[batchLength:])) != int64(len(b)-batchMagic+4) ||
		binary.BigEndian.Uint32(b[batchCRC:]) != crc32.Checksum(b[batchAttributes:], castagnoli) {
		return b
	}
	attrs := binary.BigEndian.Uint16(b[batchAttributes:])
	b, readable := s.level(b, kgo.CompressionCodecType(attrs&attrCompression))
	if !readable {
		binary.BigEndian.PutUint32(b[batchCRC:], ^binary.BigEndian.Uint32(b[batchCRC:]))
		return b
	}
	binary.BigEndian.PutUint64(b[batchFirstTime:], uint64(ms))
	binary.BigEndian.PutUint64(b[batchMaxTime:], uint64(ms))
	binary.BigEndian.PutUint16(b[batchAttributes:], attrs&^attrLogAppendTime)
	binary.BigEndian.PutUint32(b[batchLength:], uint32(len(b)-batchMagic+4))
	binary.BigEndian.PutUint32(b[batchCRC:], crc32.Checksum(b[batchAttributes:], castagnoli))
	return b
}

// level makes a batch whose records all have the batch's time; it is b itself where they have it already. readable is false
// where the records are not what the batch says.
func (s *stamper) level(b []byte, codec kgo.CompressionCodecType) (out []byte, readable bool) {
	records, err := s.decompressor.Decompress(b[batchHeader:], codec)
	if err != nil {
		return b, errors.Is(err, kgo.ErrMaxDecompress)
	}
	if !holds(records, int32(binary.BigEndian.Uint32(b[batchCount:]))) {
		return b, false
	}
	level, changed := levelRecords(records)
	if !changed {
		return b, true
	}
	if c := s.compressors[codec]; c != nil {
		if level, codec = c.Compress(new(bytes.Buffer), level); codec == kgo.CodecNone {
			return b, true
		}
	}
	return append(b[:batchHeader:batchHeader], level...), true
}

// holds tells whether these are n records and nothing else.
func holds(records []byte, n int32) bool {
	for ; len(records) > 0 && n > 0; n-- {
		length, size := binary.Varint(records)
		if size <= 0 || length < 0 || length > int64(len(records)-size) {
			return false
		}
		var r kmsg.Record
		if r.ReadFrom(records[:size+int(length)]) != nil {
			return false
		}
		records = records[size+int(length):]
	}
	return len(records) == 0 && n == 0
}

// levelRecords sets the time deltas of records to 0 (Kafka protocol, "Record": a varint length, a byte of attributes, the
// delta as a varint). It changes nothing where they are malformed.
func levelRecords(b []byte) (level []byte, changed bool) {
	level = make([]byte, 0, len(b))
	for len(b) > 0 {
		length, n := binary.Varint(b)
		if n <= 0 || length < 2 || length > int64(len(b)-n) {
			return nil, false
		}
		record := b[n : n+int(length)]
		delta, size := binary.Varint(record[1:])
		if size <= 0 {
			return nil, false
		}
		changed = changed || delta != 0 || size != 1
		level = binary.AppendVarint(level, length-int64(size)+1)
		level = append(level, record[0], 0)
		level = append(level, record[1+size:]...)
		b = b[n+int(length):]
	}
	return level, changed
}

// kfakeLogger passes kfake's warnings and errors on; its infos are of no use to an operator.
type kfakeLogger struct{ log *slog.Logger }

// Logf implements kfake.Logger.
func (l kfakeLogger) Logf(level kfake.LogLevel, msg string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.log.Error("embedded Kafka", "says", fmt.Sprintf(msg, args...))
	case kfake.LogLevelWarn:
		l.log.Warn("embedded Kafka", "says", fmt.Sprintf(msg, args...))
	}
}
