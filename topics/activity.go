package topics

// TypeActivity is something that a user did.
const TypeActivity = "activity"

// ActivityPostCreated is the type of an activity that the statistics count as a post.
const ActivityPostCreated = "post_created"

var activityKind = Kind{
	Type: TypeActivity, Doc: "a user did something that others are shown",
	In: []In{
		{Topic: Notifications, Keys: []AudienceKind{User}},
		{Topic: Broadcasts, Keys: []AudienceKind{Channel}}},
	Fields: []Field{
		{Name: "type", Required: true, Chars: Bounds{1, 64}, Example: `"connection_request"`, Doc: "what was done, a word of the product's"},
		{Name: "userId", Required: true, Format: UserID, Example: `"john"`, Doc: "who did it", Fill: actorOf},
		{Name: "message", Required: true, Example: `"New connection request"`, Doc: "the text"},
		{Name: "data", Kind: AnObject, Doc: "more for the clients, the product's own"},
		timestamp},
	Actor: "userId",
	HasID: true, Feed: true, Ingest: "/activities", Detail: "type",
	Counter: &Counter{CounterPosts, ActivityPostCreated},
	Frames:  []Frame{{Namespace: Dashboard, Event: "activity", Reached: true, Doc: "an activity for this user, or of a channel"}},
}

// actorOf is whose activity is handed in: for a user it is that user's own; for a channel it is that of whom it names, or else of
// whoever hands it in.
func actorOf(to Audience, given, sender string) string {
	switch {
	case to.Kind == User:
		return to.A
	case given != "":
		return given
	}
	return sender
}
