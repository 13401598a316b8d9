package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

const adoptHelp = `nexus adopt takes this log on where a store remembers another one: the log was wiped, restored from an older backup, has
lost its last records, or is another installation's. The store keeps what it has and goes on from here:

  - from the beginning of a topic that was made anew,
  - from the end of a topic that has lost records: what was appended since the loss is not folded. nexus rebuild has all of it.

Without a name it only says which stores do not fit, and changes nothing.

  nexus adopt                    look
  nexus adopt inbox keys stats push gate

Stop all nodes first. It takes the settings of nexus serve.

`

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
	a := newApp(c, quietLog(stderr), stdout)
	defer a.close()
	known := namesWhere(a.stored(), func(part) bool { return true })
	for _, name := range names {
		if !slices.Contains(known, name) {
			return usageError{fmt.Errorf("%q is no store: name %s", name, either(known))}
		}
	}
	return a.adopt(ctx, names, stdout)
}

func (a *app) adopt(ctx context.Context, names []string, out io.Writer) error {
	stores := a.stored()
	if err := a.open(ctx, namesWhere(stores, func(part) bool { return true })...); err != nil {
		return err
	}
	left := false
	for _, p := range stores {
		c := a.consumer(p.name)
		list, err := c.Misfits(ctx, a.logs)
		if err != nil {
			return err
		}
		for _, m := range list {
			fmt.Fprintf(out, "%s: %s/%d: %s\n", c.Name, a.kafka.Names.Name(m.Of.Topic), m.Of.ID, m.Why)
		}
		switch {
		case len(list) == 0:
			fmt.Fprintf(out, "%s: remembers this log\n", c.Name)
		case slices.Contains(names, c.Name):
			if err := a.adoptFor(ctx, p, list, out); err != nil {
				return err
			}
		default:
			left = true
		}
	}
	if left {
		return errors.New("some stores remember another log: nexus adopt and their names takes this one on, nexus rebuild inbox, keys " +
			"and stats fold anew")
	}
	return nil
}

func (a *app) adoptFor(ctx context.Context, p part, list []pipeline.Misfit, out io.Writer) error {
	c := a.consumer(p.name)
	if err := a.nobodyFolds(ctx, c, out); err != nil {
		return err
	}
	to := make(map[topics.Partition]pipeline.Position)
	for _, m := range list {
		if p.skips {
			m.To.Next = m.End
		}
		to[m.Of] = m.To
		fmt.Fprintf(out, "%s: %s/%d: goes on from offset %d; the log ends at %d\n", c.Name, a.kafka.Names.Name(m.Of.Topic), m.Of.ID, m.To.Next,
			m.End)
	}
	if err := c.Sink.(adopter).Adopt(ctx, to); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: has taken this log on\n", c.Name)
	return nil
}
