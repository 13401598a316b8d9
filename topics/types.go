package topics

// Event types (ce_type).
const (
	TypeMessage             = "message"
	TypeMessageRead         = "message.read"
	TypeNotification        = "notification"
	TypeActivity            = "activity"
	TypeNotificationRead    = "notification.read"
	TypeNotificationDeleted = "notification.deleted"
	TypeAnnouncement        = "announcement"
	TypeNodeHeartbeat       = "node.heartbeat"
	TypeConnected           = "presence.connected"
	TypeDisconnected        = "presence.disconnected"
	TypeSessionChannels     = "session.channels"
	TypeTypingStart         = "typing.start"
	TypeTypingStop          = "typing.stop"
	TypeDeviceRegistered    = "device.registered"
	TypeDeviceUnregistered  = "device.unregistered"
	TypeDedupWindow         = "dedup.window" // of logs begun before log.contract was known
	TypeLogContract         = "log.contract"
	TypeSessionRevoked      = "session.revoked"
	TypeKeyPublished        = "key.published"
	TypeKeyTaken            = "key.taken"
	TypeDeliveryWebSocket   = "delivery.websocket"
	TypeDeliveryPush        = "delivery.push"
)

// NotificationTypes are the guide's eight.
func NotificationTypes() []string {
	return []string{"MESSAGE", "CONNECTION_REQUEST", "CONNECTION_ACCEPTED", "POST_COMMENT", "COMMENT_MENTION",
		"REFERRAL_APPLICATION", "PROJECT_UPDATE", "SYSTEM"}
}

// internType saves a string for each record of a known type.
func internType(b []byte) string {
	for i := range schemas {
		if schemas[i].typ == string(b) {
			return schemas[i].typ
		}
	}
	return string(b)
}

// kind is the JSON kind of a field.
type kind uint8

const (
	aString kind = iota
	anObject
	aBool
	aNumber
	anArray
	anything
)

func (k kind) String() string {
	return [...]string{"a string", "an object", "true or false", "a number", "an array", "any value"}[k]
}

type field struct {
	name     string
	kind     kind
	required bool
	check    func(string) error // of a string's text
}

// schema is what a type of event requires of its record.
type schema struct {
	typ    string
	topics []Topic
	keys   []AudienceKind
	fields []field
	// extra judges what no single field shows.
	extra func(*Event) error
}

// The vocabulary, read-only. timestamp may be left out everywhere: the record's time is spliced in.
var schemas = []schema{
	{typ: TypeMessage, topics: []Topic{Messages}, keys: []AudienceKind{Conversation}, extra: checkMessage, fields: []field{
		{"senderId", aString, true, CheckUserID}, {"receiverId", aString, true, CheckUserID},
		{"content", aString, false, notEmpty}, {"encrypted", anything, false, nil},
		{"clientMessageId", aString, false, length(1, 256)}, timestamp}},
	{typ: TypeMessageRead, topics: []Topic{Messages}, keys: []AudienceKind{Conversation}, extra: checkParticipant, fields: []field{
		{"messageId", aString, true, size(1, MaxID)}, {"userId", aString, true, CheckUserID}, {"upTo", aBool, false, nil}, timestamp}},
	{typ: TypeNotification, topics: []Topic{Notifications, Broadcasts}, extra: checkAudience, fields: []field{
		{"title", aString, true, notEmpty}, {"body", aString, true, nil},
		{"type", aString, true, oneOf(NotificationTypes()...)}, {"priority", aString, false, oneOf("low", "normal", "high")},
		{"data", anObject, false, nil}, {"icon", aString, false, nil}, {"badge", aString, false, nil}, timestamp}},
	{typ: TypeActivity, topics: []Topic{Notifications, Broadcasts}, extra: checkAudience, fields: []field{
		{"type", aString, true, length(1, 64)}, {"userId", aString, true, CheckUserID}, {"message", aString, true, nil},
		{"data", anObject, false, nil}, timestamp}},
	{typ: TypeNotificationRead, topics: []Topic{Notifications}, keys: []AudienceKind{User}, extra: checkTarget, fields: target},
	{typ: TypeNotificationDeleted, topics: []Topic{Notifications}, keys: []AudienceKind{User}, extra: checkTarget, fields: target},
	{typ: TypeAnnouncement, topics: []Topic{Broadcasts}, keys: []AudienceKind{Everyone}, fields: []field{
		{"title", aString, true, notEmpty}, {"body", aString, true, nil}, timestamp}},
	{typ: TypeTypingStart, topics: []Topic{Signals}, keys: []AudienceKind{Conversation}, extra: checkParticipant, fields: typing},
	{typ: TypeTypingStop, topics: []Topic{Signals}, keys: []AudienceKind{Conversation}, extra: checkParticipant, fields: typing},
	{typ: TypeDeviceRegistered, topics: []Topic{Devices}, keys: []AudienceKind{User}, fields: []field{
		{"token", aString, true, size(1, MaxToken)}, {"platform", aString, false, length(1, 32)}, timestamp}},
	{typ: TypeDeviceUnregistered, topics: []Topic{Devices}, keys: []AudienceKind{User}, fields: []field{
		{"token", aString, false, size(1, MaxToken)}, timestamp}},
	{typ: TypeNodeHeartbeat, topics: []Topic{Presence}, keys: []AudienceKind{NoAudience}, fields: []field{
		{"node", aString, true, notEmpty}, {"name", aString, true, notEmpty}, timestamp}},
	{typ: TypeConnected, topics: []Topic{Presence}, keys: []AudienceKind{NoAudience}, fields: session},
	{typ: TypeDisconnected, topics: []Topic{Presence}, keys: []AudienceKind{NoAudience}, fields: session},
	{typ: TypeSessionChannels, topics: []Topic{Presence}, keys: []AudienceKind{NoAudience}, fields: session},
	{typ: TypeDeliveryWebSocket, topics: []Topic{Deliveries}, fields: delivery},
	{typ: TypeDeliveryPush, topics: []Topic{Deliveries}, fields: delivery},
	{typ: TypeSessionRevoked, topics: []Topic{Control}, keys: []AudienceKind{User}, fields: []field{
		{"tokenId", aString, false, length(1, 256)}, timestamp}},
	{typ: TypeKeyPublished, topics: []Topic{Control}, keys: []AudienceKind{User}, extra: checkKeys, fields: []field{
		{"deviceId", aString, true, length(1, 64)}, {"identityKey", aString, false, length(1, maxKey)}, {"prekeys", anArray, false, nil},
		{"removed", aBool, false, nil}, timestamp}},
	{typ: TypeKeyTaken, topics: []Topic{Control}, keys: []AudienceKind{User}, fields: []field{
		{"deviceId", aString, true, length(1, 64)}, {"prekeyId", aString, true, length(1, 64)}, {"by", aString, true, CheckUserID}, timestamp}},
	{typ: TypeDedupWindow, topics: []Topic{Control}, keys: []AudienceKind{Everyone}, fields: []field{
		{"window", aString, true, notEmpty}, timestamp}},
	{typ: TypeLogContract, topics: []Topic{Control}, keys: []AudienceKind{Everyone}, fields: []field{
		{"window", aString, true, notEmpty}, {"partitions", anObject, true, nil}, timestamp}},
}

