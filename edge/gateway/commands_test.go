package gateway

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/edge/session/sessiontest"
	"github.com/nexus/nexus/edge/wire/wiretest"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/topics"
)

// world is what a gateway needs beside sessions: a log that takes everything at once, an inbox with one message for bob, a live that
// shows nothing. It notes what was appended.
type world struct{ appended []string }

func (w *world) TryAppend(ev *topics.Event, done func(duplicate bool, err error)) {
	w.appended = append(w.appended, ev.Type)
	done(false, nil)
}
func (*world) Next(topics.Topic) topics.Ends { return nil }

// typed is the world as the log that typing is appended to.
type typed struct{ *world }

func (w typed) TryAppend(ev *topics.Event, done func(error)) {
	w.appended = append(w.appended, ev.Type)
	done(nil)
}

func (*world) Message(_ context.Context, _, id string) (inbox.Message, error) {
	if id != "m1" {
		return inbox.Message{}, inbox.ErrNotFound
	}
	return inbox.Message{ID: id, Sender: "alice", Receiver: "bob"}, nil
}
func (*world) Await(context.Context, topics.Ends) error { return nil }

func (*world) Greet(*session.Session, session.Comeback, func()) {}
func (*world) CatchUp(_ *session.Session, _ string, subscribe func() []string) error {
	subscribe()
	return nil
}

// newGateway makes a gateway to which a token is bob's, with the channels that it lists.
func newGateway(w *world) *Gateway {
	return New(Options{Sessions: sessiontest.New(), Live: w, Tail: w, Log: typed{w}, Inbox: w, Logger: slog.New(slog.DiscardHandler),
		Ready: func() bool { return true }, Working: context.Background(),
		RateLimit: 1000, RateWindow: time.Minute, ContentWindow: time.Minute, MaxContentBytes: 1 << 15,
		Verify: func(token string) (session.Identity, error) {
			return session.Identity{User: "bob", Channels: strings.Split(token, ","), Expires: time.Now().Add(time.Hour)}, nil
		}})
}

func join(g *Gateway, ns topics.Namespace, channels ...string) (*client, *wiretest.Recorder) {
	s, out := sessiontest.Join(g.o.Sessions, "bob", ns, channels...)
	return g.newClient(s), out
}

// say has a client say something, and returns what it was told since: with an acknowledgement asked for, and without.
func say(g *Gateway, s *client, out *wiretest.Recorder, event, data, ack string) string {
	before := len(out.Texts())
	g.handle(s, command{event: event, data: json.RawMessage(data), ack: ack})
	return strings.Join(out.Texts()[before:], " ")
}

// Every command, in every namespace that has it. Data as in its example is carried out. A member that is not known has no effect
// and is told with the acknowledgement. Where a member is missing, empty or of another kind nothing is carried out, and the error
// names it, those that are not known, and those that are. No content is repeated.
func TestCommandsNameTheirMembers(t *testing.T) {
	for _, c := range topics.Commands() {
		for _, ns := range c.Namespaces {
			t.Run(string(ns)[1:]+" "+c.Event, func(t *testing.T) {
				w := &world{}
				g := newGateway(w)
				s, out := join(g, ns)
				members := example(t, c)
				with := func(change func(m map[string]any)) string {
					m := make(map[string]any)
					maps.Copy(m, members)
					change(m)
					b, _ := json.Marshal(m)
					return string(b)
				}
				told := func(data string) string { return say(g, s, out, c.Event, data, "7") }
				if got := told(with(func(map[string]any) {})); strings.Contains(got, `"error"`) || strings.Contains(got, `"ignored"`) ||
					!strings.Contains(got, `"id":7`) {
					t.Errorf("its example is answered %s", got)
				}
				unknown := with(func(m map[string]any) { m["unheard"], m["later"], m["s3cret words"] = 1, 2, 3 })
				if got := told(unknown); strings.Contains(got, `"error"`) || !strings.Contains(got, `"ignored":["later","unheard"]`) {
					t.Errorf("unknown members are answered %s", got)
				}
				if got := say(g, s, out, c.Event, unknown, ""); got != "" {
					t.Errorf("unknown members without an acknowledgement: %s", got)
				}
				done := len(w.appended)
				for _, f := range c.Fields {
					quoted := strconv.Quote(f.Name)
					other := any([]int{7})
					if f.Kind == topics.AnArray {
						other = 7
					}
					wrong := with(func(m map[string]any) { m[f.Name] = other })
					if got := told(wrong); f.Kind != topics.Anything && !strings.Contains(got, jsonText(quoted+" has another kind of value")) {
						t.Errorf("%s of another kind is answered %s", f.Name, got)
					}
					if !f.Required {
						continue
					}
					for what, data := range map[string]string{"missing": with(func(m map[string]any) { delete(m, f.Name) }),
						"null": with(func(m map[string]any) { m[f.Name] = nil })} {
						want := jsonText("must be like " + c.Example + ": missing or empty is " + quoted)
						if got := told(data); !strings.Contains(got, `"invalid_payload"`) || !strings.Contains(got, want) {
							t.Errorf("%s %s is answered %s", f.Name, what, got)
						}
					}
					meant := with(func(m map[string]any) { delete(m, f.Name); m["meant"] = "s3cret" })
					for _, ack := range []string{"7", ""} {
						got := say(g, s, out, c.Event, meant, ack)
						if want := jsonText(`not known is "meant", known are ` + quotedNames(c.Fields)); !strings.Contains(got, want) ||
							strings.Contains(got, "s3cret") {
							t.Errorf("without %s, acknowledgement %q: %s; want …%s", f.Name, ack, got, want)
						}
					}
				}
				for _, data := range []string{`["a"]`, `null`, ``, `7`} {
					if got := told(data); !strings.Contains(got, jsonText("must be like "+c.Example)) {
						t.Errorf("%s is answered %s", data, got)
					}
				}
				if len(w.appended) != done && c.Event != topics.CommandSendMessage { // encrypted may be of any kind
					t.Errorf("what was refused was appended: %q", w.appended[done:])
				}
			})
		}
	}
}

