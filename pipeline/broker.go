package pipeline

import (
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
	// Port on loopback; 0 takes a free one.
	Port int
	// Fsync makes every append wait for the disk.
	Fsync bool
	// KeepTimes leaves records the times that their producers gave them: for nexus repartition alone.
	KeepTimes bool
	Log       *slog.Logger
}

// brokerSegmentBytes keeps segments small: kfake drops and compacts whole ones.
const brokerSegmentBytes = 8 << 20

// StartBroker opens the log in o.Dir and serves it. It fails where another process holds the directory.
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
	if o.Fsync {
		opts = append(opts, kfake.SyncWrites())
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		lock.Close()
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("embedded Kafka: port %d is in use; stop what listens there or set EMBEDDED_KAFKA_PORT to another port: %w", o.Port, err)
		}
		return nil, fmt.Errorf("embedded Kafka in %s: %w", o.Dir, err)
	}
	if !o.KeepTimes {
		cluster.ControlKey(int16(kmsg.Produce), stampProduce(time.Now))
	}
	return &Broker{cluster: cluster, lock: lock, addr: cluster.ListenAddrs()[0]}, nil
}

// Addr is the broker's host and port.
func (b *Broker) Addr() string { return b.addr }

// Close saves the broker's state and lets go of the directory. Nothing acknowledged is lost without it.
func (b *Broker) Close() error {
	b.cluster.Close()
	return b.lock.Close()
}

// FreePort reports whether nothing listens on the port of loopback yet.
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
		return nil, fmt.Errorf("embedded Kafka: %s is in use by process %s; stop it or choose another DATA_DIR", dir, strings.TrimSpace(string(holder)))
	}
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("embedded Kafka: %w", err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, fmt.Errorf("embedded Kafka: %w", err)
	}
	return f, nil
}

// stampProduce gives records the broker's time, which kfake does not although the topics ask for LogAppendTime.
func stampProduce(now func() time.Time) func(kmsg.Request) (kmsg.Response, error, bool) {
	return func(r kmsg.Request) (kmsg.Response, error, bool) {
		ms := now().UnixMilli()
		for _, t := range r.(*kmsg.ProduceRequest).Topics {
			for _, p := range t.Partitions {
				stampBatch(p.Records, ms)
			}
		}
		return nil, nil, false
	}
}

// Places in a record batch (Kafka protocol, "Record Batch", magic 2).
const (
	batchMagic      = 16
	batchCRC        = 17
	batchAttributes = 21
	batchFirstTime  = 27
	batchMaxTime    = 35
	batchHeader     = 61

	attrLogAppendTime = 1 << 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stampBatch moves a batch's times so that its last record's is ms, clears the bit by which a client claims
// LogAppendTime (it would ruin the partition in kfake), and mends the checksum. A batch whose checksum is wrong, or that
// is none, is left for the broker to refuse.
func stampBatch(b []byte, ms int64) {
	if len(b) < batchHeader || b[batchMagic] != 2 ||
		binary.BigEndian.Uint32(b[batchCRC:]) != crc32.Checksum(b[batchAttributes:], castagnoli) {
		return
	}
	first, last := int64(binary.BigEndian.Uint64(b[batchFirstTime:])), int64(binary.BigEndian.Uint64(b[batchMaxTime:]))
	binary.BigEndian.PutUint64(b[batchFirstTime:], uint64(ms-(last-first)))
	binary.BigEndian.PutUint64(b[batchMaxTime:], uint64(ms))
	attrs := binary.BigEndian.Uint16(b[batchAttributes:])
	binary.BigEndian.PutUint16(b[batchAttributes:], attrs&^attrLogAppendTime)
	binary.BigEndian.PutUint32(b[batchCRC:], crc32.Checksum(b[batchAttributes:], castagnoli))
}

// kfakeLogger passes kfake's warnings and errors on; its infos are of no use to an operator.
type kfakeLogger struct{ log *slog.Logger }

func (l kfakeLogger) Logf(level kfake.LogLevel, msg string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.log.Error("embedded Kafka", "msg", fmt.Sprintf(msg, args...))
	case kfake.LogLevelWarn:
		l.log.Warn("embedded Kafka", "msg", fmt.Sprintf(msg, args...))
	}
}
