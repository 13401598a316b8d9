package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

const adoptHelp = `nexus adopt takes this log on where a store remembers another one: the log was wiped, restored from an older backup, has lost
its last records, or is another installation's. The store keeps what it has and goes on from here:

  - from the beginning of a topic that was made anew,
  - from the end of a topic that has lost records: what was appended since the loss is not folded. nexus rebuild has all of it.

Without a name it only says which stores do not fit, and changes nothing.

  nexus adopt                    look
  nexus adopt inbox stats push gate

Stop all nodes first. It takes the settings of nexus serve.

`

// adopter is a store that can take another log on.
type adopter interface {
	Adopt(ctx context.Context, to map[topics.Topic]map[int32]pipeline.Position) error
}

// All that adopt names are adopters; the gate's is looked at by the tests alone, for its type is not known here.
var _ = []adopter{(*inbox.Inbox)(nil), (*stats.SQLite)(nil), (*stats.ClickHouse)(nil), (*push.Pusher)(nil)}

func adopt(ctx context.Context, args []string, env environment, stdout, stderr io.Writer) error {
	f := newFlags("adopt", adoptHelp, stderr)
	n := 0
	for n < len(args) && !strings.HasPrefix(args[n], "-") {
		n++
	}
	names := args[:n]
	c, err := load(f, args[n:], env)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !slices.Contains([]string{"inbox", "stats", "push", "gate"}, name) {
			return usageError{fmt.Errorf("%q is no store: name inbox, stats, push or gate", name)}
		}
	}
	s := &server{c: c, log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), registry: prometheus.NewRegistry()}
	defer s.close()
	return s.adopt(ctx, names, stdout)
}

func (s *server) adopt(ctx context.Context, names []string, out io.Writer) error {
	steps := []func(context.Context) error{s.openData, s.openLog, s.openInbox, s.openStats, s.openGate,
		func(ctx context.Context) error { return s.openPush(ctx, nil) }} // nothing is pushed
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	left := false
	for _, c := range s.consumers() {
		list, err := c.Misfits(ctx, s.logs)
		if err != nil {
			return err
		}
		for _, m := range list {
			fmt.Fprintf(out, "%s: %s/%d: %s\n", c.Name, s.kafka.Names.Name(m.Topic), m.Partition, m.Why)
		}
		switch {
		case len(list) == 0:
			fmt.Fprintf(out, "%s: remembers this log\n", c.Name)
		case slices.Contains(names, c.Name):
			if err := s.adoptFor(ctx, c, list, out); err != nil {
				return err
			}
		default:
			left = true
		}
	}
	if left {
		return errors.New("some stores remember another log: nexus adopt and their names takes this one on, nexus rebuild inbox and stats fold anew")
	}
	return nil
}

func (s *server) adoptFor(ctx context.Context, c *pipeline.Consumer, list []pipeline.Misfit, out io.Writer) error {
	if err := s.nobodyFolds(ctx, c, out); err != nil {
		return err
	}
	to := make(map[topics.Topic]map[int32]pipeline.Position)
	for _, m := range list {
		if to[m.Topic] == nil {
			to[m.Topic] = make(map[int32]pipeline.Position)
		}
		if c.Name == "push" { // nobody wants a push for what was appended while no node ran
			m.To.Next = m.End
		}
		to[m.Topic][m.Partition] = m.To
		fmt.Fprintf(out, "%s: %s/%d: goes on from offset %d; the log ends at %d\n", c.Name, s.kafka.Names.Name(m.Topic), m.Partition, m.To.Next, m.End)
	}
	if err := c.Sink.(adopter).Adopt(ctx, to); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: has taken this log on\n", c.Name)
	return nil
}
