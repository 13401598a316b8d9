package topics_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/nexus/nexus/topics"
)

// The partition of a key must be the one that franz-go, and so the Java client, chooses.
func TestPartitionIsMurmur2(t *testing.T) {
	const n = 7
	p := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	for range 2000 {
		key := make([]byte, 1+rand.IntN(40))
		for i := range key {
			key[i] = byte(rand.Uint32())
		}
		if want, got := p.Partition(&kgo.Record{Key: key}, n), topics.PartitionOf(key, n); int(got) != want {
			t.Fatalf("Partition(%x) = %d, want %d", key, got, want)
		}
	}
}

func TestAudience(t *testing.T) {
	for _, tc := range []struct {
		key  string
		want topics.Audience
	}{
		{"all", topics.Audience{Kind: topics.Everyone}},
		{"user:alice", topics.Audience{Kind: topics.User, A: "alice"}},
		{"dm:alice:bob", topics.Audience{Kind: topics.Conversation, A: "alice", B: "bob"}},
		{"dm:a:a", topics.Audience{Kind: topics.Conversation, A: "a", B: "a"}},
		{"channel:a:b.c-d_E", topics.Audience{Kind: topics.Channel, A: "a:b.c-d_E"}},
	} {
		if got, err := topics.ParseAudience(tc.key); err != nil || got != tc.want {
			t.Errorf("ParseAudience(%q) = %+v, %v; want %+v", tc.key, got, err, tc.want)
		}
		if key := tc.want.Key(); key != tc.key {
			t.Errorf("the key of %+v is %q, want %q", tc.want, key, tc.key)
		}
	}
	for _, bad := range []string{"", "alice", "user:", "user:a:b", "user:a\nb", "user:\xff", "dm:b:a", "dm:a", "dm:a:b:c", "channel:",
		"channel:ä",
		"user:" + strings.Repeat("x", 129), "ALL", "all:"} {
		if got, err := topics.ParseAudience(bad); err == nil {
			t.Errorf("ParseAudience(%q) = %+v, want an error", bad, got)
		}
	}
	if topics.ConversationKey("b", "a") != topics.ConversationKey("a", "b") {
		t.Error("ConversationKey depends on the order")
	}
}

