// Command containers starts one service for tests in a container, by testcontainers-go:
//
//	containers kafka | postgres | clickhouse
//
// It prints one line of JSON, {"addr":"host:port"} once the service answers or {"error":"…"} where it cannot be had, and
// waits until its standard input ends. Then it removes the container. Who started it may therefore end in any way, killed
// as well: nothing is left behind.
//
// Package testenv builds and runs it. It is a module of its own, so that neither testcontainers-go nor what that needs is
// in the product's module graph.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// answer is the line that is printed; one of the two members is set.
type answer struct {
	Addr  string `json:"addr,omitempty"`
	Error string `json:"error,omitempty"`
}

// service is what a container of the image is started as.
type service struct {
	port       string
	entrypoint string // in /usr/local/bin of the image
	ready      wait.Strategy
	hooks      []testcontainers.ContainerHook // run once the container has started
}

// startup is how long a service may take to come up; on a busy machine of two cores Kafka takes 20 s.
const startup = time.Minute

var services = map[string]service{
	"kafka": {"9092", "run-kafka", wait.ForListeningPort("9092/tcp").WithStartupTimeout(startup),
		[]testcontainers.ContainerHook{advertise}},
	"postgres":   {"5432", "run-postgres", wait.ForLog("database system is ready to accept connections").WithStartupTimeout(startup), nil},
	"clickhouse": {"9000", "run-clickhouse", wait.ForListeningPort("9000/tcp").WithStartupTimeout(startup), nil},
}

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		_ = json.NewEncoder(os.Stdout).Encode(answer{Error: err.Error()})
		os.Exit(1)
	}
}

// run starts the service that args name, tells out its address, and stops it once in has ended.
func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: containers kafka | postgres | clickhouse")
	}
	s, ok := services[args[0]]
	if !ok {
		return fmt.Errorf("no service %q; there are kafka, postgres and clickhouse", args[0])
	}
	// Ctrl-C reaches every process of a terminal. The tests may still be using the service then: the end of in is what counts.
	signal.Ignore(syscall.SIGINT)
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel() // a start under way is given up
	}()
	addr, stop, err := start(ctx, s)
	defer stop()
	if err != nil {
		return fmt.Errorf("%s: %w", s.entrypoint, err)
	}
	if err := json.NewEncoder(out).Encode(answer{Addr: addr}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// start returns where the service is reached, and what removes its container; that may be called after an error too.
func start(ctx context.Context, s service) (addr string, stop func(), err error) {
	// The reaper is an image that would have to be pulled; main removes its container itself.
	os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
	if _, err := os.Stat("/.dockerenv"); err == nil && os.Getenv("TESTCONTAINERS_HOST_OVERRIDE") == "" {
		os.Setenv("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1") // else the gateway is dialled, which is another engine's
	}
	c, err := testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{Started: true,
		ContainerRequest: testcontainers.ContainerRequest{
			Image: image(), Entrypoint: []string{"/usr/local/bin/" + s.entrypoint}, ExposedPorts: []string{s.port + "/tcp"}, WaitingFor: s.ready,
			LifecycleHooks: []testcontainers.ContainerLifecycleHooks{{PostStarts: s.hooks}},
		}})
	stop = func() {
		if c != nil {
			_ = c.Terminate(context.Background(), testcontainers.StopTimeout(0)) // nothing in it is kept: it need not end by itself
		}
	}
	if err != nil {
		return "", stop, err
	}
	addr, err = c.PortEndpoint(ctx, s.port+"/tcp", "")
	return addr, stop, err
}

// image is made by internal/testenv/setup.sh image; elsewhere NEXUS_TEST_IMAGE may name one with the same entry points.
func image() string {
	if i := os.Getenv("NEXUS_TEST_IMAGE"); i != "" {
		return i
	}
	return "nexus-test/services:3"
}

// advertise tells Kafka the port that it is reached at, which is known only once the container runs: run-kafka waits for the file.
func advertise(ctx context.Context, c testcontainers.Container) error {
	addr, err := c.PortEndpoint(ctx, "9092/tcp", "")
	if err != nil {
		return err
	}
	return c.CopyToContainer(ctx, []byte(addr), "/tmp/advertised", 0o644)
}
