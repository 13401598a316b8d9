package edge

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// What clients are shown of one another's messages, over the whole edge.

// post sends a chat message as REST does.
func (n *node) post(sender, receiver, content string) (id string) {
	n.t.Helper()
	r, err := n.e.Send(n.t.Context(), sender, topics.Draft{ReceiverID: receiver, Content: content})
	if err != nil {
		n.t.Error(err)
	}
	return r.ID
}

// A client that asked for canonical names and offsets gets both, and finds what it missed by the offset; others get the guide's two
// names. Long messages arrive whole where they are compressed.
func TestCompressionAndNames(t *testing.T) {
	serving(t, asIs, func(t *testing.T, n *node) {
		bob, plain := n.open("/ws", "bob"), n.open("/ws", "bob", "&events=canonical&offset=")
		long := strings.Repeat("long ", 2000)
		n.post("alice", "bob", long)
		bob.expect("message:new", map[string]any{"content": long})
		bob.expect("MESSAGE_BROADCAST", map[string]any{"content": long})
		f := plain.expect("message:new", map[string]any{"content": long})
		if f.Offset == "" {
			t.Error("a client that asked for offsets got none")
		}
		n.post("alice", "bob", "last")
		for f := range plain.frames {
			if f.Event == "MESSAGE_BROADCAST" {
				t.Error("events=canonical got MESSAGE_BROADCAST")
			}
			if f.Event == "message:new" {
				break
			}
		}
		again := n.reconnect("/ws", "bob", f.Offset, true)
		again.expect("message:new", map[string]any{"content": "last"})
	})
}

// reconnect opens a bare client that comes back with an offset, and checks whether it is recovered.
func (n *node) reconnect(ns topics.Namespace, user, offset string, recovered bool) *bare {
	n.t.Helper()
	ws, _, refusal := n.handshake(n.url(ns, user, tokenFor(n.t, user, time.Hour)) + "&events=canonical&offset=" + offset)
	if ws == nil {
		n.t.Fatalf("refused: %s", refusal)
	}
	c := n.reader(ns, ws)
	if f := c.expect("connected", nil); f.Data["recovered"] != recovered {
		n.t.Errorf("recovered %v, want %v", f.Data["recovered"], recovered)
	}
	return c
}

// While messages flow a client comes and goes: it gets every one, once, in order.
func TestResumeUnderLoad(t *testing.T) {
	serving(t, func(o *Options) { o.RateLimit, o.Limits.PerUser = 100_000, 100 }, func(t *testing.T, n *node) {
		const messages = 1000
		ws, _, _ := n.handshake(n.url("/ws", "bob", tokenFor(t, "bob", time.Hour)) + "&offset=")
		offset := n.reader("/ws", ws).expect("connected", nil).Offset
		ws.Close()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for k := range messages {
				n.post("alice", "bob", fmt.Sprint(k))
				time.Sleep(time.Millisecond) // in which the client does something else
			}
		}()
		want, comebacks := 0, 0
		for want < messages && !t.Failed() {
			c := n.reconnect("/ws", "bob", offset, true)
			comebacks++
			for k := 0; k < 20+comebacks%60 && want < messages; k++ {
				f := c.expect("message:new", nil)
				if f.Data["content"] != fmt.Sprint(want) {
					t.Fatalf("comeback %d: got %v, want %d", comebacks, f.Data["content"], want)
				}
				want, offset = want+1, f.Offset
			}
			c.ws.Close()
		}
		<-sent
		t.Logf("%d messages over %d connections", want, comebacks)
	})
}

