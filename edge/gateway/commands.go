package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/nexus/nexus/edge/session"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/topics"
)

// handle does what a client says.
func (g *Gateway) handle(s *client, c command) {
	now := time.Now()
	g.metrics.frame(s.Namespace, c.event)
	if g.draining.Load() {
		s.refuse(&c, apierr.Unavailable())
		return
	}
	if s.Expired(now) && c.event != topics.CommandAuthenticate {
		s.refuse(&c, session.TokenExpired())
		return
	}
	if wait, ok := s.frames.Allow(now); !ok {
		s.refuse(&c, rateLimited(wait))
		return
	}
	var known bool
	if c.says, known = topics.CommandOf(s.Namespace, c.event); !known {
		s.refuse(&c, &apierr.Error{Code: apierr.CodeUnknownEvent, Message: "there is no such event in " + string(s.Namespace)})
		return
	}
	switch c.event {
	case topics.CommandAuthenticate:
		g.authenticate(s, &c)
	case topics.CommandSubscribe:
		g.subscribe(s, &c)
	case topics.CommandUnsubscribe:
		g.unsubscribe(s, &c)
	case topics.CommandSendMessage:
		g.sendMessage(s, &c)
	case topics.CommandTyping:
		g.type_(s, &c)
	case topics.CommandMarkAsRead:
		g.markAsRead(s, &c)
	}
}

// read decodes a command's data into v, a struct with the members of the command's fields; the error says by example what is
// expected, and names the members concerned. Members that are not known have no effect, since clients may be newer, and are told:
// with the acknowledgement, and with what else is wrong.
func read(c *command, v any) *apierr.Error {
	must := func() string { return "the data of " + strconv.Quote(c.event) + " must be like " + c.says.Example }
	if !onlyKnown(c.data, v) {
		var kind *json.UnmarshalTypeError
		err := json.Unmarshal(c.data, v)
		switch {
		case errors.As(err, &kind) && kind.Field != "":
			member := kind.Field[strings.LastIndexByte(kind.Field, '.')+1:] // without the name of an embedded struct
			return apierr.Invalid(must() + ": " + strconv.Quote(member) + " has another kind of value")
		case err != nil || c.data[0] != '{':
			return apierr.Invalid(must())
		}
		c.unknown = unknownMembers(c.data, c.says.Fields)
	}
	if missing := missingMembers(v, c.says.Fields); len(missing) > 0 {
		return apierr.Invalid(must() + ": missing or empty is " + quoted(missing))
	}
	return nil
}

// understands reads a command's data into v, or refuses the command.
func (s *client) understands(c *command, v any) bool {
	err := read(c, v)
	if err != nil {
		s.refuse(c, err)
	}
	return err == nil
}

// onlyKnown decodes an object into v; it reports false where something is wrong with it, or a member is not known.
func onlyKnown(data []byte, v any) bool {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return d.Decode(v) == nil && data[0] == '{'
}

func quoted(names []string) string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = strconv.Quote(name)
	}
	return strings.Join(out, ", ")
}

const (
	// maxUnknown bounds how many members a client is told that are not known.
	maxUnknown = 3
	// maxMember bounds the length of such a member's name, in bytes: what is longer may be content.
	maxMember = 32
	// maxLookedAt bounds the data that such members are looked for in, in bytes.
	maxLookedAt = 4096
)

