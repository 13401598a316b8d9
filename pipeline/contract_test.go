package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/internal/testenv/logtest"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// widen adds partitions to a topic and returns once Kafka tells of them.
func (b *bench) widen(topic topics.Topic, to int) {
	b.t.Helper()
	rs, err := b.admin().UpdatePartitions(b.t.Context(), to, b.Kafka.Names.Name(topic))
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	testenv.Eventually(b.t, "Kafka tells of the new partitions", func() bool {
		n, err := b.Log.Partitions(b.t.Context(), topic)
		return err == nil && int(n) == to
	})
}

func (b *bench) agree(window time.Duration, set bool) (pipeline.Contract, error) {
	return pipeline.AgreeContract(b.t.Context(), b.Log, window, set)
}

func TestContract(t *testing.T) {
	logtest.OnBoth(t, func(t *testing.T, addr string) {
		t.Run("recorded once", func(t *testing.T) {
			b := newBench(t, addr)
			first, err := b.agree(5*time.Minute, false)
			if err != nil || first.Window != 5*time.Minute || first.Partitions[topics.Messages] != 3 || first.Partitions[topics.Control] != 1 {
				t.Fatal(first, err)
			}
			again, err := b.agree(time.Minute, false)
			if err != nil || again.Window != first.Window || !maps.Equal(again.Partitions, first.Partitions) {
				t.Errorf("got %v, %v; want what is recorded", again, err)
			}
			if _, err := b.agree(time.Minute, true); err == nil || !strings.Contains(err.Error(), "DEDUP_WINDOW=5m0s") {
				t.Errorf("another window: got %v, want an error that names the way out", err)
			}
			if ends, err := b.Log.Ends(t.Context(), topics.Control); err != nil || ends[topics.Control.Partition(0)] != 1 {
				t.Errorf("control has %v records, %v; want one", ends, err)
			}
		})
		t.Run("nodes that race agree", func(t *testing.T) {
			b := newBench(t, addr)
			var mu sync.Mutex
			windows := make(map[time.Duration]int)
			var all sync.WaitGroup
			for n := range 6 {
				all.Go(func() {
					c, err := b.agree(time.Duration(n+1)*time.Minute, false)
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					windows[c.Window]++
					mu.Unlock()
				})
			}
			if all.Wait(); len(windows) != 1 {
				t.Errorf("the nodes took %v", windows)
			}
		})
		t.Run("a log begun by an earlier version", func(t *testing.T) {
			b := newBench(t, addr)
			b.raw(topics.Control, 0, "all", `{"window":"7m0s"}`, kgo.RecordHeader{Key: "ce_type", Value: []byte("dedup.window")})
			b.raw(topics.Control, 0, "user:a", `{}`, kgo.RecordHeader{Key: "ce_type", Value: []byte("session.revoked")})
			for range 2 {
				c, err := b.agree(5*time.Minute, false)
				if err != nil || c.Window != 7*time.Minute || c.Partitions[topics.Notifications] != 3 {
					t.Errorf("got %v, %v", c, err)
				}
			}
			if ends, err := b.Log.Ends(t.Context(), topics.Control); err != nil || ends[topics.Control.Partition(0)] != 3 {
				t.Errorf("control has %v records, %v; want the counts recorded once", ends, err)
			}
		})
		t.Run("a log whose contract is older than a topic", func(t *testing.T) {
			b := newBench(t, addr)
			b.raw(topics.Control, 0, "all", `{"window":"7m0s","partitions":{"messages":3,"notifications":3,"broadcasts":1,"presence":1,`+
				`"signals":3,"devices":3,"control":1,"deliveries":3,"dead-letters":3}}`, kgo.RecordHeader{Key: "ce_type", Value: []byte("log.contract")})
			for range 2 {
				c, err := b.agree(5*time.Minute, false)
				if err != nil || c.Window != 7*time.Minute || c.Partitions[topics.Keys] != 3 {
					t.Errorf("got %v, %v", c, err)
				}
			}
			if ends, err := b.Log.Ends(t.Context(), topics.Control); err != nil || ends[topics.Control.Partition(0)] != 2 {
				t.Errorf("control has %v records, %v; want the new topic recorded once", ends, err)
			}
		})
		t.Run("another number of partitions", func(t *testing.T) {
			b := newBench(t, addr)
			if _, err := b.agree(time.Minute, false); err != nil {
				t.Fatal(err)
			}
			b.widen(topics.Messages, 5)
			b.widen(topics.Devices, 4)
			// Neither time nor a later record, whoever wrote it, makes it good.
			b.raw(topics.Control, 0, "all", `{"window":"1s","partitions":{"messages":5,"devices":4}}`,
				kgo.RecordHeader{Key: "ce_type", Value: []byte("log.contract")})
			_, err := b.agree(time.Minute, false)
			for _, part := range []string{"messages has 5 partitions", "devices has 4 partitions", "begun with 3", "nexus repartition",
				"make it anew with 3"} {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("got %v, want an error with %q", err, part)
				}
			}
		})
		t.Run("a topic control of somebody else", func(t *testing.T) {
			b := newBench(t, addr)
			b.raw(topics.Control, 0, "user:a", `{}`, kgo.RecordHeader{Key: "ce_type", Value: []byte("session.revoked")})
			if _, err := b.agree(time.Minute, false); err == nil || !strings.Contains(err.Error(), "does not begin with the log's contract") {
				t.Errorf("got %v", err)
			}
		})
		t.Run("behind a transaction", func(t *testing.T) {
			b := newBench(t, addr)
			b.raw(topics.Control, 0, "all", `{"window":"7m0s"}`, kgo.RecordHeader{Key: "ce_type", Value: []byte("dedup.window")})
			b.inTransaction(kgo.TryAbort, &kgo.Record{Topic: b.Kafka.Names.Name(topics.Control), Key: []byte("all"),
				Value: []byte(`{"window":"9m"}`)})
			if c, err := b.agree(time.Minute, false); err != nil || c.Window != 7*time.Minute {
				t.Errorf("got %v, %v", c, err)
			}
		})
	})
}

