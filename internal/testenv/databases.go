package testenv

import (
	"context"
	"database/sql"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
)

// Postgres is the URL of a new, empty PostgreSQL database.
func Postgres(t testing.TB) string {
	t.Helper()
	addr := get(t, "postgres", "NEXUS_TEST_POSTGRES", localPostgres, inContainer("postgres")).addr
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
	succeed(t, func(ctx context.Context) error {
		_, err := db.ExecContext(ctx, "CREATE DATABASE "+database)
		return err
	})
	return base + database + "?sslmode=disable"
}

// ClickHouse is the URL of a new, empty ClickHouse database.
func ClickHouse(t testing.TB) string {
	t.Helper()
	addr := get(t, "clickhouse", "NEXUS_TEST_CLICKHOUSE", localClickHouse, inContainer("clickhouse")).addr
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	database := Name("nexus_")
	succeed(t, func(ctx context.Context) error { return conn.Exec(ctx, "CREATE DATABASE "+database) })
	return "clickhouse://" + addr + "/" + database
}
