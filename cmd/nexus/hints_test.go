package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/nexus/nexus/internal/testenv"
)

// What an operator gets wrong about addresses is told in words, with the setting and the way out.
func TestHints(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	http := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(http.Close)
	web := strings.TrimPrefix(http.URL, "http://")
	for name, tc := range map[string]struct {
		env  environment
		says string
	}{
		"PORT in use": {environment{"HOST": "127.0.0.1", "PORT": port},
			"PORT: " + port + " is in use: stop what listens there or set PORT to another port"},
		"HOST of another machine": {environment{"HOST": "192.0.2.1"}, "HOST: 192.0.2.1 is no address of this machine"},
		"HOST that is no name":    {environment{"HOST": "nowhere..invalid"}, "HOST: nowhere..invalid is no address of this machine"},
		"CLICKHOUSE_URL of an HTTP port": {environment{"CLICKHOUSE_URL": "clickhouse://u:hunter2@" + web + "/d", "JWT_SECRET": testSecret},
			"CLICKHOUSE_URL needs that of the native protocol, 9000"},
		"KAFKA_BROKERS of an HTTP port": {environment{"KAFKA_BROKERS": refusing(t), "JWT_SECRET": testSecret}, "is it another server's port?"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := environment{"PORT": "0", "DATA_DIR": t.TempDir(), "EMBEDDED_KAFKA_PORT": "0", "STARTUP_TIMEOUT": "2s"}
			maps.Copy(env, tc.env)
			var log testenv.Buffer
			if code := run(t.Context(), []string{"serve"}, env, io.Discard, &log); code != 1 || !strings.Contains(log.String(), tc.says) ||
				strings.Contains(log.String(), "hunter2") {
				t.Errorf("%d\n%s", code, log.String())
			}
		})
	}
}

// What an engine says is told in the end, not that the last try was cut off: the hints are made of it.
func TestLastTryIsCutOff(t *testing.T) {
	said := errors.New("this is no Kafka")
	for name, after := range map[string]error{"by its context": context.DeadlineExceeded, "amid a dial": &net.OpError{Op: "dial",
		Err: os.ErrDeadlineExceeded}} {
		synctest.Test(t, func(t *testing.T) {
			a := &app{c: &Config{StartupTimeout: 15 * time.Second}, log: slog.New(slog.DiscardHandler)}
			tries := 0
			err := a.await(t.Context(), "Kafka", func(ctx context.Context) error {
				if tries++; tries == 1 {
					return said
				}
				<-ctx.Done()
				return after
			})
			if !errors.Is(err, said) || tries < 3 {
				t.Errorf("%s: %v after %d tries", name, err, tries)
			}
		})
	}
}

// refusing answers whatever comes as a web server does that reads no HTTP in it.
func refusing(t *testing.T) (addr string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer c.Close()
				_, _ = c.Read(make([]byte, 1024))
				_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
				_, _ = io.Copy(io.Discard, c) // closing with something unread would reset the connection before the answer is read
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		open.Wait()
	})
	return ln.Addr().String()
}

// ClickHouse's native port answers HTTP as well; what it says of a database that is not there is not blamed on the port.
func TestHintOfClickHouse(t *testing.T) {
	u, err := url.Parse(testenv.ClickHouse(t))
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/nowhere"
	var out bytes.Buffer
	env := environment{"PORT": "0", "DATA_DIR": t.TempDir(), "EMBEDDED_KAFKA_PORT": "0", "CLICKHOUSE_URL": u.String(),
		"JWT_SECRET": testSecret, "STARTUP_TIMEOUT": "1s"}
	code := run(t.Context(), []string{"serve"}, env, io.Discard, &out)
	if code != 1 || !strings.Contains(out.String(), "doesn't exist") && !strings.Contains(out.String(), "does not exist") ||
		strings.Contains(out.String(), "HTTP port") {
		t.Errorf("%d\n%s", code, &out)
	}
}

// The real PostgreSQL in Kafka's place.
func TestHintsOfRealEngines(t *testing.T) {
	_, rest, _ := strings.Cut(testenv.Postgres(t), "@")
	addr, _, _ := strings.Cut(rest, "/")
	var out bytes.Buffer
	env := environment{"PORT": "0", "DATA_DIR": t.TempDir(), "KAFKA_BROKERS": addr, "JWT_SECRET": testSecret, "STARTUP_TIMEOUT": "1s"}
	if code := run(t.Context(), []string{"serve"}, env, io.Discard, &out); code != 1 ||
		!strings.Contains(out.String(), "is it another server's port?") {
		t.Errorf("%d\n%s", code, &out)
	}
}

func TestKafkaHint(t *testing.T) {
	for _, tc := range []struct {
		err  error
		says string
	}{
		{kerr.IllegalSaslState, "KAFKA_SASL_MECHANISM"}, {kerr.UnsupportedSaslMechanism, "KAFKA_SASL_MECHANISM"},
		{kerr.SaslAuthenticationFailed, "KAFKA_SASL_USERNAME"},
		{io.EOF, "KAFKA_TLS"}, {errors.New("invalid large response size 1157627904 > limit"), "another server's port"},
	} {
		if err := kafkaHint(fmt.Errorf("ping: %w", tc.err)); !strings.Contains(err.Error(), tc.says) || !errors.Is(err, tc.err) {
			t.Errorf("%v", err)
		}
	}
	if kafkaHint(nil) != nil {
		t.Error("nil is no error")
	}
}
