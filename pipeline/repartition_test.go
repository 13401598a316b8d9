package pipeline_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/internal/testenv/logtest"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

// onBothWithTimes runs a test on both logs, with topics that take the times that they are given: a test makes hours of log
// so in a moment.
func onBothWithTimes(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, newBench(t, logtest.Start(t, pipeline.BrokerOptions{KeepTimes: true}).Addr))
	})
	t.Run("kafka", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, testenv.Kafka(t))
		b.stamps("CreateTime")
		test(t, b)
	})
}

// stamps sets who gives records their time.
func (b *bench) stamps(kind string) {
	b.t.Helper()
	var names []string
	for _, s := range topics.Specs() {
		names = append(names, b.Kafka.Names.Name(s.Topic))
	}
	rs, err := b.admin().AlterTopicConfigs(b.t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "message.timestamp.type",
		Value: new(kind)}}, names...)
	for _, r := range rs {
		if err == nil {
			err = r.Err
		}
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// history writes a log of some hours: what product services and nodes of Nexus append, in random order.
type history struct {
	*bench
	random *rand.Rand
	cl     *kgo.Client
	now    time.Time
	ids    map[string][]string // of what was sent, by key
	keys   []string            // idempotency keys that were used
	owners map[string]string   // of device tokens
}

func (b *bench) history(random *rand.Rand) *history {
	b.t.Helper()
	cl, err := b.Kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(cl.Close)
	return &history{bench: b, random: random, cl: cl, now: time.Now().Add(-24 * time.Hour).Truncate(time.Millisecond),
		ids: make(map[string][]string), owners: make(map[string]string)}
}

func (h *history) user() string { return "u" + strconv.Itoa(h.random.IntN(6)) }

// put appends an event to the partition of its key, or to another one, as a foreign partitioner does.
func (h *history) put(e *topics.Event, stray bool, more ...kgo.RecordHeader) *kgo.Record {
	h.t.Helper()
	h.now = h.now.Add(time.Duration(1+h.random.IntN(40_000)) * time.Millisecond)
	s, _ := topics.Of(e.Topic)
	count := int32(3)
	if s.Partitions > 0 {
		count = s.Partitions
	}
	r := &kgo.Record{Topic: h.Kafka.Names.Name(e.Topic), Key: e.Key, Value: e.Value, Timestamp: h.now, Headers: more}
	r.Partition = topics.PartitionOf(e.Key, count)
	if stray {
		r.Partition = (r.Partition + 1) % count
	}
	for _, header := range topicstest.Sign(e).Headers() {
		r.Headers = append(r.Headers, kgo.RecordHeader(header))
	}
	if err := h.cl.ProduceSync(h.t.Context(), r).FirstErr(); err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *history) known(key string) string {
	if ids := h.ids[key]; len(ids) > 0 {
		return ids[h.random.IntN(len(ids))]
	}
	return "nothing"
}

// step appends one thing.
func (h *history) step(n int) {
	a, b := h.user(), h.user()
	user, chat := topics.UserKey(a), topics.ConversationKey(a, b)
	text := "text " + strconv.Itoa(n)
	marker := func(typ string, fields ...any) {
		h.put(&topics.Event{Topic: topics.Notifications, Key: []byte(user), Meta: topics.Meta{Type: typ, Source: topics.SourceOf(a)},
			Value: topics.Fields(fields...)}, false)
	}
	switch h.random.IntN(12) {
	case 0, 1: // a notification that has no identity: its id is its place
		r := h.put(note(a, "", text), h.random.IntN(8) == 0)
		h.ids[user] = append(h.ids[user], fmt.Sprintf("n%d-%d", r.Partition, r.Offset))
	case 2: // a notification with a key, which may come again, soon or much later
		key := "key " + strconv.Itoa(n)
		if len(h.keys) > 0 && h.random.IntN(2) == 0 {
			key = h.keys[max(0, len(h.keys)-1-h.random.IntN(8))]
		}
		h.keys = append(h.keys, key)
		h.put(note("u1", key, text), h.random.IntN(8) == 0)
	case 3, 4: // messages
		e := topics.Draft{ReceiverID: b, Content: text, ClientMessageID: "c" + strconv.Itoa(h.random.IntN(n+1))}.Message(a, "")
		h.ids[chat] = append(h.ids[chat], e.NexusID)
		h.put(e, false)
	case 5:
		h.put(&topics.Event{Topic: topics.Messages, Key: []byte(chat), Meta: topics.Meta{Type: topics.TypeMessageRead,
			Source: topics.SourceOf(b)}, Value: topics.Fields("messageId", h.known(chat), "userId", b)}, false)
	case 6:
		marker(topics.TypeNotificationRead, "notificationId", h.known(user))
	case 7:
		marker(topics.TypeNotificationDeleted, "notificationId", h.known(user))
	case 8:
		typ := topics.TypeNotificationRead
		if h.random.IntN(4) == 0 {
			typ = topics.TypeNotificationDeleted
		}
		marker(typ, "upTo", topics.FormatTime(h.now.Add(-time.Duration(h.random.IntN(30))*time.Minute).UnixMilli()))
	case 9:
		r := h.put(&topics.Event{Topic: topics.Broadcasts, Key: []byte(topics.EveryoneKey), Meta: topics.Meta{Type: topics.TypeAnnouncement},
			Value: topics.Fields("title", text, "body", "")}, false)
		for u := range 6 { // read and deleted like a user's own
			key := topics.UserKey("u" + strconv.Itoa(u))
			h.ids[key] = append(h.ids[key], fmt.Sprintf("b0-%d", r.Offset))
		}
	case 10:
		token := "token" + strconv.Itoa(h.random.IntN(5))
		typ, fields := topics.TypeDeviceRegistered, []any{"token", token, "platform", "ios"}
		// by its owner: else the inbox depends on which partition it reads first
		if owner := h.owners[token]; owner != "" && h.random.IntN(3) == 0 {
			typ, fields, user = topics.TypeDeviceUnregistered, fields[:2], owner
		}
		h.owners[token] = user
		h.put(&topics.Event{Topic: topics.Devices, Key: []byte(user), Meta: topics.Meta{Type: typ,
			Source: topics.SourceOf(strings.TrimPrefix(user, "user:"))}, Value: topics.Fields(fields...)}, false)
	case 11: // what is not valid, or larger than anything valid
		h.put(&topics.Event{Topic: topics.Notifications, Key: []byte(user), Meta: topics.Meta{IdempotencyKey: "bad" + strconv.Itoa(n)},
			Value: []byte(`{"title":"` + strings.Repeat("x", h.random.IntN(2)*300_000))}, false)
	}
}

// answers are what an inbox says, folded from a log's beginning.
func (b *bench) answers(k pipeline.Kafka, window time.Duration) string {
	b.t.Helper()
	db, err := sqldb.OpenSQLite(filepath.Join(b.t.TempDir(), "inbox.db"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer db.Close()
	box, err := inbox.Open(b.t.Context(), db, 365*24*time.Hour, quiet)
	if err != nil {
		b.t.Fatal(err)
	}
	b.readAll(k, window, inbox.Topics(), box)
	var out strings.Builder
	ctx := b.t.Context()
	check := func(err error) {
		b.t.Helper()
		if err != nil {
			b.t.Fatal(err)
		}
	}
	for u := range 6 {
		user := "u" + strconv.Itoa(u)
		list, _, err := box.Notifications(ctx, user, false, 10_000, "")
		check(err)
		unread, err := box.Unread(ctx, user)
		check(err)
		fmt.Fprintf(&out, "%s has %d unread\n", user, unread)
		for _, n := range list {
			fmt.Fprintf(&out, "  %s read=%v %s\n", n.ID, n.Read, n.Value)
		}
		chats, _, err := box.Conversations(ctx, user, 100, "")
		check(err)
		for _, c := range chats {
			fmt.Fprintf(&out, "  with %s: %d unread, last %s\n", c.Other, c.Unread, c.Last.ID)
			messages, _, _, err := box.Messages(ctx, user, c.Other, inbox.Page{Limit: 10_000})
			check(err)
			for _, m := range messages {
				fmt.Fprintf(&out, "    %s read=%v %s\n", m.ID, m.Read, m.Value)
			}
		}
		devices, err := box.Devices(ctx, user)
		check(err)
		fmt.Fprintf(&out, "  devices %v\n", devices)
	}
	return out.String()
}

// readAll has a sink given a log from its beginning to its end.
func (b *bench) readAll(k pipeline.Kafka, window time.Duration, ts []topics.Topic, sink pipeline.Sink) {
	b.t.Helper()
	c := &pipeline.Consumer{Name: "test", Kafka: k, Log: quiet, Topics: ts, Sink: sink, Windows: pipeline.NewWindows(window)}
	stop := b.run(c.Run)
	newMemory().until(b.t, "all of the log", c.CaughtUp)
	stop()
}

// story is what each key lived through: identities, verdicts, times, contents.
func (b *bench) story(k pipeline.Kafka, window time.Duration) map[string][]string {
	b.t.Helper()
	m := newMemory()
	b.readAll(k, window, []topics.Topic{topics.Messages, topics.Notifications, topics.Broadcasts, topics.Devices}, m)
	out := make(map[string][]string)
	for _, e := range m.all {
		if e.Stray {
			continue
		}
		value := e.Value
		if len(value) > topics.MaxValue {
			value = nil
		}
		key := string(e.Topic) + " " + string(e.Key)
		out[key] = append(out[key], fmt.Sprintf("%s %d duplicate=%v valid=%v %s", e.EventID(), e.Time, e.Duplicate, topics.Valid(e) == nil,
			value))
	}
	return out
}

func (b *bench) repartition(to string, partitions int32, discard bool) (pipeline.Repartitioned, error) {
	b.t.Helper()
	return pipeline.Repartition(b.t.Context(), pipeline.RepartitionOptions{From: b.Kafka, To: topics.Names{Prefix: to}, Partitions: partitions,
		Discard:    discard,
		FromIntake: b.Kafka.Names.Prefix + "gate", ToIntake: to + "gate"})
}

// gated lets a gate read all there is.
func (b *bench) gated(k pipeline.Kafka) {
	b.t.Helper()
	p, err := pipeline.NewProducer(k)
	if err != nil {
		b.t.Fatal(err)
	}
	defer p.Close(quiet)
	gate := pipeline.NewGate(pipeline.GateOptions{Kafka: k, Producer: p, Positions: k.Names.Prefix + "gate",
		Windows: pipeline.NewWindows(5 * time.Minute), Log: quiet})
	defer gate.Close()
	stop := b.run(gate.Run)
	newMemory().until(b.t, "the gate", gate.Consumer().CaughtUp)
	stop()
}

// What counts in a log counts in its copy: ids, order, times, verdicts, and what an inbox answers.
func TestRepartition(t *testing.T) {
	onBothWithTimes(t, func(t *testing.T, b *bench) {
		seed := time.Now().UnixNano()
		t.Logf("seed %d", seed)
		h := b.history(rand.New(rand.NewPCG(uint64(seed), 0)))
		h.put(&topics.Event{Topic: topics.Control, Key: []byte(topics.EveryoneKey), Meta: topics.Meta{Type: topics.TypeDedupWindow},
			Value: []byte(`{"window":"5m0s"}`)}, false)
		h.put(&topics.Event{Topic: topics.Control, Key: []byte("user:u3"), Meta: topics.Meta{Type: topics.TypeSessionRevoked},
			Value: []byte(`{}`)}, false)
		contract, err := b.agree(time.Minute, false)
		if err != nil {
			t.Fatal(err)
		}
		b.Kafka.Partitions = contract.Partitions
		for n := range 600 {
			h.step(n)
		}
		for range 2 { // whatever the seed: one duplicate
			h.put(note("u1", "twice", "twice"), false)
		}
		e := note("u0", "", "in a transaction")
		r := func(text string) *kgo.Record {
			return &kgo.Record{Topic: b.Kafka.Names.Name(e.Topic), Key: e.Key, Timestamp: h.now.Add(time.Second),
				Value: bytes.ReplaceAll(e.Value, []byte("in a"), []byte(text))}
		}
		b.inTransaction(kgo.TryCommit, r("in one"), r("in the same"))
		b.inTransaction(kgo.TryAbort, r("aborted, in a"))
		b.gated(b.Kafka)
		ends := b.allEnds(b.Kafka.Names)

		to := "r" + b.Kafka.Names.Prefix
		done, err := b.repartition(to, 7, false)
		if err != nil {
			t.Fatal(err)
		}
		if done.Dropped.Strays == 0 || done.Dropped.Contents == 0 || len(done.Rejudged) > 0 {
			t.Errorf("%+v", done)
		}
		if now := b.allEnds(b.Kafka.Names); now != ends {
			t.Errorf("the old log was written to:\n%s\n%s", ends, now)
		}
		copied := b.Kafka
		copied.Names, copied.Partitions = topics.Names{Prefix: to}, nil
		after := &bench{t: t, Fixture: &logtest.Fixture{Kafka: copied}}
		if after.Log, err = pipeline.OpenLog(copied); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(after.Log.Close)
		if err := after.Log.EnsureTopics(t.Context(), pipeline.TopicOptions{Partitions: 1}); err != nil {
			t.Errorf("a node refuses the copy: %v", err)
		}
		agreed, err := after.agree(time.Hour, false)
		if err != nil || agreed.Window != 5*time.Minute || agreed.Partitions[topics.Messages] != 7 || agreed.Partitions[topics.Broadcasts] != 1 {
			t.Errorf("the copy's contract is %v, %v", agreed, err)
		}
		copied.Partitions = agreed.Partitions
		after.Kafka = copied

		was, is := b.story(b.Kafka, contract.Window), b.story(copied, contract.Window)
		duplicates, keys := 0, 0
		for key, want := range was {
			keys++
			duplicates += strings.Count(strings.Join(want, "\n"), "duplicate=true")
			if !slices.Equal(is[key], want) {
				t.Errorf("%s was\n  %s\nand is\n  %s", key, clipped(want), clipped(is[key]))
			}
		}
		if len(is) != len(was) || duplicates == 0 || keys < 20 {
			t.Errorf("%d keys became %d; %d duplicates", len(was), len(is), duplicates)
		}
		before, now := b.answers(b.Kafka, contract.Window), after.answers(copied, contract.Window)
		if before != now {
			t.Errorf("the inbox answered otherwise: %s", firstDifference(before, now))
		}
		if strings.Count(before, "read=true") < 10 || !strings.Contains(before, "in one transaction") || strings.Contains(before, "aborted") {
			t.Errorf("the inbox is not what was looked for:\n%s", before)
		}
		// The copy's gate has nothing to do: what is a dead letter already does not become one again, and no stray is left.
		ends = b.allEnds(copied.Names)
		after.gated(copied)
		if now := b.allEnds(copied.Names); now != ends {
			t.Errorf("the copy's gate appended:\n%s\n%s", ends, now)
		}
		// And on from there: a copy of a copy is the same log.
		b2 := &bench{t: t, Fixture: after.Fixture}
		if _, err := b2.repartition("s"+to, 2, false); err != nil {
			t.Fatal(err)
		}
		again := copied
		again.Names, again.Partitions = topics.Names{Prefix: "s" + to}, nil
		if third := b2.answers(again, contract.Window); third != before {
			t.Errorf("copied twice the inbox answers otherwise: %s", firstDifference(before, third))
		}
	})
}

func firstDifference(was, is string) string {
	a, b := strings.Split(was, "\n"), strings.Split(is, "\n")
	for n := range min(len(a), len(b)) {
		if a[n] != b[n] {
			return fmt.Sprintf("line %d was\n%s\nand is\n%s", n, a[n], b[n])
		}
	}
	return fmt.Sprintf("%d lines became %d", len(a), len(b))
}

func clipped(lines []string) string {
	out := make([]string, len(lines))
	for i, line := range lines {
		out[i] = line[:min(len(line), 160)]
	}
	return strings.Join(out, "\n  ")
}

// allEnds is where the topics of a log end, as text.
func (b *bench) allEnds(names topics.Names) string {
	b.t.Helper()
	var all []string
	for _, s := range topics.Specs() {
		all = append(all, names.Name(s.Topic))
	}
	ends, err := b.admin().ListEndOffsets(b.t.Context(), all...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	var lines []string
	ends.Each(func(o kadm.ListedOffset) {
		lines = append(lines, fmt.Sprintf("%s/%d:%d", o.Topic, o.Partition, o.Offset))
	})
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

// Partitions were added under the services, and no node could start again: nothing that they wrote since is lost.
func TestRepartitionAfterPartitionsWereAdded(t *testing.T) {
	onBothWithTimes(t, func(t *testing.T, b *bench) {
		h := b.history(rand.New(rand.NewPCG(1, 2)))
		contract, err := b.agree(time.Minute, false)
		if err != nil {
			t.Fatal(err)
		}
		b.Kafka.Partitions = contract.Partitions
		h.put(note("u0", "early", "early"), true) // carried over by the gate
		b.gated(b.Kafka)
		b.widen(topics.Notifications, 5)
		h = b.history(rand.New(rand.NewPCG(3, 4))) // whose client has heard of the new partitions
		wanted := []string{"early"}
		for n := range 30 {
			e := note("u"+strconv.Itoa(n%6), fmt.Sprint("k", n), fmt.Sprint("late ", n))
			h.now = time.Now().Add(time.Duration(n-60) * time.Second)
			r := &kgo.Record{Topic: b.Kafka.Names.Name(e.Topic), Key: e.Key, Value: e.Value, Timestamp: h.now,
				Partition: topics.PartitionOf(e.Key, 5)}
			r.Headers = []kgo.RecordHeader{{Key: "idempotency-key", Value: []byte(e.IdempotencyKey)}}
			if err := h.cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
			wanted = append(wanted, fmt.Sprint("late ", n))
		}
		to := "r" + b.Kafka.Names.Prefix
		if _, err := b.repartition(to, 5, false); err != nil {
			t.Fatal(err)
		}
		copied := b.Kafka
		copied.Names, copied.Partitions = topics.Names{Prefix: to}, nil
		m := newMemory()
		b.readAll(copied, contract.Window, []topics.Topic{topics.Notifications}, m)
		got := m.titles()
		slices.Sort(got)
		slices.Sort(wanted)
		if !slices.Equal(got, wanted) {
			t.Errorf("got %q, want %q", got, wanted)
		}
		last := make(map[string]int64)
		for _, e := range m.all {
			if e.Time < last[string(e.Key)] {
				t.Errorf("%s out of order", e.Key)
			}
			last[string(e.Key)] = e.Time
		}
	})
}

// What stands in the way is told, and changes nothing.
func TestRepartitionRefuses(t *testing.T) {
	onBothWithTimes(t, func(t *testing.T, b *bench) {
		to := "r" + b.Kafka.Names.Prefix
		refused := func(want string, discard bool) {
			t.Helper()
			if _, err := b.repartition(to, 5, discard); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want an error with %q", err, want)
			}
		}
		refused("there is no log to copy", false)
		if _, err := b.agree(time.Minute, false); err != nil {
			t.Fatal(err)
		}
		h := b.history(rand.New(rand.NewPCG(1, 2)))
		for n := range 50 {
			h.put(note(h.user(), "", fmt.Sprint(n)), false)
		}
		cl, err := b.Kafka.Client(kgo.TransactionalID(to))
		if err == nil {
			err = cl.BeginTransaction()
		}
		if err == nil {
			err = cl.ProduceSync(t.Context(), &kgo.Record{Topic: b.Kafka.Names.Name(topics.Notifications), Key: []byte("user:a"),
				Value: []byte("{}")}).FirstErr()
		}
		if err != nil {
			t.Fatal(err)
		}
		refused("a transaction is open", false)
		if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
		cl.Close()

		// Cut off: the half made copy is a log for nobody, and the next try says what to do.
		ctx, cut := context.WithCancel(t.Context())
		steps := 0
		_, err = pipeline.Repartition(ctx, pipeline.RepartitionOptions{From: b.Kafka, To: topics.Names{Prefix: to}, Partitions: 5,
			FromIntake: b.Kafka.Names.Prefix + "gate", ToIntake: to + "gate", Progress: func(step string, _ topics.Topic, _, _ int64) {
				if steps++; step == "verifying" {
					cut()
				}
			}})
		if err == nil {
			t.Fatal("it was cut off, and has no error")
		}
		k := b.Kafka
		k.Names = topics.Names{Prefix: to}
		half, err := pipeline.OpenLog(k)
		if err != nil {
			t.Fatal(err)
		}
		defer half.Close()
		if err := half.EnsureTopics(t.Context(), pipeline.TopicOptions{Partitions: 5}); err == nil ||
			!strings.Contains(err.Error(), "message.timestamp.type=CreateTime") {
			t.Errorf("a node takes the half made copy for a log: %v", err)
		}
		refused("--discard", false)

		// Somebody writes while it is copied.
		written := false
		_, err = pipeline.Repartition(t.Context(), pipeline.RepartitionOptions{From: b.Kafka, To: topics.Names{Prefix: to}, Partitions: 5,
			Discard:    true,
			FromIntake: b.Kafka.Names.Prefix + "gate", ToIntake: to + "gate", Progress: func(step string, topic topics.Topic, _, _ int64) {
				if step == "verifying" && !written {
					written = true
					h.put(note("late", "", "late"), false)
				}
			}})
		if err == nil || !strings.Contains(err.Error(), "while it was copied") || !strings.Contains(err.Error(), "notifications") {
			t.Errorf("got %v", err)
		}

		if _, err := b.repartition(to, 5, true); err != nil {
			t.Fatalf("after what was half made is discarded: %v", err)
		}
		refused("finished, not left half made", true)
	})
}

// The id by place of a copy is believed, that of an outsider is not.
func TestForeignPlace(t *testing.T) {
	b := newBench(t, testenv.Kafka(t))
	if _, err := b.agree(time.Minute, false); err != nil {
		t.Fatal(err)
	}
	b.stamps("CreateTime")
	b.raw(topics.Notifications, 1, "user:b", `{}`, kgo.RecordHeader{Key: "nexus-place", Value: []byte("n7-9")})
	b.stamps("LogAppendTime")
	b.raw(topics.Notifications, 0, "user:a", `{}`, kgo.RecordHeader{Key: "nexus-place", Value: []byte("n7-9")})
	m := newMemory()
	b.readAll(b.Kafka, time.Minute, []topics.Topic{topics.Notifications}, m)
	var ids []string
	for _, e := range m.all {
		ids = append(ids, e.EventID())
	}
	slices.Sort(ids)
	if !slices.Equal(ids, []string{"n0-0", "n7-9"}) {
		t.Errorf("ids %q", ids)
	}
}
