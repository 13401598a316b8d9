package revocations_test

import (
	"testing"
	"time"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/revocations"
	"github.com/nexus/nexus/topics"
	"github.com/nexus/nexus/topics/topicstest"
)

func TestRevocation(t *testing.T) {
	f := revocations.New()
	var told []string
	f.Revoked = func(user string) { told = append(told, user) }
	at := time.Unix(1_764_583_200, 500_000_000)
	apply := func(offset int64, key string, fields ...any) {
		e := &topics.Event{Topic: topics.Control, Offset: offset, Time: at.UnixMilli(), Key: []byte(key),
			Meta: topics.Meta{Type: topics.TypeSessionRevoked}, Value: topics.Fields(fields...)}
		if err := topics.Valid(topicstest.Sign(e)); err != nil {
			t.Fatal(err)
		}
		if err := f.Apply(t.Context(), pipeline.Batch{Topic: topics.Control, From: offset, To: offset + 1,
			Events: []*topics.Event{e}}); err != nil {
			t.Fatal(err)
		}
	}
	apply(0, "user:a")
	apply(1, "user:b", "tokenId", "t1")
	for _, tc := range []struct {
		user, id string
		issued   time.Time
		want     bool
	}{
		{"a", "", at.Add(-time.Hour), true}, {"a", "", at.Truncate(time.Second), true},
		{"a", "", at.Truncate(time.Second).Add(time.Second), false},
		{"a", "", time.Time{}, true}, {"b", "t1", at.Add(time.Hour), true}, {"b", "t2", at.Add(-time.Hour), false}, {"b", "", time.Time{}, false},
		{"c", "t1", at.Add(-time.Hour), false},
	} {
		if got := f.IsRevoked(tc.user, tc.id, tc.issued); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
	if len(told) != 2 || told[0] != "a" || told[1] != "b" {
		t.Errorf("told of %v", told)
	}
}
