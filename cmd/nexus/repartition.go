package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

const repartitionHelp = `nexus repartition copies the log to topics with another number of partitions, under another prefix.
Partitions cannot simply be added: a key's later events would stand in another partition than its earlier ones, and nodes refuse
such a log. What counts in the old log counts in the copy, with the same times and ids, the same order of each key, and the same
duplicates. The old log is only read: the way back is the old prefix.

  nexus repartition --to-prefix nexus2. --partitions 12

  1. Stop the nodes and the services that write to Kafka.
  2. Run it, with the settings of nexus serve. It copies, and then reads both logs again and compares them.
  3. Set NEXUS_TOPIC_PREFIX to the new prefix, for the nodes and the services.
  4. Run nexus rebuild inbox, nexus rebuild keys, nexus rebuild stats and nexus adopt push.
  5. Start the nodes and the services. Once all is well, delete the old topics.

Cut off, it leaves topics that no node takes for a log; run it again with --discard. It needs as much room as the log has now.
Typing, and who is online, are not copied. Clients that come back with an offset of the old log are told recovered:false, and pages
of messages begin anew.

`

var prefixRule = regexp.MustCompile(`^[A-Za-z0-9._-]{1,200}$`)

func repartition(ctx context.Context, args []string, env environment, stdout, stderr io.Writer) error {
	f := newFlags("repartition", repartitionHelp, stderr)
	prefix := f.String("to-prefix", "", "prefix of the new topics; no topics may be there yet")
	partitions := f.Int("partitions", 0, "partitions of the new topics, but of those that have one only; default: TOPIC_PARTITIONS")
	discard := f.Bool("discard", false, "first delete what a copy to this prefix that was cut off has left")
	c, err := load(f, args, env)
	if err != nil {
		return err
	}
	if *partitions == 0 {
		*partitions = int(c.Topics.Partitions)
	}
	switch {
	case *prefix == "":
		return usageError{errors.New("--to-prefix is missing: name the prefix of the new topics, like nexus2")}
	case !prefixRule.MatchString(*prefix):
		return usageError{errors.New("--to-prefix: letters, digits, dots, hyphens and underscores only, at most 200")}
	case *prefix == c.Kafka.Names.Prefix:
		return usageError{fmt.Errorf("--to-prefix is the prefix of the log that is to be copied, %q: name another one", c.Kafka.Names.Prefix)}
	case *partitions < 1 || *partitions > 10_000:
		return usageError{errors.New("--partitions must be a number from 1 to 10000")}
	}
	c.Broker.Port, c.BrokerPortSet = 0, true // services that still run must not find it
	a := newApp(c, quietLog(stderr), stdout)
	defer a.close()
	a.keepTimes = true
	return a.repartition(ctx, *prefix, int32(*partitions), *discard, stdout)
}

func (a *app) repartition(ctx context.Context, prefix string, partitions int32, discard bool, out io.Writer) error {
	if err := a.open(ctx, "data"); err != nil {
		return err
	}
	if err := a.reachLog(ctx); err != nil { // part log would make topics, and agree on a contract
		return err
	}
	for _, p := range a.stored() {
		c := &pipeline.Consumer{Name: p.name}
		if !a.embedded() { // beside an embedded log no node runs: DATA_DIR is locked
			c.Group = a.group(p.name)
		}
		if err := a.nobodyFolds(ctx, c, out); err != nil {
			return err
		}
	}
	begin := time.Now()
	done, err := pipeline.Repartition(ctx, pipeline.RepartitionOptions{From: a.kafka, To: topics.Names{Prefix: prefix}, Partitions: partitions,
		FromIntake: a.group("gate"), ToIntake: prefix + "gate", Discard: discard,
		Progress: func(step string, t topics.Topic, done, total int64) {
			fmt.Fprintf(out, "%s %s: %d of %d\n", step, t, done, total)
		}})
	if err != nil {
		return err
	}
	d := done.Dropped
	fmt.Fprintf(out, "copied and verified: %d records of %d topics in %s; left out: %d misplaced ones whose copy stands where they "+
		"belong, %d contents beyond the bound\n",
		done.Records, done.Topics, time.Since(begin).Round(time.Millisecond), d.Strays, d.Contents)
	if len(done.Rejudged) > 0 {
		fmt.Fprintf(out, "a broker's clock was set back by more than the dedup window: these are duplicates in one of the two logs only: %s\n",
			strings.Join(done.Rejudged, " "))
	}
	fmt.Fprintf(out, "next: set NEXUS_TOPIC_PREFIX=%s everywhere; nexus rebuild inbox; nexus rebuild keys; nexus rebuild stats; "+
		"nexus adopt push; start the nodes\n", prefix)
	return nil
}
