package sqldb_test

import (
	"database/sql"
	"embed"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// TestMarkOfAnotherPosition has a node of the version before marks were kept move a position: the mark is not that of the
// record below any more, and must not be taken for it.
func TestMarkOfAnotherPosition(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { testMark(t, openSQLite(t)) })
	t.Run("postgres", func(t *testing.T) { testMark(t, openPostgres(t, sqldb.Limits{}, testenv.Postgres(t))) })
}

func testMark(t *testing.T, db *sqldb.DB) {
	must(t, db.Migrate(t.Context(), "p", embed.FS{}))
	p := sqldb.Positions{DB: db, Projection: "p"}
	if _, err := p.Next(t.Context(), topics.Messages.Partition(0)); err != nil {
		t.Fatal(err)
	}
	move := func(from, to, mark int64) {
		t.Helper()
		b := pipeline.Batch{Topic: topics.Messages, From: from, To: to, Log: "l", Mark: mark}
		must(t, db.Tx(t.Context(), func(tx *sql.Tx) error { return p.Move(t.Context(), tx, b, from) }))
	}
	want := func(want pipeline.Position) {
		t.Helper()
		if got, err := p.Peek(t.Context(), topics.Messages.Partition(0)); err != nil || got != want {
			t.Errorf("the position is %+v, %v; want %+v", got, err, want)
		}
		if all, err := p.All(t.Context()); err != nil || all[topics.Messages.Partition(0)] != want {
			t.Errorf("the positions are %+v, %v; want %+v", all, err, want)
		}
	}
	move(0, 5, 500)
	want(pipeline.Position{Next: 5, Log: "l", Mark: 500})
	must(t, try(t, db, `UPDATE positions SET next=9 WHERE projection='p' AND topic='messages' AND part=0 AND next=5`)) // 6f9c15d
	want(pipeline.Position{Next: 9, Log: "l"})
	move(9, 12, 1200)
	want(pipeline.Position{Next: 12, Log: "l", Mark: 1200})
}
