// Package fcm is the push channel to Firebase Cloud Messaging, by the Firebase Admin SDK: its credentials, the messages it takes
// and their size, what its answers mean, and the devices that it knows by the tokens which users registered.
package fcm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	firebase "firebase.google.com/go/v4"
	"firebase.google.com/go/v4/errorutils"
	"firebase.google.com/go/v4/messaging"
	"google.golang.org/api/option"

	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/topics"
)

// Log tells where the log ends.
type Log interface {
	Ends(ctx context.Context, t topics.Topic) (topics.Ends, error)
}

// Inbox knows the devices that users have registered.
type Inbox interface {
	// Await returns once it knows everything below ends, or with ctx's error.
	Await(ctx context.Context, ends topics.Ends) error
	// Tokens finds the tokens of users' devices, by user.
	Tokens(ctx context.Context, users []string) (map[string][]string, error)
}

// Appender appends that a device is gone, and answers when the log has it.
type Appender interface {
	Append(ctx context.Context, e *topics.Event) error
}

// Options are what the channel needs.
type Options struct {
	Credentials
	Log      Log
	Inbox    Inbox
	Producer Appender
	Node     string
	Logger   *slog.Logger
}

// Channel is a push.Channel whose targets are devices, by their FCM tokens. It is safe for concurrent use.
type Channel struct {
	o      Options
	client *messaging.Client // nil: off

	mu       sync.Mutex
	gaveUpAt topics.Ends // ends of devices that were waited for in vain
}

// Name is fcm (push.Channel).
const Name = "fcm"

// New makes the channel; without credentials it is off. It connects to nothing yet. ctx is the SDK's for its own requests, so it
// must outlast the channel.
func New(ctx context.Context, o Options) (*Channel, error) {
	c := &Channel{o: o, gaveUpAt: make(topics.Ends)}
	if !o.On() {
		return c, nil
	}
	var err error
	if c.client, err = o.connect(ctx); err != nil {
		return nil, fmt.Errorf("FIREBASE_*: %w", err)
	}
	return c, nil
}

// connect makes the SDK's client.
func (c Credentials) connect(ctx context.Context) (*messaging.Client, error) {
	account, err := json.Marshal(map[string]string{"type": "service_account", "project_id": c.ProjectID, "client_email": c.ClientEmail,
		"private_key": c.PrivateKey, "token_uri": cmp.Or(c.TokenURI, "https://oauth2.googleapis.com/token")})
	if err != nil {
		return nil, err
	}
	opts := []option.ClientOption{option.WithAuthCredentialsJSON(option.ServiceAccount, account)}
	if c.Endpoint != "" {
		opts = append(opts, option.WithEndpoint(c.Endpoint))
	}
	app, err := firebase.NewApp(ctx, &firebase.Config{ProjectID: c.ProjectID}, opts...)
	if err != nil {
		return nil, err
	}
	return app.Messaging(ctx)
}

// Name is fcm (push.Channel).
func (c *Channel) Name() string { return Name }

// On tells whether there are credentials (push.Channel).
func (c *Channel) On() bool { return c.client != nil }

// What became of a push, beside push's own words.
const (
	unregistered   = "unregistered"    // FCM says that the token is dead
	invalidToken   = "invalid_token"   // FCM takes nothing for this token
	invalidPayload = "invalid_payload" // FCM takes a plain message for this token, but not this one
	mismatch       = "sender_mismatch" // the token is another project's
)

// quotaWait is how long nothing is sent after a 429 that names no time (FCM, "Error handling": 60 s by default).
const quotaWait = time.Minute

// Send sends a message (push.Channel). Where FCM calls it invalid, a plain message is validated for the token: that tells a bad
// token from a bad message.
func (c *Channel) Send(ctx context.Context, token string, n push.Note, left time.Duration) push.Response {
	_, err := c.client.Send(ctx, message(n, token, time.Now(), left))
	a := answerOf(err, time.Now())
	if a.kind != invalid {
		return a.response()
	}
	_, err = c.client.SendDryRun(ctx, probe(token))
	switch p := answerOf(err, time.Now()); p.kind {
	case taken:
		return push.Response{Kind: push.Refused, Outcome: invalidPayload,
			Err: errors.New("FCM takes a plain message for this device, but not this one")}
	case invalid, gone:
		return push.Response{Kind: push.Dead, Outcome: invalidToken, Err: p.err}
	default:
		return p.response()
	}
}

// probe is a message that is good for any token: where FCM refuses it, the token is at fault.
func probe(token string) *messaging.Message {
	return &messaging.Message{Token: token, Data: map[string]string{"event": "probe"}}
}

// kind is what FCM said to a message.
type kind uint8

// The kinds; failed is everything that another attempt may mend.
const (
	failed kind = iota
	taken
	gone    // UNREGISTERED
	invalid // INVALID_ARGUMENT
	foreign // SENDER_ID_MISMATCH
	quota   // QUOTA_EXCEEDED, 429
)

// answer is FCM's. err never quotes a token.
type answer struct {
	kind  kind
	after time.Duration // Retry-After, where FCM sent one
	err   error
}

// response is what an answer means to the queue.
func (a answer) response() push.Response {
	switch a.kind {
	case taken:
		return push.Response{Kind: push.Accepted}
	case gone:
		return push.Response{Kind: push.Dead, Outcome: unregistered, Err: a.err}
	case foreign:
		return push.Response{Kind: push.SetAside, Outcome: mismatch,
			Err: errors.New("the device's token belongs to another Firebase project (FIREBASE_PROJECT_ID)")}
	case quota:
		return push.Response{Kind: push.Pause, After: cmp.Or(a.after, quotaWait), Err: a.err}
	default:
		return push.Response{Kind: push.Retry, After: a.after, Err: a.err}
	}
}

// answerOf reads the SDK's typed errors.
func answerOf(err error, now time.Time) answer {
	if err == nil {
		return answer{kind: taken}
	}
	a := answer{err: errors.New(codeOf(err))}
	resp := errorutils.HTTPResponse(err) //nolint:bodyclose // the SDK has read and closed it
	if resp != nil {
		a.after = retryAfter(resp.Header, now)
	}
	switch {
	case messaging.IsUnregistered(err):
		a.kind = gone
	case messaging.IsSenderIDMismatch(err):
		a.kind = foreign
	case messaging.IsQuotaExceeded(err), resp != nil && resp.StatusCode == http.StatusTooManyRequests:
		a.kind = quota
	case messaging.IsInvalidArgument(err), resp == nil && isLocal(err):
		a.kind = invalid
	}
	return a
}

// isLocal: the SDK itself found the message to be malformed, before sending it. What happens on the way has a code.
func isLocal(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) { // between two tries of the SDK's own
		return false
	}
	return !errorutils.IsUnknown(err) && !errorutils.IsUnavailable(err) && !errorutils.IsDeadlineExceeded(err) && !errorutils.IsCancelled(err)
}

// codeOf is what a log may know of an error: its status, never its text.
func codeOf(err error) string {
	if resp := errorutils.HTTPResponse(err); resp != nil { //nolint:bodyclose // as above
		return "FCM answered " + strconv.Itoa(resp.StatusCode)
	}
	return "FCM could not be reached, or did not answer in time"
}

// retryAfter reads Retry-After: seconds, or an HTTP date (RFC 9110, section 10.2.3); 0: there is none.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.ParseInt(v, 10, 32); err == nil && s >= 0 {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}