// inTransaction appends records in one transaction and ends it.
func (b *bench) inTransaction(end kgo.TransactionEndTry, rs ...*kgo.Record) {
	b.t.Helper()
	cl, err := b.Kafka.Client(kgo.TransactionalID(b.Kafka.Names.Prefix + topics.NewID()))
	if err == nil {
		defer cl.Close()
		err = cl.BeginTransaction()
	}
	if err == nil {
		err = cl.ProduceSync(b.t.Context(), rs...).FirstErr()
	}
	if err == nil {
		err = cl.EndTransaction(b.t.Context(), end)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// watch runs a watch of a bench whose contract is agreed, and returns what it ends with.
func (b *bench) watch(ctx context.Context, missing time.Duration) (*pipeline.Watch, <-chan error) {
	b.t.Helper()
	return b.watchWith(ctx, pipeline.WatchOptions{MissingFor: missing})
}

func (b *bench) watchWith(ctx context.Context, o pipeline.WatchOptions) (*pipeline.Watch, <-chan error) {
	b.t.Helper()
	c, err := b.agree(time.Minute, false)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Kafka.Partitions = c.Partitions
	o.Log, o.Contract, o.Logger, o.Every = b.Log, c, quiet, 20*time.Millisecond
	w := pipeline.NewWatch(o)
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	return w, ended
}

func TestWatch(t *testing.T) {
	logtest.OnBoth(t, func(t *testing.T, addr string) {
		for name, c := range map[string]struct {
			change  func(b *bench)
			missing time.Duration
			says    string
		}{
			"partitions added": {func(b *bench) { b.widen(topics.Notifications, 5) }, time.Minute,
				"notifications has 5 partitions, and this log was begun with 3"},
			"deleted": {func(b *bench) { b.remove(topics.Signals) }, 300 * time.Millisecond,
				"signals was deleted while this node was running"},
			"deleted, made anew": {func(b *bench) { b.remove(topics.Messages); b.makeAnew() }, time.Minute,
				"messages was deleted and made again while this node was running"},
		} {
			t.Run(name, func(t *testing.T) {
				b := newBench(t, addr)
				w, ended := b.watch(t.Context(), c.missing)
				c.change(b)
				if err := within(t, ended); err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("ended with %v, want a sentence with %q", err, c.says)
				}
				if err := w.Problem(); (name == "deleted") != (err != nil) {
					t.Errorf("for readiness: %v", err)
				}
			})
		}
		t.Run("knows the ends", func(t *testing.T) {
			b := newBench(t, addr)
			ctx, stop := context.WithCancel(t.Context())
			w, ended := b.watch(ctx, time.Minute)
			b.append(note("a", "1", "x"))
			p := topics.PartitionOf([]byte("user:a"), 3)
			testenv.Eventually(t, "the end of what was appended", func() bool {
				ends, age := w.Ends()
				if ends[topics.Notifications.Partition(p)] != 1 {
					return false
				}
				if age > time.Minute {
					t.Errorf("age %s", age)
				}
				return true
			})
			if stop(); within(t, ended) != nil {
				t.Error("a watch that is stopped has no error")
			}
		})
	})
}

func within(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on")
		return nil
	}
}

