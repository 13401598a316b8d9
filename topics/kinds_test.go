package topics_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"

	"github.com/nexus/nexus/topics"
)

// What is written is valid, stands in its topic, and is read as it was written.
func TestWrittenIsRead(t *testing.T) {
	session := topics.Session{ID: "s", Node: "n", Name: "node-1", UserID: "a", Namespace: topics.Messaging, PID: "p", Repeated: true,
		Channels: []string{"c"}}
	delivery := topics.Delivery{Event: topics.TypeMessage, At: topics.Messages.Partition(2).At(7), Node: `no"de é`, Sessions: 3,
		LatencyMs: 9}
	push := delivery
	push.Channel, push.Outcome, push.Device = "fcm", "accepted", "h"
	keys := topics.DeviceKeys{DeviceID: "d", IdentityKey: "k", Prekeys: []topics.Prekey{{ID: "1", Key: "x"}}}
	contract := topics.Contract{Window: "5m0s", Partitions: map[topics.Topic]int32{topics.Messages: 6}}
	for _, tc := range []struct {
		typ  string
		e    *topics.Event
		read func(*topics.Event) any
		want any
	}{
		{topics.TypeMessageRead, topics.MessageRead{MessageID: "m", UserID: "a"}.Event("b"), as(topics.ReadMessageRead),
			topics.MessageRead{MessageID: "m", UserID: "a"}},
		{topics.TypeMessageRead, topics.MessageRead{MessageID: "m", UserID: "a", UpTo: true}.Event("b"), as(topics.ReadMessageRead),
			topics.MessageRead{MessageID: "m", UserID: "a", UpTo: true}},
		{topics.TypeNotificationRead, topics.NotificationMark{NotificationID: "x"}.Read("a"), as(topics.ReadNotificationMark),
			topics.NotificationMark{NotificationID: "x"}},
		{topics.TypeNotificationDeleted, topics.NotificationMark{UpTo: 1764583200123}.Deleted("a"), as(topics.ReadNotificationMark),
			topics.NotificationMark{UpTo: 1764583200123}},
		{topics.TypeTypingStart, topics.Typing{UserID: "b", IsTyping: true}.Event("a"), as(topics.ReadTyping),
			topics.Typing{UserID: "b", IsTyping: true}},
		{topics.TypeTypingStop, topics.Typing{UserID: "b"}.Event("a"), as(topics.ReadTyping), topics.Typing{UserID: "b"}},
		{topics.TypeDeviceRegistered, topics.Device{Token: "t", Platform: "web"}.Registered("a"), as(topics.ReadDevice),
			topics.Device{Token: "t", Platform: "web"}},
		{topics.TypeDeviceUnregistered, topics.Device{Token: "t"}.Unregistered("a", topics.NodeSource("n")), as(topics.ReadDevice),
			topics.Device{Token: "t"}},
		{topics.TypeDeviceUnregistered, topics.Device{}.Unregistered("a", topics.SourceOf("a")), as(topics.ReadDevice), topics.Device{}},
		{topics.TypeNodeHeartbeat, topics.Heartbeat{Node: "n", Name: "node-1"}.Event(), as(topics.ReadHeartbeat),
			topics.Heartbeat{Node: "n", Name: "node-1"}},
		{topics.TypeConnected, session.Connected(), as(topics.ReadSession), session},
		{topics.TypeDisconnected, topics.Session{ID: "s", Node: "n", Name: "node-1", UserID: "a", Namespace: topics.Dashboard}.Disconnected(),
			as(topics.ReadSession),
			topics.Session{ID: "s", Node: "n", Name: "node-1", UserID: "a", Namespace: topics.Dashboard}},
		{topics.TypeSessionChannels, session.ChannelsChanged(), as(topics.ReadSession), session},
		{topics.TypeDeliveryWebSocket, delivery.ToSessions("all", topics.NodeSource("n")), as(topics.ReadDelivery), delivery},
		{topics.TypeDeliveryPush, push.Push("user:a", topics.NodeSource("n")), as(topics.ReadDelivery), push},
		{topics.TypeSessionRevoked, topics.Revocation{TokenID: "j"}.Event("a", "root"), as(topics.ReadRevocation),
			topics.Revocation{TokenID: "j"}},
		{topics.TypeSessionRevoked, topics.Revocation{}.Event("a", "root"), as(topics.ReadRevocation), topics.Revocation{}},
		{topics.TypeKeyPublished, keys.Event("a"), as(topics.ReadDeviceKeys), keys},
		{topics.TypeKeyPublished, topics.DeviceKeys{DeviceID: "d", Removed: true}.Event("a"), as(topics.ReadDeviceKeys),
			topics.DeviceKeys{DeviceID: "d", Removed: true}},
		{topics.TypeKeyTaken, topics.KeyTaken{DeviceID: "d", PrekeyID: "1", By: "b"}.Event("a"), as(topics.ReadKeyTaken),
			topics.KeyTaken{DeviceID: "d", PrekeyID: "1", By: "b"}},
		{topics.TypeLogContract, contract.Event(), func(e *topics.Event) any { c, _ := topics.ReadContract(e); return c }, contract},
	} {
		if err := topics.Valid(tc.e); err != nil || tc.e.Type != tc.typ {
			t.Errorf("%s: %s, %v: %s", tc.typ, tc.e.Type, err, tc.e.Value)
			continue
		}
		if got := tc.read(tc.e); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: read %+v, want %+v", tc.typ, got, tc.want)
		}
	}
}

