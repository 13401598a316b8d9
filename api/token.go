package api

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

// Claims are what a token says of who sends it.
type Claims struct {
	User            string
	Expires, Issued time.Time // Issued is zero where the token does not say
	ID              string    // jti
	Scopes          []string
	// Channels limits what may be subscribed to; nil means no limit.
	Channels []string
}

// Scopes that tokens need: for ingest, and for what operators do.
const (
	ScopePublish = "publish"
	ScopeAdmin   = "admin"
)

// Has reports whether the token has a scope.
func (c Claims) Has(scope string) bool {
	return slices.Contains(c.Scopes, scope)
}

// Tokens verifies and signs JSON Web Tokens: HS256 (RFC 7518, section 3.2) and no other algorithm.
type Tokens struct {
	// Secrets verify; the first signs.
	Secrets [][]byte
	// Issuer and Audience are demanded where they are set.
	Issuer, Audience string
	// Now is the clock; nil means the system's.
	Now func() time.Time
}

// leeway is what clocks may differ by for nbf and iat; exp has none.
const leeway = 30 * time.Second

// maxToken bounds a token, in bytes.
const maxToken = 8 << 10

// Verify checks a token. The error is a *apierr.Error, says which claim is to blame, and never quotes the token.
func (t Tokens) Verify(token string) (Claims, error) {
	if token == "" {
		return Claims{}, tokenInvalid("a token is needed")
	}
	if len(token) > maxToken {
		return Claims{}, tokenInvalid("the token is too long")
	}
	for _, secret := range t.Secrets {
		raw := jwt.MapClaims{}
		if _, err := parser().ParseWithClaims(token, raw, func(*jwt.Token) (any, error) { return secret, nil }); err == nil {
			return t.judge(raw)
		}
	}
	return Claims{}, tokenInvalid("the token is not one signed for this server")
}

// parser checks the signature alone: jwt refuses a token for a claim of another type than it expects, whether or not
// anybody needs the claim. Numbers stay as they were written.
func parser() *jwt.Parser {
	return jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithoutClaimsValidation(), jwt.WithJSONNumber())
}

// judge reads what is needed of a token's claims (RFC 7519, section 4.1) and names what is wrong with it. What is not
// needed is ignored, whatever it is.
func (t Tokens) judge(raw jwt.MapClaims) (c Claims, err error) {
	exp, err := instant(raw, "exp")
	if err != nil {
		return c, err
	}
	if exp.IsZero() {
		return c, tokenInvalid("the token lacks exp")
	}
	if !t.now().Before(exp) {
		return c, expired()
	}
	nbf, err := instant(raw, "nbf")
	if err != nil {
		return c, err
	}
	// A token of unknown age counts as older than any revocation of its user's tokens.
	iat, err := instant(raw, "iat")
	if err != nil {
		iat = time.Time{}
	}
	if latest := t.now().Add(leeway); nbf.After(latest) || iat.After(latest) {
		return c, tokenInvalid("the token is not valid yet")
	}
	if t.Issuer != "" && raw["iss"] != t.Issuer {
		return c, tokenInvalid("the token's iss is not " + t.Issuer + " (JWT_ISSUER)")
	}
	if t.Audience != "" && !slices.Contains(words(raw["aud"]), t.Audience) {
		return c, tokenInvalid("the token's aud does not name " + t.Audience + " (JWT_AUDIENCE)")
	}
	c = Claims{Expires: exp, Issued: iat, ID: idOf(raw["jti"])}
	if c.User, err = userIn(raw); err != nil {
		return Claims{}, err
	}
	for _, s := range words(raw["scope"]) {
		c.Scopes = append(c.Scopes, strings.Fields(s)...)
	}
	if c.Channels, err = channelsIn(raw); err != nil {
		return Claims{}, err
	}
	return c, nil
}

// latest is the last second that claims may name; what is later counts as this.
const latest = 253402300799 // the end of the year 9999

// instant reads a NumericDate, which may have a fraction; zero where there is none.
func instant(raw jwt.MapClaims, name string) (time.Time, error) {
	v, there := raw[name]
	if !there || v == nil {
		return time.Time{}, nil
	}
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}, tokenInvalid("the token's " + name + " must be a number: seconds since 1970")
	}
	f, err := n.Float64()
	if err != nil || f < 0 {
		return time.Time{}, tokenInvalid("the token's " + name + " is no time")
	}
	whole, part := math.Modf(min(f, latest))
	return time.Unix(int64(whole), int64(part*1e9)), nil
}

// words are the strings of a claim that is a string or an array of them (RFC 7519, section 4.1.3; scope: RFC 8693,
// section 4.2, and by some issuers an array).
func words(v any) (list []string) {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		for _, item := range v {
			if s, ok := item.(string); ok {
				list = append(list, s)
			}
		}
	}
	return list
}

// idOf is a token's id; a number is one as well, as it is written.
func idOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	}
	return ""
}

func userIn(raw jwt.MapClaims) (string, error) {
	for _, name := range []string{"sub", "userId"} {
		v, there := raw[name]
		if !there || v == nil || v == "" {
			continue
		}
		user, ok := v.(string)
		if !ok {
			return "", tokenInvalid("the token's " + name + " must be a string")
		}
		if err := topics.CheckUserID(user); err != nil {
			return "", tokenInvalid("the token's " + name + ": " + err.Error())
		}
		return user, nil
	}
	return "", tokenInvalid("the token lacks sub (or userId), whose it is")
}

// channelsIn is what a token is limited to; nil where it is not limited. A limit that cannot be read is no lack of one.
func channelsIn(raw jwt.MapClaims) ([]string, error) {
	v, there := raw["channels"]
	if !there || v == nil {
		return nil, nil
	}
	list, ok := v.([]any)
	channels := append([]string{}, words(v)...)
	if !ok || len(channels) != len(list) {
		return nil, tokenInvalid("the token's channels must be an array of strings")
	}
	return channels, nil
}

// Unverified reads whose a token claims to be, without any check: only for explaining a token to whoever has it.
func Unverified(token string) (Claims, error) {
	raw := jwt.MapClaims{}
	if _, _, err := parser().ParseUnverified(token, raw); err != nil {
		return Claims{}, tokenInvalid("the token is no JSON Web Token")
	}
	user, err := userIn(raw)
	return Claims{User: user, ID: idOf(raw["jti"])}, err
}

// Sign makes a token that lives for ttl.
func (t Tokens) Sign(c Claims, ttl time.Duration) (string, error) {
	now := t.now()
	r := jwt.MapClaims{"sub": c.User, "userId": c.User, "iat": now.Unix(), "exp": now.Add(ttl).Unix()}
	if len(c.Scopes) > 0 {
		r["scope"] = strings.Join(c.Scopes, " ")
	}
	if c.Channels != nil {
		r["channels"] = c.Channels
	}
	if c.ID != "" {
		r["jti"] = c.ID
	}
	if t.Issuer != "" {
		r["iss"] = t.Issuer
	}
	if t.Audience != "" {
		r["aud"] = t.Audience
	}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, r).SignedString(t.Secrets[0])
}

func (t Tokens) now() time.Time {
	if t.Now != nil {
		return t.Now()
	}
	return time.Now()
}

func tokenInvalid(message string) *apierr.Error {
	return &apierr.Error{Code: apierr.CodeTokenInvalid, Message: message}
}

func expired() *apierr.Error {
	return &apierr.Error{Code: apierr.CodeTokenExpired, Message: "the token has expired"}
}
