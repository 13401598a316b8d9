package topics

// Namespace is a WebSocket namespace. A user is online in each by itself.
type Namespace string

// The namespaces, as the paths that clients connect to.
const (
	Dashboard Namespace = "/dashboard" // notifications, activities, announcements
	Messaging Namespace = "/ws"        // chat
)

// Namespaces lists them.
func Namespaces() []Namespace { return []Namespace{Dashboard, Messaging} }