func as[T any](read func(*topics.Event) T) func(*topics.Event) any {
	return func(e *topics.Event) any { return read(e) }
}

// The table says of each kind what the rest relies on.
func TestKinds(t *testing.T) {
	events := make(map[string]bool)
	for _, k := range topics.Kinds() {
		if topics.KindOf(k.Type) != k || k.Doc == "" || len(k.In) == 0 {
			t.Errorf("%s: not whole", k.Type)
		}
		for _, in := range k.In {
			if len(in.Keys) == 0 {
				t.Errorf("%s: no keys in %s", k.Type, in.Topic)
			}
			if k.Ingest != "" && topics.DefaultType(in.Topic, in.Keys[0]) == "" {
				t.Errorf("%s is handed in to %s, where a record without ce_type is nothing", k.Type, in.Topic)
			}
		}
		if k.Feed && len(k.Frames) == 0 {
			t.Errorf("%s: given to those who come back, and has no frame", k.Type)
		}
		for _, name := range []string{k.Actor, k.Detail} {
			if name != "" && !slices.ContainsFunc(k.Fields, func(f topics.Field) bool { return f.Name == name && f.Required }) {
				t.Errorf("%s has no required field %s", k.Type, name)
			}
		}
		for _, f := range k.Fields {
			if f.Doc == "" {
				t.Errorf("field %s of a %s says nothing of itself", f.Name, k.Type)
			}
		}
		for _, f := range k.Frames {
			if f.Doc == "" || events[string(f.Namespace)+f.Event] {
				t.Errorf("frame %s of a %s: no doc, or twice", f.Event, k.Type)
			}
			events[string(f.Namespace)+f.Event] = true
		}
	}
	for _, f := range topics.DerivedFrames() {
		if events[string(f.Namespace)+f.Event] || len(f.Fields) == 0 {
			t.Errorf("frame %s: twice, or without fields", f.Event)
		}
	}
	if got := topics.FeedTopics(topics.Dashboard); !slices.Equal(got, []topics.Topic{topics.Notifications, topics.Broadcasts}) {
		t.Errorf("the dashboard is fed from %v", got)
	}
	if got := topics.FeedTopics(topics.Messaging); !slices.Equal(got, []topics.Topic{topics.Messages}) {
		t.Errorf("the chat is fed from %v", got)
	}
}

