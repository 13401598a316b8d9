package topics

import "encoding/json"

// Contract is what all nodes of a log must agree on: the first record of topic control.
type Contract struct {
	// Window is the dedup window, as a Go duration.
	Window string
	// Partitions are the partition counts of the topics; nil: the record is of an earlier build, which recorded the window alone.
	Partitions map[Topic]int32
}

// The types of a Contract.
const (
	TypeLogContract = "log.contract"
	TypeDedupWindow = "dedup.window" // of logs begun before log.contract was known
)

var contractKind = Kind{
	Type: TypeLogContract, Doc: "what all nodes of this log must agree on",
	In: []In{{Topic: Control, Keys: []AudienceKind{Everyone}}},
	Fields: []Field{
		{Name: "window", Required: true, Bytes: notEmpty, Doc: "the dedup window, a Go duration"},
		{Name: "partitions", Kind: AnObject, Required: true, Doc: "the partition count of each topic"},
		timestamp},
}

var windowKind = Kind{
	Type: TypeDedupWindow, Doc: "the dedup window, of a log begun before log.contract was known",
	In: []In{{Topic: Control, Keys: []AudienceKind{Everyone}}},
	Fields: []Field{
		{Name: "window", Required: true, Bytes: notEmpty, Doc: "the dedup window, a Go duration"},
		timestamp},
}

// ReadContract reads a valid event; the error says that the partition counts are none.
func ReadContract(e *Event) (c Contract, err error) {
	c.Window = e.body.Text("window")
	if raw := e.body.Raw("partitions"); raw != nil {
		err = json.Unmarshal(raw, &c.Partitions)
	}
	return c, err
}

// Event makes the event.
func (c Contract) Event() *Event {
	return New(Control, EveryoneKey, Meta{Type: TypeLogContract}, Fields("window", c.Window, "partitions", c.Partitions))
}
