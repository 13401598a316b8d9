package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/internal/testenv"
)

const kills = 20

// TestKill kills the server twenty times under load, with retries of what was not answered, and starts it again on the
// same DATA_DIR. Every acknowledged message and notification is in the inbox exactly once, was delivered at least once,
// and has one id everywhere.
func TestKill(t *testing.T) {
	r := newKillRun(t)
	ctx, stopLoad := context.WithCancel(t.Context())
	watching, stopWatching := context.WithCancel(t.Context())
	defer stopLoad()
	defer stopWatching()
	var load, watch sync.WaitGroup
	for u := range killUsers {
		load.Go(func() { r.produce(ctx, u) })
		for _, ns := range []string{"/ws", "/dashboard"} {
			watch.Go(func() { r.watch(watching, u, ns) })
		}
	}
	for n := range kills {
		r.untilAcked((n + 1) * 40)
		time.Sleep(rand.N(200 * time.Millisecond)) // the fault's own moment, not a synchronisation
		r.kill()
		r.start()
	}
	r.untilAcked((kills + 1) * 40)
	stopLoad()
	load.Wait()
	r.check()
	stopWatching()
	watch.Wait()
	r.terminate()
}

const killUsers = 8

func killUser(n int) string { return "u" + strconv.Itoa(n%killUsers) }

// killRun is the server under test and what its clients know.
type killRun struct {
	*node
	port   string
	kafka  string
	client *http.Client

	mu      sync.Mutex
	acked   map[string]string          // key of an event → acknowledged id
	seen    map[string]map[string]bool // key of an event → ids under which its receiver got it
	ackedAt chan struct{}
}

// newKillRun launches the server on ports that it keeps.
func newKillRun(t *testing.T) *killRun {
	t.Helper()
	r := &killRun{acked: make(map[string]string), seen: make(map[string]map[string]bool), ackedAt: make(chan struct{}, 1),
		client: &http.Client{Timeout: 5 * time.Second}}
	for _, p := range []*string{&r.port, &r.kafka} {
		n, err := testenv.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		*p = strconv.Itoa(n)
	}
	t.Cleanup(r.client.CloseIdleConnections)
	r.node = launch(t, map[string]string{"PORT": r.port, "HOST": "127.0.0.1", "DATA_DIR": t.TempDir(), "EMBEDDED_KAFKA_PORT": r.kafka,
		"JWT_SECRET":          testSecret,
		"RATE_LIMIT_MESSAGES": "10000000", "LOG_LEVEL": "warn"})
	return r
}

// terminate ends the server by SIGINT: it must exit with 0 soon.
func (r *killRun) terminate() {
	r.t.Helper()
	_ = r.cmd.Process.Signal(os.Interrupt)
	if err := r.cmd.Wait(); err != nil {
		r.t.Errorf("after SIGINT: %v", err)
	}
}

// produce sends messages to the next user and notifications to the same, one after the other, each until it is
// acknowledged, always with its key.
func (r *killRun) produce(ctx context.Context, u int) {
	to := killUser(u + 1)
	user, service := tokenFor(r.t, killUser(u)), tokenFor(r.t, "service", "publish")
	for n := 0; ctx.Err() == nil; n++ {
		key := fmt.Sprintf("m-%d-%d", u, n)
		r.send(ctx, key, "/messages", user, fmt.Sprintf(`{"receiverId":%q,"content":"c","clientMessageId":%q}`, to, key))
		key = fmt.Sprintf("n-%d-%d", u, n)
		r.send(ctx, key, "/notifications", service, fmt.Sprintf(`{"userId":%q,"title":%q,"body":"b","type":"SYSTEM"}`, to, key))
	}
}

