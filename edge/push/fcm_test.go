package push_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"firebase.google.com/go/v4/messaging"

	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/internal/testenv"
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
		want   push.Kind
	}{
		"accepted":     {0, "", "", push.Accepted},
		"unregistered": {404, "UNREGISTERED", "", push.Unregistered},
		"foreign":      {403, "SENDER_ID_MISMATCH", "", push.Mismatch},
		"invalid":      {400, "INVALID_ARGUMENT", "", push.Invalid},
		"quota":        {429, "QUOTA_EXCEEDED", "30", push.Quota},
		"quota, bare":  {429, "QUOTA_EXCEEDED", "", push.Quota},
		"internal":     {500, "INTERNAL", "", push.Failed},
		"unavailable":  {503, "UNAVAILABLE", "", push.Failed},
		"later":        {503, "UNAVAILABLE", "60", push.Failed},
		"unauthorized": {401, "THIRD_PARTY_AUTH_ERROR", "", push.Failed},
		"reset":        {testenv.Reset, "", "", push.Failed},
		"hang":         {testenv.Hang, "", "", push.Failed},
	}
	f.Answer = func(token string, _ int) (int, string, http.Header) {
		a := answers[token]
		h := http.Header{}
		if a.after != "" {
			h.Set("Retry-After", a.after)
		}
		return a.status, a.code, h
	}
	sender, err := push.NewFCM(t.Context(), push.Credentials{ProjectID: f.ProjectID, ClientEmail: f.ClientEmail, PrivateKey: f.PrivateKey, Endpoint: f.URL + "/v1", TokenURI: f.URL + "/token"})
	if err != nil {
		t.Fatal(err)
	}
	for token, a := range answers {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // ends amid the SDK's own retries
		v := sender.Send(ctx, &messaging.Message{Token: token})
		cancel()
		if v.Kind != a.want {
			t.Errorf("%s: kind %d, want %d (%v)", token, v.Kind, a.want, v.Err)
		}
		if token == "quota" && v.RetryAfter != 30*time.Second {
			t.Errorf("Retry-After %s", v.RetryAfter)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if v := sender.Send(ended, &messaging.Message{Token: "accepted"}); v.Kind != push.Failed {
		t.Errorf("a context that has ended: kind %d", v.Kind)
	}
	if v := sender.Send(t.Context(), &messaging.Message{}); v.Kind != push.Invalid { // the SDK itself refuses it
		t.Errorf("no token: kind %d", v.Kind)
	}
	elsewhere, err := push.NewFCM(t.Context(), push.Credentials{ProjectID: f.ProjectID, ClientEmail: "else@x.iam.gserviceaccount.com", PrivateKey: f.PrivateKey, Endpoint: f.URL + "/v1", TokenURI: f.URL + "/token"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if v := elsewhere.Send(ctx, &messaging.Message{Token: "accepted"}); v.Kind != push.Failed { // wrong credentials are no fault of a token
		t.Errorf("wrong credentials: kind %d", v.Kind)
	}
}
