package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// embeddedApp is an app on embedded engines, of which nothing is open yet.
func embeddedApp(t *testing.T) *app {
	t.Helper()
	t.Chdir(t.TempDir()) // no .env
	return appOf(t, environment{"PORT": "0", "HOST": "127.0.0.1", "DATA_DIR": t.TempDir(), "EMBEDDED_KAFKA_PORT": "0",
		"JWT_SECRET": testSecret})
}

// appOf is an app with these settings, of which nothing is open yet.
func appOf(t *testing.T, env environment) *app {
	t.Helper()
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	c, err := load(fs, nil, env)
	if err != nil {
		t.Fatal(err)
	}
	a := newApp(c, slog.New(slog.DiscardHandler), io.Discard)
	t.Cleanup(a.close)
	return a
}

// Each part names all that it needs: it opens alone, with what it names and no more. What it needs stands above it.
func TestPartsNameTheirNeeds(t *testing.T) {
	for i, p := range embeddedApp(t).list {
		t.Run(p.name, func(t *testing.T) {
			a := embeddedApp(t)
			for _, need := range p.needs {
				if !slices.ContainsFunc(a.list[:i], func(above part) bool { return above.name == need }) {
					t.Errorf("%s, which it needs, does not stand above it", need)
				}
			}
			if err := a.open(t.Context(), p.name); err != nil {
				t.Fatal(err)
			}
			wanted := a.withNeeds([]string{p.name})
			for _, other := range a.list {
				if opened := a.parts[other.name] != nil; opened != wanted[other.name] {
					t.Errorf("%s: open is %v", other.name, opened)
				}
			}
			checkPart(t, a, p)
		})
	}
}

// checkPart holds an open part against what its line of the list says: the commands that walk the list rely on it.
func checkPart(t *testing.T, a *app, p part) {
	t.Helper()
	c, o := a.consumer(p.name), a.parts[p.name]
	if (c != nil || o.run != nil) && o.probe == nil {
		t.Error("it works, and readiness does not ask it")
	}
	if c != nil && o.run == nil {
		t.Error("nothing runs its consumer")
	}
	if p.keeps == nowhere {
		if p.rebuilds || p.skips {
			t.Error("it keeps no positions, and is named as one that does")
		}
		return
	}
	if c == nil || c.Name != p.name {
		t.Fatalf("its consumer is %+v", c)
	}
	if _, ok := c.Sink.(adopter); !ok {
		t.Error("its store cannot be adopted")
	}
	if _, ok := c.Sink.(resetter); p.rebuilds && !ok {
		t.Error("its store cannot be emptied for nexus rebuild")
	}
}

// Wherever the opening of a node fails, everything that is open is closed: the port and DATA_DIR are free for the next try, and no
// goroutine is left (TestMain looks for those).
func TestOpenRollsBack(t *testing.T) {
	for i, failing := range embeddedApp(t).list {
		t.Run(failing.name, func(t *testing.T) {
			a := embeddedApp(t)
			wrong := errors.New("cannot be opened")
			open := a.list[i].open
			a.list[i].open = func(ctx context.Context) (opened, error) {
				if _, err := open(ctx); err != nil { // it fails when it has opened everything of its own
					t.Fatal(err)
				}
				return opened{}, wrong
			}
			if err := a.open(t.Context()); !errors.Is(err, wrong) {
				t.Fatalf("opened: %v", err)
			}
			for _, below := range a.list[i:] {
				if a.parts[below.name] != nil {
					t.Errorf("%s is open, and stands below the one that failed", below.name)
				}
			}
			a.close()
			a.close() // serve closes in any case
			again := newApp(a.c, slog.New(slog.DiscardHandler), io.Discard)
			defer again.close()
			if a.listener != nil {
				again.c.Port = port(t, a)
			}
			if err := again.open(t.Context()); err != nil {
				t.Fatalf("the next try: %v", err)
			}
		})
	}
}

// port is that which an app had.
func port(t *testing.T, a *app) string {
	t.Helper()
	_, port, err := net.SplitHostPort(a.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// folded is a projection of a test's own: it counts, and offers what a part may offer.
type folded struct {
	pipeline.Sink
	ran    chan struct{}
	pinged error
}

func (f *folded) Position(context.Context, topics.Partition) (pipeline.Position, error) {
	return pipeline.Position{}, nil
}
func (f *folded) Apply(context.Context, pipeline.Batch) error { return nil }
func (f *folded) Ping(context.Context) error                  { return f.pinged }
func (f *folded) Run(ctx context.Context) error {
	close(f.ran)
	<-ctx.Done()
	return nil
}

// A projection is added by one line, whatever its topics: it is opened, run, asked by readiness and waited for, without a word
// elsewhere. An app runs and stops without a process.
func TestOneLineAddsAProjection(t *testing.T) {
	a := embeddedApp(t)
	f := &folded{ran: make(chan struct{})}
	last := len(a.list) - 1 // above api
	a.list = slices.Insert(a.list, last,
		a.projection(part{name: "audit", needs: []string{"log"}}, []topics.Topic{topics.Control, topics.Notifications},
			func(context.Context) (pipeline.Sink, error) { return f, nil }))
	if err := a.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer a.close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out, in := io.Pipe()
	a.stdout = in
	ended := make(chan error, 1)
	go func() {
		ended <- a.run(ctx)
		in.Close()
	}()
	b := make([]byte, 1024) // what is printed once the node is ready
	n, err := out.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), "nexus is listening") {
		t.Fatalf("%q, %v", b[:n], err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	<-f.ran
	if !slices.Contains(a.health.names(), "audit") {
		t.Errorf("readiness knows %v", a.health.names())
	}
	if !a.consumer("audit").CaughtUp() {
		t.Error("ready before the projection has read what stood in the log")
	}
	f.pinged = errors.New("its address and password")
	if found := a.health.problems(t.Context(), nil); found["audit"] != "its database cannot be reached" || len(found) > 1 {
		t.Errorf("%v", found)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What commands name as choices are parts of the list.
func TestNamesOfParts(t *testing.T) {
	a := embeddedApp(t)
	for want, got := range map[string]string{
		"inbox, stats, keys, push or gate": either(namesWhere(a.stored(), func(part) bool { return true })),
		"inbox, stats or keys":             either(namesWhere(a.stored(), func(p part) bool { return p.rebuilds })),
		"":                                 either(nil),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A name that is no part's, or an argument too many, changes nothing on the disk.
func TestWrongNamesLeaveNothing(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, args := range [][]string{{"rebuild", "gate"}, {"rebuild"}, {"adopt", "control"}, {"repartition"}, {"serve", "now"}} {
		dir := filepath.Join(t.TempDir(), "data")
		if code, _, problem := command(t, environment{"DATA_DIR": dir, "EMBEDDED_KAFKA_PORT": "0"}, args...); code != 2 {
			t.Errorf("nexus %v: %d %s", args, code, problem)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("nexus %v: DATA_DIR was made (%v)", args, err)
		}
	}
}
