package api_test

import (
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/apierr"
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
	tokens := api.Tokens{Secrets: [][]byte{[]byte("current"), []byte("previous")}, Issuer: "iss", Audience: "aud",
		Now: func() time.Time { return now }}
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
		"garbage":               {"garbage", "token_invalid"},
		"a long one":            {strings.Repeat("x", 10_000), "token_invalid"},
		"an empty secret":       {sign(t, "", claims(nil)), "token_invalid"},
	} {
		c, err := tokens.Verify(tc.token)
		var refused *apierr.Error
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

// A claim of another type than expected matters only where it is needed, and is named there.
func TestClaimsOfOtherTypes(t *testing.T) {
	base := jwt.MapClaims{"sub": "alice", "exp": now.Add(time.Minute).Unix()}
	for name, tc := range map[string]struct {
		tokens  api.Tokens
		changes jwt.MapClaims
		says    string // empty: accepted
		check   func(c api.Claims) bool
	}{
		"a numeric jti": {changes: jwt.MapClaims{"jti": 12345678901234567},
			check: func(c api.Claims) bool { return c.ID == "12345678901234567" }},
		"a jti that is an object": {changes: jwt.MapClaims{"jti": jwt.MapClaims{}}, check: func(c api.Claims) bool { return c.ID == "" }},
		"an aud nobody asks for":  {changes: jwt.MapClaims{"aud": 7}},
		"an iss nobody asks for":  {changes: jwt.MapClaims{"iss": []int{1}}},
		"aud is a string":         {tokens: api.Tokens{Audience: "a"}, changes: jwt.MapClaims{"aud": "a"}},
		"aud is an array":         {tokens: api.Tokens{Audience: "a"}, changes: jwt.MapClaims{"aud": []any{"b", 3, "a"}}},
		"aud is a number":         {tokens: api.Tokens{Audience: "a"}, changes: jwt.MapClaims{"aud": 7}, says: "aud"},
		"aud is of another":       {tokens: api.Tokens{Audience: "a"}, changes: jwt.MapClaims{"aud": []string{"b"}}, says: "JWT_AUDIENCE"},
		"iss is an array":         {tokens: api.Tokens{Issuer: "i"}, changes: jwt.MapClaims{"iss": []string{"i"}}, says: "JWT_ISSUER"},
		"exp with a fraction": {changes: jwt.MapClaims{"exp": 1_764_583_260.5},
			check: func(c api.Claims) bool { return c.Expires.UnixMilli() == 1_764_583_260_500 }},
		"exp in the far future": {changes: jwt.MapClaims{"exp": 1e300}},
		"exp is a string":       {changes: jwt.MapClaims{"exp": "1764583260"}, says: "exp must be a number"},
		"exp is null":           {changes: jwt.MapClaims{"exp": nil}, says: "lacks exp"},
		"exp is negative":       {changes: jwt.MapClaims{"exp": -1}, says: "exp is no time"},
		"nbf is a string":       {changes: jwt.MapClaims{"nbf": "soon"}, says: "nbf must be a number"},
		"iat is a string": {changes: jwt.MapClaims{"iat": "2025-12-01T10:00:00Z"},
			check: func(c api.Claims) bool { return c.Issued.IsZero() }},
		"sub is a number":          {changes: jwt.MapClaims{"sub": 7}, says: "sub must be a string"},
		"userId is a number":       {changes: jwt.MapClaims{"sub": "", "userId": 7}, says: "userId must be a string"},
		"nobody":                   {changes: jwt.MapClaims{"sub": nil}, says: "lacks sub"},
		"userId unread beside sub": {changes: jwt.MapClaims{"userId": 7}},
		"scope is a string":        {changes: jwt.MapClaims{"scope": "read publish"}, check: func(c api.Claims) bool { return c.Has("publish") }},
		"scope is an array": {changes: jwt.MapClaims{"scope": []any{"read", 3, "publish admin"}},
			check: func(c api.Claims) bool { return c.Has("publish") && c.Has("admin") }},
		"scope is an object": {changes: jwt.MapClaims{"scope": jwt.MapClaims{"publish": true}},
			check: func(c api.Claims) bool { return len(c.Scopes) == 0 }},
		"channels is a string": {changes: jwt.MapClaims{"channels": "a"}, says: "channels must be"},
		"channels of numbers":  {changes: jwt.MapClaims{"channels": []any{"a", 1}}, says: "channels must be"},
		"channels is empty": {changes: jwt.MapClaims{"channels": []any{}}, check: func(c api.Claims) bool {
			return c.Channels != nil &&
				len(c.Channels) == 0
		}},
	} {
		claims := jwt.MapClaims{}
		maps.Copy(claims, base)
		maps.Copy(claims, tc.changes)
		tc.tokens.Secrets, tc.tokens.Now = [][]byte{[]byte("current")}, func() time.Time { return now }
		c, err := tc.tokens.Verify(sign(t, "current", claims))
		switch {
		case tc.says == "" && (err != nil || c.User != "alice" || tc.check != nil && !tc.check(c)):
			t.Errorf("%s: %+v, %v", name, c, err)
		case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)):
			t.Errorf("%s: %v, want %s", name, err, tc.says)
		}
	}
}

// Of algorithms and keys there is one, whatever a token says of itself.
func TestForgedTokens(t *testing.T) {
	tokens := api.Tokens{Secrets: [][]byte{[]byte("current")}, Now: func() time.Time { return now }}
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		method jwt.SigningMethod
		kid    string
		key    any
	}{
		"none":          {jwt.SigningMethodNone, "", jwt.UnsafeAllowNoneSignatureType},
		"HS384":         {jwt.SigningMethodHS384, "", []byte("current")},
		"RS256":         {jwt.SigningMethodRS256, "", private},
		"kid as a path": {jwt.SigningMethodHS256, "../../dev/null", []byte("another secret, of another server!")},
		"kid as SQL":    {jwt.SigningMethodHS256, "' OR 1=1 --", []byte("another secret, of another server!")},
		"kid of a file": {jwt.SigningMethodHS256, "/dev/null", []byte{}},
	} {
		forged := jwt.NewWithClaims(tc.method, jwt.MapClaims{"sub": "alice", "exp": now.Add(time.Minute).Unix()})
		if tc.kid != "" {
			forged.Header["kid"] = tc.kid
		}
		token, err := forged.SignedString(tc.key)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := tokens.Verify(token); err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
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