// remove deletes a topic and returns once Kafka has forgotten it.
func (b *bench) remove(topic topics.Topic) {
	b.t.Helper()
	adm, name := b.admin(), b.Kafka.Names.Name(topic)
	rs, err := adm.DeleteTopics(b.t.Context(), name)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	testenv.Eventually(b.t, "Kafka has forgotten "+name, func() bool {
		ds, err := adm.ListTopics(b.t.Context(), name)
		return err == nil && errors.Is(ds[name].Err, kerr.UnknownTopicOrPartition)
	})
}

// makeAnew makes the topics that are missing; Kafka takes a moment to forget those that were deleted.
func (b *bench) makeAnew() {
	b.t.Helper()
	testenv.Eventually(b.t, "the topics are made anew", func() bool {
		l, err := pipeline.OpenLog(b.Kafka) // one that has not heard of the old ones
		if err != nil {
			b.t.Fatal(err)
		}
		defer l.Close()
		return l.EnsureTopics(b.t.Context(), pipeline.TopicOptions{Partitions: 3}) == nil
	})
}

// The log away is no change: the watch goes on where it is there again.
func TestWatchOutlivesAnOutage(t *testing.T) {
	b := logtest.Start(t, pipeline.BrokerOptions{})
	bench := newBench(t, b.Addr)
	ctx, stop := context.WithCancel(t.Context())
	const missing = 100 * time.Millisecond
	w, ended := bench.watchWith(ctx, pipeline.WatchOptions{MissingFor: missing, Timeout: missing})
	heard := func(ago time.Duration) bool {
		ends, age := w.Ends()
		return len(ends) > 0 && age < ago
	}
	testenv.Eventually(t, "the watch has asked", func() bool { return heard(time.Minute) })
	b.Stop()
	testenv.Eventually(t, "nothing was heard for long beyond MissingFor", func() bool { return !heard(5 * missing) })
	b.Start()
	testenv.Eventually(t, "the watch hears of the log again", func() bool { return heard(5 * missing) })
	if stop(); within(t, ended) != nil {
		t.Error("a watch that is stopped has no error")
	}
}