func TestHeadersRoundTrip(t *testing.T) {
	want := topics.Meta{ID: "1", Source: "/users/a", Type: topics.TypeMessage, Time: "t", ContentType: "application/json",
		IdempotencyKey: "k", TraceParent: "tp", NexusID: "n"}
	var got topics.Meta
	for _, h := range want.Headers() {
		got.Set(h.Key, h.Value)
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestIdentity(t *testing.T) {
	id := func(key string, m topics.Meta) topics.Identity {
		i, ok := m.Identity([]byte(key))
		if !ok {
			t.Fatalf("%q %+v has no identity", key, m)
		}
		return i
	}
	base := topics.Meta{Type: "message", Source: "/users/a", IdempotencyKey: "k"}
	if id("x", base) != id("x", topics.Meta{Type: "message", Source: "/users/a", ID: "k"}) {
		t.Error("ce_id does not stand in for the idempotency key")
	}
	if id("x", base) != id("x", topics.Meta{Type: "message", Source: "/users/a", IdempotencyKey: "k", ID: "other"}) {
		t.Error("ce_id counts although there is an idempotency key")
	}
	for _, other := range []topics.Meta{{Type: "activity", Source: "/users/a", IdempotencyKey: "k"},
		{Type: "message", Source: "/users/b", IdempotencyKey: "k"},
		{Type: "message", Source: "/users/a", IdempotencyKey: "l"}, {Type: "messag", Source: "e/users/a", IdempotencyKey: "k"}} {
		if id("x", base) == id("x", other) {
			t.Errorf("%+v has the identity of %+v", other, base)
		}
	}
	if id("x", base) == id("y", base) {
		t.Error("the key does not count")
	}
	if _, ok := (&topics.Meta{Type: "message"}).Identity([]byte("x")); ok {
		t.Error("a record without key and ce_id has an identity")
	}
	// Golden: ids of events stay what they are for ever.
	if got := topics.EventID("dm:a:b", "message", "/users/a", "1"); got != "2e73a2c3-8a87-8e6d-b781-a466fa4fa172" {
		t.Errorf("EventID = %s: ids of stored events would change", got)
		if got[14] != '8' || !strings.ContainsRune("89ab", rune(got[19])) {
			t.Errorf("EventID = %s is no UUIDv8", got)
		}
	}
}

const good = `{"title":"t","body":"b","type":"SYSTEM"}`

func event(topic topics.Topic, key, typ, value string) *topics.Event {
	return &topics.Event{Topic: topic, Key: []byte(key), Value: []byte(value), Meta: topics.Meta{Type: typ}, Partition: 3, Offset: 42,
		Time: 1764583200000}
}

// by gives an event its ce_source.
func by(source string, e *topics.Event) *topics.Event {
	e.Source = source
	return e
}

func TestValid(t *testing.T) {
	deep := strings.Repeat("[", 63) + strings.Repeat("]", 63)
	for name, tc := range map[string]struct {
		e    *topics.Event
		want string // part of the error; empty: valid
	}{
		"notification":         {event(topics.Notifications, "user:a", "notification", good), ""},
		"default type":         {event(topics.Notifications, "user:a", "", good), ""},
		"default announcement": {event(topics.Broadcasts, "all", "", `{"title":"t","body":"b"}`), ""},
		"default channel":      {event(topics.Broadcasts, "channel:c", "", good), ""},
		"whitespace around":    {event(topics.Notifications, "user:a", "", " \n"+good+"\t"), ""},
		"all fields": {event(topics.Notifications, "user:a", "",
			`{"title":"t","body":"","type":"MESSAGE","priority":"high","data":{"a":[1,-2.5e3,null,true]},"icon":"i","badge":"b","timestamp":"2025-12-01T10:00:00.000Z"}`), ""},
		"message": {by("/users/b", event(topics.Messages, "dm:a:b", "message", `{"senderId":"b","receiverId":"a","content":"x"}`)),
			""},
		"activity":            {event(topics.Notifications, "user:a", "activity", `{"type":"x","userId":"b","message":"m"}`), ""},
		"escapes":             {event(topics.Notifications, "user:a", "", `{"title":"\u00e9\ud83d\ude00\n","body":"b","type":"SYSTEM"}`), ""},
		"escaped member name": {event(topics.Notifications, "user:a", "", `{"t\u0069tle":"t","body":"b","type":"SYSTEM"}`), ""},
		"depth 64": {event(topics.Notifications, "user:a", "",
			`{"title":"t","body":"b","type":"SYSTEM","data":{"a":`+strings.Repeat("[", 62)+strings.Repeat("]", 62)+`}}`), ""},
		"depth 65": {event(topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","data":{"a":`+deep+`}}`),
			"nested"},
		"no key":                 {event(topics.Notifications, "", "", good), "key"},
		"wrong key":              {event(topics.Notifications, "alice", "", good), "key"},
		"channel in wrong topic": {event(topics.Notifications, "channel:c", "", good), "key"},
		"user in broadcasts":     {event(topics.Broadcasts, "user:a", "notification", good), "key"},
		"unknown type":           {event(topics.Notifications, "user:a", "nonsense", good), "ce_type"},
		"type of another topic": {event(topics.Notifications, "dm:a:b", "message", `{"senderId":"b","receiverId":"a","content":"x"}`),
			"ce_type"},
		"null value":        {&topics.Event{Topic: topics.Notifications, Key: []byte("user:a")}, "JSON object"},
		"array":             {event(topics.Notifications, "user:a", "", `[]`), "JSON object"},
		"garbage":           {event(topics.Notifications, "user:a", "", `garbage`), "JSON object"},
		"trailing":          {event(topics.Notifications, "user:a", "", good+"{}"), "follow"},
		"truncated":         {event(topics.Notifications, "user:a", "", good[:len(good)-1]), "brace"},
		"not UTF-8":         {event(topics.Notifications, "user:a", "", "{\"title\":\"\xff\",\"body\":\"b\",\"type\":\"SYSTEM\"}"), "UTF-8"},
		"duplicate member":  {event(topics.Notifications, "user:a", "", `{"title":"t","title":"u","body":"b","type":"SYSTEM"}`), "twice"},
		"duplicate by case": {event(topics.Notifications, "user:a", "", `{"title":"t","Title":"u","body":"b","type":"SYSTEM"}`), "twice"},
		"duplicate by fold": {event(topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","data":{"k":1,"\u212a":2}}`),
			"twice"},
		"duplicate escaped": {event(topics.Notifications, "user:a", "", `{"title":"t","t\u0069tle":"u","body":"b","type":"SYSTEM"}`), "twice"},
		"duplicate among many": {event(topics.Notifications, "user:a", "",
			`{"title":"t","body":"b","type":"SYSTEM","data":{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1,"k":1,"l":1,"m":1,"n":1,"o":1,"p":1,"q":1,"r":1,"A":2}}`), "twice"},
		"lone surrogate": {event(topics.Notifications, "user:a", "", `{"title":"\ud800","body":"b","type":"SYSTEM"}`), "surrogate"},
		"low surrogate":  {event(topics.Notifications, "user:a", "", `{"title":"\udc00x","body":"b","type":"SYSTEM"}`), "surrogate"},
		"U+0000":         {event(topics.Notifications, "user:a", "", `{"title":"\u0000","body":"b","type":"SYSTEM"}`), "U+0000"},
		"raw U+0000":     {event(topics.Notifications, "user:a", "", "{\"title\":\"\x00\",\"body\":\"b\",\"type\":\"SYSTEM\"}"), "U+0000"},
		"number beyond": {event(topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","data":{"n":1e999}}`),
			"float64"},
		"long number beyond": {event(topics.Notifications, "user:a", "",
			`{"title":"t","body":"b","type":"SYSTEM","data":{"n":1`+strings.Repeat("0", 400)+`}}`), "float64"},
		"leading zero": {event(topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","data":{"n":01}}`),
			"invalid JSON"},
		"unknown field": {event(topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","extra":1}`),
			"put it in data"},
		"field of wrong case": {event(topics.Notifications, "user:a", "", `{"Title":"t","body":"b","type":"SYSTEM"}`), "put it in data"},
		"missing field":       {event(topics.Notifications, "user:a", "", `{"title":"t","type":"SYSTEM"}`), "body"},
		"wrong kind":          {event(topics.Notifications, "user:a", "", `{"title":1,"body":"b","type":"SYSTEM"}`), "a string"},
		"data no object":      {event(topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","data":[]}`), "an object"},
		"ninth type":          {event(topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"OTHER"}`), "one of MESSAGE"},
		"priority": {event(topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","priority":"urgent"}`),
			"low, normal, high"},
		"activity type length": {event(topics.Notifications, "user:a", "activity",
			`{"type":"`+strings.Repeat("x", 65)+`","userId":"b","message":"m"}`), "64"},
		"foreign id":          {event(topics.Notifications, "user:a", "", `{"id":"1","title":"t","body":"b","type":"SYSTEM"}`), "top-level id"},
		"not the key's users": {event(topics.Messages, "dm:a:b", "message", `{"senderId":"c","receiverId":"a","content":"x"}`), "key"},
		"both contents": {event(topics.Messages, "dm:a:b", "message", `{"senderId":"b","receiverId":"a","content":"x","encrypted":"y"}`),
			"either"},
		"read by a stranger": {event(topics.Messages, "dm:a:b", "message.read", `{"messageId":"1","userId":"c"}`), "userId"},
		"timestamp": {event(topics.Notifications, "user:a", "", `{"title":"t","body":"b","type":"SYSTEM","timestamp":"yesterday"}`),
			"RFC 3339"},
		"both targets": {event(topics.Notifications, "user:a", "notification.read", `{"notificationId":"1","upTo":"2025-12-01T10:00:00.000Z"}`),
			"either"},
		"too large": {event(topics.Notifications, "user:a", "", `{"title":"t","body":"`+strings.Repeat("x",
			topics.MaxValue)+`","type":"SYSTEM"}`), "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			err := topics.Valid(tc.e)
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// What an outsider can forge of an id: both the header and the value. It must never be the id of another event.
func TestForeignIDs(t *testing.T) {
	named := topics.EventID("user:a", "notification", "shop", "order-7")
	random := topics.NewID()
	value := func(id string) string { return `{"id":"` + id + `","title":"t","body":"b","type":"SYSTEM"}` }
	for name, tc := range map[string]struct {
		key, value string
		m          topics.Meta
		want       string // part of the error; empty: valid
	}{
		"named, as REST mints it": {"user:a", value(named), topics.Meta{Source: "shop", IdempotencyKey: "order-7", ID: named,
			NexusID: named}, ""},
		"a CloudEvent by REST":      {"user:a", value(named), topics.Meta{Source: "shop", ID: "order-7", NexusID: named}, ""},
		"unnamed, as REST mints it": {"user:a", value(random), topics.Meta{Source: "/users/x", ID: random, NexusID: random}, ""},
		"without the header":        {"user:a", value(random), topics.Meta{ID: random}, "top-level id"},
		"without the value's id":    {"user:a", good, topics.Meta{ID: random, NexusID: random}, "differ"},
		"another id in the value":   {"user:a", value(topics.NewID()), topics.Meta{ID: random, NexusID: random}, "differ"},
		"of another name": {"user:a", value(named), topics.Meta{Source: "shop", IdempotencyKey: "order-8", ID: named,
			NexusID: named}, "not this event's"},
		"of another name, as ce_id": {"user:a", value(named), topics.Meta{Source: "shop", ID: named, NexusID: named}, "not this event's"},
		"of another source": {"user:a", value(named), topics.Meta{Source: "bank", IdempotencyKey: "order-7", NexusID: named},
			"not this event's"},
		"of another user": {"user:b", value(named), topics.Meta{Source: "shop", IdempotencyKey: "order-7", NexusID: named},
			"not this event's"},
		"a place in the log":          {"user:a", value("n3-42"), topics.Meta{ID: "n3-42", NexusID: "n3-42"}, "not this event's"},
		"a random one beside a ce_id": {"user:a", value(random), topics.Meta{ID: "1", NexusID: random}, "not this event's"},
		"a random one in another form": {"user:a", value(strings.ToUpper(random)),
			topics.Meta{ID: strings.ToUpper(random), NexusID: strings.ToUpper(random)}, "not this event's"},
		"free text": {"user:a", value("1"), topics.Meta{ID: "1", NexusID: "1"}, "not this event's"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.m.Type = topics.TypeNotification
			e := &topics.Event{Topic: topics.Notifications, Key: []byte(tc.key), Meta: tc.m, Value: []byte(tc.value)}
			refused(t, e, tc.want, topics.ReasonID)
		})
	}
}

// refused checks the verdict: text is part of the error, none means valid.
func refused(t *testing.T, e *topics.Event, text string, reason topics.Reason) {
	t.Helper()
	err := topics.Valid(e)
	if text == "" {
		if err != nil {
			t.Errorf("got %q, want no error", err)
		}
		return
	}
	var r *topics.Refusal
	if !errors.As(err, &r) || !strings.Contains(err.Error(), text) || r.Reason != reason {
		t.Errorf("got %#v, want an error with %q for reason %s", err, text, reason)
	}
}

// Who may speak for whom, in every topic: the right ce_source, none, another user's, another node's.
func TestSenders(t *testing.T) {
	node := `"node":"n1"`
	session := `{"session":"s",` + node + `,"name":"x","userId":"a","namespace":"/ws"}`
	delivery := `{"event":"notification","topic":"notifications","partition":0,"offset":1}`
	wrong := map[string]string{"none": "", "another user": "/users/c", "another node": "/nodes/n2", "a part of the name": "/users/",
		"a fragment": "/users/a#b", "a service": "shop"}
	for name, tc := range map[string]struct {
		topic           topics.Topic
		key, typ, value string
		right           []string // nil: anybody
		but             []string // of wrong, what is right here all the same
	}{
		"message": {topics.Messages, "dm:a:b", topics.TypeMessage, `{"senderId":"a","receiverId":"b","content":"x"}`,
			[]string{"/users/a"}, nil},
		"message of the other": {topics.Messages, "dm:a:b", topics.TypeMessage, `{"senderId":"b","receiverId":"a","content":"x"}`,
			[]string{"/users/b"}, nil},
		"a user with a hash": {topics.Messages, "dm:a#b:b", topics.TypeMessage, `{"senderId":"a#b","receiverId":"b","content":"x"}`,
			[]string{"/users/a#b"}, []string{"a fragment"}},
		"message.read": {topics.Messages, "dm:a:b", topics.TypeMessageRead, `{"messageId":"1","userId":"a"}`, []string{"/users/a"}, nil},
		"typing":       {topics.Signals, "dm:a:b", topics.TypeTypingStart, `{"userId":"a","isTyping":true}`, []string{"/users/a"}, nil},
		"typing.stop":  {topics.Signals, "dm:a:b", topics.TypeTypingStop, `{"userId":"a","isTyping":false}`, []string{"/users/a"}, nil},
		"notification.read": {topics.Notifications, "user:a", topics.TypeNotificationRead, `{"notificationId":"1"}`, []string{"/users/a"},
			nil},
		"notification.deleted": {topics.Notifications, "user:a", topics.TypeNotificationDeleted, `{"notificationId":"1"}`, []string{"/users/a"},
			nil},
		"device.registered": {topics.Devices, "user:a", topics.TypeDeviceRegistered, `{"token":"t"}`, []string{"/users/a"}, nil},
		"device.unregistered": {topics.Devices, "user:a", topics.TypeDeviceUnregistered, `{}`, []string{"/users/a", "/nodes/n1"},
			[]string{"another node"}},
		"session.revoked": {topics.Control, "user:a", topics.TypeSessionRevoked, `{}`, []string{"/users/admin"},
			[]string{"another user", "a fragment"}},
		"key.published": {topics.Control, "user:a", topics.TypeKeyPublished, `{"deviceId":"d","identityKey":"k"}`, []string{"/users/a"},
			nil},
		"key.taken": {topics.Control, "user:a", topics.TypeKeyTaken, `{"deviceId":"d","prekeyId":"k","by":"b"}`, []string{"/users/b"},
			nil},
		"node.heartbeat":   {topics.Presence, "n1", topics.TypeNodeHeartbeat, `{` + node + `,"name":"x"}`, []string{"/nodes/n1"}, nil},
		"connected":        {topics.Presence, "s", topics.TypeConnected, session, []string{"/nodes/n1"}, nil},
		"disconnected":     {topics.Presence, "s", topics.TypeDisconnected, session, []string{"/nodes/n1"}, nil},
		"session.channels": {topics.Presence, "s", topics.TypeSessionChannels, session, []string{"/nodes/n1"}, nil},
		"delivery.websocket": {topics.Deliveries, "user:a", topics.TypeDeliveryWebSocket, delivery, []string{"/nodes/n1"},
			[]string{"another node"}},
		"delivery.push": {topics.Deliveries, "user:a", topics.TypeDeliveryPush, delivery, []string{"/nodes/n1"}, []string{"another node"}},
		"notification":  {topics.Notifications, "user:a", topics.TypeNotification, good, nil, nil},
		"activity":      {topics.Notifications, "user:a", topics.TypeActivity, `{"type":"x","userId":"b","message":"m"}`, nil, nil},
		"announcement":  {topics.Broadcasts, "all", topics.TypeAnnouncement, `{"title":"t","body":"b"}`, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for _, source := range tc.right {
				refused(t, by(source, event(tc.topic, tc.key, tc.typ, tc.value)), "", "")
			}
			for what, source := range wrong {
				text := "ce_source"
				if tc.right == nil || slices.Contains(tc.but, what) {
					text = ""
				}
				t.Run(what, func(t *testing.T) {
					refused(t, by(source, event(tc.topic, tc.key, tc.typ, tc.value)), text, topics.ReasonSender)
				})
			}
		})
	}
}

func TestHeadersAreJudged(t *testing.T) {
	long := strings.Repeat("x", 2048+256)
	for name, tc := range map[string]struct {
		m      topics.Meta
		want   string
		reason topics.Reason
	}{
		"all": {topics.Meta{ID: "1", Source: "shop", Time: "2025-12-01T10:00:00Z", ContentType: "application/json",
			IdempotencyKey: "k"}, "", ""},
		"as long as may be":         {topics.Meta{ID: long, Source: long, IdempotencyKey: long}, "", ""},
		"a long idempotency-key":    {topics.Meta{IdempotencyKey: long + "x"}, "idempotency-key has 2305 bytes", topics.ReasonHeader},
		"a long ce_id":              {topics.Meta{ID: strings.Repeat("x", 200_000)}, "ce_id has 200000 bytes", topics.ReasonHeader},
		"a long ce_source":          {topics.Meta{Source: long + "x"}, "ce_source", topics.ReasonHeader},
		"a ce_id that is not UTF-8": {topics.Meta{ID: "\xff"}, "UTF-8", topics.ReasonHeader},
		"a source with U+0000":      {topics.Meta{Source: "a\x00b"}, "U+0000", topics.ReasonHeader},
		"a ce_time that is none":    {topics.Meta{Time: "yesterday"}, "ce_time must be an RFC 3339", topics.ReasonHeader},
		"structured": {topics.Meta{ContentType: "application/cloudevents+json; charset=UTF-8"}, "binary mode",
			topics.ReasonStructured},
		"structured, in other case":  {topics.Meta{ContentType: "Application/CloudEvents+JSON"}, "binary mode", topics.ReasonStructured},
		"a batch":                    {topics.Meta{ContentType: "application/cloudevents-batch+json"}, "binary mode", topics.ReasonStructured},
		"a content-type that begins": {topics.Meta{ContentType: "application/cloud"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			tc.m.Type = topics.TypeNotification
			refused(t, &topics.Event{Topic: topics.Notifications, Key: []byte("user:a"), Meta: tc.m, Value: []byte(good)}, tc.want, tc.reason)
		})
	}
}

// Every refusal has one of the reasons: they are a metric's label.
func TestReasons(t *testing.T) {
	for reason, e := range map[topics.Reason]*topics.Event{
		topics.ReasonType:  event(topics.Notifications, "user:a", "nonsense", good),
		topics.ReasonKey:   event(topics.Notifications, "alice", "", good),
		topics.ReasonSize:  event(topics.Notifications, "user:a", "", strings.Repeat("x", topics.MaxValue+1)),
		topics.ReasonJSON:  event(topics.Notifications, "user:a", "", "garbage"),
		topics.ReasonField: event(topics.Notifications, "user:a", "", `{"title":"t","type":"SYSTEM"}`),
	} {
		var r *topics.Refusal
		if err := topics.Valid(e); !errors.As(err, &r) || r.Reason != reason {
			t.Errorf("got %#v, want reason %s", err, reason)
		}
	}
}

// Golden: what clients receive of a record.
func TestData(t *testing.T) {
	for _, tc := range []struct {
		e    *topics.Event
		want string
	}{
		{event(topics.Notifications, "user:a", "", ` {"title":"t","body":"b","type":"SYSTEM" } `),
			`{"title":"t","body":"b","type":"SYSTEM" ,"id":"n3-42","priority":"normal","data":{},"timestamp":"2025-12-01T10:00:00.000Z"}`},
		{event(topics.Notifications, "user:a", "",
			`{"title":"t","body":"b","type":"SYSTEM","priority":"low","data":{"x":1},"timestamp":"2020-01-01T00:00:00.000Z"}`),
			`{"title":"t","body":"b","type":"SYSTEM","priority":"low","data":{"x":1},"timestamp":"2020-01-01T00:00:00.000Z","id":"n3-42"}`},
		{event(topics.Broadcasts, "all", "", `{"title":"t","body":"b"}`),
			`{"title":"t","body":"b","id":"b3-42","timestamp":"2025-12-01T10:00:00.000Z"}`},
		{by("/users/a", event(topics.Signals, "dm:a:b", "typing.start", `{"userId":"a","isTyping":true}`)),
			`{"userId":"a","isTyping":true,"timestamp":"2025-12-01T10:00:00.000Z"}`},
	} {
		if err := topics.Valid(tc.e); err != nil {
			t.Fatal(err)
		}
		if got := string(tc.e.Data()); got != tc.want {
			t.Errorf("Data = %s\nwant   %s", got, tc.want)
		}
	}
}

func TestDraft(t *testing.T) {
	d := topics.Draft{ReceiverID: "a", Content: "<hi> & \u2028", ClientMessageID: "c1"}
	e := d.Message("b", "")
	if err := topics.Valid(e); err != nil {
		t.Fatal(err)
	}
	if string(e.Key) != "dm:a:b" || e.Source != "/users/b" || !strings.Contains(string(e.Value), `"id":"`+e.EventID()+`"`) {
		t.Errorf("got %s %+v", e.Key, e.Meta)
	}
	if again := d.Message("b", ""); again.NexusID != e.NexusID {
		t.Error("the id of a named message changes")
	}
	d.ClientMessageID = ""
	first, second := d.Message("b", ""), d.Message("b", "")
	if first.NexusID == second.NexusID || first.IdempotencyKey != second.IdempotencyKey {
		t.Error("copies without an id must differ in their ids and agree in their keys")
	}
	if third := d.Message("b", first.NexusID); third.NexusID != first.NexusID {
		t.Error("a copy does not carry the first one's id")
	}
}

func FuzzValid(f *testing.F) {
	f.Add("user:a", "", "", "", "", []byte(good))
	f.Add("dm:a:b", "message", "/users/b", "", "", []byte(`{"senderId":"b","receiverId":"a","content":"\ud83d\ude00"}`))
	f.Add("all", "announcement", "shop", "1", "", []byte(`{"title":"t","body":"b","x":{"a":[1e5,{}]}}`))
	f.Add("user:a", "device.unregistered", "/nodes/n", "1", "", []byte(`{}`))
	f.Add("user:a", "notification", "", "1", "1", []byte(`{"id":"1","title":"t","body":"b","type":"SYSTEM"}`))
	id := "0192c7f0-1c6b-7b1e-8f3a-5d1f0c2b3a4d"
	f.Add("user:a", "notification", "/users/a", id, id, []byte(`{"id":"`+id+`","title":"t","body":"b","type":"SYSTEM"}`))
	f.Fuzz(func(t *testing.T, key, typ, source, id, nexusID string, value []byte) {
		for _, s := range topics.Specs() {
			e := event(s.Topic, key, typ, string(value))
			e.Source, e.ID, e.NexusID = source, id, nexusID
			if err := topics.Valid(e); err != nil {
				var r *topics.Refusal
				if !errors.As(err, &r) || r.Reason == "" {
					t.Fatalf("%q has no reason", err)
				}
				continue
			}
			// What is valid is JSON to others too, and stays so with what is spliced in.
			var m map[string]any
			if err := json.Unmarshal(value, &m); err != nil {
				t.Fatalf("valid, but encoding/json says %v", err)
			}
			if err := json.Unmarshal(e.Data(), &m); err != nil {
				t.Fatalf("Data is not JSON: %v", err)
			}
			if len(e.EventID()) > 64 {
				t.Fatalf("an id of %d bytes", len(e.EventID()))
			}
			// Whom a message speaks for stands in its source.
			if e.Type == topics.TypeMessage && source != topics.SourceOf(topics.ReadMessage(e).SenderID) {
				t.Fatalf("valid, but of %q", source)
			}
		}
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add("ce_type", []byte("message"))
	f.Fuzz(func(_ *testing.T, key string, value []byte) {
		var m topics.Meta
		m.Set(key, value)
		m.Identity([]byte(key))
		m.Headers()
	})
}

func BenchmarkValid(b *testing.B) {
	value := []byte(`{"title":"New Message","body":"John sent you a message","type":"MESSAGE","priority":"high","data":{"senderId":"sender-uuid"}}`)
	b.ReportAllocs()
	b.SetBytes(int64(len(value)))
	for b.Loop() {
		if err := topics.Valid(&topics.Event{Topic: topics.Notifications, Key: []byte("user:alice"), Value: value}); err != nil {
			b.Fatal(err)
		}
	}
}
