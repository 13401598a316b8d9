package topics

import (
	"errors"
	"fmt"
	"strings"
)

// rule says whose ce_source a record must have. It returns what a record of others is told.
type rule func(*Event) error

// senders are the rules by type. A type that is not here may be written by anybody who may write its topic: notification,
// activity and announcement, which product services append, and the log's own settings in control, of which only the first
// record counts. Kafka's ACLs say who may write a topic; these rules say whom a record may speak for. docs/events.md shows
// them to product engineers.
var senders = map[string]rule{
	TypeMessage:             byMember("senderId"),
	TypeMessageRead:         byMember("userId"),
	TypeTypingStart:         byMember("userId"),
	TypeTypingStop:          byMember("userId"),
	TypeNotificationRead:    byKeyUser,
	TypeNotificationDeleted: byKeyUser,
	TypeDeviceRegistered:    byKeyUser,
	TypeDeviceUnregistered:  either(byKeyUser, byNode), // a node removes a token that FCM knows no more
	TypeKeyPublished:        byKeyUser,
	TypeKeyTaken:            byMember("by"),
	TypeSessionRevoked:      byAnyUser, // an administrator's token; whose, the record does not say
	TypeNodeHeartbeat:       byMemberNode,
	TypeConnected:           byMemberNode,
	TypeDisconnected:        byMemberNode,
	TypeSessionChannels:     byMemberNode,
	TypeDeliveryWebSocket:   byNode,
	TypeDeliveryPush:        byNode,
}

// byMember: the record is of the user that a member of its value names.
func byMember(member string) rule {
	return func(e *Event) error { return byUser(e, e.Body.Text(member), "the user of "+member) }
}

// byKeyUser: the record is of the user of its key.
func byKeyUser(e *Event) error { return byUser(e, e.Audience.A, "the user of the key") }

func byUser(e *Event, user, who string) error {
	if e.Source == SourceOf(user) { // whole: a user id may hold what would end it elsewhere
		return nil
	}
	return fmt.Errorf("header ce_source must be /users/<id> of %s: only that user's token may send a %s", who, e.Type)
}

func byAnyUser(e *Event) error {
	if id, ok := strings.CutPrefix(e.Source, userSource); ok && CheckUserID(id) == nil {
		return nil
	}
	return fmt.Errorf("header ce_source must be /users/<id>: only a user's token may send a %s", e.Type)
}

// byMemberNode: the record is of the node that member node names.
func byMemberNode(e *Event) error {
	if e.Source == NodeSource(e.Body.Text("node")) {
		return nil
	}
	return fmt.Errorf("header ce_source must be /nodes/<id> of the value's node: only that node may send a %s", e.Type)
}

func byNode(e *Event) error {
	if len(e.Source) > len(nodeSource) && strings.HasPrefix(e.Source, nodeSource) {
		return nil
	}
	return fmt.Errorf("header ce_source must be /nodes/<id>: only a node may send a %s", e.Type)
}

func either(a, b rule) rule {
	return func(e *Event) error {
		if err := a(e); err == nil || b(e) == nil {
			return nil
		}
		return errors.New("header ce_source must be /users/<id> of the user of the key, or /nodes/<id>: nobody else may send a " + e.Type)
	}
}
