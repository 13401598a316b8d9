package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/presence"
	"github.com/nexus/nexus/topics"
)

// handle does what a client's event asks for.
func (e *Edge) handle(s *session, c command) {
	now := time.Now()
	e.metrics.frame(s, c.event)
	if e.draining.Load() {
		s.refuse(c, topics.Unavailable())
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
	case s.namespace == presence.Dashboard && c.event == "subscribe":
		e.subscribe(s, c)
	case s.namespace == presence.Dashboard && c.event == "unsubscribe":
		e.unsubscribe(s, c)
	case s.namespace == presence.Messaging && c.event == "sendMessage":
		e.sendMessage(s, c)
	case s.namespace == presence.Messaging && c.event == "typing":
		e.type_(s, c)
	case s.namespace == presence.Messaging && c.event == "markAsRead":
		e.markAsRead(s, c)
	default:
		s.refuse(c, &topics.Error{Code: topics.CodeUnknownEvent, Message: "there is no such event in " + string(s.namespace)})
	}
}

func rateLimited(wait time.Duration) *topics.Error {
	return &topics.Error{Code: topics.CodeRateLimited, Message: fmt.Sprintf("too many at once; try again in %s", wait.Round(time.Second)), RetryAfter: wait}
}

// read decodes a command's data into v, which says what is expected by example.
func read(c command, v any, example string) *topics.Error {
	if len(c.data) == 0 || c.data[0] != '{' || json.Unmarshal(c.data, v) != nil {
		return topics.Invalid("the data of " + strconv.Quote(c.event) + " must be like " + example)
	}
	return nil
}

func (e *Edge) authenticate(s *session, c command) {
	var data struct {
		Token string `json:"token"`
	}
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
	s.answer(c, topics.Fields("ok", true))
}

// subscription is the data of subscribe and unsubscribe.
type subscription struct {
	Channels []string `json:"channels"`
	Offset   string   `json:"offset"` // subscribe: what the channels had since then is sent first
}

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
		s.fail(topics.Invalid(fmt.Sprintf("%d of %d channels were refused; ask for an acknowledgement to see which", len(refused), len(data.Channels))))
	}
	if c.ack == "" && recovered == false {
		s.fail(&topics.Error{Code: topics.CodeNotFound, Message: "what the channels had since that offset cannot be given; they are subscribed from now on"})
	}
	e.subscribed(s, c, before, refused, recovered)
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
			refused = append(refused, refusal{name[:min(len(name), topics.MaxID)], topics.CodeInvalidPayload})
		case !s.mayJoin(name):
			refused = append(refused, refusal{name, topics.CodeForbidden})
		case !e.hub.subscribe(s, name):
			refused = append(refused, refusal{name, "too_many_channels"})
		case !slices.Contains(had, name) && !slices.Contains(joined, name):
			joined = append(joined, name)
		}
	}
	return joined, refused
}

func (e *Edge) sendMessage(s *session, c command) {
	var d topics.Draft
	if err := read(c, &d, `{"receiverId":"…","content":"…"}`); err != nil {
		s.refuse(c, err)
		return
	}
	e.trySend(s.user, d, func(r topics.Receipt, err error) {
		if err != nil {
			s.refuse(c, problem(err))
			return
		}
		s.succeed(c, r)
	})
}

// Send appends a chat message of sender and returns once this node has read it back from the log. Errors are
// *topics.Error.
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
		return topics.Receipt{}, topics.Unavailable()
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
		return nil, topics.Invalid("receiverId: " + err.Error())
	}
	if string(d.Encrypted) == "null" {
		d.Encrypted = nil
	}
	if len(d.Content)+len(d.Encrypted) > e.o.MaxContentBytes {
		return nil, &topics.Error{Code: topics.CodeTooLarge, Message: fmt.Sprintf("a message's content has at most %d bytes", e.o.MaxContentBytes)}
	}
	if (d.Content == "") == (len(d.Encrypted) == 0) {
		return nil, topics.Invalid("a message has either content or encrypted")
	}
	first := ""
	if d.ClientMessageID == "" {
		first = e.ids.first(topics.ConversationKey(sender, d.ReceiverID), d.ContentKey(sender), now)
	}
	ev := d.Message(sender, first)
	return ev, checked(ev)
}

func (e *Edge) type_(s *session, c command) {
	var data struct {
		ReceiverID string `json:"receiverId"`
		IsTyping   *bool  `json:"isTyping"`
	}
	err := read(c, &data, `{"receiverId":"…","isTyping":true}`)
	if err == nil && (data.IsTyping == nil || topics.CheckUserID(data.ReceiverID) != nil) {
		err = topics.Invalid("typing needs receiverId and isTyping")
	}
	if err != nil {
		s.refuse(c, err)
		return
	}
	typ := topics.TypingStop
	if *data.IsTyping {
		typ = topics.TypingStart
	}
	if e.typingShown(typingPair{s.user, data.ReceiverID}, *data.IsTyping) {
		s.answer(c, topics.Fields("ok", true))
		return
	}
	ev := topics.New(topics.Signals, topics.ConversationKey(s.user, data.ReceiverID),
		topics.Meta{Type: typ, Source: topics.SourceOf(s.user), ID: topics.NewID()},
		topics.Fields("userId", s.user, "isTyping", *data.IsTyping))
	e.o.Producer.TryAppend(ev, func(err error) {
		if err != nil {
			s.refuse(c, problem(err))
			return
		}
		s.succeed(c, topics.Receipt{ID: ev.ID})
	})
}

// typingEvery is how often typing.start is appended for a user who goes on typing: well within typingFor.
const typingEvery = 2 * time.Second

// typingShown tells that the log has had the same a moment ago; else it notes what is about to be appended.
func (e *Edge) typingShown(pair typingPair, on bool) bool {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	last, known := e.typed[pair]
	if on && known && now.Sub(last) < typingEvery {
		return true
	}
	if !on {
		delete(e.typed, pair)
		return false // a stop is rare, and must not be lost
	}
	e.typed[pair] = now
	return false
}

// lookupWait bounds how long a look-up by id waits for the projection.
const lookupWait = 2 * time.Second

func (e *Edge) markAsRead(s *session, c command) {
	var data struct {
		MessageID string `json:"messageId"`
	}
	if err := read(c, &data, `{"messageId":"…"}`); err != nil {
		s.refuse(c, err)
		return
	}
	ctx, cancel := e.requestContext()
	defer cancel()
	m, err := e.findMessage(ctx, s.user, data.MessageID)
	if err == nil && m.Receiver != s.user {
		err = inbox.ErrNotFound
	}
	switch {
	case errors.Is(err, inbox.ErrNotFound):
		s.refuse(c, topics.NotFound())
		return
	case err != nil:
		e.o.Logger.Warn("a message could not be looked up", "err", err)
		s.refuse(c, topics.Unavailable())
		return
	}
	ev := topics.New(topics.Messages, topics.ConversationKey(m.Sender, m.Receiver),
		topics.Meta{Type: topics.MessageRead, Source: topics.SourceOf(s.user), ID: topics.NewID(), IdempotencyKey: m.ID},
		topics.Fields("messageId", m.ID, "userId", s.user))
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
