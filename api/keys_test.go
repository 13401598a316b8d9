package api_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/projections/keys"
	"github.com/nexus/nexus/topics"
)

// shelf is a log and a directory in one, with one-time keys of a device: the first key.taken has the key. The directory is behind the log:
// it folds when somebody wants to know an outcome.
type shelf struct {
	world
	left   []string
	taken  map[string]string // id of a one-time key → id of the event that has it
	folded int               // events
	never  bool              // the directory gives nobody anything
	slow   *rand.Rand        // not nil: everything takes some time
}

func (s *shelf) pause() {
	if s.slow == nil {
		return
	}
	s.mu.Lock()
	d := time.Duration(s.slow.IntN(1000)) * time.Microsecond
	s.mu.Unlock()
	time.Sleep(d)
}

func (s *shelf) Append(_ context.Context, e *topics.Event) error {
	s.pause()
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Partition, e.Offset, e.Time = 3, int64(len(s.appended)), 1764583200000
	s.appended = append(s.appended, e)
	return topics.Valid(e)
}

// fold gives out what was asked for. s.mu is held.
func (s *shelf) fold() {
	for ; s.folded < len(s.appended); s.folded++ {
		e := s.appended[s.folded]
		k := topics.ReadKeyTaken(e)
		if n := slices.Index(s.left, k.PrekeyID); n >= 0 && !s.never {
			s.left = slices.Delete(s.left, n, n+1)
			s.taken[k.PrekeyID] = e.EventID()
		}
	}
}

func (s *shelf) Devices(context.Context, string) ([]keys.Device, error) {
	return []keys.Device{{ID: "phone", IdentityKey: "i", Prekeys: 1}}, nil
}

func (s *shelf) Left(_ context.Context, _, _ string, limit int) ([]string, error) {
	s.pause()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.left[:min(limit, len(s.left))]), nil
}

func (s *shelf) Outcome(ctx context.Context, e *topics.Event) (*keys.Handed, error) {
	if s.hang {
		<-ctx.Done()
		return nil, fmt.Errorf("%s/%d is short of offset %d: %w", e.Topic, e.Partition, e.Offset, ctx.Err())
	}
	if s.slow != nil { // batches of 20 ms
		time.Sleep(time.Until(time.Now().Truncate(20 * time.Millisecond).Add(20 * time.Millisecond)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fold()
	k := topics.ReadKeyTaken(e)
	if s.taken[k.PrekeyID] != e.EventID() {
		return nil, nil
	}
	return &keys.Handed{IdentityKey: "i", Prekey: topics.Prekey{ID: k.PrekeyID, Key: "k"}}, nil
}

func (s *shelf) api(t *testing.T) *api.API {
	o := s.options(t)
	o.Keys, o.Producer = s, s
	return api.New(o)
}

func ask(a *api.API) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "/users/bob/keys", nil)
	r.Header.Set("Authorization", "Bearer alice")
	rec := httptest.NewRecorder()
	a.ServeHTTP(rec, r)
	return rec
}

// What becomes of no key.taken is not tried for ever, nor passed off as "none is left": it is 503, and the log's line names topic,
// partition, offset and why.
func TestKeysThatNobodyGets(t *testing.T) {
	t.Run("given to nobody", func(t *testing.T) {
		s := &shelf{left: []string{"1", "2"}, never: true}
		got := ask(s.api(t))
		if got.Code != 503 || got.Header().Get("Retry-After") == "" || strings.Contains(got.Body.String(), "prekey") {
			t.Errorf("%d %s", got.Code, got.Body)
		}
		if len(s.appended) != 32 {
			t.Errorf("%d key.taken were appended, want 32", len(s.appended))
		}
		if line := s.log.String(); !strings.Contains(line, "level=WARN") || !strings.Contains(line, "the last is keys/3 at offset 31") ||
			!strings.Contains(line, "32 key.taken") {
			t.Errorf("the log says %s", line)
		}
	})
	t.Run("not folded", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &shelf{left: []string{"1"}, taken: map[string]string{}}
			s.hang = true
			begun := time.Now()
			got := ask(s.api(t))
			if got.Code != 503 || strings.Contains(got.Body.String(), "prekey") || time.Since(begun) != 5*time.Second {
				t.Errorf("%d %s after %s", got.Code, got.Body, time.Since(begun))
			}
			if line := s.log.String(); !strings.Contains(line, "level=WARN") || !strings.Contains(line, "keys/3 is short of offset 0") {
				t.Errorf("the log says %s", line)
			}
		})
	})
}

// Many who ask at once each get another one-time key of the device, and those who come when none is left get null; nobody is refused.
func TestManyAskForKeysAtOnce(t *testing.T) {
	const stored, askers = 300, 400
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{taken: map[string]string{}, slow: rand.New(rand.NewPCG(seed, 0))}
		for n := range stored {
			s.left = append(s.left, fmt.Sprint("k", n))
		}
		a := s.api(t)
		answers := make([]string, askers)
		var asking sync.WaitGroup
		for n := range askers {
			asking.Go(func() {
				got := ask(a)
				if got.Code != 200 {
					t.Errorf("%d %s", got.Code, got.Body)
				}
				answers[n] = got.Body.String()
			})
		}
		asking.Wait()
		got, none := map[string]bool{}, 0
		for _, body := range answers {
			if strings.Contains(body, `"prekey":null`) {
				none++
			} else {
				got[body] = true
			}
		}
		if len(got) != stored || none != askers-stored {
			t.Errorf("%d different one-time keys and %d nulls, want %d and %d", len(got), none, stored, askers-stored)
		}
		t.Logf("%d key.taken for %d one-time keys", len(s.appended), stored)
	})
}