// A cursor of a log that was restored from an older backup is not believed, neither where the log ends before it nor where it has
// grown past it since; one from before the backup is.
func TestCursorOfAnotherLog(t *testing.T) {
	serving(t, func(o *Options) { o.Limits.PerUser = 10 }, func(t *testing.T, n *node) {
		show := func(title string) (offset string) {
			time.Sleep(time.Second)
			c := n.open("/dashboard", "alice", "&offset=")
			defer c.ws.Close()
			n.log.announce(title, "")
			return c.expect("announcement", map[string]any{"title": title}).Offset
		}
		before := show("before")
		lost := show("lost")
		n.log.restore(topics.Broadcasts, 1)
		for _, grown := range []bool{false, true} {
			if grown {
				for k := range 3 {
					show(fmt.Sprint("new ", k))
				}
			}
			n.reconnect("/dashboard", "alice", before, true).ws.Close()
			n.reconnect("/dashboard", "alice", lost, false).ws.Close()
		}
	})
}

// A Socket.IO client whose connection broke unnoticed takes its own place over, also where that was the last one. Whether the old
// connection has anybody at its end makes no difference.
func TestTakeOver(t *testing.T) {
	for name, reads := range map[string]bool{"it is read from": true, "it is dead": false} {
		t.Run(name, func(t *testing.T) {
			serving(t, func(o *Options) { o.Limits.PerUser = 1 }, func(t *testing.T, n *node) { n.takeOver(t, reads) })
		})
	}
}

func (n *node) takeOver(t *testing.T, reads bool) {
	first, second, stranger := n.engine(), n.engine(), n.engine()
	auth := `"userId":"alice","token":"` + tokenFor(t, "alice", time.Hour) + `"`
	first.send(`40/ws,{` + auth + `}`)
	var welcome struct{ PID string }
	if err := json.Unmarshal([]byte(strings.TrimPrefix(first.expect(`40/ws,`), `40/ws,`)), &welcome); err != nil {
		t.Fatal(err)
	}
	first.expect(`42/ws,["connected"`)
	told := first.expect(`42/ws,["offset","`) // a packet of its own
	offset := told[strings.LastIndex(told, `,"`)+2 : len(told)-2]
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if reads {
			first.expectClose(apierr.CloseEvicted)
		}
	}()
	stranger.send(`40/ws,{` + auth + `,"pid":"another","offset":"` + offset + `"}`)
	stranger.expect(`44/ws,{"message":"this user has as many connections as are allowed`)
	n.post("bob", "alice", "meanwhile")
	second.send(`40/ws,{` + auth + `,"pid":"` + welcome.PID + `","offset":"` + offset + `"}`)
	if got := second.expect(`40/ws,`); !strings.Contains(got, welcome.PID) {
		t.Errorf("another session: %s", got)
	}
	if got := second.expect(`42/ws,["connected"`); !strings.Contains(got, `"recovered":true`) {
		t.Errorf("not recovered: %s", got)
	}
	if got := second.expect(`42/ws,["message:new"`); !strings.Contains(got, "meanwhile") {
		t.Errorf("got %s", got)
	}
	<-ended
	n.eventually("alice has one connection", func() bool {
		return n.e.fold.Count("/ws", "alice") == 1 && len(n.e.sessions.OfUser("alice")) == 1
	})
}

// Who has read the newest message of a conversation may say so of all before it: both sides are shown it, and who was away is shown
// it later. What is unread then is the inbox's (testConversations there).
func TestReadUpTo(t *testing.T) {
	serving(t, asIs, func(t *testing.T, n *node) {
		bob, alice := n.open("/ws", "bob"), n.open("/ws", "alice")
		leaves, _, _ := n.handshake(n.url("/ws", "alice", tokenFor(t, "alice", time.Hour)) + "&offset=")
		away := n.reader("/ws", leaves).expect("connected", nil).Offset
		leaves.Close()
		theirs, mine := n.post("alice", "bob", "1"), n.post("bob", "alice", "2")
		mark := func(user *bare, id, more string, want map[string]any) {
			t.Helper()
			user.send(`{"event":"markAsRead","data":{"messageId":"` + id + `"` + more + `},"id":1}`)
			user.expect("ack", want)
		}
		devices := []*bare{alice, n.open("/ws", "alice"), n.open("/ws", "bob")}
		mark(bob, theirs, "", map[string]any{"ok": true})
		for _, c := range devices { // all of both
			c.expect("message:read", map[string]any{"messageId": theirs, "userId": "bob", "upTo": nil})
		}
		mark(bob, theirs, "", map[string]any{"ok": true, "duplicate": true})
		mark(bob, theirs, `,"upTo":true`, map[string]any{"ok": true, "duplicate": nil}) // another event than that it was read
		mark(bob, mine, `,"upTo":true`, map[string]any{"ok": true})                     // his own is the newest that he sees
		alice.expect("message:read", map[string]any{"messageId": mine, "userId": "bob", "upTo": true})
		again := n.reconnect("/ws", "alice", away, true)
		again.expect("message:read", map[string]any{"messageId": mine, "userId": "bob", "upTo": true})
		mark(bob, mine, "", map[string]any{"ok": false}) // he did not receive it
		mallory := n.open("/ws", "mallory")
		for _, more := range []string{"", `,"upTo":true`} {
			for _, id := range []string{mine, "none"} { // what is another's answers like what is not there
				mallory.send(`{"event":"markAsRead","data":{"messageId":"` + id + `"` + more + `}}`)
				mallory.expect("error", map[string]any{"code": "not_found", "message": "there is no such message of this user's"})
			}
		}
	})
}