// unknownMembers are the members of an object that no field is for. Only what looks like a name is told: an error quotes no contents.
func unknownMembers(object []byte, fields []topics.Field) (names []string) {
	if len(object) > maxLookedAt {
		return nil
	}
	var members map[string]json.RawMessage
	_ = json.Unmarshal(object, &members) // it was read already
	for name := range members {
		if !slices.ContainsFunc(fields, named(name)) && len(name) <= maxMember && !strings.ContainsFunc(name, notInNames) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names[:min(len(names), maxUnknown)]
}

// missingMembers are the fields that must be there, and that v has nothing of: they were left out, or are empty.
func missingMembers(v any, fields []topics.Field) (names []string) {
	of := reflect.ValueOf(v).Elem()
	for _, f := range fields {
		if f.Required && !hasMember(of, f.Name) {
			names = append(names, f.Name)
		}
	}
	return names
}

// hasMember tells whether a struct has a value for a member.
func hasMember(of reflect.Value, name string) bool {
	for i := range of.NumField() {
		if of.Type().Field(i).Tag.Get("json") == name {
			return !of.Field(i).IsZero()
		}
	}
	return false
}

// named tells whether a member is for a field: in any case, as encoding/json reads it.
func named(member string) func(topics.Field) bool {
	return func(f topics.Field) bool { return strings.EqualFold(f.Name, member) }
}

func notInNames(r rune) bool {
	return r != '_' && r != '-' && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
}

// spoken tells whether a client of any namespace may say this.
func spoken(event string) bool {
	return slices.ContainsFunc(topics.Commands(), func(c topics.Command) bool { return c.Event == event })
}

func (g *Gateway) authenticate(s *client, c *command) {
	var data topics.Authenticate
	if !s.understands(c, &data) {
		return
	}
	id, err := g.identify(s.User, data.Token)
	if err != nil {
		s.refuse(c, err)
		return
	}
	if err := g.o.Sessions.Renew(s.Session, id); err != nil {
		s.refuse(c, err)
		return
	}
	left := g.narrow(s)
	if len(left) > 0 && c.ack == "" {
		s.Fail(&apierr.Error{Code: apierr.CodeForbidden, Message: tellRefused(left)})
	}
	s.succeed(c, topics.AuthenticatedData(left))
}

// narrow ends the subscriptions that the session's latest token does not allow, and lists them: what an older token allowed
// ends with it.
func (g *Gateway) narrow(s *client) (left []topics.RefusedChannel) {
	for _, name := range g.o.Sessions.ChannelsOf(s.Session) {
		if !s.MayJoin(name) {
			g.o.Sessions.Unsubscribe(s.Session, name)
			left = append(left, topics.RefusedChannel{Channel: name, Code: apierr.CodeForbidden})
		}
	}
	if len(left) > 0 {
		g.o.Sessions.Say(s.Session)
	}
	return left
}

func (g *Gateway) subscribe(s *client, c *command) {
	var data topics.Subscription
	if !s.understands(c, &data) {
		return
	}
	var recovered *bool
	var refused []topics.RefusedChannel
	join := func() (joined []string) {
		joined, refused = g.join(s, data.Channels)
		return joined
	}
	if data.Offset == "" {
		join()
	} else {
		ok := g.o.Live.CatchUp(s.Session, data.Offset, join) == nil
		recovered = &ok
	}
	if c.ack == "" && len(refused) > 0 {
		s.Fail(apierr.Invalid(tellRefused(refused)))
	}
	if c.ack == "" && recovered != nil && !*recovered {
		s.Fail(&apierr.Error{Code: apierr.CodeNotFound, Message: "what the channels had since that offset " +
			"cannot be given; they are subscribed from now on"})
	}
	g.subscribed(s, c, refused, recovered)
}

// maxTold bounds how many channels an error names; the acknowledgement has them all.
const maxTold = 10

// tellRefused says which channels were refused, and why.
func tellRefused(refused []topics.RefusedChannel) string {
	told := make([]string, 0, maxTold)
	for _, r := range refused[:min(len(refused), maxTold)] {
		told = append(told, strconv.Quote(r.Channel)+" ("+r.Code+")")
	}
	text := "channels were refused: " + strings.Join(told, ", ")
	if more := len(refused) - len(told); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func (g *Gateway) unsubscribe(s *client, c *command) {
	var data topics.Unsubscription
	if !s.understands(c, &data) {
		return
	}
	for _, name := range data.Channels {
		g.o.Sessions.Unsubscribe(s.Session, name)
	}
	g.subscribed(s, c, nil, nil)
}

// subscribed answers with the session's channels, and tells the log where they have changed.
func (g *Gateway) subscribed(s *client, c *command, refused []topics.RefusedChannel, recovered *bool) {
	g.o.Sessions.Say(s.Session)
	s.succeed(c, topics.SubscribedData(g.o.Sessions.ChannelsOf(s.Session), refused, recovered))
}

// join subscribes a session to channels; joined are those that are new to it.
func (g *Gateway) join(s *client, names []string) (joined []string, refused []topics.RefusedChannel) {
	had := g.o.Sessions.ChannelsOf(s.Session)
	for _, name := range names {
		switch {
		case topics.CheckChannel(name) != nil:
			refused = append(refused, topics.RefusedChannel{Channel: strings.ToValidUTF8(name[:min(len(name), topics.MaxID)], ""),
				Code: apierr.CodeInvalidPayload})
		case !s.MayJoin(name):
			refused = append(refused, topics.RefusedChannel{Channel: name, Code: apierr.CodeForbidden})
		case !g.o.Sessions.Subscribe(s.Session, name):
			refused = append(refused, topics.RefusedChannel{Channel: name, Code: apierr.CodeTooManyChannels})
		case !slices.Contains(had, name) && !slices.Contains(joined, name):
			joined = append(joined, name)
		}
	}
	return joined, refused
}

func (g *Gateway) sendMessage(s *client, c *command) {
	var d topics.Draft
	if !s.understands(c, &d) {
		return
	}
	g.trySend(s.User, d, func(r topics.Receipt, err error) {
		if err != nil {
			s.refuse(c, problem(err))
			return
		}
		s.succeed(c, r.Data())
	})
}

// Send appends a chat message of sender and returns once this node has read it back from the log. Errors are
// *apierr.Error.
func (g *Gateway) Send(ctx context.Context, sender string, d topics.Draft) (topics.Receipt, error) {
	type outcome struct {
		r   topics.Receipt
		err error
	}
	c := make(chan outcome, 1)
	g.trySend(sender, d, func(r topics.Receipt, err error) { c <- outcome{r, err} })
	select {
	case o := <-c:
		if o.err != nil {
			return o.r, problem(o.err)
		}
		return o.r, nil
	case <-ctx.Done():
		return topics.Receipt{}, apierr.Unavailable()
	}
}

// trySend appends a chat message without blocking; done is called once, when the tail has judged the message.
func (g *Gateway) trySend(sender string, d topics.Draft, done func(topics.Receipt, error)) {
	now := time.Now()
	ev, err := g.draft(sender, d, now)
	if err != nil {
		done(topics.Receipt{}, err)
		return
	}
	if wait, ok := g.rates.allow(sender, now); !ok {
		done(topics.Receipt{}, rateLimited(wait))
		return
	}
	g.ids.note(ev)
	g.rates.own(ev.NexusID, now)
	g.tryAppend(ev, func(duplicate bool, err error) { done(topics.Receipt{ID: ev.NexusID, Duplicate: duplicate}, err) })
}

func (g *Gateway) draft(sender string, d topics.Draft, now time.Time) (*topics.Event, error) {
	if err := topics.CheckUserID(d.ReceiverID); err != nil {
		return nil, apierr.Invalid("receiverId: " + err.Error())
	}
	if string(d.Encrypted) == "null" {
		d.Encrypted = nil
	}
	if len(d.Content)+len(d.Encrypted) > g.o.MaxContentBytes {
		return nil, &apierr.Error{Code: apierr.CodeTooLarge, Message: fmt.Sprintf("a message's content has at most %d bytes",
			g.o.MaxContentBytes)}
	}
	if (d.Content == "") == (len(d.Encrypted) == 0) {
		return nil, apierr.Invalid("a message has either content or encrypted")
	}
	first := ""
	if d.ClientMessageID == "" {
		first = g.ids.first(topics.ConversationKey(sender, d.ReceiverID), d.ContentKey(sender), now)
	}
	ev := d.Message(sender, first)
	return ev, checked(ev)
}

func (g *Gateway) type_(s *client, c *command) {
	var data topics.TypingCommand
	if !s.understands(c, &data) {
		return
	}
	if err := topics.CheckUserID(data.ReceiverID); err != nil {
		s.refuse(c, apierr.Invalid("receiverId: "+err.Error()))
		return
	}
	g.typing.tell(typingPair{s.User, data.ReceiverID}, *data.IsTyping, func(id string, err error) {
		if err != nil {
			s.refuse(c, problem(err))
			return
		}
		s.succeed(c, topics.Receipt{ID: id}.Data())
	})
}

// lookupWait bounds how long a look-up by id waits for the projection.
const lookupWait = 2 * time.Second

// markAsRead appends that the user has read a message that it received, or all of a conversation up to a message, which
// may then be its own.
func (g *Gateway) markAsRead(s *client, c *command) {
	var data topics.MarkAsRead
	if !s.understands(c, &data) {
		return
	}
	ctx, cancel := g.requestContext()
	defer cancel()
	m, err := g.findMessage(ctx, s.User, data.MessageID)
	if err == nil && m.Receiver != s.User && !data.UpTo {
		err = inbox.ErrNotFound
	}
	switch {
	case errors.Is(err, inbox.ErrNotFound):
		s.refuse(c, apierr.NotFound("message"))
		return
	case err != nil:
		g.o.Logger.Warn("a message could not be looked up", "err", err)
		s.refuse(c, apierr.Unavailable())
		return
	}
	other := m.Sender
	if other == s.User {
		other = m.Receiver
	}
	ev := topics.MessageRead{MessageID: m.ID, UserID: s.User, UpTo: data.UpTo}.Event(other)
	g.tryAppend(ev, func(duplicate bool, err error) {
		if err != nil {
			s.refuse(c, problem(err))
			return
		}
		s.succeed(c, topics.Receipt{ID: m.ID, Duplicate: duplicate}.Data())
	})
}

// findMessage looks a message up; where it is not there yet it waits until the inbox has passed the tail's position.
func (g *Gateway) findMessage(ctx context.Context, user, id string) (inbox.Message, error) {
	ends := g.o.Tail.Next(topics.Messages)
	m, err := g.o.Inbox.Message(ctx, user, id)
	if !errors.Is(err, inbox.ErrNotFound) {
		return m, err
	}
	wait, cancel := context.WithTimeout(ctx, lookupWait)
	defer cancel()
	if err := g.o.Inbox.Await(wait, ends); err != nil {
		return m, err
	}
	return g.o.Inbox.Message(ctx, user, id)
}
