package inbox_test

import (
	"bytes"
	"database/sql"
	"strconv"
	"strings"
	"testing"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// TestAdoptAgain takes another log on twice. The first time the notifications are those of the log, and stay as they are; the
// second time theirs is a new log, whose events stand at the same places, also at those of before the first time.
func TestAdoptAgain(t *testing.T) {
	onBothStores(t, func(t *testing.T, db *sqldb.DB) {
		s := newStore(t, db)
		adopt := func(topic topics.Topic) {
			t.Helper()
			to := map[topics.Partition]pipeline.Position{topic.Partition(0): {Log: "new"}}
			if err := s.in.Adopt(t.Context(), to); err != nil {
				t.Fatal(err)
			}
			s.reopen()
		}
		s.fold(topics.Broadcasts, event(topics.EveryoneKey, topics.TypeAnnouncement, "title", "all", "body", "b"))
		s.fold(topics.Notifications, notification("a", "1"), notification("a", "2"))
		adopt(topics.Messages)
		s.fold(topics.Notifications, notification("a", "3"))
		adopt(topics.Notifications)
		adopt(topics.Broadcasts)
		s.fold(topics.Notifications, at(notification("a", "4"), 4), at(notification("a", "5"), 5), at(notification("a", "6"), 6))
		s.fold(topics.Broadcasts, at(event(topics.EveryoneKey, topics.TypeAnnouncement, "title", "again", "body", "b"), 7))
		s.want("a", "again 6 5 4 3 2 1 all", "again 6 5 4 3 2 1 all")
	})
}

// TestAdoptMany takes another log on over more rows than are read at once: each has another id then, also in its object.
func TestAdoptMany(t *testing.T) {
	onBothStores(t, func(t *testing.T, db *sqldb.DB) {
		const many = 4_001
		s := newStore(t, db)
		s.fold(topics.Notifications, someNotifications(many)...)
		if err := s.in.Adopt(t.Context(), map[topics.Partition]pipeline.Position{topics.Notifications.Partition(0): {Log: "new"}}); err != nil {
			t.Fatal(err)
		}
		s.reopen()
		s.fold(topics.Notifications, someNotifications(many)...)
		var renamed, told, all int
		err := db.Query(t.Context(), func(rows *sql.Rows) error {
			var id string
			var value []byte
			if err := rows.Scan(&id, &value); err != nil {
				return err
			}
			all++
			if strings.HasSuffix(id, "~0") {
				renamed++
			}
			if bytes.Contains(value, []byte(`"id":"`+id+`"`)) {
				told++
			}
			return nil
		}, `SELECT id, value FROM notifications`)
		if err != nil || all != 2*many || renamed != many || told != all {
			t.Errorf("%d rows, %d with another id, %d that tell theirs; %v", all, renamed, told, err)
		}
	})
}

func someNotifications(n int) (list []*topics.Event) {
	for i := range n {
		list = append(list, notification("a", strconv.Itoa(i)))
	}
	return list
}

// at gives an event its record time, in seconds after the first.
func at(e *topics.Event, seconds int64) *topics.Event {
	e.Time = 1764583200000 + seconds*1000
	return e
}
