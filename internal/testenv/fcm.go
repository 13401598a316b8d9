package testenv

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// FCM is a stand-in for Firebase Cloud Messaging and Google's token endpoint, in front of which the real Firebase Admin
// SDK runs unchanged. It is strict: it verifies the assertion's signature and claims, and refuses a message that FCM v1
// would refuse.
type FCM struct {
	ProjectID, ClientEmail, PrivateKey string // of the service account
	URL                                string

	// Answer decides what is said to a valid message for a token, the nth of that token's (from 1): status 0 accepts it,
	// Reset breaks the connection, Hang never answers. It may wait. Set it before the first message.
	Answer func(token string, n int) (status int, code string, header http.Header)

	key *rsa.PrivateKey

	mu       sync.Mutex
	seen     map[string]int
	accepted map[string][]map[string]any // by token: messages in full
	refused  []string                    // what was wrong with messages
	sends    []time.Time                 // of every attempt
	now      int                         // attempts under way
	most     int                         // and the most there ever were
	bodies   bytes.Buffer                // everything that came, for searching
}

// NewFCM starts one; it ends with the test.
func NewFCM(t testing.TB) *FCM {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	f := &FCM{ProjectID: "nexus-test-1", ClientEmail: "push@nexus-test-1.iam.gserviceaccount.com", key: key,
		PrivateKey: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), seen: make(map[string]int),
		accepted: make(map[string][]map[string]any)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", f.token)
	mux.HandleFunc("POST /v1/projects/{project}/messages:send", f.send)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	f.URL = s.URL
	return f
}

// Env are the settings that point Nexus here; the key is written as in the guide's .env, with \n for line ends.
func (f *FCM) Env() map[string]string {
	return map[string]string{"FIREBASE_PROJECT_ID": f.ProjectID, "FIREBASE_CLIENT_EMAIL": f.ClientEmail,
		"FIREBASE_PRIVATE_KEY": strings.ReplaceAll(f.PrivateKey, "\n", `\n`),
		"FIREBASE_ENDPOINT":    f.URL + "/v1", "FIREBASE_TOKEN_URI": f.URL + "/token"}
}

// What Answer may say beside HTTP's statuses.
const (
	Reset = -1
	Hang  = -2
)

const accessToken = "access-token-of-the-fake"

// token answers a JWT bearer grant (RFC 7523).
func (f *FCM) token(w http.ResponseWriter, r *http.Request) {
	claims := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(r.PostFormValue("assertion"), claims, func(*jwt.Token) (any, error) { return &f.key.PublicKey, nil },
		jwt.WithValidMethods([]string{"RS256"}), jwt.WithExpirationRequired(), jwt.WithAudience(f.URL+"/token"), jwt.WithIssuer(f.ClientEmail))
	scope, _ := claims["scope"].(string)
	if err != nil || r.PostFormValue("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" ||
		!strings.Contains(scope, "/auth/cloud-platform") {
		f.note(fmt.Sprintf("token request: %v %v", err, claims))
		http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"access_token":"`+accessToken+`","token_type":"Bearer","expires_in":3600}`)
}

func (f *FCM) note(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused = append(f.refused, what)
}

func (f *FCM) send(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	f.mu.Lock()
	f.sends = append(f.sends, time.Now())
	f.bodies.Write(body)
	f.now++
	f.most = max(f.most, f.now)
	f.mu.Unlock()
	defer f.done()
	if r.Header.Get("Authorization") != "Bearer "+accessToken {
		fcmError(w, 401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", nil)
		return
	}
	if r.PathValue("project") != f.ProjectID {
		fcmError(w, 403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH", nil)
		return
	}
	message, validateOnly, err := checkMessage(body)
	if err != nil {
		f.note(err.Error())
		fcmError(w, 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", nil)
		return
	}
	token := message["token"].(string)
	f.mu.Lock()
	f.seen[token]++
	n := f.seen[token]
	f.mu.Unlock()
	if f.Answer != nil {
		status, code, header := f.Answer(token, n)
		switch status {
		case Reset:
			panic(http.ErrAbortHandler)
		case Hang:
			<-r.Context().Done()
			return
		case 0:
		default:
			fcmError(w, status, map[int]string{400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED",
				500: "INTERNAL", 503: "UNAVAILABLE"}[status], code, header)
			return
		}
	}
	if !validateOnly {
		f.mu.Lock()
		f.accepted[token] = append(f.accepted[token], message)
		f.mu.Unlock()
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"name":"projects/%s/messages/%d"}`, f.ProjectID, n)
}

