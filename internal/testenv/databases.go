package testenv

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
)

// Postgres is the URL of a new, empty PostgreSQL database.
func Postgres(t testing.TB) string {
	t.Helper()
	addr := get(t, "postgres", "NEXUS_TEST_POSTGRES", localPostgres, postgresContainer).addr
	user := "nexus"
	if running["postgres"].how == "container" {
		user = "postgres"
	}
	base := "postgres://" + user + "@" + addr + "/"
	db, err := sql.Open("pgx", base+"postgres?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	database := Name("nexus_")
	until(t, func(ctx context.Context) error {
		_, err := db.ExecContext(ctx, "CREATE DATABASE "+database)
		return err
	})
	return base + database + "?sslmode=disable"
}

// ClickHouse is the URL of a new, empty ClickHouse database.
func ClickHouse(t testing.TB) string {
	t.Helper()
	addr := get(t, "clickhouse", "NEXUS_TEST_CLICKHOUSE", localClickHouse, clickhouseContainer).addr
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	database := Name("nexus_")
	until(t, func(ctx context.Context) error { return conn.Exec(ctx, "CREATE DATABASE "+database) })
	return "clickhouse://" + addr + "/" + database
}

// until tries for a while: a server accepts connections before it accepts work.
func until(t testing.TB, try func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
