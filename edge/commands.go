package edge

import (
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

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/topics"
)

// handle does what a client's event asks for.
func (e *Edge) handle(s *session, c command) {
	now := time.Now()
	e.metrics.frame(s, c.event)
	if e.draining.Load() {
		s.refuse(c, apierr.Unavailable())
		return
	}
	if s.expired(now) && c.event != "authenticate" {
		s.refuse(c, tokenExpired())
		return
	}
	if wait, ok := s.frames.allow(now); !ok {
		s.refuse(c, rateLimited(wait))
		return
	}
	switch {
	case c.event == "authenticate":
		e.authenticate(s, c)
	case s.namespace == topics.Dashboard && c.event == "subscribe":
		e.subscribe(s, c)
	case s.namespace == topics.Dashboard && c.event == "unsubscribe":
		e.unsubscribe(s, c)
	case s.namespace == topics.Messaging && c.event == "sendMessage":
		e.sendMessage(s, c)
	case s.namespace == topics.Messaging && c.event == "typing":
		e.type_(s, c)
	case s.namespace == topics.Messaging && c.event == "markAsRead":
		e.markAsRead(s, c)
	default:
		s.refuse(c, &apierr.Error{Code: apierr.CodeUnknownEvent, Message: "there is no such event in " + string(s.namespace)})
	}
}

func rateLimited(wait time.Duration) *apierr.Error {
	return &apierr.Error{Code: apierr.CodeRateLimited, Message: fmt.Sprintf("too many at once; try again in %s", wait.Round(time.Second)), RetryAfter: wait}
}

// payload is a command's data.
type payload interface {
	// missing names the members that must be there and are not, or are empty.
	missing() []string
}

