package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
)

const serveHelp = `nexus serve runs the server until SIGTERM or SIGINT. Without settings it needs no other server: log, inbox and
statistics are kept under DATA_DIR. Each setting is a flag, an environment variable or a line of ./.env.

`

func serve(ctx context.Context, args []string, env environment, stdout, stderr io.Writer) error {
	f := newFlags("serve", serveHelp, stderr)
	demo := f.Bool("demo", false, "print tokens of two demo users and lines to try; embedded engines only")
	c, err := load(f, args, env)
	if err != nil {
		return err
	}
	if *demo && c.external() {
		return usageError{errors.New("--demo: only with the embedded engines (unset KAFKA_BROKERS, DATABASE_URL and CLICKHOUSE_URL)")}
	}
	c.Demo = *demo
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // checked by load
	lines := newCalm(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	defer lines.Close() // what was left out is written also after the command's end
	a := newApp(c, slog.New(lines), stdout)
	defer a.close()
	a.greet()
	if err := a.open(ctx); err != nil {
		return err
	}
	if err := a.checkLogs(ctx); err != nil {
		return err
	}
	return a.run(ctx)
}

// greet logs what an operator asks first: which build runs, on which engines, and what is odd about the settings.
func (a *app) greet() {
	a.log.Info("nexus starts", buildOf().attributes()...)
	a.log.Info("engines", a.c.engines()...)
	for _, w := range a.c.Warnings {
		a.log.Warn(w) //nolint:sloglint // a sentence for the operator
	}
}
