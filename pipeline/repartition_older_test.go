package pipeline_test

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// A log that an earlier version began has no topic keys: it can be copied all the same, and its keys' events in control come along.
func TestRepartitionOlder(t *testing.T) {
	onBothWithTimes(t, func(t *testing.T, b *bench) {
		b.raw(topics.Control, 0, "all", `{"window":"7m0s","partitions":{"messages":3,"notifications":3,"broadcasts":1,"presence":1,`+
			`"signals":3,"devices":3,"control":1,"deliveries":3,"dead-letters":3}}`, kgo.RecordHeader{Key: "ce_type", Value: []byte("log.contract")})
		b.raw(topics.Control, 0, "user:a", `{"deviceId":"d","identityKey":"k"}`, kgo.RecordHeader{Key: "ce_type", Value: []byte("key.published")},
			kgo.RecordHeader{Key: "ce_source", Value: []byte("/users/a")})
		b.gated(b.Kafka)
		b.remove(topics.Keys)
		to := "r" + b.Kafka.Names.Prefix
		if done, err := b.repartition(to, 5, false); err != nil || done.Records != 2 {
			t.Fatalf("%+v, %v", done, err)
		}
		copied := b.Kafka
		copied.Names = topics.Names{Prefix: to}
		after, err := pipeline.OpenLog(copied)
		if err != nil {
			t.Fatal(err)
		}
		defer after.Close()
		if err := after.EnsureTopics(t.Context(), pipeline.TopicOptions{Partitions: 1}); err != nil {
			t.Errorf("a node refuses the copy: %v", err)
		}
		agreed, err := pipeline.AgreeContract(t.Context(), after, 0, false)
		if err != nil || agreed.Partitions[topics.Keys] != 5 {
			t.Errorf("the copy's contract is %v, %v", agreed, err)
		}
		for topic, want := range map[topics.Topic]int64{topics.Control: 2, topics.Keys: 0} {
			ends, err := after.Ends(t.Context(), topic)
			if err != nil || ends[topic.Partition(0)] != want {
				t.Errorf("%s has %v, %v; want %d", topic, ends, err, want)
			}
		}
	})
}
