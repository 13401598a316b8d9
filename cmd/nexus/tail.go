package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

const tailHelp = `nexus tail shows events as they are appended, decoded: of the topics named, or of all but presence. Ctrl-C ends it.

  nexus tail
  nexus tail notifications broadcasts --audience user:alice
  nexus tail messages --type message --since 1h --json

Without KAFKA_BROKERS it reads the embedded log of the server that runs on DATA_DIR. Contents are printed: mind who watches.

`

// tailer prints events.
type tailer struct {
	out    io.Writer
	names  topics.Names
	filter struct{ audience, typ string }
	json   bool
	colour bool
}

func tail(ctx context.Context, args []string, env environment, stdout, stderr io.Writer) error {
	f := newFlags("tail", tailHelp, stderr)
	audience := f.String("audience", "", "only events with this key, like user:alice, dm:alice:bob, channel:news or all")
	typ := f.String("type", "", "only events of this type, like notification or message.read")
	since := f.String("since", "", "begin this long ago, like 10m; start: at the log's beginning; default: now")
	limit := f.Int("limit", 0, "end after so many events; 0: never")
	asJSON := f.Bool("json", false, "one JSON object for each event")
	colour := f.Bool("color", isTerminal(stdout) && env["NO_COLOR"] == "", "coloured")
	var named []string
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		named, args = append(named, args[0]), args[1:]
	}
	c, err := load(f, args, env)
	if err != nil {
		return err
	}
	t := &tailer{out: stdout, names: c.Kafka.Names, json: *asJSON, colour: *colour}
	t.filter.audience, t.filter.typ = *audience, *typ
	wanted, err := t.topics(named)
	if err != nil {
		return usageError{err}
	}
	begin, err := beginning(*since)
	if err != nil {
		return usageError{err}
	}
	kafka, err := kafkaOf(c)
	if err != nil {
		return err
	}
	return t.run(ctx, kafka, wanted, begin, *limit)
}

// topics are the names in Kafka of the topics asked for.
func (t *tailer) topics(named []string) (names []string, err error) {
	var known []string
	for _, s := range topics.Specs() {
		known = append(known, string(s.Topic))
		if len(named) == 0 && s.Topic != topics.Presence || slices.Contains(named, string(s.Topic)) {
			names = append(names, t.names.Name(s.Topic))
		}
	}
	for _, n := range named {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("there is no topic %q; there are %s", n, strings.Join(known, ", "))
		}
	}
	return names, nil
}

func beginning(since string) (kgo.Offset, error) {
	switch since {
	case "":
		return kgo.NewOffset().AtEnd(), nil
	case "start":
		return kgo.NewOffset().AtStart(), nil
	}
	d, err := time.ParseDuration(since)
	if err != nil || d <= 0 {
		return kgo.Offset{}, errors.New("--since: must be a duration like 10m, or start")
	}
	return kgo.NewOffset().AfterMilli(time.Now().Add(-d).UnixMilli()), nil
}

// addressFile is where a server with an embedded log says how that is reached.
func addressFile(dataDir string) string { return filepath.Join(dataDir, "kafka-address") }

// kafkaOf is the log that a command is to read: the one configured, or that of the server on DATA_DIR.
func kafkaOf(c *Config) (pipeline.Kafka, error) {
	k := c.Kafka
	k.Log = slog.New(slog.DiscardHandler)
	if len(k.Brokers) == 0 {
		b, err := os.ReadFile(addressFile(c.DataDir))
		if err != nil {
			return pipeline.Kafka{}, fmt.Errorf("no server has run on DATA_DIR %s: set KAFKA_BROKERS, or the DATA_DIR of the server", c.DataDir)
		}
		k.Brokers = []string{strings.TrimSpace(string(b))}
	}
	return k, nil
}

