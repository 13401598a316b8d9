package keys_test

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// heap is what is in use after a collection, in bytes.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkHeap tells what 10,000 devices with 100 one-time keys each add to a node's heap: run it with -benchtime 1x.
func BenchmarkHeap(t *testing.B) {
	db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "k.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d := opened(t, db, ends{})
	begin(t, d, 1)
	before, begun := heap(), time.Now()
	for u := 0; u < 10_000; u += 100 {
		b := pipeline.Batch{Topic: topics.Keys, From: int64(u), To: int64(u) + 100}
		for i := u; i < u+100; i++ {
			k := topics.DeviceKeys{DeviceID: "phone", IdentityKey: strings.Repeat("B", 88)}
			for n := range 100 {
				id := fmt.Sprintf("%08d-%04d-4000-8000-%012d", i, n, n)
				k.Prekeys = append(k.Prekeys, topics.Prekey{ID: id, Key: strings.Repeat("A", 64) + id[:24]})
			}
			e := k.Event(fmt.Sprint("u", i))
			e.Offset, e.Time = int64(i), 1
			if err := topics.Valid(e); err != nil {
				t.Fatal(err)
			}
			b.Events = append(b.Events, e)
		}
		if err := d.Apply(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	t.ReportMetric((float64(heap())-float64(before))/1e6, "heap-MB")
	t.ReportMetric(time.Since(begun).Seconds(), "fold-s")
	runtime.KeepAlive(d)
}