// read decodes a command's data into v; the error says by example what is expected, and names the members concerned.
// Members that are not known are ignored, since clients may be newer, unless others are missing: then they are told,
// for they are most likely what was meant.
func read(c command, v payload, example string) *apierr.Error {
	must := "the data of " + strconv.Quote(c.event) + " must be like " + example
	var kind *json.UnmarshalTypeError
	err := json.Unmarshal(c.data, v)
	switch missing := v.missing(); {
	case errors.As(err, &kind) && kind.Field != "":
		member := kind.Field[strings.LastIndexByte(kind.Field, '.')+1:] // without the name of an embedded struct
		return apierr.Invalid(must + ": " + strconv.Quote(member) + " has another kind of value")
	case err != nil || c.data[0] != '{':
		return apierr.Invalid(must)
	case len(missing) > 0:
		must += ": missing or empty is " + quoted(missing)
		if unknown := unknownMembers(c.data, v); len(unknown) > 0 {
			must += "; not known is " + quoted(unknown)
		}
		return apierr.Invalid(must)
	}
	return nil
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

// unknownMembers are the members of an object that v has no field for. Only what looks like a name is told: an error
// quotes no contents.
func unknownMembers(object []byte, v any) (names []string) {
	if len(object) > maxLookedAt {
		return nil
	}
	var members map[string]json.RawMessage
	_ = json.Unmarshal(object, &members) // it was read already
	known := make(map[string]bool)
	for _, f := range reflect.VisibleFields(reflect.TypeOf(v).Elem()) {
		known[f.Tag.Get("json")] = true
	}
	for name := range members {
		if !known[name] && len(name) <= maxMember && !strings.ContainsFunc(name, notInNames) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names[:min(len(names), maxUnknown)]
}

func notInNames(r rune) bool {
	return r != '_' && r != '-' && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
}

// renewal is the data of authenticate.
type renewal struct {
	Token string `json:"token"`
}

func (r *renewal) missing() []string { return names("token", r.Token == "") }

// names is a list of name where that is missing.
func names(name string, missing bool) []string {
	if missing {
		return []string{name}
	}
	return nil
}

func (e *Edge) authenticate(s *session, c command) {
	var data renewal
	if err := read(c, &data, `{"token":"…"}`); err != nil {
		s.refuse(c, err)
		return
	}
	id, err := e.identify(s.user, data.Token)
	if err != nil {
		s.refuse(c, err)
		return
	}
	if err := e.renew(s, id); err != nil {
		s.refuse(c, err)
		return
	}
	var refused any
	if left := e.narrow(s); len(left) > 0 {
		refused = left
		if c.ack == "" {
			s.fail(&apierr.Error{Code: apierr.CodeForbidden, Message: tellRefused(left)})
		}
	}
	s.answer(c, topics.Fields("ok", true, "refused", refused))
}

// narrow ends the subscriptions that the session's latest token does not allow, and lists them: what an older token allowed
// ends with it.
func (e *Edge) narrow(s *session) (left []refusal) {
	for _, name := range e.hub.channelsOf(s) {
		if !s.mayJoin(name) {
			e.hub.unsubscribe(s, name)
			left = append(left, refusal{name, apierr.CodeForbidden})
		}
	}
	if len(left) > 0 {
		e.say(s)
	}
	return left
}

// subscription is the data of subscribe and unsubscribe.
type subscription struct {
	Channels []string `json:"channels"`
	Offset   string   `json:"offset"` // subscribe: what the channels had since then is sent first
}

func (d *subscription) missing() []string { return names("channels", d.Channels == nil) }

type refusal struct {
	Channel string `json:"channel"`
	Code    string `json:"code"`
}

func (e *Edge) subscribe(s *session, c command) {
	var data subscription
	if err := read(c, &data, `{"channels":["…"]}`); err != nil {
		s.refuse(c, err)
		return
	}
	var recovered any
	refused, before := []refusal{}, e.hub.channelsOf(s)
	join := func() (joined []string) {
		joined, refused = e.join(s, data.Channels)
		return joined
	}
	if data.Offset == "" {
		join()
	} else {
		recovered = e.catchUp(s, data.Offset, join) == nil
	}
	if c.ack == "" && len(refused) > 0 {
		s.fail(apierr.Invalid(tellRefused(refused)))
	}
	if c.ack == "" && recovered == false {
		s.fail(&apierr.Error{Code: apierr.CodeNotFound, Message: "what the channels had since that offset cannot be given; they are subscribed from now on"})
	}
	e.subscribed(s, c, before, refused, recovered)
}

// maxTold bounds how many channels an error names; the acknowledgement has them all.
const maxTold = 10

// tellRefused says which channels were refused, and why.
func tellRefused(refused []refusal) string {
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

func (e *Edge) unsubscribe(s *session, c command) {
	var data subscription
	if err := read(c, &data, `{"channels":["…"]}`); err != nil {
		s.refuse(c, err)
		return
	}
	before := e.hub.channelsOf(s)
	for _, name := range data.Channels {
		e.hub.unsubscribe(s, name)
	}
	e.subscribed(s, c, before, []refusal{}, nil)
}

// subscribed answers with the session's channels, and tells the log where they have changed.
func (e *Edge) subscribed(s *session, c command, before []string, refused []refusal, recovered any) {
	now := e.hub.channelsOf(s)
	if !slices.Equal(before, now) {
		e.say(s)
	}
	s.answer(c, topics.Fields("channels", now, "refused", refused, "recovered", recovered))
}

// join subscribes a session to channels; joined are those that are new to it.
func (e *Edge) join(s *session, names []string) (joined []string, refused []refusal) {
	refused = []refusal{}
	had := e.hub.channelsOf(s)
	for _, name := range names {
		switch {
		case topics.CheckChannel(name) != nil:
			refused = append(refused, refusal{strings.ToValidUTF8(name[:min(len(name), topics.MaxID)], ""), apierr.CodeInvalidPayload})
		case !s.mayJoin(name):
			refused = append(refused, refusal{name, apierr.CodeForbidden})
		case !e.hub.subscribe(s, name):
			refused = append(refused, refusal{name, "too_many_channels"})
		case !slices.Contains(had, name) && !slices.Contains(joined, name):
			joined = append(joined, name)
		}
	}
	return joined, refused
}

// draft is the data of sendMessage.
type draft struct{ topics.Draft }

func (d *draft) missing() []string {
	return slices.Concat(names("receiverId", d.ReceiverID == ""), names("content", d.Content == "" && len(d.Encrypted) == 0))
}

func (e *Edge) sendMessage(s *session, c command) {
	var d draft
	if err := read(c, &d, `{"receiverId":"…","content":"…"}`); err != nil {
		s.refuse(c, err)
		return
	}
	e.trySend(s.user, d.Draft, func(r topics.Receipt, err error) {
		if err != nil {
			s.refuse(c, problem(err))
			return
		}
		s.succeed(c, r)
	})
}

// Send appends a chat message of sender and returns once this node has read it back from the log. Errors are
// *apierr.Error.
func (e *Edge) Send(ctx context.Context, sender string, d topics.Draft) (topics.Receipt, error) {
	type outcome struct {
		r   topics.Receipt
		err error
	}
	c := make(chan outcome, 1)
	e.trySend(sender, d, func(r topics.Receipt, err error) { c <- outcome{r, err} })
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
func (e *Edge) trySend(sender string, d topics.Draft, done func(topics.Receipt, error)) {
	now := time.Now()
	ev, err := e.draft(sender, d, now)
	if err != nil {
		done(topics.Receipt{}, err)
		return
	}
	if wait, ok := e.rates.allow(sender, now); !ok {
		done(topics.Receipt{}, rateLimited(wait))
		return
	}
	e.ids.note(ev)
	e.rates.own(ev.NexusID, now)
	e.tryAppend(ev, func(duplicate bool, err error) { done(topics.Receipt{ID: ev.NexusID, Duplicate: duplicate}, err) })
}

func (e *Edge) draft(sender string, d topics.Draft, now time.Time) (*topics.Event, error) {
	if err := topics.CheckUserID(d.ReceiverID); err != nil {
		return nil, apierr.Invalid("receiverId: " + err.Error())
	}
	if string(d.Encrypted) == "null" {
		d.Encrypted = nil
	}
	if len(d.Content)+len(d.Encrypted) > e.o.MaxContentBytes {
		return nil, &apierr.Error{Code: apierr.CodeTooLarge, Message: fmt.Sprintf("a message's content has at most %d bytes", e.o.MaxContentBytes)}
	}
	if (d.Content == "") == (len(d.Encrypted) == 0) {
		return nil, apierr.Invalid("a message has either content or encrypted")
	}
	first := ""
	if d.ClientMessageID == "" {
		first = e.ids.first(topics.ConversationKey(sender, d.ReceiverID), d.ContentKey(sender), now)
	}
	ev := d.Message(sender, first)
	return ev, checked(ev)
}

// typist is the data of typing.
type typist struct {
	ReceiverID string `json:"receiverId"`
	IsTyping   *bool  `json:"isTyping"`
}

func (d *typist) missing() []string {
	return slices.Concat(names("receiverId", d.ReceiverID == ""), names("isTyping", d.IsTyping == nil))
}

func (e *Edge) type_(s *session, c command) {
	var data typist
	if err := read(c, &data, `{"receiverId":"…","isTyping":true}`); err != nil {
		s.refuse(c, err)
		return
	}
	if err := topics.CheckUserID(data.ReceiverID); err != nil {
		s.refuse(c, apierr.Invalid("receiverId: "+err.Error()))
		return
	}
	e.typing.tell(typingPair{s.user, data.ReceiverID}, *data.IsTyping, func(id string, err error) {
		if err != nil {
			s.refuse(c, problem(err))
			return
		}
		s.succeed(c, topics.Receipt{ID: id})
	})
}

// lookupWait bounds how long a look-up by id waits for the projection.
const lookupWait = 2 * time.Second

// receipt is the data of markAsRead.
type receipt struct {
	MessageID string `json:"messageId"`
	UpTo      bool   `json:"upTo"` // and all of the conversation before it
}

func (d *receipt) missing() []string { return names("messageId", d.MessageID == "") }

// markAsRead appends that the user has read a message that it received, or all of a conversation up to a message, which
// may then be its own.
func (e *Edge) markAsRead(s *session, c command) {
	var data receipt
	if err := read(c, &data, `{"messageId":"…"}`); err != nil {
		s.refuse(c, err)
		return
	}
	ctx, cancel := e.requestContext()
	defer cancel()
	m, err := e.findMessage(ctx, s.user, data.MessageID)
	if err == nil && m.Receiver != s.user && !data.UpTo {
		err = inbox.ErrNotFound
	}
	switch {
	case errors.Is(err, inbox.ErrNotFound):
		s.refuse(c, apierr.NotFound("message"))
		return
	case err != nil:
		e.o.Logger.Warn("a message could not be looked up", "err", err)
		s.refuse(c, apierr.Unavailable())
		return
	}
	identity, upTo := m.ID, any(nil)
	if data.UpTo {
		identity, upTo = "upTo:"+m.ID, true
	}
	ev := topics.New(topics.Messages, topics.ConversationKey(m.Sender, m.Receiver),
		topics.Meta{Type: topics.TypeMessageRead, Source: topics.SourceOf(s.user), ID: topics.NewID(), IdempotencyKey: identity},
		topics.Fields("messageId", m.ID, "userId", s.user, "upTo", upTo))
	e.tryAppend(ev, func(duplicate bool, err error) {
		if err != nil {
			s.refuse(c, problem(err))
			return
		}
		s.succeed(c, topics.Receipt{ID: m.ID, Duplicate: duplicate})
	})
}

// findMessage looks a message up; where it is not there yet it waits until the inbox has passed the tail's position.
func (e *Edge) findMessage(ctx context.Context, user, id string) (inbox.Message, error) {
	ends := e.tail.Next(topics.Messages)
	m, err := e.o.Inbox.Message(ctx, user, id)
	if !errors.Is(err, inbox.ErrNotFound) {
		return m, err
	}
	wait, cancel := context.WithTimeout(ctx, lookupWait)
	defer cancel()
	if err := e.o.Inbox.Await(wait, topics.Messages, ends); err != nil {
		return m, err
	}
	return e.o.Inbox.Message(ctx, user, id)
}