func (r *killRun) send(ctx context.Context, key, path, token, body string) {
	for ctx.Err() == nil {
		id, err := r.try(key, path, token, body)
		if err == nil {
			r.mu.Lock()
			r.acked[key] = id
			r.mu.Unlock()
			select {
			case r.ackedAt <- struct{}{}:
			default:
			}
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (r *killRun) try(key, path, token, body string) (id string, err error) {
	q, err := http.NewRequest(http.MethodPost, "http://127.0.0.1:"+r.port+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	q.Header.Set("Authorization", "Bearer "+token)
	q.Header.Set("Idempotency-Key", key)
	resp, err := r.client.Do(q)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer struct{ ID string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusAccepted || answer.ID == "" {
		return "", fmt.Errorf("status %d", resp.StatusCode)
	}
	return answer.ID, nil
}

func (r *killRun) untilAcked(n int) {
	r.t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		r.mu.Lock()
		have := len(r.acked)
		r.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-r.ackedAt:
		case <-deadline:
			r.t.Fatalf("%d acknowledged after a minute, want %d", have, n)
		}
	}
}

// watch is a client that comes back whenever it is cut off. Unless told recovered:true it reads what it has missed from
// the inbox, as the contract wants.
func (r *killRun) watch(ctx context.Context, u int, ns string) {
	user := killUser(u)
	token := tokenFor(r.t, user)
	offset := ""
	for ctx.Err() == nil {
		ws, _, err := websocket.DefaultDialer.DialContext(ctx, fmt.Sprintf("ws://127.0.0.1:%s%s?userId=%s&token=%s&offset=%s", r.port, ns, user,
			token, url.QueryEscape(offset)), nil)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		stop := context.AfterFunc(ctx, func() { ws.Close() })
		offset = r.follow(ctx, ws, u, ns, token, offset)
		stop()
		ws.Close()
	}
}

func (r *killRun) follow(ctx context.Context, ws *websocket.Conn, u int, ns, token, offset string) string {
	for {
		var f struct {
			Event, Offset string
			Data          map[string]any
		}
		if err := ws.ReadJSON(&f); err != nil {
			return offset
		}
		if f.Offset != "" {
			offset = f.Offset
		}
		switch f.Event {
		case "connected":
			if f.Data["recovered"] != true {
				if _, err := r.read(u, ns, token); err != nil {
					return "" // the next connection has no cursor, and so reads
				}
			}
		case "message:new":
			r.got(fmt.Sprint(f.Data["clientMessageId"]), f.Data)
		case "notification":
			r.got(fmt.Sprint(f.Data["title"]), f.Data)
		}
	}
}

func (r *killRun) got(key string, data map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[key] == nil {
		r.seen[key] = make(map[string]bool)
	}
	r.seen[key][fmt.Sprint(data["id"])] = true
}

// read pages through a user's inbox, noting what is there; it returns how often each key is.
func (r *killRun) read(u int, ns, token string) (map[string]int, error) {
	path, list, name := "/messages?limit=200&with="+killUser(u+killUsers-1), "messages", "clientMessageId"
	if ns == "/dashboard" {
		path, list, name = "/notifications?limit=200", "notifications", "title"
	}
	count := make(map[string]int)
	for cursor := ""; ; {
		q, err := http.NewRequest(http.MethodGet, "http://127.0.0.1:"+r.port+path+"&cursor="+cursor, nil)
		if err != nil {
			return nil, err
		}
		q.Header.Set("Authorization", "Bearer "+token)
		resp, err := r.client.Do(q)
		if err != nil {
			return nil, err
		}
		var page map[string]any
		err = json.NewDecoder(resp.Body).Decode(&page)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || page["stale"] == true {
			return nil, fmt.Errorf("status %d, stale %v: %w", resp.StatusCode, page["stale"], err)
		}
		for _, item := range page[list].([]any) {
			data := item.(map[string]any)
			key := fmt.Sprint(data[name])
			count[key]++
			r.got(key, data)
		}
		var more bool
		if cursor, more = page["next"].(string); !more {
			return count, nil
		}
	}
}

func (r *killRun) check() {
	r.t.Helper()
	// What clients saw before this check reads anything; frames under way are given a moment.
	deadline := time.Now().Add(patience)
	for missed := "?"; missed != ""; {
		if missed = r.undelivered(); missed != "" && time.Now().After(deadline) {
			r.t.Fatalf("acknowledged, but never delivered: %s", missed)
		}
		time.Sleep(10 * time.Millisecond)
	}
	count := make(map[string]int)
	for u := range killUsers {
		for _, ns := range []string{"/ws", "/dashboard"} {
			c, err := r.read(u, ns, tokenFor(r.t, killUser(u)))
			if err != nil {
				r.t.Fatal(err)
			}
			for key, n := range c {
				count[key] += n
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, id := range r.acked {
		if count[key] != 1 {
			r.t.Errorf("%s is %d times in the inbox", key, count[key])
		}
		if ids := r.seen[key]; len(ids) != 1 || !ids[id] {
			r.t.Errorf("%s was acknowledged as %s and seen as %v", key, id, ids)
		}
	}
	r.t.Logf("%d acknowledged over %d kills; %d records in the log", len(r.acked), kills, r.records())
}

func (r *killRun) undelivered() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.acked {
		if len(r.seen[key]) == 0 {
			return key
		}
	}
	return ""
}

// records counts what stands in the log: more than was acknowledged shows that retries did double records.
func (r *killRun) records() (n int64) {
	cl, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:" + r.kafka))
	if err != nil {
		return -1
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(r.t.Context(), "nexus.messages", "nexus.notifications")
	if err != nil {
		return -1
	}
	ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return n
}
