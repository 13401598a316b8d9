package fcm

import (
	"context"
	"net/http"
	"testing"
	"time"

	"firebase.google.com/go/v4/messaging"

	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/topics"
)

func TestMain(m *testing.M) { testenv.Exit(m) }

// Every answer of FCM's, through the real SDK: what it means for the job. A fault on the way is never taken for a fault of
// the message or the token.
func TestVerdicts(t *testing.T) {
	f := testenv.NewFCM(t)
	answers := map[string]struct {
		status int
		code   string
		after  string
		want   kind
	}{
		"accepted":     {0, "", "", taken},
		"unregistered": {404, "UNREGISTERED", "", gone},
		"foreign":      {403, "SENDER_ID_MISMATCH", "", foreign},
		"invalid":      {400, "INVALID_ARGUMENT", "", invalid},
		"quota":        {429, "QUOTA_EXCEEDED", "30", quota},
		"quota, bare":  {429, "QUOTA_EXCEEDED", "", quota},
		"internal":     {500, "INTERNAL", "", failed},
		"unavailable":  {503, "UNAVAILABLE", "", failed},
		"later":        {503, "UNAVAILABLE", "60", failed},
		"unauthorized": {401, "THIRD_PARTY_AUTH_ERROR", "", failed},
		"reset":        {testenv.Reset, "", "", failed},
		"hang":         {testenv.Hang, "", "", failed},
	}
	f.Answer = func(token string, _ int) (int, string, http.Header) {
		a := answers[token]
		h := http.Header{}
		if a.after != "" {
			h.Set("Retry-After", a.after)
		}
		return a.status, a.code, h
	}
	fcm, err := connect(t.Context(), Credentials{ProjectID: f.ProjectID, ClientEmail: f.ClientEmail, PrivateKey: f.PrivateKey,
		Endpoint: f.URL + "/v1", TokenURI: f.URL + "/token"})
	if err != nil {
		t.Fatal(err)
	}
	for token, a := range answers {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // ends amid the SDK's own retries
		v := fcm.send(ctx, &messaging.Message{Token: token})
		cancel()
		if v.kind != a.want {
			t.Errorf("%s: kind %d, want %d (%v)", token, v.kind, a.want, v.err)
		}
		if token == "quota" && v.after != 30*time.Second {
			t.Errorf("Retry-After %s", v.after)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if v := fcm.send(ended, &messaging.Message{Token: "accepted"}); v.kind != failed {
		t.Errorf("a context that has ended: kind %d", v.kind)
	}
	if v := fcm.send(t.Context(), &messaging.Message{}); v.kind != invalid { // the SDK itself refuses it
		t.Errorf("no token: kind %d", v.kind)
	}
	elsewhere, err := connect(t.Context(), Credentials{ProjectID: f.ProjectID, ClientEmail: "else@x.iam.gserviceaccount.com",
		PrivateKey: f.PrivateKey, Endpoint: f.URL + "/v1", TokenURI: f.URL + "/token"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if v := elsewhere.send(ctx, &messaging.Message{Token: "accepted"}); v.kind != failed { // wrong credentials are no fault of a token
		t.Errorf("wrong credentials: kind %d", v.kind)
	}
}

// sender is the SDK, and what its answers are.
type sender struct{ client *messaging.Client }

func connect(ctx context.Context, c Credentials) (sender, error) {
	client, err := c.connect(ctx)
	return sender{client}, err
}

func (s sender) send(ctx context.Context, m *messaging.Message) answer {
	_, err := s.client.Send(ctx, m)
	return answerOf(err, time.Now())
}

// INVALID_ARGUMENT does not tell a bad token from a bad message: a plain message for the token does, and is never delivered.
func TestProbe(t *testing.T) {
	f := testenv.NewFCM(t)
	second := map[string]int{"payload": 0, "token": http.StatusBadRequest, "dead": http.StatusNotFound, "foreign": http.StatusForbidden,
		"quota": http.StatusTooManyRequests, "unknown": http.StatusInternalServerError}
	codes := map[int]string{http.StatusBadRequest: "INVALID_ARGUMENT", http.StatusNotFound: "UNREGISTERED",
		http.StatusForbidden: "SENDER_ID_MISMATCH", http.StatusTooManyRequests: "QUOTA_EXCEEDED"}
	f.Answer = func(token string, n int) (int, string, http.Header) {
		if n == 1 {
			return http.StatusBadRequest, "INVALID_ARGUMENT", nil
		}
		return second[token], codes[second[token]], nil
	}
	c, err := New(t.Context(), Options{Credentials: Credentials{ProjectID: f.ProjectID, ClientEmail: f.ClientEmail, PrivateKey: f.PrivateKey,
		Endpoint: f.URL + "/v1", TokenURI: f.URL + "/token"}})
	if err != nil {
		t.Fatal(err)
	}
	n := push.Note{ID: topics.NewID(), Event: topics.TypeNotification, Title: "t", Body: "b", RecordTime: time.Now().UnixMilli()}
	for token, want := range map[string]push.Response{
		"payload": {Kind: push.Refused, Outcome: invalidPayload}, "token": {Kind: push.Dead, Outcome: invalidToken},
		"dead": {Kind: push.Dead, Outcome: invalidToken}, "foreign": {Kind: push.SetAside, Outcome: mismatch},
		"quota": {Kind: push.Pause, After: quotaWait}, "unknown": {Kind: push.Retry},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		got := c.Send(ctx, token, n, time.Hour)
		cancel()
		if got.Err == nil {
			t.Errorf("%s: nothing is said to the operator", token)
		}
		if got.Err = nil; got != want {
			t.Errorf("%s: %+v, want %+v", token, got, want)
		}
		if len(f.Accepted(token)) != 0 {
			t.Errorf("%s: the plain message was delivered", token)
		}
	}
}
