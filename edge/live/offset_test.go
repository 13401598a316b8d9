package live

import (
	"reflect"
	"testing"

	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/topics"
)

// What a client gives back is what it was given, or it is refused.
func TestOffsets(t *testing.T) {
	v, _ := onLog(t)
	c := cursor{topics.Notifications: {{Next: 3, Check: 7}, {Next: 1 << 40, Check: 1 << 15}}, topics.Broadcasts: {{}}}
	text := v.offsetOf(topics.Dashboard, c)
	if got, err := v.parseOffset(topics.Dashboard, text); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("%v, %v; want %v", got, err, c)
	}
	for name, text := range map[string]string{"empty": "", "no base64": "%", "another namespace's": v.offsetOf(topics.Messaging,
		cursor{topics.Messages: {{Next: 1}, {Next: 2}}}),
		"fewer partitions": v.offsetOf(topics.Dashboard, cursor{topics.Notifications: {{Next: 3}}, topics.Broadcasts: {{}}}),
		"cut off":          text[:len(text)-2], "more": text + "AA"} {
		if _, err := v.parseOffset(topics.Dashboard, text); err == nil {
			t.Errorf("%s: %q was taken", name, text)
		}
	}
}

func FuzzParseOffset(f *testing.F) {
	v := New(Options{TopicIDs: map[topics.Topic][4]byte{topics.Messages: {1, 2, 3, 4}}})
	f.Add("AQIDBAA")
	f.Add("AQIDBAMBAgM")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := v.parsePositions(topics.Messaging, text, func(topics.Topic) int { return 3 })
		if err == nil && v.offsetOf(topics.Messaging, c) == "" {
			t.Error("an offset that cannot be written")
		}
	})
}

// Partitions are merged by time, and each keeps its own order even where the broker's clock stepped back.
func TestInOrderOfTime(t *testing.T) {
	got := ""
	a, b := topics.Messages.Partition(0), topics.Messages.Partition(1)
	for _, x := range inOrderOfTime([]inbox.Entry{{At: a.At(0), Time: 5}, {At: a.At(1), Time: 2}, {At: a.At(2), Time: 9},
		{At: b.At(0), Time: 1}, {At: b.At(1), Time: 7}}) {
		got += string('a'+x.At.ID) + string(rune('0'+x.At.Offset)) + " "
	}
	if want := "b0 a0 a1 b1 a2 "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