func (f *FCM) done() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now--
}

// fcmError answers as FCM v1 does (google.rpc.Status with an FcmError).
func fcmError(w http.ResponseWriter, status int, name, code string, header http.Header) {
	maps.Copy(w.Header(), header)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	const detail = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
	_, _ = fmt.Fprintf(w, `{"error":{"code":%d,"message":"refused","status":%q,"details":[{"@type":%q,"errorCode":%q}]}}`,
		status, name, detail, code)
}

// Fields of an FCM v1 message that this knows; any other is refused.
type fcmRequest struct {
	ValidateOnly bool `json:"validate_only"`
	Message      struct {
		Token        string            `json:"token"`
		Data         map[string]string `json:"data"`
		Notification *struct {
			Title, Body, Image string
		} `json:"notification"`
		Android *struct {
			CollapseKey  string `json:"collapse_key"`
			Priority     string `json:"priority"`
			TTL          string `json:"ttl"`
			Notification *struct {
				Tag, Icon, Title, Body string
			} `json:"notification"`
		} `json:"android"`
		APNS *struct {
			Headers map[string]string `json:"headers"`
			Payload map[string]any    `json:"payload"`
		} `json:"apns"`
		Webpush *struct {
			Headers      map[string]string `json:"headers"`
			Notification map[string]any    `json:"notification"`
			FCMOptions   *struct {
				Link string `json:"link"`
			} `json:"fcm_options"`
		} `json:"webpush"`
	} `json:"message"`
}

var ttlForm = regexp.MustCompile(`^\d+(\.\d+)?s$`)

// checkMessage is what FCM v1 checks of a message (REST reference, projects.messages).
func checkMessage(body []byte) (message map[string]any, validateOnly bool, err error) {
	var r fcmRequest
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, false, err
	}
	m := r.Message
	size := 0
	for k, v := range m.Data {
		size += len(k) + len(v)
		if lower := strings.ToLower(k); lower == "from" || lower == "message_type" || strings.HasPrefix(lower, "google") ||
			strings.HasPrefix(lower, "gcm") {
			return nil, false, fmt.Errorf("reserved data key %q", k)
		}
	}
	if m.Notification != nil {
		size += len(m.Notification.Title) + len(m.Notification.Body)
	}
	switch {
	case m.Token == "" || len(m.Token) > 4096:
		return nil, false, fmt.Errorf("a message needs a token")
	case size > 4096:
		return nil, false, fmt.Errorf("the payload has %d bytes; 4096 are allowed", size)
	case m.Android != nil && m.Android.Priority != "" && m.Android.Priority != "normal" && m.Android.Priority != "high":
		return nil, false, fmt.Errorf("android priority %q", m.Android.Priority)
	case m.Android != nil && m.Android.TTL != "" && !ttlForm.MatchString(m.Android.TTL):
		return nil, false, fmt.Errorf("android ttl %q", m.Android.TTL)
	case m.APNS != nil && len(m.APNS.Headers["apns-collapse-id"]) > 64:
		return nil, false, fmt.Errorf("apns-collapse-id is longer than 64 bytes")
	case m.APNS != nil && m.APNS.Headers["apns-priority"] != "" && m.APNS.Headers["apns-priority"] != "5" &&
		m.APNS.Headers["apns-priority"] != "10":
		return nil, false, fmt.Errorf("apns-priority %q", m.APNS.Headers["apns-priority"])
	case m.Webpush != nil && m.Webpush.FCMOptions != nil && !strings.HasPrefix(m.Webpush.FCMOptions.Link, "https://"):
		return nil, false, fmt.Errorf("webpush link %q", m.Webpush.FCMOptions.Link)
	}
	var whole struct{ Message map[string]any }
	err = json.Unmarshal(body, &whole)
	return whole.Message, r.ValidateOnly, err
}

// Accepted are the messages accepted for a token, oldest first.
func (f *FCM) Accepted(token string) []map[string]any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]map[string]any{}, f.accepted[token]...)
}

// Attempts are the times at which something was sent, whatever the answer.
func (f *FCM) Attempts() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]time.Time{}, f.sends...)
}

// AtOnce is the most attempts that were ever under way at a time.
func (f *FCM) AtOnce() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.most
}

// Refused is what was wrong with messages.
func (f *FCM) Refused() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{}, f.refused...)
}

// Contains tells whether any message had this text in it.
func (f *FCM) Contains(text string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.Contains(f.bodies.Bytes(), []byte(text))
}
