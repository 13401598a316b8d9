// Package testenv gives tests real Kafka, PostgreSQL and ClickHouse. Each comes from an address in the environment, else
// from a local program on a free port, else from a container (internal/testenv/containers); NEXUS_TEST_SERVICES=local or containers
// allows one of the two only. It is started once for a test binary and stopped by Exit.
//
// Where one cannot be had the test is skipped and says why; with NEXUS_TEST_REQUIRE_REAL=1 it fails.
package testenv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// service is one running server.
type service struct {
	addr string // host:port
	how  string // where it came from
}

var (
	mu      sync.Mutex
	running = map[string]service{}
	missing = map[string]error{}
	stops   []func()
)

// Kafka is the address of an Apache Kafka broker.
func Kafka(t testing.TB) string {
	return get(t, "kafka", "NEXUS_TEST_KAFKA", localKafka, inContainer("kafka")).addr
}

// obtain is how a service is started; the stop function may be nil.
type obtain func(ctx context.Context) (addr string, stop func(), err error)

func get(t testing.TB, name, env string, local, container obtain) service {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	if _, ok := running[name]; !ok && missing[name] == nil {
		s, err := start(env, local, container)
		if err == nil {
			running[name] = s
		} else {
			missing[name] = err
		}
		report(name, s, err)
	}
	if err := missing[name]; err != nil {
		if os.Getenv("NEXUS_TEST_REQUIRE_REAL") == "1" {
			t.Fatalf("real %s is required and cannot be had: %v", name, err)
		}
		t.Skipf("no real %s: %v", name, err)
	}
	t.Logf("%s: %s", name, running[name].how)
	return running[name]
}

func start(env string, local, container obtain) (service, error) {
	if os.Getenv("NEXUS_TEST_EMBEDDED") == "1" {
		return service{}, errors.New("left out by make test-embedded")
	}
	if addr := os.Getenv(env); addr != "" {
		return service{addr, "given by " + env}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	ways := []way{{local, "local program"}, {container, "container"}}
	switch os.Getenv("NEXUS_TEST_SERVICES") {
	case "containers":
		ways = ways[1:]
	case "local":
		ways = ways[:1]
	}
	var errs []error
	for _, w := range ways {
		var err error
		for range 2 { // a port that was free may be taken by now
			var addr string
			var stop func()
			addr, stop, err = w.obtain(ctx)
			if stop != nil {
				stops = append(stops, stop)
			}
			if err == nil {
				return service{addr, w.name}, nil
			}
		}
		errs = append(errs, fmt.Errorf("%s: %w", w.name, err))
	}
	return service{}, errors.Join(errs...)
}

type way struct {
	obtain obtain
	name   string
}

// report notes for the last line of make test how a service was obtained.
func report(name string, s service, err error) {
	if err != nil {
		Note("no " + name + ": " + strings.ReplaceAll(err.Error(), "\n", " / "))
		return
	}
	Note(name + " (" + s.how + ")")
}

// Note adds a line to what make test says in the end.
func Note(line string) {
	file := os.Getenv("NEXUS_TEST_REPORT")
	if file == "" {
		return
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintln(f, line)
}

// Root is the repository's top folder.
func Root() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil && dir != "/"; dir = filepath.Dir(dir) {
		if _, statErr := os.Stat(filepath.Join(dir, "go.mod")); statErr == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no go.mod above the working directory")
}

// FreePort is a port of loopback on which nothing listens, below those that the system gives to outgoing connections: a
// server that is started again must find it free again.
func FreePort() (int, error) {
	for range 1000 {
		port := 20_000 + rand.IntN(12_000)
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, ln.Close()
		}
	}
	return 0, errors.New("no free port between 20000 and 32000")
}

// awaitPort returns once something accepts connections at addr, or with an error once the program has ended.
func awaitPort(ctx context.Context, addr string, ended <-chan struct{}) error {
	for {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ended:
			return errors.New("it ended at its start")
		case <-ctx.Done():
			return fmt.Errorf("nothing listens on %s: %w", addr, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
