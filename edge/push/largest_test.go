package push_test

import (
	"crypto/rand"
	"encoding/base64"
	"testing"

	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/topics"
)

// A token as long as the schema lets it be (4,096 bytes): jobs are made, a token is set aside, and is
// found set aside.
func TestLargestToken(t *testing.T) {
	onBothStores(t, func(t *testing.T, s *shop) {
		random := make([]byte, topics.MaxToken*3/4)
		_, _ = rand.Read(random)                              // never fails (crypto/rand)
		token := base64.RawURLEncoding.EncodeToString(random) // not of ids, which begin alike: PostgreSQL compresses what it indexes
		if _, err := s.inbox.Position(t.Context(), topics.Devices.Partition(0)); err != nil {
			t.Fatal(err)
		}
		err := s.inbox.Apply(t.Context(), s.batch(topics.Devices, []*topics.Event{{Key: []byte("user:u"),
			Meta:  topics.Meta{Type: topics.TypeDeviceRegistered},
			Value: topics.Fields("token", token)}}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Position(t.Context(), topics.Notifications.Partition(0)); err != nil {
			t.Fatal(err)
		}
		tell := func() []push.Job {
			t.Helper()
			id := topics.NewID()
			err := s.Apply(t.Context(), s.batch(topics.Notifications,
				[]*topics.Event{{Key: []byte("user:u"), Meta: topics.Meta{Type: topics.TypeNotification, ID: id, NexusID: id},
					Value: topics.Fields("id", id, "title", "t", "body", "b", "type", "SYSTEM")}}))
			if err != nil {
				t.Fatal(err)
			}
			jobs, err := s.Due(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			return jobs
		}
		jobs := tell()
		if len(jobs) != 1 || jobs[0].Target != token {
			t.Fatalf("%d jobs", len(jobs))
		}
		jobs[0].SetAside(t.Context())
		if jobs := tell(); len(jobs) != 0 {
			t.Errorf("%d jobs for a token that was set aside", len(jobs))
		}
	})
}