// Partitions are added while a gate runs and services write: what they put into new partitions is carried over once, what
// Nexus itself appends goes where the contract says, and nothing runs in circles.
func TestPartitionsAddedUnderAGate(t *testing.T) {
	logtest.OnBoth(t, func(t *testing.T, addr string) {
		b := newBench(t, addr)
		_, ended := b.watch(t.Context(), time.Minute)
		producer, err := pipeline.NewProducer(b.Kafka)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { producer.Close(quiet) })
		gate := pipeline.NewGate(pipeline.GateOptions{Kafka: b.Kafka, Producer: producer, Group: b.Kafka.Names.Prefix + "gate", Instance: "n",
			Positions: b.Kafka.Names.Prefix + "gate", Windows: pipeline.NewWindows(b.window), Log: quiet})
		t.Cleanup(gate.Close)
		ctx, stop := context.WithCancel(t.Context())
		gated := make(chan error, 1)
		go func() { gated <- gate.Run(ctx) }()
		b.widen(topics.Notifications, 7)
		outsider, err := b.Kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
		if err != nil {
			t.Fatal(err)
		}
		defer outsider.Close()
		const users = 40
		moved := 0
		for n := range users {
			e := note(fmt.Sprint("u", n), fmt.Sprint("k", n), "x")
			p := topics.PartitionOf(e.Key, 7)
			if p != topics.PartitionOf(e.Key, 3) {
				moved++
			}
			r := &kgo.Record{Topic: b.Kafka.Names.Name(topics.Notifications), Partition: p, Key: e.Key, Value: e.Value,
				Headers: []kgo.RecordHeader{{Key: "idempotency-key", Value: []byte(e.IdempotencyKey)}}}
			if err := outsider.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
			own := note(fmt.Sprint("v", n), fmt.Sprint("k", n), "x")
			if err := producer.Append(t.Context(), own); err != nil {
				t.Fatal(err)
			}
			if want := topics.PartitionOf(own.Key, 3); own.Partition != want {
				t.Fatalf("Nexus appended to partition %d, and the contract says %d", own.Partition, want)
			}
		}
		if err := within(t, ended); err == nil || !strings.Contains(err.Error(), "notifications has 7 partitions") {
			t.Fatal(err)
		}
		// What ran in circles would come again with every round that the gate makes through the partitions of the contract.
		for round := range int64(3) {
			for p := range int32(3) {
				b.gatePasses(producer, topics.Notifications, p)
			}
			if n := b.records(topics.Notifications); n > 2*users+int64(moved)+3*(round+1) {
				t.Fatalf("%d records of %d events, of which %d were put elsewhere: some run in circles", n, 2*users, moved)
			}
		}
		if stop(); within(t, gated) != nil {
			t.Error("the gate failed")
		}
	})
}

// gatePasses has a producer append an event to a partition and returns once the gate's position is behind it.
func (b *bench) gatePasses(producer *pipeline.Producer, topic topics.Topic, partition int32) {
	b.t.Helper()
	e := note("w0", topics.NewID(), "pass")
	for n := 1; topics.PartitionOf(e.Key, 3) != partition; n++ {
		e.Key = []byte(topics.UserKey(fmt.Sprint("w", n)))
	}
	if err := producer.Append(b.t.Context(), e); err != nil {
		b.t.Fatal(err)
	}
	adm := b.admin()
	testenv.Eventually(b.t, "the gate passes an event", func() bool {
		all, err := adm.FetchOffsetsForTopics(b.t.Context(), b.Kafka.Names.Prefix+"gate.positions", b.Kafka.Names.Name(topic))
		if err != nil {
			return false
		}
		at, ok := all.Lookup(b.Kafka.Names.Name(topic), partition)
		return ok && at.At > e.Offset
	})
}

func (b *bench) records(topic topics.Topic) (n int64) {
	b.t.Helper()
	ends, err := b.Log.Ends(b.t.Context(), topic)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, end := range ends {
		n += end
	}
	return n
}

