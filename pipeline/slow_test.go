package pipeline

import (
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/nexus/nexus/topics"
)

// TestSlowLog looks into a log whose fetches take longer than a scan waits for more: a silent log is not an empty one. What
// nothingIn calls empty is passed over by every consumer.
func TestSlowLog(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	l, err := OpenLog(Kafka{Brokers: cluster.ListenAddrs(), Log: slog.New(slog.DiscardHandler), Names: topics.Names{Prefix: "slow."}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.createTopic(t.Context(), l.nameOf(topics.Control), 1, 1, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.record(t.Context(), Contract{Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	cluster.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		cluster.SleepControl(func() { time.Sleep(3 * scanQuiet / 2) })
		return nil, nil, false
	})
	of := topics.Control.Partition(0)
	if empty, err := l.nothingIn(t.Context(), of, 0, 1); err != nil || empty {
		t.Errorf("a record that stands there is told to be nothing: %v, %v", empty, err)
	}
	if all, err := l.extents(t.Context(), topics.Ends{of: 1}, true); err != nil || !all[of].before.found {
		t.Errorf("the record before the position is not found: %+v, %v", all[of], err)
	}
}