var (
	timestamp = field{"timestamp", aString, false, CheckTimestamp}
	target    = []field{{"notificationId", aString, false, size(1, MaxID)}, {"upTo", aString, false, CheckTimestamp}, timestamp}
	typing    = []field{{"userId", aString, true, CheckUserID}, {"isTyping", aBool, true, nil}, timestamp}
	// delivery says where the event delivered stands, and what came of it.
	delivery = []field{{"event", aString, true, notEmpty}, {"topic", aString, true, notEmpty}, {"partition", aNumber, true, nil}, {"offset", aNumber, true, nil},
		{"node", aString, false, nil}, {"sessions", aNumber, false, nil}, {"latencyMs", aNumber, false, nil},
		{"outcome", aString, false, length(1, 64)}, {"device", aString, false, nil}, timestamp}
	session = []field{{"session", aString, true, notEmpty}, {"node", aString, true, notEmpty}, {"name", aString, true, notEmpty},
		{"userId", aString, true, CheckUserID}, {"namespace", aString, true, oneOf("/dashboard", "/ws")},
		{"pid", aString, false, nil}, {"repeated", aBool, false, nil}, {"channels", anArray, false, nil}, timestamp}
)

// Shape is a type of event as its schema has it: what a test is made of that has to know every field.
type Shape struct {
	Type   string
	Topics []Topic
	// Keys are the kinds of key that are allowed; empty: the topic's.
	Keys   []AudienceKind
	Fields []ShapeField
}

// ShapeField is a field of a Shape. Kind is "a string", "an object", "true or false", "a number", "an array" or "any value".
type ShapeField struct {
	Name, Kind string
	Required   bool
}

// Shapes lists every type of event.
func Shapes() (list []Shape) {
	for _, s := range schemas {
		shape := Shape{Type: s.typ, Topics: s.topics, Keys: s.keys}
		for _, f := range s.fields {
			shape.Fields = append(shape.Fields, ShapeField{f.name, f.kind.String(), f.required})
		}
		list = append(list, shape)
	}
	return list
}

// DefaultType is the type of a record without ce_type: product services may send a key and a value alone.
func DefaultType(t Topic, key AudienceKind) string {
	switch {
	case t == Notifications:
		return TypeNotification
	case t == Broadcasts && key == Everyone:
		return TypeAnnouncement
	case t == Broadcasts && key == Channel:
		return TypeNotification
	}
	return ""
}
