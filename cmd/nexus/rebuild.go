package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nexus/nexus/pipeline"
)

const rebuildHelp = `nexus rebuild empties a projection and folds it anew from the log's beginning: the inbox, the devices' keys, or the
statistics. Nothing is appended, and nothing is pushed. What topics kept for a time only have lost meanwhile is lost to the projection
as well.

  nexus rebuild inbox
  nexus rebuild keys
  nexus rebuild stats

Stop the nodes that share the projection first. It takes the settings of nexus serve; when it is cut off, the next start of a node, or
another nexus rebuild, goes on.

`

const (
	// leaveWait is the default of app.leaveWait: longer than a group's session (pipeline.Kafka.Session).
	leaveWait = 25 * time.Second
	// leaveLook is the pause between two looks at a group.
	leaveLook = 500 * time.Millisecond
)

func rebuild(ctx context.Context, args []string, env environment, stdout, stderr io.Writer) error {
	f := newFlags("rebuild", rebuildHelp, stderr)
	force := f.Bool("force", false, "also where the log has not everything any more that the projection was made of")
	what := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		what, args = args[0], args[1:]
	}
	c, err := load(f, args, env)
	if err != nil {
		return err
	}
	a := newApp(c, quietLog(stderr), stdout)
	defer a.close()
	if names := namesWhere(a.stored(), func(p part) bool { return p.rebuilds }); !slices.Contains(names, what) {
		return usageError{errors.New("name what is to be folded anew: " + either(names))}
	}
	return a.rebuild(ctx, what, *force, stdout)
}

// quietLog is the log of a command that prints what it does: only warnings and errors.
func quietLog(stderr io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// namesWhere are the names of the parts for which is holds.
func namesWhere(parts []part, is func(part) bool) (names []string) {
	for _, p := range parts {
		if is(p) {
			names = append(names, p.name)
		}
	}
	return names
}

// either lists names as a choice: a, b or c.
func either(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

func (a *app) rebuild(ctx context.Context, what string, force bool, out io.Writer) error {
	if err := a.open(ctx, what); err != nil {
		return err
	}
	c := a.consumer(what)
	if err := a.nobodyFolds(ctx, c, out); err != nil {
		return err
	}
	records, err := a.whole(ctx, c, force)
	if err != nil {
		return err
	}
	if err := c.Sink.(resetter).Reset(ctx); err != nil {
		return err
	}
	begin := time.Now()
	if err := foldToEnd(ctx, c, records, out); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: rebuilt from %d records in %s\n", what, records, time.Since(begin).Round(time.Millisecond))
	return nil
}

// nobodyFolds makes sure that no node of the projection's group runs; from then on this process reads everything itself.
func (a *app) nobodyFolds(ctx context.Context, c *pipeline.Consumer, out io.Writer) error {
	if c.Group == "" {
		return nil
	}
	told := ""
	for deadline := time.Now().Add(a.leaveWait); ; {
		members, err := a.logs.Members(ctx, c.Group)
		if err != nil {
			return err
		}
		if len(members) == 0 {
			c.Group, c.Instance = "", ""
			return nil
		}
		names := strings.Join(members, ", ")
		if time.Now().After(deadline) {
			return fmt.Errorf("these nodes fold %s: stop them first: %s", c.Name, names)
		}
		if names != told {
			told = names
			fmt.Fprintf(out, "%s: waiting for nodes to leave: %s\n", c.Name, names)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(leaveLook):
		}
	}
}

// whole counts the records to be folded, and refuses where some are gone unless force.
func (a *app) whole(ctx context.Context, c *pipeline.Consumer, force bool) (records int64, err error) {
	gone := make(map[string]bool)
	for _, t := range c.Topics {
		starts, err := a.logs.Starts(ctx, t)
		if err != nil {
			return 0, err
		}
		ends, err := a.logs.Ends(ctx, t)
		if err != nil {
			return 0, err
		}
		for of, end := range ends {
			records += end - starts[of]
			if starts[of] > 0 {
				gone[string(t)] = true
			}
		}
	}
	if len(gone) > 0 && !force {
		return 0, fmt.Errorf("the log has lost the beginning of %s, and %s would lose what was made of it: --force rebuilds all the same",
			strings.Join(slices.Sorted(maps.Keys(gone)), ", "), c.Name)
	}
	return records, nil
}

// foldToEnd folds until everything is in that stands in the log now, and tells how far it is.
func foldToEnd(ctx context.Context, c *pipeline.Consumer, records int64, out io.Writer) error {
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- c.Run(work) }()
	look, tell := time.NewTicker(10*time.Millisecond), time.NewTicker(time.Second)
	defer look.Stop()
	defer tell.Stop()
	for !c.CaughtUp() {
		select {
		case err := <-ended:
			return errors.Join(err, ctx.Err())
		case <-tell.C:
			fmt.Fprintf(out, "%s: %d of %d records\n", c.Name, records-c.Behind(), records)
		case <-look.C:
		}
	}
	cancel()
	return <-ended
}