func (t *tailer) run(ctx context.Context, kafka pipeline.Kafka, names []string, begin kgo.Offset, limit int) error {
	cl, err := kafka.Client(kgo.ConsumeTopics(names...), kgo.ConsumeResetOffset(begin))
	if err != nil {
		return err
	}
	defer cl.Close()
	ping, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := cl.Ping(ping); err != nil && ctx.Err() == nil {
		return fmt.Errorf("reach Kafka at %s: is the server running? %w", strings.Join(kafka.Brokers, ","), err)
	}
	for shown := 0; ; {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		for _, e := range fs.Errors() {
			return fmt.Errorf("read %s: %w", e.Topic, e.Err)
		}
		for _, r := range fs.Records() {
			ok, err := t.show(r)
			if err != nil {
				return err
			}
			if ok {
				shown++
			}
			if limit > 0 && shown == limit {
				return nil
			}
		}
	}
}

// show prints a record, unless it is filtered out.
func (t *tailer) show(r *kgo.Record) (bool, error) {
	topic, _ := t.names.Topic(r.Topic)
	e := pipeline.EventOf(topic, r)
	invalid := ""
	if topic == topics.DeadLetters {
		invalid = headerOf(r, topics.HeaderReason)
	} else if err := topics.Valid(e); err != nil {
		invalid = err.Error()
	}
	if t.filter.audience != "" && t.filter.audience != string(e.Key) || t.filter.typ != "" && t.filter.typ != e.Type {
		return false, nil
	}
	if t.json {
		return true, t.showJSON(e, invalid)
	}
	return true, t.showLine(e, invalid)
}

func headerOf(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// line is an event as --json prints it.
type line struct {
	Time           string          `json:"time"`
	Topic          topics.Topic    `json:"topic"`
	Partition      int32           `json:"partition"`
	Offset         int64           `json:"offset"`
	Key            string          `json:"key"`
	Type           string          `json:"type"`
	Source         string          `json:"source"`
	ID             string          `json:"id"`
	IdempotencyKey string          `json:"idempotencyKey"`
	Invalid        string          `json:"invalid,omitempty"` // why; empty: the event is valid
	Value          json.RawMessage `json:"value"`             // a string where it is not JSON
}

func (t *tailer) showJSON(e *topics.Event, invalid string) error {
	value := json.RawMessage(e.Value)
	if !json.Valid(value) {
		value, _ = json.Marshal(string(e.Value)) // a string always encodes
	}
	enc := json.NewEncoder(t.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(line{Time: topics.FormatTime(e.Time), Topic: e.Topic, Partition: e.Partition, Offset: e.Offset, Key: string(e.Key),
		Type:   e.Type,
		Source: e.Source, ID: e.ID, IdempotencyKey: e.IdempotencyKey, Invalid: invalid, Value: value})
}

// Colours of a terminal (ECMA-48, SGR).
const (
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func paint(on bool, colour, text string) string {
	if !on || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (t *tailer) showLine(e *topics.Event, invalid string) error {
	if invalid != "" {
		invalid = " " + paint(t.colour, red, "invalid: "+invalid)
	}
	_, err := fmt.Fprintf(t.out, "%s %s %s %s %s%s\n", paint(t.colour, dim, topics.FormatTime(e.Time)),
		paint(t.colour, dim, fmt.Sprintf("%s/%d@%d", e.Topic, e.Partition, e.Offset)), paint(t.colour, cyan, printable(e.Key)),
		paint(t.colour, yellow, printable([]byte(e.Type))), printable(e.Value), invalid)
	return err
}

// printable keeps what outsiders wrote from moving the cursor: control characters are shown as \x..
func printable(b []byte) string {
	b = bytes.ToValidUTF8(b, []byte("\uFFFD"))
	var out strings.Builder
	for _, r := range string(b) {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			fmt.Fprintf(&out, `\x%02x`, r)
			continue
		}
		out.WriteRune(r)
	}
	return out.String()
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	s, err := f.Stat()
	return err == nil && s.Mode()&os.ModeCharDevice != 0
}
