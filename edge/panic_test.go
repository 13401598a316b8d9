package edge

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/internal/testenv/logtest"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/projections/stats"
	"github.com/nexus/nexus/topics"
)

type noInbox struct{}

func (noInbox) Message(context.Context, string, string) (inbox.Message, error) {
	return inbox.Message{}, inbox.ErrNotFound
}
func (noInbox) Await(context.Context, topics.Ends) error { return nil }
func (noInbox) Feed(context.Context, inbox.Span, int, int) ([]inbox.Entry, error) {
	return nil, nil
}

type noStats struct{}

func (noStats) Counts(context.Context, []string) (map[string]stats.Counts, error) { return nil, nil }
func (noStats) Reached(context.Context, topics.Ends) (bool, error)                { return true, nil }

// broker is an embedded log that may be away for a while.
type broker struct {
	*logtest.Broker
	said *fullLog // what the edge says of itself
}

// running is an edge on an embedded log; the token is the user's name, and the token boom panics.
func running(t *testing.T) (*Edge, *httptest.Server) {
	e, s, _ := runningOn(t)
	return e, s
}

func runningOn(t *testing.T, settings ...func(*Options)) (*Edge, *httptest.Server, *broker) {
	t.Helper()
	b := &broker{Broker: logtest.Start(t, pipeline.BrokerOptions{})}
	log := logtest.Open(t, b.Addr, 2)
	o := Options{Kafka: log.Kafka, Producer: log.Producer, Log: log.Log, Inbox: noInbox{}, Stats: stats.Remember(noStats{}),
		Logger: logtest.Quiet(), NodeName: "n",
		Verify: func(token string) (Identity, error) {
			if token == "boom" {
				panic("a fault of ours")
			}
			return Identity{User: token, Expires: time.Now().Add(time.Hour)}, nil
		},
		Revoked: func(Identity) bool { return false }, Windows: pipeline.NewWindows(time.Minute),
		Settings: Settings{Limits: presence.Limits{PerUser: 5, PerNamespace: 100}, RateLimit: 100, RateWindow: time.Minute,
			ContentWindow: time.Minute,
			PingInterval:  time.Minute, PingTimeout: time.Minute, ConnectTimeout: time.Minute,
			StatsInterval: time.Minute, CompressionThreshold: 1024, MaxMessageBytes: 1 << 20, MaxContentBytes: 1 << 15, MaxQueueBytes: 1 << 20},
		HeartbeatInterval: time.Second, RepeatInterval: time.Minute}
	for _, set := range settings {
		set(&o)
	}
	b.said = &fullLog{Log: log.Producer}
	e, err := newOn(t.Context(), o, b.said)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	mux := http.NewServeMux()
	mux.Handle("/ws", e.Raw(topics.Messaging))
	mux.Handle("/socket.io/", e.SocketIO())
	s := httptest.NewUnstartedServer(mux)
	s.Config.ErrorLog = slog.NewLogLogger(logtest.Quiet().Handler(), slog.LevelDebug)
	s.Start()
	t.Cleanup(func() {
		drain, done := context.WithTimeout(context.Background(), 5*time.Second)
		defer done()
		e.Drain(drain)
		s.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	testenv.Eventually(t, "the edge is ready", e.Ready)
	return e, s, b
}

// A handler that panics (row S10) ends its own session and nothing else: its place and presence are free, whoever else is
// connected goes on.
func TestHandlerPanic(t *testing.T) {
	e, s := running(t)
	dial := func(user string) *websocket.Conn {
		ws, _, err := websocket.DefaultDialer.Dial(strings.Replace(s.URL, "http", "ws", 1)+"/ws?userId="+user+"&token="+user, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ws.Close() })
		_ = ws.SetReadDeadline(time.Now().Add(10 * time.Second))
		return ws
	}
	boom := `{"event":"authenticate","data":{"token":"boom"},"id":1}`
	victim, neighbour := dial("victim"), dial("neighbour")
	testenv.Eventually(t, "both have their place", func() bool { return e.fold.Connections(topics.Messaging) == 2 })
	if err := victim.WriteMessage(websocket.TextMessage, []byte(boom)); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		_, _, err = victim.ReadMessage()
	}
	if !websocket.IsCloseError(err, websocket.CloseInternalServerErr) {
		t.Errorf("closed with %v, want 1011", err)
	}
	testenv.Eventually(t, "the place is free", func() bool { return e.fold.Connections(topics.Messaging) == 1 })

	// The same by long-polling.
	post := func(url, body string) (int, string) {
		resp, err := http.Post(url, "text/plain", strings.NewReader(body))
		if err != nil {
			return 0, ""
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	resp, err := http.Get(s.URL + "/socket.io/?EIO=4&transport=polling")
	if err != nil {
		t.Fatal(err)
	}
	open, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	sid, _, _ := strings.Cut(strings.TrimPrefix(string(open), `0{"sid":"`), `"`)
	url := s.URL + "/socket.io/?EIO=4&transport=polling&sid=" + sid
	if status, _ := post(url, `40/ws,{"userId":"poller","token":"poller"}`); status != 200 {
		t.Fatalf("CONNECT: %d", status)
	}
	testenv.Eventually(t, "the poller has its place", func() bool { return e.fold.Connections(topics.Messaging) == 2 })
	post(url, `42/ws,["authenticate",{"token":"boom"}]`)
	testenv.Eventually(t, "the poller's place is free", func() bool { return e.fold.Connections(topics.Messaging) == 1 })
	if status, _ := post(url, "3"); status != 400 {
		t.Errorf("the session lives on: %d", status)
	}

	if err := neighbour.WriteMessage(websocket.TextMessage,
		[]byte(`{"event":"typing","data":{"receiverId":"x","isTyping":true},"id":"still"}`)); err != nil {
		t.Fatal(err)
	}
	for {
		_, b, err := neighbour.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), `"id":"still"`) {
			break
		}
	}
}

// An event that cannot be shown costs itself: what stands before and behind it in its batch is shown, once.
func TestRoutePanic(t *testing.T) {
	e, s := running(t)
	ws, _, err := websocket.DefaultDialer.Dial(strings.Replace(s.URL, "http", "ws", 1)+"/ws?userId=bob&token=bob&events=canonical", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	_ = ws.SetReadDeadline(time.Now().Add(10 * time.Second))
	testenv.Eventually(t, "bob is in the hub", func() bool { return e.sessions.HasUser(topics.Messaging, "bob") })
	batch := pipeline.Batch{Topic: topics.Messages}
	for n, content := range []string{"first", "bad", "last"} {
		ev := topics.Draft{ReceiverID: "bob", Content: content}.Message("alice", "")
		ev.Offset = int64(n)
		if content == "bad" {
			ev.Partition = 99 // there is none
		}
		batch.Events = append(batch.Events, ev)
	}
	e.live.Route(batch)
	var got []string
	for len(got) < 2 {
		_, b, err := ws.ReadMessage()
		if err != nil {
			t.Fatalf("%v; got %q", err, got)
		}
		for _, content := range []string{"first", "bad", "last"} {
			if strings.Contains(string(b), `"content":"`+content+`"`) {
				got = append(got, content)
			}
		}
	}
	if strings.Join(got, " ") != "first last" {
		t.Errorf("shown %q", got)
	}
}
