package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/topics"
)

const maxMissed = 1000 // the edge's

// since reconnects a raw client from an offset and returns what connected said.
func (i *instance) since(ns, user, offset string) (*socket, map[string]any) {
	i.t.Helper()
	s := i.dial(i.url(ns, user, tokenFor(i.t, user)) + "&events=canonical&offset=" + offset)
	f := s.expect("connected", nil)
	return s, f.Data
}

// next is the next frame of the feed, with what identifies it.
func (s *socket) next() (string, frame) {
	s.t.Helper()
	for {
		select {
		case f := <-s.frames:
			switch f.Event {
			case "notification", "activity", "announcement", "message:new", "message:sent", "message:read", "ack":
				for _, name := range []string{"title", "content", "messageId", "message"} {
					if v, ok := f.Data[name].(string); ok {
						return f.Event + " " + v, f
					}
				}
				return f.Event, f
			}
		case <-time.After(patience):
			s.t.Fatal("nothing came")
		}
	}
}

func (s *socket) wantNext(want ...string) (last frame) {
	s.t.Helper()
	for _, w := range want {
		var got string
		if got, last = s.next(); got != w {
			s.t.Fatalf("got %q, want %q", got, w)
		}
	}
	return last
}

// A client that comes back with an offset gets what it missed, in order, each once, and then what is new.
func TestResume(t *testing.T) {
	engines2(t, map[string]string{"RATE_LIMIT_MESSAGES": "100000"}, func(t *testing.T, i *instance, _ string) {
		service := tokenFor(t, "service", "publish")
		send := func(path, body string) { i.must(202, "POST", path, service, body) }
		notice := func(to, title string) {
			send("/notifications", `{`+to+`,"title":"`+title+`","body":"","type":"SYSTEM"}`)
		}
		first, connected := i.since("/dashboard", "alice", "")
		if _, given := connected["recovered"]; given {
			t.Errorf("recovered without a cursor: %v", connected)
		}
		first.send(`{"event":"subscribe","data":{"channels":["news"]},"id":1}`)
		first.expect("ack", nil)
		notice(`"userId":"alice"`, "seen")
		offset := first.wantNext("notification seen").Offset
		first.ws.Close()

		notice(`"userId":"alice"`, "missed 1")
		notice(`"userId":"bob"`, "not hers")
		send("/announcements", `{"title":"missed by all","body":""}`)
		send("/activities", `{"userId":"alice","type":"post_created","message":"missed activity"}`)
		notice(`"channel":"news"`, "missed news")
		notice(`"channel":"other"`, "not subscribed")
		notice(`"userId":"alice"`, "missed 2")

		again, connected := i.since("/dashboard", "alice", offset)
		if connected["recovered"] != true {
			t.Fatalf("not recovered: %v\n%s", connected, i.log)
		}
		last := again.wantNext("notification missed 1", "announcement missed by all", "activity missed activity", "notification missed 2")
		again.send(`{"event":"subscribe","data":{"channels":["news"],"offset":"` + offset + `"},"id":7}`)
		again.wantNext("notification missed news")
		again.expect("ack", map[string]any{"recovered": true})
		notice(`"channel":"news"`, "new news")
		notice(`"userId":"alice"`, "new")
		again.wantNext("notification new news", "notification new")
		again.ws.Close()
		again, _ = i.since("/dashboard", "alice", last.Offset) // it stands where the frame said
		again.wantNext("notification new")

		for name, bad := range map[string]string{"garbage": "garbage", "another namespace": mustOffset(i, "/ws", "alice")} {
			if _, c := i.since("/dashboard", "alice", bad); c["recovered"] != false {
				t.Errorf("%s: %v", name, c)
			}
		}
		again.send(`{"event":"subscribe","data":{"channels":["more"],"offset":"garbage"},"id":8}`)
		again.expect("ack", map[string]any{"recovered": false})

		// Chat: both sides, and what was read.
		bob, _ := i.since("/ws", "bob", "")
		alice, _ := i.since("/ws", "alice", "")
		chat := func(from, to, text string) string {
			return fmt.Sprint(i.must(202, "POST", "/messages", tokenFor(t, from), `{"receiverId":"`+to+`","content":"`+text+`"}`)["id"])
		}
		chat("alice", "bob", "1")
		offset = bob.wantNext("message:new 1").Offset
		bob.ws.Close()
		two := chat("alice", "bob", "2")
		chat("bob", "alice", "3")
		chat("alice", "carol", "not his")
		alice.wantNext("message:sent 1", "message:sent 2", "message:new 3", "message:sent not his")
		reader, _ := i.since("/ws", "bob", "")
		reader.send(`{"event":"markAsRead","data":{"messageId":"` + two + `"},"id":1}`)
		reader.expect("ack", map[string]any{"ok": true})
		bob, connected = i.since("/ws", "bob", offset)
		if connected["recovered"] != true {
			t.Fatalf("not recovered: %v", connected)
		}
		bob.wantNext("message:new 2", "message:sent 3", "message:read "+two)
		chat("alice", "bob", "4")
		bob.wantNext("message:new 4")

		// Who missed too much is told so, and goes on from now.
		live := i.open("/dashboard", "alice")
		const batch = 300 // appended side by side: only those of the batches before it are certain to stand before one
		for n := 0; n < maxMissed+1+batch; {
			var events []string
			for ; len(events) < batch; n++ {
				events = append(events, fmt.Sprintf(`{"specversion":"1.0","id":"%d","source":"s","type":"notification","subject":"user:alice","data":{"title":"t%d","body":"","type":"SYSTEM"}}`, n, n))
			}
			i.must(202, "POST", "/events", service, "["+strings.Join(events, ",")+"]", "Content-Type", "application/cloudevents-batch+json")
			live.expect("notification", map[string]any{"title": fmt.Sprint("t", n-1)})
		}
		again, connected = i.since("/dashboard", "alice", last.Offset)
		if connected["recovered"] != false {
			t.Errorf("too much: %v", connected)
		}
		notice(`"userId":"alice"`, "goes on")
		again.expect("notification", map[string]any{"title": "goes on"})
		if got := i.scrape(); !strings.Contains(got, `nexus_sessions_resumed_total{outcome="recovered"}`) ||
			!strings.Contains(got, `nexus_sessions_resumed_total{outcome="too_much"}`) {
			t.Error("the outcomes are not counted")
		}
	})
}