// example is the example of a command; it may be repeated.
func example(t *testing.T, c topics.Command) (members map[string]any) {
	if err := json.Unmarshal([]byte(c.Example), &members); err != nil {
		t.Fatal(err)
	}
	if _, is := members["messageId"]; is {
		members["messageId"] = "m1"
	}
	return members
}

func jsonText(s string) string {
	b, _ := json.Marshal(s)
	return strings.TrimSuffix(strings.TrimPrefix(string(b), `"`), `"`)
}

func quotedNames(fields []topics.Field) string { return quoted(memberNames(fields)) }

// A message has content or encrypted, of which neither is required by itself: what was meant is told all the same.
func TestMessageWithoutContent(t *testing.T) {
	w := &world{}
	g := newGateway(w)
	s, out := join(g, topics.Messaging)
	got := say(g, s, out, topics.CommandSendMessage, `{"receiverId":"alice","text":"x"}`, "7")
	if !strings.Contains(got, "either content or encrypted") || !strings.Contains(got,
		jsonText(`not known is "text", known are "receiverId", "content", "encrypted", "clientMessageId"`)) || len(w.appended) != 0 {
		t.Errorf("answered %s, appended %q", got, w.appended)
	}
}

// A member that another command has is not known to this one; and large data is not searched for names.
func TestMembersOfOthers(t *testing.T) {
	w := &world{}
	g := newGateway(w)
	s, out := join(g, topics.Dashboard)
	if got := say(g, s, out, topics.CommandUnsubscribe, `{"channels":[],"offset":"x"}`, "7"); !strings.Contains(got, `"ignored":["offset"]`) {
		t.Errorf("unsubscribe with an offset is answered %s", got)
	}
	for size, want := range map[int]bool{maxLookedAt: true, maxLookedAt + 1: false} {
		data := `{"channels":[],"unheard":"` + strings.Repeat("x", size-len(`{"channels":[],"unheard":""}`)) + `"}`
		if got := say(g, s, out, topics.CommandUnsubscribe, data, "7"); strings.Contains(got, `"ignored":["unheard"]`) != want {
			t.Errorf("data of %d bytes is answered %s", len(data), got)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	says, _ := topics.CommandOf(topics.Messaging, topics.CommandSendMessage)
	data := []byte(`{"receiverId":"bob","content":"Hello, how are you today? I am fine.","clientMessageId":"0198f3a2-6c1d-7b3e-9a55-2f4c8d0e7b61"}`)
	b.ReportAllocs()
	for b.Loop() {
		var d topics.Draft
		if err := read(&command{event: says.Event, data: data, says: says}, &d); err != nil {
			b.Fatal(err)
		}
	}
}

// What a namespace does not know is refused, and a draining gateway carries out nothing.
func TestUnknownAndDraining(t *testing.T) {
	w := &world{}
	g := newGateway(w)
	s, out := join(g, topics.Messaging)
	if got := say(g, s, out, topics.CommandSubscribe, `{"channels":[]}`, "1"); !strings.Contains(got, apierr.CodeUnknownEvent) {
		t.Errorf("subscribe in %s is answered %s", topics.Messaging, got)
	}
	g.Shutdown()
	if got := say(g, s, out, topics.CommandSendMessage, `{"receiverId":"alice","content":"x"}`, "2"); !strings.Contains(got,
		`"retryable":true`) || len(w.appended) != 0 {
		t.Errorf("a draining gateway answers %s and appends %q", got, w.appended)
	}
}

// What an error says of refused channels is bounded.
func TestRefusedChannelsAreNamed(t *testing.T) {
	if got := tellRefused([]topics.RefusedChannel{{Channel: "a b", Code: apierr.CodeInvalidPayload}, {Channel: "news",
		Code: apierr.CodeForbidden}}); got != `channels were refused: "a b" (invalid_payload), "news" (forbidden)` {
		t.Error(got)
	}
	if got := tellRefused(make([]topics.RefusedChannel, 128)); !strings.HasSuffix(got, " and 118 more") {
		t.Error(got)
	}
}

// A token that allows fewer channels than the one before ends the other subscriptions, and the client is told.
func TestNarrowerTokenEndsSubscriptions(t *testing.T) {
	g := newGateway(&world{})
	s, out := join(g, topics.Dashboard)
	for _, name := range []string{"news", "board", "staff"} {
		g.o.Sessions.Subscribe(s.Session, name)
	}
	for n, step := range []struct{ token, ack string }{{"news,board", "1"}, {"news", ""}, {"news", "2"}} {
		if say(g, s, out, topics.CommandAuthenticate, `{"token":"`+step.token+`"}`, step.ack); len(out.Texts()) != n+1 {
			t.Fatalf("step %d: the client got %q", n, out.Texts())
		}
	}
	if now := g.o.Sessions.ChannelsOf(s.Session); !slices.Equal(now, []string{"news"}) {
		t.Errorf("the session still has %q", now)
	}
	texts := out.Texts()
	if !strings.Contains(texts[0], `"refused":[{"channel":"staff","code":"forbidden"}]`) ||
		!strings.Contains(texts[1], `channels were refused: \"board\" (forbidden)`) || strings.Contains(texts[2], `"channel"`) {
		t.Errorf("the client got %q", texts)
	}
}
