package topics_test

import (
	"errors"
	"fmt"

	"github.com/nexus/nexus/topics"
)

// Alice writes to Bob. The event is made, checked as every reader of the log checks it, and read.
func Example() {
	e := topics.Draft{ReceiverID: "bob", Content: "Hello", ClientMessageID: "7c1d"}.Message("alice", "")
	if err := topics.Valid(e); err != nil {
		fmt.Println("refused:", err)
		return
	}
	m := topics.ReadMessage(e)
	fmt.Println("topic", e.Topic, "key", string(e.Key), "type", e.Type)
	fmt.Println(m.SenderID, "to", m.ReceiverID+":", m.Content)
	// Output:
	// topic messages key dm:alice:bob type message
	// alice to bob: Hello
}

// What is wrong with a record is one of a few reasons, for metrics, and a sentence, for whoever wrote the record.
func ExampleValid() {
	e := &topics.Event{Topic: topics.Notifications, Key: []byte(topics.UserKey("alice")), Value: []byte(`{"title":"Hi","type":"SYSTEM"}`)}
	err := topics.Valid(e)
	var refusal *topics.Refusal
	fmt.Println(errors.As(err, &refusal), refusal.Reason)
	fmt.Println(err)
	// Output:
	// true field
	// field body of a notification is missing
}

// The key of a record says who is to get it. In a conversation both users are meant, whoever wrote.
func ExampleParseAudience() {
	for _, key := range []string{topics.UserKey("alice"), topics.ConversationKey("bob", "alice"), topics.ChannelKey("referrals"),
		topics.EveryoneKey} {
		a, err := topics.ParseAudience(key)
		fmt.Println(key, a.Has("alice"), a.Other("alice"), err)
	}
	_, err := topics.ParseAudience("alice")
	fmt.Println(err)
	// Output:
	// user:alice true  <nil>
	// dm:alice:bob true bob <nil>
	// channel:referrals false referrals <nil>
	// all false  <nil>
	// the record's key must be user:<id>, dm:<a>:<b>, channel:<name> or all
}

// All records of a key stand in one partition of its topic, so they have an order.
func ExamplePartitionOf() {
	of := topics.Notifications.Partition(topics.PartitionOf([]byte(topics.UserKey("alice")), 6))
	at := of.At(41)
	ends := make(topics.Ends)
	ends.Add(of, at.Offset+1) // a reader that has the record at 41 stands at 42
	fmt.Println(of, at, ends[of])
	// Output: notifications/2 notifications/2/41 42
}
