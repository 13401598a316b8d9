package edge

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/topics"
)

// A handler that panics (row S10) ends its own session and nothing else: its slot and presence are free, whoever else is connected
// goes on.
func TestHandlerPanic(t *testing.T) {
	serving(t, func(o *Options) {
		o.Verify = func(token string) (Identity, error) {
			if token == "boom" {
				panic("a fault of ours")
			}
			return verify(token)
		}
	}, func(t *testing.T, n *node) {
		const boom = `{"token":"boom"}`
		victim, neighbour := n.open("/ws", "victim"), n.open("/ws", "neighbour")
		n.eventually("both have their slot", func() bool { return n.e.fold.Connections(topics.Messaging) == 2 })
		victim.send(`{"event":"authenticate","data":` + boom + `,"id":1}`)
		victim.rest(websocket.CloseInternalServerErr)
		n.eventually("the slot is free", func() bool { return n.e.fold.Connections(topics.Messaging) == 1 })

		poller := n.poll() // the same by long-polling
		poller.post(200, `40/ws,`+authOf(t, "poller"))
		n.eventually("the poller has its slot", func() bool { return n.e.fold.Connections(topics.Messaging) == 2 })
		if status, _ := poller.do("POST", `42/ws,["authenticate",`+boom+`]`); status != 503 {
			t.Errorf("answered %d, want 503", status)
		}
		began := time.Now()
		n.eventually("the poller's slot is free", func() bool { return n.e.fold.Connections(topics.Messaging) == 1 })
		if took := time.Since(began); took > time.Second {
			t.Errorf("the poller's slot is free %s later", took)
		}
		poller.post(400, "3")

		neighbour.alive()
		if text := n.logged.String(); !strings.Contains(text, "panicked") || strings.Contains(text, "a fault of ours") {
			t.Errorf("the event log tells of no panic, or quotes it:\n%s", text)
		}
		n.faulty = true
	})
}

// An event that cannot be shown costs itself: what stands before and behind it in its batch is shown, once.
func TestRoutePanic(t *testing.T) {
	serving(t, asIs, func(t *testing.T, n *node) {
		bob := n.open("/ws", "bob", "&events=canonical")
		batch := pipeline.Batch{Topic: topics.Messages}
		for k, content := range []string{"first", "bad", "last"} {
			ev := topics.Draft{ReceiverID: "bob", Content: content}.Message("alice", "")
			ev.Offset = int64(k)
			if content == "bad" {
				ev.Partition = 99 // there is none
			}
			batch.Events = append(batch.Events, ev)
		}
		n.e.live.Route(batch)
		n.post("alice", "bob", "after")
		var got []string
		for len(got) == 0 || got[len(got)-1] != "after" {
			got = append(got, fmt.Sprint(bob.expect("message:new", nil).Data["content"]))
		}
		if strings.Join(got, " ") != "first last after" {
			t.Errorf("shown %q", got)
		}
		n.faulty = true
	})
}
