package edge

import (
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/topics"
)

// hub has this node's sessions, moves them through their life, and finds those that an event concerns: by user, by channel,
// by namespace.
type hub struct {
	sent *prometheus.CounterVec // by namespace and event

	mu         sync.RWMutex
	namespaces map[topics.Namespace]*set
	users      map[userIn]*set
	channels   map[string]*set
	byID       map[string]*session // those that have joined, and those that are about to
	coming     map[*session]bool   // those that are about to join
}

type userIn struct {
	namespace topics.Namespace
	user      string
}

func newHub(sent *prometheus.CounterVec) *hub {
	return &hub{sent: sent,
		namespaces: map[topics.Namespace]*set{topics.Dashboard: newSet(), topics.Messaging: newSet()},
		users:      make(map[userIn]*set), channels: make(map[string]*set), byID: make(map[string]*session),
		coming: make(map[*session]bool)}
}

// set is a set of sessions, quick to walk.
type set struct {
	list []*session
	at   map[*session]int
}

func newSet() *set { return &set{at: make(map[*session]int)} }

func (s *set) add(x *session) {
	if _, in := s.at[x]; !in {
		s.at[x] = len(s.list)
		s.list = append(s.list, x)
	}
}

func (s *set) remove(x *session) {
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
func (h *hub) expect(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.byID[s.id] = s
	h.coming[s] = true
}

// admit notes that the session has its slot; it reports false where the session has ended meanwhile.
func (h *hub) admit(s *session) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.life == lifeNew {
		s.life = lifeAdmitted
	}
	return s.life == lifeAdmitted
}

// join makes the session reachable, unless it has ended: then it reports false. first runs before any event can reach it.
func (h *hub) join(s *session, first func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.life == lifeGone {
		return false
	}
	first()
	s.life = lifeJoined
	delete(h.coming, s)
	h.namespaces[s.namespace].add(s)
	h.byID[s.id] = s
	u := userIn{s.namespace, s.user}
	if h.users[u] == nil {
		h.users[u] = newSet()
	}
	h.users[u].add(s)
	return true
}

// leave ends the session and tells where it stood; from the second call on it had ended.
func (h *hub) leave(s *session) (was life) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, s.life = s.life, lifeGone
	if was == lifeGone {
		return was
	}
	delete(h.byID, s.id)
	delete(h.coming, s)
	h.namespaces[s.namespace].remove(s)
	u := userIn{s.namespace, s.user}
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
func (h *hub) doom(s *session, d *doom, holds func() bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.doomed != nil || s.life == lifeGone || !holds() {
		return false
	}
	s.doomed = d
	return s.life == lifeJoined
}

// doomOf is why the session must end; nil: it need not.
func (h *hub) doomOf(s *session) *doom {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return s.doomed
}

// identify gives a session another identity, unless it must end; then it tells why.
func (h *hub) identify(s *session, id *Identity) *doom {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.doomed == nil {
		s.identity.Store(id)
	}
	return s.doomed
}

// maxChannels bounds the channels of one session.
const maxChannels = 128

// subscribe adds the session to a channel; it reports false where the session has too many.
func (h *hub) subscribe(s *session, name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.channels[name] || s.life == lifeGone {
		return true
	}
	if len(s.channels) >= maxChannels {
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

func (h *hub) unsubscribe(s *session, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.channels[name] {
		h.leaveChannel(s, name)
	}
}

func (h *hub) leaveChannel(s *session, name string) {
	delete(s.channels, name)
	if set := h.channels[name]; set != nil {
		if set.remove(s); len(set.list) == 0 {
			delete(h.channels, name)
		}
	}
}

// channelsOf lists a session's channels by name; never nil.
func (h *hub) channelsOf(s *session) []string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return s.channelNames()
}

// state hands over the session's pid and channels. They stay what they are while use has them, so that changes are used in
// their order.
func (h *hub) state(s *session, use func(session, pid string, channels []string)) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	use(s.id, s.pid, s.channelNames())
}

func (s *session) channelNames() []string {
	names := slices.AppendSeq(make([]string, 0, len(s.channels)), maps.Keys(s.channels))
	slices.Sort(names)
	return names
}

// renew gives the session another pid.
func (h *hub) renew(s *session, pid string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.pid = pid
}

// hasUser tells whether a user has sessions here.
func (h *hub) hasUser(ns topics.Namespace, user string) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.users[userIn{ns, user}] != nil
}

// concerns tells, by the audience alone, whether an event concerns any session here.
func (h *hub) concerns(a topics.Audience) bool {
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

// toUser, toChannel and toAll send a message within its namespace and tell to how many sessions.
func (h *hub) toUser(user string, m *message) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.send(h.users[userIn{m.namespace, user}], m)
}

func (h *hub) toChannel(name string, m *message) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.send(h.channels[name], m)
}

func (h *hub) toAll(m *message) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.send(h.namespaces[m.namespace], m)
}

// send sends to a set, which may be nil.
func (h *hub) send(set *set, m *message) int {
	if set == nil || len(set.list) == 0 {
		return 0
	}
	for _, s := range set.list {
		s.send(m)
	}
	h.sent.WithLabelValues(string(m.namespace), m.event).Add(float64(len(set.list)))
	return len(set.list)
}

// toOthers sends messages about users, users[i] being whom ms[i] is about, to every session of a namespace but that
// user's own. When many come at once each session still gets them as one piece.
func (h *hub) toOthers(ns topics.Namespace, ms []*message, users []string) {
	about := make(map[string]bool, len(users))
	for _, u := range users {
		about[u] = true
	}
	all := &joined{ms: ms}
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, s := range h.namespaces[ns].list {
		if about[s.user] {
			for i, m := range ms {
				if users[i] != s.user {
					s.send(m)
				}
			}
			continue
		}
		s.send(all)
	}
}

// sessions copies the list of all sessions.
func (h *hub) sessions() (out []*session) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, set := range h.namespaces {
		out = append(out, set.list...)
	}
	return out
}

// ofUser copies the list of a user's sessions, those that are about to join included.
func (h *hub) ofUser(user string) (out []*session) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for s := range h.coming {
		if s.user == user {
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
func (h *hub) in(ns topics.Namespace, user string) []*session {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if set := h.users[userIn{ns, user}]; set != nil {
		return slices.Clone(set.list)
	}
	return nil
}

// find finds a session by its id, wherever it is in its life.
func (h *hub) find(id string) *session {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.byID[id]
}

// dashboardUsers lists the users with sessions on the dashboard.
func (h *hub) dashboardUsers() (out []string) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for u := range h.users {
		if u.namespace == topics.Dashboard {
			out = append(out, u.user)
		}
	}
	return out
}