// mustOffset is where a session of a namespace begins.
func mustOffset(i *instance, ns, user string) string {
	i.t.Helper()
	s := i.dial(i.url(ns, user, tokenFor(i.t, user)) + "&offset=")
	defer s.ws.Close()
	return s.expect("connected", nil).Offset
}

// What a node has not seen itself, because it was started anew, comes from the feed.
func TestResumeAfterRestart(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"embedded":    {"HOST": "127.0.0.1", "PORT": "0", "JWT_SECRET": testSecret, "EMBEDDED_KAFKA_PORT": "0", "DATA_DIR": t.TempDir()},
		"distributed": cluster(t)("n1"),
	} {
		t.Run(name, func(t *testing.T) {
			n := launch(t, env)
			n.t = t
			service := tokenFor(t, "service", "publish")
			chat, dashboard := mustOffset(n.instance, "/ws", "alice"), mustOffset(n.instance, "/dashboard", "alice")
			for k := range 30 {
				// over all partitions
				n.must(202, "POST", "/messages", tokenFor(t, fmt.Sprintf("u%d", k)), fmt.Sprintf(`{"receiverId":"alice","content":"%d"}`, k))
				n.must(202, "POST", "/notifications", service, fmt.Sprintf(`{"userId":"alice","title":"%d","body":"","type":"SYSTEM"}`, k))
			}
			n.kill()
			n.start()
			n.must(202, "POST", "/announcements", service, `{"title":"after","body":""}`)
			for ns, offset := range map[string]string{"/ws": chat, "/dashboard": dashboard} {
				s, connected := n.since(ns, "alice", offset)
				if connected["recovered"] != true {
					t.Fatalf("%s: %v\n%s", ns, connected, n.log)
				}
				if ns == "/ws" { // partitions are merged by time, which has milliseconds
					seen := make(map[string]bool)
					for range 30 {
						got, _ := s.next()
						seen[got] = true
					}
					if len(seen) != 30 {
						t.Errorf("%d different messages of 30", len(seen))
					}
					continue
				}
				for k := range 30 {
					s.wantNext(fmt.Sprintf("notification %d", k))
				}
				s.wantNext("announcement after")
			}
		})
	}
}

