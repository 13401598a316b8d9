package api_test

import (
	"strings"
	"testing"

	"github.com/nexus/nexus/topics"
)

// Whose things a request concerns is the token's to say (row S03): whatever else names a user has no effect. What stores have of
// others is theirs to hide (TestStore in package inbox).
func TestOthersThings(t *testing.T) {
	for _, tc := range []struct{ line, body string }{
		{"GET /notifications?userId=alice", ""},
		{"GET /notifications/unread-count?userId=alice", ""},
		{"POST /notifications/n1/read?userId=alice", `{"userId":"alice"}`},
		{"DELETE /notifications/n1?userId=alice", ""},
		{"POST /notifications/read-all?userId=alice", `{"userId":"alice"}`},
		{"GET /conversations?userId=alice", ""},
		{"GET /messages?with=bob&userId=alice", ""},
		{"GET /stats?userId=alice", ""},
		{"POST /notifications/device-token?userId=alice", `{"token":"alices"}`},
		{"DELETE /notifications/device-token?userId=alice", `{"token":"alices"}`},
		{"PUT /keys?userId=alice", `{"deviceId":"phone","identityKey":"aWs=","prekeys":[]}`},
		{"DELETE /keys/phone?userId=alice", ""},
	} {
		w := &world{}
		a := w.call(t, tc.line, "mallory", tc.body)
		if a.Code >= 300 {
			t.Errorf("%s: %d %s", tc.line, a.Code, a.Body)
		}
		for _, user := range w.asked {
			if user != "mallory" && user != "await" && user != "reached" {
				t.Errorf("%s asks a store for the things of %s", tc.line, user)
			}
		}
		for _, e := range w.appended {
			if string(e.Key) != topics.UserKey("mallory") || strings.Contains(e.Source, "alice") {
				t.Errorf("%s appends %s %s", tc.line, e.Key, e.Value)
			}
		}
		if len(w.asked)+len(w.appended) == 0 {
			t.Errorf("%s does nothing", tc.line)
		}
	}
	const others = `{"receiverId":"bob","content":"spoofed","senderId":"alice"}`
	if a := (&world{}).call(t, "POST /messages", "mallory", others); a.Code == 202 && !strings.Contains(a.Body.String(), `"mallory-bob:`) {
		t.Errorf("a message of another: %s", a.Body)
	}
	for _, tc := range []struct{ line, body string }{
		{"POST /notifications", `{"userId":"alice","title":"t","body":"","type":"SYSTEM"}`}, {"POST /revocations", `{"userId":"alice"}`},
		{"GET /diagnostics/alice", ""}, {"POST /activities", `{"userId":"alice","type":"x","message":"m"}`},
		{"POST /announcements", `{"title":"t","body":""}`}, {"POST /events", `{}`},
	} {
		w := &world{}
		if a := w.call(t, tc.line, "mallory", tc.body); a.Code != 403 || len(w.asked)+len(w.appended) > 0 {
			t.Errorf("%s without the scope: %d %s", tc.line, a.Code, a.Body)
		}
	}
	// Another's notification answers like one that is not there.
	another, none := (&world{}).call(t, "POST /notifications/n2/read", "mallory", ""), (&world{}).call(t, "POST /notifications/none/read",
		"mallory", "")
	if another.Code != 404 || another.Body.String() != none.Body.String() {
		t.Errorf("another's: %d %s; none: %s", another.Code, another.Body, none.Body)
	}
}

// What a socket has shown a read by REST has too: before anything else a store is waited for, until it has come so far.
func TestReadsFollowSockets(t *testing.T) {
	for _, line := range []string{"GET /notifications", "GET /notifications/unread-count", "POST /notifications/n1/read",
		"DELETE /notifications/n1", "POST /notifications/read-all", "GET /conversations", "GET /messages?with=bob"} {
		w := &world{}
		if w.call(t, line, "alice", ""); len(w.asked) == 0 || w.asked[0] != "await" {
			t.Errorf("%s: asked %q", line, w.asked)
		}
	}
	w := &world{} // what is left is counted after it was marked
	if w.call(t, "POST /notifications/read-all", "alice", ""); strings.Join(w.asked, " ") != "await await alice await await alice" {
		t.Errorf("read-all asks %q", w.asked)
	}
}

// The device-token routes answer exactly as in the guide, at both of its paths.
func TestUserRoutes(t *testing.T) {
	for _, prefix := range []string{"", "/api"} {
		for line, tc := range map[string]struct{ body, want string }{
			"POST ":   {`{"token":"fcm-device-token-here"}`, `{"message":"Device token registered successfully"}`},
			"DELETE ": {"", `{"message":"Device token unregistered successfully"}`},
		} {
			a := (&world{}).call(t, line+prefix+"/notifications/device-token", "alice", tc.body)
			if a.Code != 200 || strings.TrimSpace(a.Body.String()) != tc.want {
				t.Errorf("%s%s: %d %s", line, prefix, a.Code, a.Body)
			}
		}
	}
}