// Golden: the data of what clients get that no single record is behind, and of acknowledgements.
func TestClientData(t *testing.T) {
	no := false
	event, online := topics.PresenceFrame(topics.Dashboard, "a", true, 1764583200000)
	chat, _ := topics.PresenceFrame(topics.Messaging, "a", false, 0)
	if event != topics.EventUserStatus || chat != topics.EventOffline {
		t.Errorf("presence is told as %s and %s", event, chat)
	}
	frame, typing := topics.Typing{UserID: "a"}.Frame(1764583200000)
	if frame.Event != "typing:stop" || frame.Alias != "TYPING_INDICATOR" {
		t.Errorf("frame %+v", frame)
	}
	for want, got := range map[string][]byte{
		`{"userId":"a","timestamp":"2025-12-01T10:00:00.000Z","message":"<hi>"}`: topics.Connected{UserID: "a", At: 1764583200000,
			Message: "<hi>"}.Data(),
		`{"userId":"a","timestamp":"2025-12-01T10:00:00.000Z","message":"","recovered":false}`: topics.Connected{UserID: "a", At: 1764583200000,
			Recovered: &no}.Data(),
		`{"code":"c","message":"m"}`: topics.Failure{Code: "c",
			Message: "m"}.Data(),
		`{"code":"c","message":"m","retryAfterMs":5,"retryable":true}`: topics.Failure{Code: "c", Message: "m",
			RetryAfterMs: 5, Retryable: true}.Data(),
		`{"userId":"a","status":"online","timestamp":"2025-12-01T10:00:00.000Z"}`: online,
		`{"userId":"a","isTyping":false,"timestamp":"2025-12-01T10:00:00.000Z"}`:  typing,
		`{"connections":1,"messages":2,"posts":0,"timestamp":"2025-12-01T10:00:00.000Z"}`: topics.Stats{Connections: 1,
			Messages: 2}.Data(1764583200000, false),
		`{"connections":0,"messages":0,"posts":0,"timestamp":"1970-01-01T00:00:00.000Z","stale":true}`: topics.Stats{}.Data(0, true),
		`{"ok":true,"id":"1","duplicate":true}`: topics.Receipt{ID: "1",
			Duplicate: true}.Data(),
		`{"ok":true,"id":"1"}`:                            topics.Receipt{ID: "1"}.Data(),
		`{"ok":false,"error":{"code":"c","message":"m"}}`: topics.RefusedData(topics.Failure{Code: "c", Message: "m"}),
		`{"ok":true}`: topics.AuthenticatedData(nil),
		`{"channels":["c"],"refused":[{"channel":"d","code":"e"}],"recovered":false}`: topics.SubscribedData([]string{"c"},
			[]topics.RefusedChannel{{Channel: "d", Code: "e"}}, &no),
	} {
		if string(got) != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	for _, c := range topics.Commands() {
		if !json.Valid([]byte(c.Example)) || c.Doc == "" {
			t.Errorf("%s: the example is not JSON, or there is no doc", c.Event)
		}
	}
}

// A record that has an identity gets the id that REST gives the same identity, wherever it stands; one without has its place.
func TestIDOfIdentity(t *testing.T) {
	value := `{"title":"t","body":"b","type":"SYSTEM"}`
	byREST := topics.EventID("user:a", topics.TypeNotification, topics.SourceOf("svc"), "order-7")
	for name, tc := range map[string]struct {
		meta topics.Meta
		want string
	}{
		"idempotency-key":             {topics.Meta{Source: "/users/svc", IdempotencyKey: "order-7", ID: "other"}, byREST},
		"ce_id":                       {topics.Meta{Source: "/users/svc", ID: "order-7"}, byREST},
		"copied by nexus repartition": {topics.Meta{Source: "/users/svc", ID: "order-7", Place: "n0-1"}, byREST},
		"of another source": {topics.Meta{Source: "/orders", ID: "order-7"},
			topics.EventID("user:a", topics.TypeNotification, "/orders", "order-7")},
		"no identity":                  {topics.Meta{Source: "/orders"}, "n3-42"},
		"no identity, copied":          {topics.Meta{Place: "n0-1"}, "n0-1"},
		"ce_type left out is the same": {topics.Meta{Type: "-", Source: "/users/svc", ID: "order-7"}, byREST},
	} {
		e := event(topics.Notifications, "user:a", topics.TypeNotification, value)
		if tc.meta.Type == "" {
			tc.meta.Type = topics.TypeNotification
		} else {
			tc.meta.Type = ""
		}
		e.Meta = tc.meta
		if err := topics.Valid(e); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var shown struct{ ID string }
		if err := json.Unmarshal(e.Data(), &shown); err != nil || shown.ID != tc.want || e.EventID() != tc.want {
			t.Errorf("%s: id %s, shown as %s; want %s (%v)", name, e.EventID(), shown.ID, tc.want, err)
		}
	}
}
