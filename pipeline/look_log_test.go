package pipeline_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// codecs are what a producer may compress its batches with.
var codecs = map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}

// batch appends records to a partition in one batch.
func (b *bench) batch(topic topics.Topic, partition int32, codec kgo.CompressionCodec, values ...string) {
	b.t.Helper()
	cl, err := b.Kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(codec),
		kgo.ProducerLinger(100*time.Millisecond), kgo.ProducerBatchMaxBytes(8<<20))
	if err != nil {
		b.t.Fatal(err)
	}
	defer cl.Close()
	var rs []*kgo.Record
	for i, v := range values {
		rs = append(rs, &kgo.Record{Topic: b.Kafka.Names.Name(topic), Partition: partition, Key: []byte("user:a"), Value: []byte(v),
			Timestamp: time.UnixMilli(86400000 - int64(i)*1000)}) // a producer's times may step back
	}
	if err := cl.ProduceSync(b.t.Context(), rs...).FirstErr(); err != nil {
		b.t.Fatal(err)
	}
}

// fill appends to a partition everything that a look may meet, and returns its end.
func (b *bench) fill(p int32) int64 {
	b.t.Helper()
	b.append(note("a", "", "1"), note("a", "k", "2"), note("a", "k", "2"))
	for _, codec := range codecs {
		b.batch(topics.Notifications, p, codec, strings.Repeat("x", 500), strings.Repeat("y", 500), "{}")
	}
	b.transaction(note("a", "", "committed"), kgo.TryCommit)
	b.transaction(note("a", "", "aborted"), kgo.TryAbort)
	b.transaction(note("a", "", "aborted too"), kgo.TryAbort)
	b.append(note("a", "", "3"))
	b.batch(topics.Notifications, p, kgo.NoCompression(), strings.Repeat("large", 50<<10)) // more than is asked for of a partition
	b.batch(topics.Notifications, p, kgo.ZstdCompression(), strings.Repeat("z", 5<<20))    // more than the fast look reads
	b.append(note("a", "", "4"))
	ends, err := b.Log.Ends(b.t.Context(), topics.Notifications)
	if err != nil {
		b.t.Fatal(err)
	}
	return ends[topics.Notifications.Partition(p)]
}

// The fast look says what the slow one says, or nothing; and something wherever a plain record stands.
func testLooks(t *testing.T, b *bench) {
	p := topics.PartitionOf([]byte("user:a"), 3)
	of := topics.Notifications.Partition(p)
	end := b.fill(p)
	compare := func(from int64) (same int) {
		t.Helper()
		for next := from; next <= end+1; next++ {
			fast, slow, err := b.Log.RecordsBelow(t.Context(), topics.Ends{of: next})
			if err != nil {
				t.Fatal(err)
			}
			time, known := fast[of]
			if known && (slow[of] != time || time == 0) {
				t.Errorf("below %d the fast look finds a record of %d, the slow one of %d", next, time, slow[of])
			}
			if known {
				same++
			}
		}
		return same
	}
	// 3 of ours, 3 in each codec, the committed one, the last but one that is large, and two of ours.
	if got, want := compare(0), 3+3*len(codecs)+1+1+2; got != want {
		t.Errorf("the fast look finds %d records of %d offsets, want %d", got, end, want)
	}
	b.truncate(topics.Notifications, p, 7) // in the midst of a batch
	if got, want := compare(0), 3+3*len(codecs)+1+1+2-7; got != want {
		t.Errorf("the fast look finds %d records once some are removed, want %d", got, want)
	}
}

// All partitions are looked up with one another, although together they are more than is asked for.
func testLooksAtOnce(t *testing.T, b *bench) {
	next := make(topics.Ends)
	for p := range int32(3) {
		b.batch(topics.Notifications, p, kgo.NoCompression(), strings.Repeat("large", 50<<10), strings.Repeat("large", 50<<10))
		next[topics.Notifications.Partition(p)] = 1
	}
	fast, slow, err := b.Log.RecordsBelow(t.Context(), next)
	if err != nil || len(fast) != 3 || fmt.Sprint(fast) != fmt.Sprint(slow) {
		t.Errorf("the fast look finds %v, the slow one %v, %v", fast, slow, err)
	}
}

// A tail that has nothing in memory verifies points with fetches, and scans only where a transaction's marker stands before one.
func testLooksOfTail(t *testing.T, b *bench) {
	p := topics.PartitionOf([]byte("user:a"), 3)
	of := topics.Notifications.Partition(p)
	reg := prometheus.NewRegistry()
	k := b.Kafka
	k.Metrics = pipeline.NewMetrics(reg)
	log, err := pipeline.OpenLog(k)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.Close)
	b.append(note("a", "", "1"))
	b.batch(topics.Notifications, p, kgo.SnappyCompression(), strings.Repeat("x", 500), strings.Repeat("y", 500))
	b.transaction(note("a", "", "committed"), kgo.TryCommit)
	_, times, err := log.RecordsBelow(t.Context(), topics.Ends{of: 4})
	if err != nil || times[of] == 0 {
		t.Fatal(times, err)
	}
	tail, err := pipeline.NewTail(t.Context(), pipeline.TailOptions{Kafka: b.Kafka, Producer: b.Producer, Log: log, Logger: quiet,
		Windows: pipeline.NewWindows(b.window),
		Topics:  []topics.Topic{topics.Notifications}, Route: func(pipeline.Batch) {}}) // it does not run: memory stays empty
	if err != nil {
		t.Fatal(err)
	}
	for next := int64(1); next <= 5; next++ {
		_, times, err := log.RecordsBelow(t.Context(), topics.Ends{of: next})
		if err != nil {
			t.Fatal(err)
		}
		good := pipeline.PointAt(next, times[of])
		for point, want := range map[pipeline.Point]bool{good: true, {Next: next, Check: good.Check + 1}: false} {
			if got, err := tail.Verify(t.Context(), map[topics.Partition]pipeline.Point{of: point}); err != nil || got != want {
				t.Errorf("%v is taken: %v, %v; want %v", point, got, err, want)
			}
		}
	}
	// the marker, with a good and a bad point
	if fetched, scanned := looks(t, reg, "fetch"), looks(t, reg, "scan"); fetched != 10 || scanned != 2 {
		t.Errorf("%v looks were fetches and %v scans, want 10 and 2", fetched, scanned)
	}
}

// looks is how many partitions were looked up in one way.
func looks(t *testing.T, reg prometheus.Gatherer, way string) (n float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "nexus_point_looks_total" && m.GetLabel()[0].GetValue() == way {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}
