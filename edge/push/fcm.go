package push

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	firebase "firebase.google.com/go/v4"
	"firebase.google.com/go/v4/errorutils"
	"firebase.google.com/go/v4/messaging"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/api/option"
)

// Kind is what FCM said to a message.
type Kind uint8

// The kinds; Failed is everything that another attempt may mend.
const (
	Failed Kind = iota
	Accepted
	Unregistered
	Invalid
	Mismatch
	Quota
)

// Verdict is FCM's answer. Err never quotes a token.
type Verdict struct {
	Kind       Kind
	RetryAfter time.Duration // where the server asked for it
	Err        error
}

// Sender sends messages.
type Sender interface {
	Send(ctx context.Context, m *messaging.Message) Verdict
	// Validate has the server judge a message without delivering it.
	Validate(ctx context.Context, m *messaging.Message) Verdict
}

// Credentials are those of a Firebase service account.
type Credentials struct {
	ProjectID, ClientEmail, PrivateKey string
	// Endpoint and TokenURI point elsewhere than Google; empty: Google.
	Endpoint, TokenURI string
}

// FCM sends by the Firebase Admin SDK.
type FCM struct{ client *messaging.Client }

// NewFCM makes a sender; it connects to nothing yet.
func NewFCM(ctx context.Context, c Credentials) (*FCM, error) {
	if c.TokenURI == "" {
		c.TokenURI = "https://oauth2.googleapis.com/token"
	}
	account, err := json.Marshal(map[string]string{"type": "service_account", "project_id": c.ProjectID, "client_email": c.ClientEmail,
		"private_key": c.PrivateKey, "token_uri": c.TokenURI})
	if err != nil {
		return nil, err
	}
	opts := []option.ClientOption{option.WithCredentialsJSON(account)}
	if c.Endpoint != "" {
		opts = append(opts, option.WithEndpoint(c.Endpoint))
	}
	app, err := firebase.NewApp(ctx, &firebase.Config{ProjectID: c.ProjectID}, opts...)
	if err != nil {
		return nil, fmt.Errorf("FIREBASE_*: %w", err)
	}
	client, err := app.Messaging(ctx)
	if err != nil {
		return nil, fmt.Errorf("FIREBASE_*: %w", err)
	}
	return &FCM{client}, nil
}

// Send sends a message.
func (f *FCM) Send(ctx context.Context, m *messaging.Message) Verdict {
	_, err := f.client.Send(ctx, m)
	return verdictOf(err, time.Now())
}

// Validate has FCM judge a message without delivering it.
func (f *FCM) Validate(ctx context.Context, m *messaging.Message) Verdict {
	_, err := f.client.SendDryRun(ctx, m)
	return verdictOf(err, time.Now())
}

func verdictOf(err error, now time.Time) Verdict {
	if err == nil {
		return Verdict{Kind: Accepted}
	}
	v := Verdict{Err: errors.New(codeOf(err))}
	resp := errorutils.HTTPResponse(err)
	if resp != nil {
		v.RetryAfter = retryAfter(resp.Header, now)
	}
	switch {
	case messaging.IsUnregistered(err):
		v.Kind = Unregistered
	case messaging.IsSenderIDMismatch(err):
		v.Kind = Mismatch
	case messaging.IsQuotaExceeded(err), resp != nil && resp.StatusCode == http.StatusTooManyRequests:
		v.Kind = Quota
	case messaging.IsInvalidArgument(err), resp == nil && isLocal(err):
		v.Kind = Invalid
	}
	return v
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
	if resp := errorutils.HTTPResponse(err); resp != nil {
		return "FCM answered " + strconv.Itoa(resp.StatusCode)
	}
	return "FCM could not be reached, or did not answer in time"
}

// maxRetryAfter bounds what is believed of a Retry-After.
const maxRetryAfter = time.Hour

// retryAfter reads Retry-After: seconds, or an HTTP date (RFC 9110, section 10.2.3).
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.ParseInt(v, 10, 32); err == nil && s >= 0 {
		return min(time.Duration(s)*time.Second, maxRetryAfter)
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(0, t.Sub(now)), maxRetryAfter)
	}
	return 0
}

// Metrics are what push shows to Prometheus; nil shows nothing.
type Metrics struct {
	outcomes *prometheus.CounterVec
	retries  prometheus.Counter
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nexus_pushes_total", Help: "Pushes to devices, by outcome."}, []string{"outcome"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{Name: "nexus_push_retries_total", Help: "Attempts to push that failed and will be repeated."})}
	reg.MustRegister(m.outcomes, m.retries)
	return m
}

func (m *Metrics) outcome(what string) {
	if m != nil {
		m.outcomes.WithLabelValues(what).Inc()
	}
}

func (m *Metrics) retry() {
	if m != nil {
		m.retries.Inc()
	}
}
