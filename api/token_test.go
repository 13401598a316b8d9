package api_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/topics"
)

var now = time.Unix(1_764_583_200, 0)

func sign(t *testing.T, secret string, claims jwt.MapClaims) string {
	t.Helper()
	s, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVerify(t *testing.T) {
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	tokens := api.Tokens{Secrets: [][]byte{[]byte("current"), []byte("previous")}, Issuer: "iss", Audience: "aud", Now: func() time.Time { return now }}
	claims := func(changes jwt.MapClaims) jwt.MapClaims {
		c := jwt.MapClaims{"sub": "alice", "iss": "iss", "aud": "aud", "exp": at(time.Minute)}
		for k, v := range changes {
			if c[k] = v; v == nil {
				delete(c, k)
			}
		}
		return c
	}
	for name, tc := range map[string]struct {
		token string
		code  string // empty: accepted
	}{
		"good":                  {sign(t, "current", claims(nil)), ""},
		"the previous secret":   {sign(t, "previous", claims(nil)), ""},
		"another secret":        {sign(t, "other", claims(nil)), "token_invalid"},
		"exp in a second":       {sign(t, "current", claims(jwt.MapClaims{"exp": at(time.Second)})), ""},
		"exp now":               {sign(t, "current", claims(jwt.MapClaims{"exp": at(0)})), "token_expired"},
		"exp long ago":          {sign(t, "previous", claims(jwt.MapClaims{"exp": at(-time.Hour)})), "token_expired"},
		"no exp":                {sign(t, "current", claims(jwt.MapClaims{"exp": nil})), "token_invalid"},
		"nbf within the leeway": {sign(t, "current", claims(jwt.MapClaims{"nbf": at(29 * time.Second)})), ""},
		"nbf beyond":            {sign(t, "current", claims(jwt.MapClaims{"nbf": at(31 * time.Second)})), "token_invalid"},
		"iat within the leeway": {sign(t, "current", claims(jwt.MapClaims{"iat": at(29 * time.Second)})), ""},
		"iat beyond":            {sign(t, "current", claims(jwt.MapClaims{"iat": at(31 * time.Second)})), "token_invalid"},
		"another issuer":        {sign(t, "current", claims(jwt.MapClaims{"iss": "x"})), "token_invalid"},
		"no audience":           {sign(t, "current", claims(jwt.MapClaims{"aud": nil})), "token_invalid"},
		"userId for sub":        {sign(t, "current", claims(jwt.MapClaims{"sub": nil, "userId": "alice"})), ""},
		"a user with a colon":   {sign(t, "current", claims(jwt.MapClaims{"sub": "a:b"})), "token_invalid"},
		"nothing":               {"", "token_invalid"},
	} {
		c, err := tokens.Verify(tc.token)
		var refused *topics.Error
		switch {
		case tc.code == "" && (err != nil || c.User != "alice"):
			t.Errorf("%s: %+v, %v", name, c, err)
		case tc.code != "" && (!errors.As(err, &refused) || refused.Code != tc.code):
			t.Errorf("%s: %v, want %s", name, err, tc.code)
		}
	}
	for _, scope := range []any{"read publish", []string{"read", "publish"}} {
		c, err := tokens.Verify(sign(t, "current", claims(jwt.MapClaims{"scope": scope, "channels": []string{"a"}})))
		if err != nil || !c.Has(api.ScopePublish) || c.Has("pub") || !slices.Equal(c.Channels, []string{"a"}) {
			t.Errorf("scope %v: %+v, %v", scope, c, err)
		}
	}
	own, err := tokens.Sign(api.Claims{User: "bob", Scopes: []string{"publish"}}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := tokens.Verify(own); err != nil || c.User != "bob" || !c.Has("publish") || c.Channels != nil {
		t.Errorf("a token of our own: %+v, %v", c, err)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add("a.b.c")
	tokens := api.Tokens{Secrets: [][]byte{[]byte("0123456789abcdef0123456789abcdef")}}
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := tokens.Verify(token); err == nil {
			t.Error("a token that nobody signed is accepted")
		}
	})
}
