package topicstest

import (
	"encoding/json"

	"github.com/nexus/nexus/topics"
)

// Sign gives an event the ce_source that its type demands, as whoever sends such events does. One that no source makes valid
// stays as it is.
func Sign(e *topics.Event) *topics.Event {
	var v struct{ SenderID, UserID, By, Node string }
	_ = json.Unmarshal(e.Value, &v) // a value that is no object names nobody
	aud, _ := topics.ParseAudience(string(e.Key))
	for _, source := range []string{e.Source, topics.SourceOf(v.SenderID), topics.SourceOf(v.UserID), topics.SourceOf(v.By),
		topics.SourceOf(aud.A),
		topics.NodeSource(v.Node), topics.NodeSource("n1")} {
		try := topics.Event{Topic: e.Topic, Key: e.Key, Value: e.Value, Meta: e.Meta}
		try.Source = source
		if topics.Valid(&try) == nil {
			e.Source = source
			return e
		}
	}
	return e
}
