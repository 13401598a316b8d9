package inbox_test

import (
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
			to := map[topics.Topic]map[int32]pipeline.Position{topic: {0: {Log: "new"}}}
			if err := s.in.Adopt(t.Context(), to); err != nil {
				t.Fatal(err)
			}
			s.reopen()
		}
		s.fold(topics.Broadcasts, event(topics.EveryoneKey, topics.Announcement, "title", "all", "body", "b"))
		s.fold(topics.Notifications, notification("a", "1"), notification("a", "2"))
		adopt(topics.Messages)
		s.fold(topics.Notifications, notification("a", "3"))
		adopt(topics.Notifications)
		adopt(topics.Broadcasts)
		s.fold(topics.Notifications, at(notification("a", "4"), 4), at(notification("a", "5"), 5), at(notification("a", "6"), 6))
		s.fold(topics.Broadcasts, at(event(topics.EveryoneKey, topics.Announcement, "title", "again", "body", "b"), 7))
		s.want("a", "again 6 5 4 3 2 1 all", "again 6 5 4 3 2 1 all")
	})
}

// at gives an event its record time, in seconds after the first.
func at(e *topics.Event, seconds int64) *topics.Event {
	e.Time = 1764583200000 + seconds*1000
	return e
}