// What is read on one device is cleared on the others.
func TestReadOnEveryDevice(t *testing.T) {
	serving(t, asIs, func(t *testing.T, n *node) {
		phone, laptop, another := n.open("/dashboard", "bob"), n.open("/dashboard", "bob"), n.open("/dashboard", "alice")
		n.log.add(topics.NotificationMark{NotificationID: "n1"}.Read("bob"))
		n.log.add(topics.NotificationMark{UpTo: time.Now().UnixMilli()}.Read("bob"))
		n.log.announce("after", "")
		for _, c := range []*bare{phone, laptop} {
			c.expect("notification:read", map[string]any{"notificationId": "n1"})
			if f := c.expect("notification:read", nil); f.Data["upTo"] != topics.FormatTime(time.Now().UnixMilli()) {
				t.Errorf("read-all: %v", f.Data)
			}
		}
		for f := range another.frames {
			if f.Event == "notification:read" {
				t.Errorf("another user is shown %v", f.Data)
			}
			if f.Event == topics.TypeAnnouncement {
				break
			}
		}
	})
}

// Who a message is from, its id and its time are not the client's to say.
func TestSpoofedSender(t *testing.T) {
	serving(t, asIs, func(t *testing.T, n *node) {
		mallory, bob := n.open("/ws", "mallory"), n.open("/ws", "bob")
		mallory.send(`{"event":"sendMessage","data":{"receiverId":"bob","content":"spoofed","senderId":"alice","id":"mine","timestamp":"1990-01-01T00:00:00Z"}}`)
		if f := bob.expect("message:new", nil); f.Data["senderId"] != "mallory" || f.Data["id"] == "mine" ||
			strings.HasPrefix(fmt.Sprint(f.Data["timestamp"]), "1990") {
			t.Errorf("spoofed: %v", f.Data)
		}
	})
}

// Whoever goes on typing is said to be typing once in a while, not for every key.
func TestTypingIsCoalesced(t *testing.T) {
	serving(t, asIs, func(t *testing.T, n *node) {
		alice, bob := n.open("/ws", "alice"), n.open("/ws", "bob")
		const keys = 30
		for k := range keys { // over three seconds
			alice.send(fmt.Sprintf(`{"event":"typing","data":{"receiverId":"bob","isTyping":true},"id":%d}`, k))
			if f := alice.expect("ack", nil); f.Data["ok"] != true {
				t.Fatalf("%v", f.Data)
			}
			time.Sleep(100 * time.Millisecond)
		}
		alice.send(`{"event":"typing","data":{"receiverId":"bob","isTyping":false}}`)
		starts := 0
		for f := range bob.frames {
			if f.Event == "typing:start" {
				starts++
			}
			if f.Event == "typing:stop" {
				break
			}
		}
		if starts < 1 || starts > 2 {
			t.Errorf("bob was told %d times", starts)
		}
	})
}
