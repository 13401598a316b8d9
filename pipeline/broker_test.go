package pipeline

import (
	"encoding/binary"
	"hash/crc32"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/nexus/nexus/topics"
)

func TestOneBrokerForADirectory(t *testing.T) {
	o := BrokerOptions{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	b, err := StartBroker(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := StartBroker(o); err == nil || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("a second broker on the directory: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b, err = StartBroker(o)
	if err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	b.Close()
}

// batch is one record, which is empty.
func batch(first, last int64, attrs int16) []byte {
	r := kmsg.Record{Length: 6}
	return batchWith(first, last, attrs, r.AppendTo(nil))
}

// batchOf is a batch that says that these bytes are one record.
func batchOf(records []byte, attrs int16) []byte { return batchWith(1, 1, attrs, records) }

func batchWith(first, last int64, attrs int16, records []byte) []byte {
	b := kmsg.RecordBatch{Magic: 2, Attributes: attrs, FirstTimestamp: first, MaxTimestamp: last, NumRecords: 1, ProducerID: -1,
		ProducerEpoch: -1, FirstSequence: -1,
		Records: records}
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[batchCRC:], crc32.Checksum(raw[batchAttributes:], castagnoli))
	return raw
}

func testStamper(t testing.TB) *stamper {
	t.Helper()
	s, err := newStamper(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStampBatch(t *testing.T) {
	now := time.Now().UnixMilli()
	s := testStamper(t)
	raw := s.stamp(batch(1000, 1400, attrLogAppendTime), now)
	var b kmsg.RecordBatch
	if err := b.ReadFrom(raw); err != nil {
		t.Fatal(err)
	}
	if b.FirstTimestamp != now || b.MaxTimestamp != now || b.Attributes != 0 {
		t.Errorf("got first %d max %d attributes %d", b.FirstTimestamp-now, b.MaxTimestamp-now, b.Attributes)
	}
	if uint32(b.CRC) != crc32.Checksum(raw[batchAttributes:], castagnoli) {
		t.Error("the checksum was not mended")
	}
	broken := batch(1, 2, 0)
	broken[len(broken)-1] ^= 1
	before := string(broken)
	if string(s.stamp(broken, now)) != before {
		t.Error("a batch with a wrong checksum was touched: the broker could no longer refuse it")
	}
}

func FuzzStampBatch(f *testing.F) {
	f.Add(batch(1, 2, 0))
	f.Add([]byte{})
	s := testStamper(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		s.stamp(b, 1)
		level, changed := levelRecords(b)
		if !changed {
			return
		}
		if _, again := levelRecords(level); again || recordsIn(level) != recordsIn(b) {
			t.Fatal("levelled records are not level, or not as many")
		}
	})
}

// An append to a log that is away is answered, as unknown, within its time.
func TestAppendIsBounded(t *testing.T) {
	t.Parallel()
	quiet := slog.New(slog.DiscardHandler)
	b, err := StartBroker(BrokerOptions{Dir: t.TempDir(), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	k := Kafka{Brokers: []string{b.Addr()}, Log: quiet, Delivery: time.Second} // kgo takes no less
	l, err := OpenLog(k)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.EnsureTopics(t.Context(), TopicOptions{Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	p, err := NewProducer(k)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(quiet)
	event := func() *topics.Event { return topics.New(topics.Signals, "all", topics.Meta{}, []byte("{}")) }
	if err := p.Append(t.Context(), event()); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	p.TryAppend(event(), func(err error) { answer <- err })
	if err := p.Append(t.Context(), event()); err == nil {
		t.Error("Append to a log that is away succeeded")
	}
	if err := <-answer; err == nil {
		t.Error("TryAppend to a log that is away succeeded")
	}
}
