package topics

// TypeAnnouncement is a text for everybody.
const TypeAnnouncement = "announcement"

var announcementKind = Kind{
	Type: TypeAnnouncement, Doc: "everybody is told of something",
	In: []In{{Topic: Broadcasts, Keys: []AudienceKind{Everyone}, Default: true}},
	Fields: []Field{
		{Name: "title", Required: true, Bytes: notEmpty, Example: `"System Maintenance"`, Doc: "one line"},
		{Name: "body", Required: true, Example: `"Scheduled maintenance tonight"`, Doc: "the text"},
		timestamp},
	HasID: true, Feed: true, Ingest: "/announcements",
	Frames: []Frame{{Namespace: Dashboard, Event: "announcement", Reached: true, Doc: "an announcement to everybody"}},
}
