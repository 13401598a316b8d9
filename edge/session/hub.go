package session

import (
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/edge/wire"
	"github.com/nexus/nexus/topics"
)

// Hub has this node's sessions, moves them through their life, and finds those that an event concerns: by user, by channel,
// by namespace.
type Hub struct {
	sent *prometheus.CounterVec // by namespace and event

	mu         sync.RWMutex
	namespaces map[topics.Namespace]*set
	users      map[userIn]*set
	channels   map[string]*set
	byID       map[string]*Session // those that have joined, and those that are about to
	coming     map[*Session]bool   // those that are about to join
}

type userIn struct {
	namespace topics.Namespace
	user      string
}

func newHub(sent *prometheus.CounterVec) *Hub {
	return &Hub{sent: sent,
		namespaces: map[topics.Namespace]*set{topics.Dashboard: newSet(), topics.Messaging: newSet()},
		users:      make(map[userIn]*set), channels: make(map[string]*set), byID: make(map[string]*Session),
		coming: make(map[*Session]bool)}
}

// set is a set of sessions, quick to walk.
type set struct {
	list []*Session
	at   map[*Session]int
}

func newSet() *set { return &set{at: make(map[*Session]int)} }

func (s *set) add(x *Session) {
	if _, in := s.at[x]; !in {
		s.at[x] = len(s.list)
		s.list = append(s.list, x)
	}
}

func (s *set) remove(x *Session) {
	i, in := s.at[x]
	if !in {
		return
	}
	last := len(s.list) - 1
	s.list[i] = s.list[last]
	s.at[s.list[i]] = i
	s.list[last] = nil
	s.list = s.list[:last]
	delete(s.at, x)
}

// expect has a session found by its id from now on; it asks for a slot.
func (h *Hub) expect(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.byID[s.ID] = s
	h.coming[s] = true
}

// admit notes that the session has its slot; it reports false where the session has ended meanwhile.
func (h *Hub) admit(s *Session) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.life == lifeNew {
		s.life = lifeAdmitted
	}
	return s.life == lifeAdmitted
}

// Join makes the session reachable, unless it has ended: then it reports false. first runs before any event can reach it.
func (h *Hub) Join(s *Session, first func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.life == lifeGone {
		return false
	}
	first()
	s.life = lifeJoined
	delete(h.coming, s)
	h.namespaces[s.Namespace].add(s)
	h.byID[s.ID] = s
	u := userIn{s.Namespace, s.User}
	if h.users[u] == nil {
		h.users[u] = newSet()
	}
	h.users[u].add(s)
	return true
}

// leave ends the session and tells where it stood; from the second call on it had ended.
func (h *Hub) leave(s *Session) (was life) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, s.life = s.life, lifeGone
	if was == lifeGone {
		return was
	}
	delete(h.byID, s.ID)
	delete(h.coming, s)
	h.namespaces[s.Namespace].remove(s)
	u := userIn{s.Namespace, s.User}
	if set := h.users[u]; set != nil {
		if set.remove(s); len(set.list) == 0 {
			delete(h.users, u)
		}
	}
	for name := range s.channels {
		h.leaveChannel(s, name)
	}
	return was
}

// doom has a session end for this reason, if it holds and is the first one; it reports whether the client can be told now.
// Else it is told when it joins.
func (h *Hub) doom(s *Session, d *doom, holds func() bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.doomed != nil || s.life == lifeGone || !holds() {
		return false
	}
	s.doomed = d
	return s.life == lifeJoined
}

// doomOf is why the session must end; nil: it need not.
func (h *Hub) doomOf(s *Session) *doom {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return s.doomed
}

// identify gives a session another identity, unless it must end; then it tells why.
func (h *Hub) identify(s *Session, id *Identity) *doom {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.doomed == nil {
		s.identity.Store(id)
	}
	return s.doomed
}

// Subscribe adds the session to a channel; it reports false where the session has too many.
func (h *Hub) Subscribe(s *Session, name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.channels[name] || s.life == lifeGone {
		return true
	}
	if len(s.channels) >= topics.MaxChannels {
		return false
	}
	if s.channels == nil {
		s.channels = make(map[string]bool)
	}
	s.channels[name] = true
	if h.channels[name] == nil {
		h.channels[name] = newSet()
	}
	h.channels[name].add(s)
	return true
}

// Unsubscribe takes the session out of a channel.
func (h *Hub) Unsubscribe(s *Session, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.channels[name] {
		h.leaveChannel(s, name)
	}
}