// Topics that cannot keep what is promised are refused by name; each bad setting alone, and all of them at once.
func TestTopicsThatCannotKeep(t *testing.T) {
	bad := []struct {
		topic          topics.Topic
		setting, value string
	}{
		{topics.Notifications, "cleanup.policy", "compact"},
		{topics.Broadcasts, "cleanup.policy", "compact,delete"},
		{topics.Messages, "retention.bytes", "1000000000"},
		{topics.Presence, "retention.bytes", "1000000"},
		{topics.Notifications, "max.message.bytes", "262144"},
		{topics.Devices, "max.message.bytes", "500"},
		{topics.Messages, "min.insync.replicas", "2"},
		{topics.Presence, "retention.ms", "60000"},
		{topics.Signals, "retention.ms", "1000"},
		{topics.Deliveries, "retention.ms", "1000"},
		{topics.DeadLetters, "retention.ms", "1000"},
		{topics.Control, "retention.ms", "604800000"},
		{topics.Messages, "message.timestamp.type", "CreateTime"},
	}
	logtest.OnBoth(t, func(t *testing.T, addr string) {
		b := newBench(t, addr)
		adm := b.admin()
		set := func(topic topics.Topic, setting, value string) {
			t.Helper()
			rs, err := adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: setting, Value: new(value)}},
				b.Kafka.Names.Name(topic))
			if err == nil {
				err = rs[0].Err
			}
			if err != nil {
				t.Fatalf("%s %s=%s: %v", topic, setting, value, err)
			}
			testenv.Eventually(t, "Kafka tells of "+setting+"="+value, func() bool { // the controller has it first, and the broker answers
				cs, err := adm.DescribeTopicConfigs(t.Context(), b.Kafka.Names.Name(topic))
				return err == nil && len(cs) == 1 && slices.ContainsFunc(cs[0].Configs, func(c kadm.Config) bool {
					return c.Key == setting && c.MaybeValue() == value
				})
			})
		}
		good := func(topic topics.Topic, setting string) string {
			s, _ := topics.Of(topic)
			return s.Configs(1)[setting]
		}
		check := func() error { return b.Log.EnsureTopics(t.Context(), pipeline.TopicOptions{Partitions: 3}) }
		if err := check(); err != nil {
			t.Fatalf("as they are made: %v", err)
		}
		var all []string
		for _, c := range bad {
			wants := []string{b.Kafka.Names.Name(c.topic) + " has " + c.setting + "=" + c.value, "--add-config " + c.setting + "="}
			all = append(all, wants[1])
			set(c.topic, c.setting, c.value)
			err := check()
			if err == nil {
				t.Errorf("%s with %s=%s is taken", c.topic, c.setting, c.value)
				continue
			}
			for _, want := range wants {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want an error with %q", err, want)
				}
			}
			if n := strings.Count(err.Error(), "\n"); n > 0 {
				t.Errorf("%d problems where there is one: %v", n+1, err)
			}
			set(c.topic, c.setting, good(c.topic, c.setting))
			if err := check(); err != nil {
				t.Fatalf("mended: %v", err)
			}
		}
		for _, c := range bad {
			set(c.topic, c.setting, c.value)
		}
		err := check()
		for _, want := range slices.Compact(all) {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("all at once: got %v, want %q among it", err, want)
			}
		}
		if n := len(strings.Split(fmt.Sprint(err), "\n")); n != len(bad) {
			t.Errorf("%d problems are told of %d", n, len(bad))
		}
	})
}

// A log that does not answer fills with telemetry never: what clients wait for has its room.
func TestTelemetryTakesNoRoom(t *testing.T) {
	b := logtest.Start(t, pipeline.BrokerOptions{})
	bench := newBench(t, b.Addr)
	registry := prometheus.NewRegistry()
	bench.Kafka.Metrics, bench.Kafka.Delivery = pipeline.NewMetrics(registry), time.Second
	p, err := pipeline.NewProducer(bench.Kafka)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(quiet)
	b.Stop()
	const posted = 60_000 // more than the producer has room for
	var mu sync.Mutex
	refused := 0
	var answered sync.WaitGroup
	for range posted {
		answered.Add(1)
		p.Post(topics.New(topics.Deliveries, "user:a", topics.Meta{Type: topics.TypeDeliveryPush}, []byte(`{}`)), func(err error) {
			defer answered.Done()
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, pipeline.ErrOverloaded) {
				refused++
			}
		})
	}
	answer := make(chan error, 1)
	p.TryAppend(note("a", "k", "x"), func(err error) { answer <- err })
	if err := within(t, answer); errors.Is(err, pipeline.ErrOverloaded) {
		t.Error("telemetry took the room of a client's event")
	}
	answered.Wait()
	if refused == 0 || refused == posted {
		t.Errorf("%d of %d were refused", refused, posted)
	}
	if n := counter(t, registry, "nexus_telemetry_dropped_total"); int(n) != refused {
		t.Errorf("%d dropped, and the metric says %v", refused, n)
	}
}

func counter(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
