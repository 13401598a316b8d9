package topics

import (
	"errors"
	"fmt"
	"strings"
)

// Sender is a rule: whose ce_source a record must have. Kinds without one may be written by anybody who may write their topic:
// notification, activity and announcement, which product services append, and the log's contract, of which only the first record
// counts. Kafka's ACLs say who may write a topic; these rules say whom a record may speak for.
type Sender struct {
	// Doc is the ce_source, as product engineers are told.
	Doc string
	// member names the user that the record must be of; empty: another rule.
	member string
	// check returns what a record of others is told.
	check func(*Event) error
}

// byMember: the record is of the user that a member of its value names.
func byMember(member string) *Sender {
	return &Sender{Doc: userSource + "<" + member + ">", member: member, check: func(e *Event) error {
		return byUser(e, e.body.Text(member), "the user of "+member)
	}}
}

// byKeyUser: the record is of the user of its key.
var byKeyUser = &Sender{Doc: userSource + "<id> of the key", check: func(e *Event) error {
	return byUser(e, e.Audience.A, "the user of the key")
}}

func byUser(e *Event, user, who string) error {
	if e.Source == SourceOf(user) { // whole: a user id may hold what would end it elsewhere
		return nil
	}
	return fmt.Errorf("header ce_source must be /users/<id> of %s: only that user's token may send a %s", who, e.Type)
}

var byAnyUser = &Sender{Doc: userSource + "…", check: func(e *Event) error {
	if id, ok := strings.CutPrefix(e.Source, userSource); ok && CheckUserID(id) == nil {
		return nil
	}
	return fmt.Errorf("header ce_source must be /users/<id>: only a user's token may send a %s", e.Type)
}}

// byMemberNode: the record is of the node that member node names.
var byMemberNode = &Sender{Doc: nodeSource + "<node>", check: func(e *Event) error {
	if e.Source == NodeSource(e.body.Text("node")) {
		return nil
	}
	return fmt.Errorf("header ce_source must be /nodes/<id> of the value's node: only that node may send a %s", e.Type)
}}

var byNode = &Sender{Doc: nodeSource + "…", check: func(e *Event) error {
	if len(e.Source) > len(nodeSource) && strings.HasPrefix(e.Source, nodeSource) {
		return nil
	}
	return fmt.Errorf("header ce_source must be /nodes/<id>: only a node may send a %s", e.Type)
}}

func either(a, b *Sender) *Sender {
	return &Sender{Doc: a.Doc + ", or " + b.Doc, check: func(e *Event) error {
		if err := a.check(e); err == nil || b.check(e) == nil {
			return nil
		}
		return errors.New("header ce_source must be /users/<id> of the user of the key, or /nodes/<id>: nobody else may send a " + e.Type)
	}}
}
