package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/projections/stats"
)

// engines.go opens what others run: the log, the databases. Each may come up later than the node.

// openLog opens the log, agrees with it on the contract, and makes what appends to it.
func (a *app) openLog(ctx context.Context) (opened, error) {
	if err := a.reachLog(ctx); err != nil {
		return opened{}, err
	}
	if err := a.logs.EnsureTopics(ctx, a.c.Topics); err != nil {
		return opened{}, err
	}
	contract, err := pipeline.AgreeContract(ctx, a.logs, a.c.DedupWindow, a.c.DedupWindowSet)
	if err != nil {
		return opened{}, err
	}
	a.window, a.kafka.Partitions = contract.Window, contract.Partitions
	a.windows = pipeline.NewWindows(a.window)
	a.watch = pipeline.NewWatch(pipeline.WatchOptions{Log: a.logs, Contract: contract, Logger: a.component("watch"), Metrics: a.metrics})
	if a.producer, err = pipeline.NewProducer(a.kafka); err != nil {
		return opened{}, err
	}
	a.onClose(func() { a.producer.Close(a.log) }) // closing outlives the start
	return opened{run: a.watch.Run, probe: func(ctx context.Context) error {
		if err := reached("Kafka", a.logs.Ping(ctx)); err != nil {
			return err
		}
		if err := a.watch.Problem(); err != nil {
			return err
		}
		return a.producer.Problem()
	}}, nil
}

// reachLog starts the embedded log or connects to Kafka; what is in it is not looked at.
func (a *app) reachLog(ctx context.Context) error {
	a.kafka = a.c.Kafka
	a.kafka.Log, a.kafka.Metrics = a.component("kafka"), a.metrics
	if !a.embedded() {
		if a.c.BrokerPortSet {
			a.log.Info("EMBEDDED_KAFKA_PORT is ignored: KAFKA_BROKERS is set")
		}
	} else {
		addr, err := a.startBroker()
		if err != nil {
			return err
		}
		a.kafka.Brokers = []string{addr}
	}
	var err error
	if a.logs, err = pipeline.OpenLog(a.kafka); err != nil {
		return fmt.Errorf("KAFKA_BROKERS: %w", err)
	}
	a.onClose(a.logs.Close)
	if err := a.await(ctx, "Kafka at "+strings.Join(a.kafka.Brokers, ","), a.logs.Ping); err != nil {
		return kafkaHint(err)
	}
	return nil
}

const defaultKafkaPort = 9092

// startBroker starts the embedded log, and leaves its address under DATA_DIR for nexus tail.
func (a *app) startBroker() (addr string, err error) {
	o := a.c.Broker
	o.Dir, o.KeepTimes, o.Log = filepath.Join(a.c.DataDir, "kafka"), a.keepTimes, a.component("broker")
	if !a.c.BrokerPortSet {
		o.Port = defaultKafkaPort
		if !pipeline.FreePort(o.Port) {
			o.Port = 0
			a.log.Info("port 9092 is taken: the embedded Kafka takes a free one")
		}
	}
	b, err := pipeline.StartBroker(o)
	if err != nil {
		return "", err
	}
	a.onClose(func() {
		if err := b.Close(); err != nil {
			a.log.Error("the embedded Kafka did not close well", "err", err)
		}
	})
	a.log.Info("embedded Kafka is running", "addr", b.Addr())
	return b.Addr(), os.WriteFile(addressFile(a.c.DataDir), []byte(b.Addr()+"\n"), 0o600)
}

// openDatabase opens what the inbox, and what stands beside it, is kept in.
func (a *app) openDatabase(ctx context.Context) (_ opened, err error) {
	a.db, err = a.openSQL(ctx, a.c.DatabaseURL, "inbox.db")
	return opened{}, err
}

// openSQL opens PostgreSQL where a URL is given, else an SQLite file.
func (a *app) openSQL(ctx context.Context, url, file string) (db *sqldb.DB, err error) {
	if url == "" {
		db, err = sqldb.OpenSQLite(filepath.Join(a.c.DataDir, file))
	} else {
		db, err = sqldb.OpenPostgres(url)
	}
	if err != nil {
		return nil, err
	}
	a.onClose(func() { db.Close() })
	if url == "" {
		return db, nil
	}
	return db, a.await(ctx, "PostgreSQL (DATABASE_URL)", db.Write.PingContext)
}

// statsStore is what either engine of the statistics offers.
type statsStore interface {
	pipeline.Sink
	stats.Counter
	Ping(ctx context.Context) error
	Reset(ctx context.Context) error
	adopter
}

// openStatsStore opens ClickHouse where it is set, else an SQLite file.
func (a *app) openStatsStore(ctx context.Context) (store statsStore, err error) {
	if a.c.ClickHouseURL == "" {
		db, err := a.openSQL(ctx, "", "stats.db")
		if err != nil {
			return nil, err
		}
		return stats.OpenSQLite(ctx, db)
	}
	err = a.await(ctx, "ClickHouse (CLICKHOUSE_URL)", func(ctx context.Context) error {
		ch, err := stats.OpenClickHouse(ctx, a.c.ClickHouseURL)
		if err == nil {
			store = ch
			a.onClose(func() { ch.Close() })
		}
		return err
	})
	return store, clickHouseHint(ctx, a.c.ClickHouseURL, err)
}

// await tries an engine for a while, so that services may be started in any order.
func (a *app) await(ctx context.Context, what string, ping func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, a.c.StartupTimeout)
	defer cancel()
	var said error // the latest that tells more than that there was no answer in time: the last try is cut off
	for {
		try, done := context.WithTimeout(ctx, 10*time.Second)
		err := ping(try)
		done()
		if err == nil {
			return nil
		}
		if said == nil {
			a.log.Warn("waiting for an engine", "engine", what, "err", err)
		}
		if said == nil || !isTimeout(err) {
			said = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s cannot be reached: %w", what, said)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// isTimeout tells of an error that says no more than that there was no answer in time.
func isTimeout(err error) bool {
	timed, ok := errors.AsType[net.Error](err) // context.DeadlineExceeded is one
	return ok && timed.Timeout() || errors.Is(err, context.Canceled)
}

func secretFile(dataDir string) string { return filepath.Join(dataDir, "jwt-secret") }

// secretOf is JWT_SECRET, or else the secret kept under DATA_DIR, made at the first start.
func secretOf(c *Config) (string, error) {
	if c.JWTSecret != "" {
		return c.JWTSecret, nil
	}
	return kept(secretFile(c.DataDir), func() string {
		b := make([]byte, 32)
		_, _ = rand.Read(b) // never fails (crypto/rand)
		return hex.EncodeToString(b)
	})
}

// kept reads a file of one line, or writes what fresh makes there.
func kept(file string, fresh func() string) (string, error) {
	b, err := os.ReadFile(file)
	if err == nil && len(strings.TrimSpace(string(b))) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	v := fresh()
	return v, os.WriteFile(file, []byte(v+"\n"), 0o600)
}
