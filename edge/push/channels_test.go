package push_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nexus/nexus/edge/push"
)

// webhook is a channel that posts notes to addresses, one for each user: what a second channel needs is all here.
type webhook struct {
	url string

	mu    sync.Mutex
	hooks map[string]string // user → target
}

func (*webhook) Name() string              { return "webhook" }
func (*webhook) On() bool                  { return true }
func (*webhook) Fit(n push.Note) push.Note { return n }

func (w *webhook) Targets(_ context.Context, users []string) (map[string][]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := make(map[string][]string)
	for _, u := range users {
		if hook := w.hooks[u]; hook != "" {
			found[u] = []string{hook}
		}
	}
	return found, nil
}

func (w *webhook) Send(ctx context.Context, target string, n push.Note, _ time.Duration) push.Response {
	body, err := json.Marshal(n)
	if err != nil {
		return push.Response{Kind: push.Refused, Err: err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+target, bytes.NewReader(body))
	if err != nil {
		return push.Response{Kind: push.Refused, Err: err}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return push.Response{Kind: push.Retry, Err: err}
	}
	defer resp.Body.Close()
	after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	kinds := map[int]push.Kind{http.StatusNoContent: push.Accepted, http.StatusGone: push.Dead, http.StatusTooManyRequests: push.Pause}
	return push.Response{Kind: kinds[resp.StatusCode], After: time.Duration(after) * time.Second, Err: errors.New(resp.Status)}
}

func (w *webhook) Forget(_ context.Context, user, _ string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.hooks, user)
	return nil
}

// hookServer takes what a webhook posts.
type hookServer struct {
	mu     sync.Mutex
	status map[string]int // by path; none: 204
	taken  map[string]int // by path
}

func (h *hookServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	status := h.status[r.URL.Path]
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "60")
	}
	if status == 0 {
		h.taken[r.URL.Path]++
		status = http.StatusNoContent
	}
	w.WriteHeader(status)
}

func (h *hookServer) set(path string, status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status[path] = status
}

func (h *hookServer) took(path string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.taken[path]
}

// Two channels share the queue: one that pauses, or forgets a target, holds up and changes nothing of the other, over a restart.
func TestChannels(t *testing.T) {
	onBothStores(t, func(t *testing.T, s *shop) {
		server := &hookServer{status: make(map[string]int), taken: make(map[string]int)}
		web := httptest.NewServer(server)
		t.Cleanup(web.Close)
		t.Cleanup(http.DefaultClient.CloseIdleConnections)
		hook := &webhook{url: web.URL, hooks: map[string]string{"a": "/a", "b": "/b", "c": "/c"}}
		s.Options().Channels = append(s.Options().Channels, hook)
		s.devices("a", "b", "c")
		s.restart()
		both := func(user string, byFCM, byHook int) {
			t.Helper()
			if f, h := len(s.fcm.Accepted(user)), server.took("/"+user); f != byFCM || h != byHook {
				t.Errorf("%s got %d by FCM and %d by webhook, want %d and %d", user, f, h, byFCM, byHook)
			}
		}

		server.set("/a", http.StatusTooManyRequests)
		s.notifyMore("a")
		s.clock.pass(time.Millisecond)
		s.notifyMore("b")
		if got := s.work(s.Pusher); len(strings.Fields(got)) != 4 {
			t.Fatalf("claimed %q", got)
		}
		both("a", 1, 0)
		both("b", 1, 0) // it was claimed with a's, and waits as well
		server.set("/a", 0)
		s.restart() // another process knows of the pause by the database
		s.notifyMore("c")
		if got := s.work(s.Pusher); got != "c" {
			t.Errorf("%q was done while the webhook pauses", got)
		}
		both("c", 1, 0)
		s.clock.pass(70 * time.Second)
		got := strings.Fields(s.work(s.Pusher))
		if slices.Sort(got); !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Errorf("%q were done after the pause", got)
		}
		for _, user := range []string{"a", "b", "c"} {
			both(user, 1, 1)
		}

		server.set("/b", http.StatusGone)
		s.notifyMore("b")
		s.work(s.Pusher)
		server.set("/b", 0)
		both("b", 2, 1)
		s.notifyMore("b") // forgotten by one alone
		if got := s.work(s.Pusher); got != "b" {
			t.Errorf("claimed %q", got)
		}
		both("b", 3, 1)
	})
}

// Channels that cannot be told apart, or whose name fits no label, are refused at the start.
func TestNamesOfChannels(t *testing.T) {
	onBothStores(t, func(t *testing.T, s *shop) {
		hook := &webhook{}
		for what, list := range map[string][]push.Channel{"two of one name": {hook, hook}, "an empty name": {named{hook, ""}},
			"a name with a space": {named{hook, "web hook"}}, "a long name": {named{hook, strings.Repeat("x", 33)}}} {
			o := *s.Options()
			o.Channels = list
			if _, err := push.New(t.Context(), o); err == nil {
				t.Errorf("%s: taken", what)
			}
		}
	})
}

// named is a channel under another name.
type named struct {
	push.Channel
	name string
}

func (n named) Name() string { return n.name }
