package pipeline

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/nexus/nexus/topics"
)

// lookLog opens a log with a topic of two partitions at this broker.
func lookLog(t testing.TB, addrs ...string) *Log {
	t.Helper()
	l, err := OpenLog(Kafka{Brokers: addrs, Log: slog.New(slog.DiscardHandler), Names: topics.Names{Prefix: "look."}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	if err := l.createTopic(context.Background(), l.nameOf(topics.Notifications), 2, 1, nil); err != nil {
		t.Fatal(err)
	}
	return l
}

// fillLook appends records to a partition, one in each batch.
func fillLook(t testing.TB, l *Log, p int32, records int) {
	t.Helper()
	cl, err := l.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
		kgo.MaxProduceRequestsInflightPerBroker(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := range records {
		r := &kgo.Record{Topic: l.nameOf(topics.Notifications), Partition: p, Key: []byte("user:a"), Value: fmt.Appendf(nil, `{"title":"%d"}`, i)}
		if err := cl.ProduceSync(context.Background(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLookDoubts changes what a leader answers: whatever is not surely a record at the offset is not found.
func TestLookDoubts(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	l := lookLog(t, cluster.ListenAddrs()...)
	fillLook(t, l, 0, 3)
	of := topics.Notifications.Partition(0)
	ids, leaders := l.leaders(t.Context(), topics.Ends{of: 2})
	looks := leaders[0]
	resp, err := l.cl.Broker(0).Request(t.Context(), l.fetch(ids, looks, lookPartitionBytes))
	if err != nil {
		t.Fatal(err)
	}
	good := l.answersIn(resp.(*kmsg.FetchResponse), ids)[of]
	if r := l.recordAt(looks[0], good); !r.found || r.offset != 1 {
		t.Fatalf("the record is not found: %+v", r)
	}
	sealed := func(change func(b []byte)) func(*kmsg.FetchResponseTopicPartition) {
		return func(p *kmsg.FetchResponseTopicPartition) {
			b := firstBatch(p.RecordBatches)
			change(b)
			binary.BigEndian.PutUint32(b[batchCRC:], crc32.Checksum(b[batchAttributes:], castagnoli))
		}
	}
	for name, change := range map[string]func(*kmsg.FetchResponseTopicPartition){
		"an error":               func(p *kmsg.FetchResponseTopicPartition) { p.ErrorCode = kerr.NotLeaderForPartition.Code },
		"nothing":                func(p *kmsg.FetchResponseTopicPartition) { p.RecordBatches = nil },
		"half a header":          func(p *kmsg.FetchResponseTopicPartition) { p.RecordBatches = p.RecordBatches[:30] },
		"half a batch":           func(p *kmsg.FetchResponseTopicPartition) { p.RecordBatches = p.RecordBatches[:batchHeader+2] },
		"a negative length":      func(p *kmsg.FetchResponseTopicPartition) { p.RecordBatches[batchLength] = 0xff },
		"another magic":          func(p *kmsg.FetchResponseTopicPartition) { p.RecordBatches[batchMagic] = 1 },
		"a byte that is wrong":   func(p *kmsg.FetchResponseTopicPartition) { p.RecordBatches[batchMaxTime+7]++ },
		"a batch before it":      sealed(func(b []byte) { binary.BigEndian.PutUint64(b, 0) }),
		"a batch behind it":      sealed(func(b []byte) { binary.BigEndian.PutUint64(b, 2) }),
		"a transaction's marker": sealed(func(b []byte) { b[batchAttributes+1] |= 1<<5 | 1<<4 }),
		"too many records":       sealed(func(b []byte) { binary.BigEndian.PutUint32(b[batchCount:], 1<<20) }),
		"fewer than no records":  sealed(func(b []byte) { binary.BigEndian.PutUint32(b[batchCount:], 1<<31) }),
		"an unknown codec":       sealed(func(b []byte) { b[batchAttributes+1] |= 7 }),
		"an aborted transaction": func(p *kmsg.FetchResponseTopicPartition) {
			sealed(func(b []byte) { b[batchAttributes+1] |= 1 << 4 })(p)
			id := int64(binary.BigEndian.Uint64(p.RecordBatches[43:]))
			p.AbortedTransactions = []kmsg.FetchResponseTopicPartitionAbortedTransaction{{ProducerID: id, FirstOffset: 1}}
		},
	} {
		answer := *good
		answer.RecordBatches = bytes.Clone(good.RecordBatches)
		change(&answer)
		if r := l.recordAt(looks[0], &answer); r.found {
			t.Errorf("%s: found %+v", name, r)
		}
	}
}

// TestLookFallsBack verifies points while the leaders refuse the fast look, or do not answer it.
func TestLookFallsBack(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	l := lookLog(t, cluster.ListenAddrs()...)
	fillLook(t, l, 0, 3)
	all, err := l.extents(t.Context(), topics.Ends{topics.Notifications.Partition(0): 2}, true)
	if err != nil {
		t.Fatal(err)
	}
	good := PointAt(2, all[topics.Notifications.Partition(0)].before.time)
	tail, err := NewTail(t.Context(), TailOptions{Kafka: l.kafka, Log: l, Topics: []topics.Topic{topics.Notifications}, Route: func(Batch) {}})
	if err != nil {
		t.Fatal(err)
	}
	var refuse atomic.Pointer[func(*kmsg.FetchResponse)]
	var refused atomic.Int32
	cluster.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if req := req.(*kmsg.FetchRequest); req.MaxWaitMillis != 0 { // a consumer waits for records, a look does not
			return nil, nil, false
		}
		refused.Add(1)
		resp := req.ResponseKind().(*kmsg.FetchResponse)
		(*refuse.Load())(resp)
		return resp, nil, true
	})
	for name, how := range map[string]func(*kmsg.FetchResponse){
		"an error of all":   func(r *kmsg.FetchResponse) { r.ErrorCode = kerr.UnknownServerError.Code },
		"an answer of none": func(*kmsg.FetchResponse) {},
		"throttled":         func(r *kmsg.FetchResponse) { r.ThrottleMillis = 1 },
	} {
		refuse.Store(&how)
		refused.Store(0)
		for point, want := range map[Point]bool{good: true, {good.Next, good.Check + 1}: false} {
			points := map[topics.Partition]Point{topics.Notifications.Partition(0): point}
			if got, err := tail.Verify(t.Context(), points); err != nil || got != want {
				t.Errorf("%s: %v is taken: %v, %v", name, point, got, err)
			}
		}
		if n := refused.Load(); n != 2 {
			t.Errorf("%s: the fast way was asked %d times", name, n)
		}
	}
}

// BenchmarkVerify verifies points of two partitions that memory does not know, in an embedded log, by 32 clients at once.
func BenchmarkVerify(b *testing.B) {
	broker, err := StartBroker(BrokerOptions{Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer broker.Close()
	l := lookLog(b, broker.Addr())
	const records = 300
	points := make([]map[topics.Partition]Point, records)
	for p := range int32(2) {
		fillLook(b, l, p, records)
	}
	for i := range points {
		points[i] = make(map[topics.Partition]Point)
		for p := range int32(2) {
			of := topics.Notifications.Partition(p)
			r := l.timesAt(b.Context(), topics.Ends{of: int64(i + 1)})[of]
			points[i][of] = PointAt(int64(i+1), r.time)
		}
	}
	tail, err := NewTail(b.Context(), TailOptions{Kafka: l.kafka, Log: l, Topics: []topics.Topic{topics.Notifications}, Route: func(Batch) {}})
	if err != nil {
		b.Fatal(err)
	}
	for name, verify := range map[string]func(map[topics.Partition]Point, topics.Ends) (bool, error){
		"fast": func(points map[topics.Partition]Point, unknown topics.Ends) (bool, error) {
			return tail.verifyInLog(b.Context(), points, unknown)
		},
		"slow": func(points map[topics.Partition]Point, unknown topics.Ends) (bool, error) {
			return tail.verifySlowly(b.Context(), points, unknown)
		},
	} {
		b.Run(name, func(b *testing.B) {
			work := make(chan int)
			var clients sync.WaitGroup
			for range 32 {
				clients.Go(func() {
					for i := range work {
						points, ends := points[i%records], make(topics.Ends)
						for of, point := range points {
							ends[of] = point.Next
						}
						if good, err := verify(points, ends); err != nil || !good {
							b.Errorf("%v: %v, %v", points, good, err)
						}
					}
				})
			}
			for i := range b.N {
				work <- i
			}
			close(work)
			clients.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "verifications/s")
		})
	}
}
