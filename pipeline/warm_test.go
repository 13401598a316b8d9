package pipeline_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/internal/testenv/logtest"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// Once the windows are warm every consumer goes on from its own position, and knows the duplicates of what stands before
// it: also where the log ends with a transaction marker, or a position lies far behind the others.
func TestWarm(t *testing.T) {
	logtest.OnBoth(t, func(t *testing.T, addr string) { testWarm(t, newBench(t, addr)) })
}

func testWarm(t *testing.T, b *bench) {
	const users, others = 20, 11_000 // the others alone are more than a poll gives
	var appended sync.WaitGroup
	for i := range others {
		appended.Add(1)
		b.Producer.TryAppend(note("busy", strconv.Itoa(i), "text"), func(err error) {
			defer appended.Done()
			if err != nil {
				t.Error(err)
			}
		})
	}
	appended.Wait()
	noteOf := func(i int) *topics.Event { return note("u"+strconv.Itoa(i), "key", "text") }
	for i := range users {
		b.append(noteOf(i))
	}
	middle, err := b.Log.Ends(t.Context(), topics.Notifications)
	if err != nil {
		t.Fatal(err)
	}
	for i := range users / 2 {
		b.append(noteOf(i)) // duplicates
	}
	for of := range middle {
		abort(t, b, of.ID)
	}
	ends, err := b.Log.Ends(t.Context(), topics.Notifications)
	if err != nil {
		t.Fatal(err)
	}
	positions := make(map[topics.Partition][]int64)
	for p := range ends {
		positions[p] = []int64{ends[p], middle[p], ends[p]}
	}
	w := pipeline.NewWindows(b.window)
	busy := topics.Notifications.Partition(topics.PartitionOf([]byte(topics.UserKey("busy")), int32(len(ends))))
	release, err := w.Warm(t.Context(), b.Log, topics.Notifications, map[topics.Partition][]int64{busy: {ends[busy]}})
	if err != nil {
		t.Fatal(err)
	}
	if n := w.Entries(); n < others {
		t.Errorf("%d entries of one partition, want %d at least", n, others)
	}
	release()
	release, err = w.Warm(t.Context(), b.Log, topics.Notifications, positions)
	if err != nil {
		t.Fatal(err)
	}
	if n := w.Entries(); n != users+others {
		t.Errorf("%d entries, want %d", n, users+others)
	}
	cold := func(topics.Ends) (topics.Ends, error) { return nil, errors.New("a consumer has to warm") }
	early, err := w.Attach(middle, cold)
	if err != nil {
		t.Fatal(err)
	}
	late, err := w.Attach(ends, cold)
	if err != nil {
		t.Fatal(err)
	}
	release()
	for i := range users {
		b.append(noteOf(i))
	}
	if got, want := duplicatesOf(t, b, early, users/2+users), users/2+users; got != want {
		t.Errorf("from the middle: %d duplicates, want %d", got, want)
	}
	if got := duplicatesOf(t, b, late, users); got != users {
		t.Errorf("from the end: %d duplicates, want %d", got, users)
	}
	for _, r := range []map[topics.Partition]*pipeline.Reader{early, late} {
		for _, r := range r {
			r.Close()
		}
	}
	if n := w.Entries(); n != 0 {
		t.Errorf("%d entries are kept for nobody", n)
	}
}

// abort leaves an aborted record and its marker.
func abort(t *testing.T, b *bench, p int32) {
	t.Helper()
	cl, err := b.Kafka.Client(kgo.TransactionalID("t"+strconv.Itoa(int(p))), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	r := &kgo.Record{Topic: b.Kafka.Names.Name(topics.Notifications), Partition: p, Value: []byte("{}"), Timestamp: time.Now()}
	if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
}

// duplicatesOf reads on until n records at or above the positions have come, and counts the duplicates.
func duplicatesOf(t *testing.T, b *bench, readers map[topics.Partition]*pipeline.Reader, n int) (duplicates int) {
	t.Helper()
	from := make(map[int32]kgo.Offset)
	for of, r := range readers {
		from[of.ID] = kgo.NewOffset().At(r.Start)
	}
	cl, err := b.Kafka.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{b.Kafka.Names.Name(topics.Notifications): from}),
		kgo.KeepControlRecords())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for n > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			t.Fatal(err)
		}
		fs.EachPartition(func(p kgo.FetchTopicPartition) {
			r := readers[topics.Notifications.Partition(p.Partition)]
			verdicts, err := r.Judge(p.Records)
			if err != nil {
				t.Error(err)
			}
			for i, duplicate := range verdicts {
				if p.Records[i].Offset >= r.Until && !p.Records[i].Attrs.IsControl() {
					n--
				}
				if duplicate {
					duplicates++
				}
			}
		})
	}
	return duplicates
}