func (h *Hub) leaveChannel(s *Session, name string) {
	delete(s.channels, name)
	if set := h.channels[name]; set != nil {
		if set.remove(s); len(set.list) == 0 {
			delete(h.channels, name)
		}
	}
}

// ChannelsOf lists a session's channels by name; never nil.
func (h *Hub) ChannelsOf(s *Session) []string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return s.channelNames()
}

// state hands over the session's pid and channels. They stay what they are while use has them, so that changes are used in
// their order.
func (h *Hub) state(s *Session, use func(session, pid string, channels []string)) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	use(s.ID, s.pid, s.channelNames())
}

func (s *Session) channelNames() []string {
	names := slices.AppendSeq(make([]string, 0, len(s.channels)), maps.Keys(s.channels))
	slices.Sort(names)
	return names
}

// renew gives the session another pid.
func (h *Hub) renew(s *Session, pid string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.pid = pid
}

// HasUser tells whether a user has sessions here.
func (h *Hub) HasUser(ns topics.Namespace, user string) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.users[userIn{ns, user}] != nil
}

// Concerns tells, by the audience alone, whether an event concerns any session here.
func (h *Hub) Concerns(a topics.Audience) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	switch a.Kind {
	case topics.User:
		return h.users[userIn{topics.Dashboard, a.A}] != nil
	case topics.Conversation:
		for _, user := range [...]string{a.A, a.B} { // the dashboard shows how many messages there are
			if h.users[userIn{topics.Messaging, user}] != nil || h.users[userIn{topics.Dashboard, user}] != nil {
				return true
			}
		}
		return false
	case topics.Channel:
		return h.channels[a.A] != nil
	case topics.Everyone:
		return len(h.namespaces[topics.Dashboard].list) > 0
	}
	return false
}

// ToUser sends a message to a user's sessions in its namespace, and tells to how many.
func (h *Hub) ToUser(user string, m *wire.Message) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.send(h.users[userIn{m.Namespace, user}], m)
}

// ToChannel sends it to a channel's subscribers.
func (h *Hub) ToChannel(name string, m *wire.Message) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.send(h.channels[name], m)
}

// ToAll sends it to every session in its namespace.
func (h *Hub) ToAll(m *wire.Message) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.send(h.namespaces[m.Namespace], m)
}

// send sends to a set, which may be nil.
func (h *Hub) send(set *set, m *wire.Message) int {
	if set == nil || len(set.list) == 0 {
		return 0
	}
	for _, s := range set.list {
		s.Send(m)
	}
	h.sent.WithLabelValues(string(m.Namespace), m.Event).Add(float64(len(set.list)))
	return len(set.list)
}

// ToOthers sends messages about users, users[i] being whom ms[i] is about, to every session of a namespace but that
// user's own. When many come at once each session still gets them as one piece.
func (h *Hub) ToOthers(ns topics.Namespace, ms []*wire.Message, users []string) {
	about := make(map[string]bool, len(users))
	for _, u := range users {
		about[u] = true
	}
	all := &wire.Joined{Messages: ms}
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, s := range h.namespaces[ns].list {
		if about[s.User] {
			for i, m := range ms {
				if users[i] != s.User {
					s.Send(m)
				}
			}
			continue
		}
		s.Send(all)
	}
}

// Sessions copies the list of all sessions.
func (h *Hub) Sessions() (out []*Session) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, set := range h.namespaces {
		out = append(out, set.list...)
	}
	return out
}

// OfUser copies the list of a user's sessions, those that are about to join included.
func (h *Hub) OfUser(user string) (out []*Session) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for s := range h.coming {
		if s.User == user {
			out = append(out, s)
		}
	}
	for ns := range h.namespaces {
		if set := h.users[userIn{ns, user}]; set != nil {
			out = append(out, set.list...)
		}
	}
	return out
}

// in copies the list of a user's sessions that have joined a namespace.
func (h *Hub) in(ns topics.Namespace, user string) []*Session {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if set := h.users[userIn{ns, user}]; set != nil {
		return slices.Clone(set.list)
	}
	return nil
}

// find finds a session by its id, wherever it is in its life.
func (h *Hub) find(id string) *Session {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.byID[id]
}

// Users lists the users with sessions in a namespace.
func (h *Hub) Users(ns topics.Namespace) (out []string) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for u := range h.users {
		if u.namespace == ns {
			out = append(out, u.user)
		}
	}
	return out
}

// sizes are how many sessions have joined, and how many are about to.
func (h *Hub) sizes() (joined, coming int) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, set := range h.namespaces {
		joined += len(set.list)
	}
	return joined, len(h.coming)
}