// The real socket.io-client's connection state recovery: what it missed, and the channels it was subscribed to.
func TestSocketIORecovery(t *testing.T) {
	node, dir := tool(t, "node"), clientDir(t)
	i := start(t, nil)
	tokens, err := json.Marshal(map[string]string{"alice": tokenFor(t, "alice"), "bob": tokenFor(t, "bob"),
		"service": tokenFor(t, "service", "publish")})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(node, dir+"/recovery.mjs", "http://"+i.base, string(tokens)).CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "all seen") {
		t.Fatalf("%v\n%s\n%s", err, out, i.log)
	}
}

// kill -9 of a node with a thousand sockets (row F07): all come back on another with their cursors, and nobody has a gap.
func TestResumeElsewhere(t *testing.T) {
	t.Parallel()
	env := cluster(t)
	more := []string{"MAX_CONNECTIONS_PER_NAMESPACE", "5000", "MAX_CONNECTIONS_PER_USER", "5", "RATE_LIMIT_MESSAGES", "100000"}
	nodes := launchAll(t, 2, env, more...)
	dies, stays := nodes[0], nodes[1]
	const users, each, events = 500, 2, 60
	service := tokenFor(t, "service", "publish")
	var mu sync.Mutex
	recovered, lost, gaps, doubles, finished := 0, 0, 0, 0, 0
	clients := make([]*seeker, 0, users*each)
	for k := range users * each {
		user := fmt.Sprintf("u%d", k/each)
		clients = append(clients, &seeker{path: "/dashboard?userId=" + user + "&events=canonical&token=" + tokenFor(t, user) + "&offset="})
	}
	var open, running sync.WaitGroup
	begin := make(chan bool)
	slots := make(chan bool, 32) // connecting at once
	for _, c := range clients {
		open.Add(1)
		running.Go(func() {
			slots <- true
			ok := c.connect(dies.base)
			<-slots
			open.Done()
			if !ok {
				return
			}
			<-begin
			for c.want < events {
				if c.read() {
					continue
				}
				for from := time.Now(); !c.connect(stays.base) && time.Since(from) < time.Minute; {
					time.Sleep(200 * time.Millisecond)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			recovered, lost, gaps, doubles, finished = recovered+c.recovered, lost+c.lost, gaps+c.gaps, doubles+c.doubles, finished+1
		})
	}
	open.Wait()
	close(begin)
	var killed time.Time
	for k := range events {
		stays.must(202, "POST", "/announcements", service, fmt.Sprintf(`{"title":"%d","body":""}`, k))
		if k == events/2 {
			dies.kill()
			killed = time.Now()
		}
	}
	running.Wait()
	t.Logf("%d sockets; %d resumed, %d told that they are not, %d gaps, %d repeats; all had everything %s after the kill", finished, recovered,
		lost, gaps, doubles, time.Since(killed).Round(100*time.Millisecond))
	if finished != users*each || recovered < users*each || lost != 0 || gaps != 0 {
		t.Error("not all resumed without a gap")
	}
}

// seeker is a bare client that follows announcements with titles 0, 1, 2… over connections.
type seeker struct {
	path, offset                         string
	ws                                   *websocket.Conn
	want, recovered, lost, gaps, doubles int
}

func (c *seeker) connect(base string) bool {
	ws, _, err := websocket.DefaultDialer.Dial("ws://"+base+c.path+c.offset, nil)
	if err != nil {
		return false
	}
	c.ws = ws
	return true
}

// read takes one frame in; false: the connection is over.
func (c *seeker) read() bool {
	if c.ws == nil {
		return false
	}
	var f struct {
		Event, Offset string
		Data          struct {
			Title     string
			Recovered *bool
		}
	}
	if err := c.ws.ReadJSON(&f); err != nil {
		c.ws.Close()
		return false
	}
	if f.Offset != "" {
		c.offset = f.Offset
	}
	switch {
	case f.Event == "connected" && f.Data.Recovered != nil && *f.Data.Recovered:
		c.recovered++
	case f.Event == "connected" && f.Data.Recovered != nil:
		c.lost++
	case f.Event == topics.TypeAnnouncement && f.Data.Title == fmt.Sprint(c.want):
		c.want++
	case f.Event == topics.TypeAnnouncement:
		var n int
		_, _ = fmt.Sscan(f.Data.Title, &n)
		if n < c.want {
			c.doubles++
			return true
		}
		c.gaps, c.want = c.gaps+1, n+1
	}
	if c.want >= 60 {
		c.ws.Close()
	}
	return true
}
