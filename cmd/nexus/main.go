// Command nexus is the whole of Nexus in one binary.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const help = `nexus carries events from product services through Kafka to inboxes, statistics, browsers and phones.

  nexus serve [--demo]    run the server; without settings on embedded engines
  nexus token --user U    make a token for a user or a service
  nexus publish …         send a notification, activity, announcement or message
  nexus tail [topic…]     show events as they are appended
  nexus doctor            find out why a client gets no connection, no events, no push
  nexus rebuild           fold the inbox or the statistics anew from the log
  nexus adopt             go on with another log: one that was wiped, restored or exchanged
  nexus repartition       copy the log to topics with another number of partitions
  nexus version           say which build this is
  nexus help              this text; every command has --help

Settings are flags, environment variables or lines of ./.env; nexus serve --help lists them.
`

func main() {
	// The second signal ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], environmentOf(os.Environ()), os.Stdout, os.Stderr))
}

// run is the whole program; it returns the exit code: 0 done, 1 failed, 2 wrong use.
func run(ctx context.Context, args []string, env environment, stdout, stderr io.Writer) int {
	commands := map[string]func(context.Context, []string, environment, io.Writer, io.Writer) error{
		"serve": serve, "token": token, "publish": publish, "tail": tail, "doctor": diagnose, "rebuild": rebuild, "adopt": adopt,
		"repartition": repartition,
		"version":     version,
	}
	if len(args) == 0 || args[0] == "help" || args[0] == "--help" || args[0] == "-h" {
		fmt.Fprint(stdout, help)
		return 0
	}
	command, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(stderr, "nexus: there is no command %q\n\n%s", args[0], help)
		return 2
	}
	err := command(ctx, args[1:], env, stdout, stderr)
	var wrong usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &wrong):
		fmt.Fprintf(stderr, "nexus %s: %v\n", args[0], err)
		return 2
	}
	fmt.Fprintf(stderr, "nexus %s: %v\n", args[0], err)
	return 1
}

// usageError is a mistake in what the operator typed.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
