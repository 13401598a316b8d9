package inbox_test

import (
	"bytes"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// TestUpgrade opens a database of the version before devices were found by a hash: the rows are carried over, more of them
// than one step takes, and are found by what comes after.
func TestUpgrade(t *testing.T) {
	onBothStores(t, func(t *testing.T, db *sqldb.DB) {
		t.Cleanup(func() { db.Close() })
		const devices = 2500
		err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			statements := []string{`CREATE TABLE migrations (name TEXT PRIMARY KEY)`}
			for _, name := range []string{"0001_inbox.sql", "0002_feed.sql"} {
				text, err := os.ReadFile("migrations/" + name)
				if err != nil {
					return err
				}
				statements = append(statements, strings.Split(string(bytes.TrimSpace(text)), ";\n")...)
				statements = append(statements, `INSERT INTO migrations VALUES ('inbox/`+name+`')`)
			}
			for i := range devices {
				statements = append(statements, fmt.Sprintf(`INSERT INTO devices VALUES ('token %d é', 'u%d', 'web', 1, 5, 0, %d)`, i, i%7, i))
			}
			statements = append(statements, `INSERT INTO messages VALUES ('m1', 'dm:a:b', 'a', 'b', 4, 9, 1000, '{}', NULL)`,
				`INSERT INTO conversations VALUES ('a', 'dm:a:b', 'b', 9, 1000, 'm1')`)
			for _, s := range statements {
				if _, err := tx.ExecContext(t.Context(), s); err != nil {
					return fmt.Errorf("%s: %w", s, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		in, err := inbox.Open(t.Context(), db, time.Hour, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for u := range 7 {
			list, err := in.Devices(t.Context(), fmt.Sprint("u", u))
			if err != nil {
				t.Fatal(err)
			}
			found += len(list)
		}
		if found != devices {
			t.Errorf("%d devices were carried over, want %d", found, devices)
		}
		s := &store{t: t, db: db, in: in, next: make(map[topics.Topic]int64)}
		s.fold(topics.Devices, event("user:new", topics.TypeDeviceRegistered, "token", "token 42 é"))
		if list, err := in.Devices(t.Context(), "new"); err != nil || len(list) != 1 || list[0].Token != "token 42 é" {
			t.Errorf("a token that moves to another user: %v, %v", list, err)
		}
		if list, _ := in.Devices(t.Context(), "u0"); len(list) != devices/7 { // 42 is u0's
			t.Errorf("its former user has %d devices, want %d", len(list), devices/7)
		}
		var part int64
		if err := db.Get(t.Context(), []any{&part}, `SELECT last_part FROM conversations`); err != nil || part != 4 {
			t.Errorf("the conversation's partition is %d, %v", part, err)
		}
	})
}
