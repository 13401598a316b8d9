package api

import (
	"errors"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

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
	for _, s := range c.Scopes {
		if s == scope {
			return true
		}
	}
	return false
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

type rawClaims struct {
	jwt.RegisteredClaims
	UserID   string    `json:"userId,omitempty"`
	Scope    scopeList `json:"scope,omitempty"`
	Channels []string  `json:"channels,omitempty"`
}

// scopeList is written as a space-separated string (RFC 8693, section 4.2) or, by some issuers, as an array.
type scopeList = jwt.ClaimStrings

// Verify checks a token. The error is a *topics.Error and never quotes the token.
func (t Tokens) Verify(token string) (Claims, error) {
	if token == "" {
		return Claims{}, tokenInvalid("a token is needed")
	}
	if len(token) > maxToken {
		return Claims{}, tokenInvalid("the token is too long")
	}
	var err error
	for _, secret := range t.Secrets {
		var c rawClaims
		if err = t.parse(token, secret, &c); err == nil {
			return t.claims(c)
		}
		if !errors.Is(err, jwt.ErrTokenSignatureInvalid) {
			break
		}
	}
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return Claims{}, expired()
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return Claims{}, tokenInvalid("the token lacks exp or another claim that is demanded")
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return Claims{}, tokenInvalid("the token is not valid yet")
	case errors.Is(err, jwt.ErrTokenInvalidIssuer), errors.Is(err, jwt.ErrTokenInvalidAudience):
		return Claims{}, tokenInvalid("the token is of another issuer or for another audience")
	}
	return Claims{}, tokenInvalid("the token is not one signed for this server")
}

func (t Tokens) parse(token string, secret []byte, c *rawClaims) error {
	opts := []jwt.ParserOption{jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(leeway),
		jwt.WithTimeFunc(t.now)}
	if t.Issuer != "" {
		opts = append(opts, jwt.WithIssuer(t.Issuer))
	}
	if t.Audience != "" {
		opts = append(opts, jwt.WithAudience(t.Audience))
	}
	_, err := jwt.ParseWithClaims(token, c, func(*jwt.Token) (any, error) { return secret, nil }, opts...)
	return err
}

func (t Tokens) claims(r rawClaims) (Claims, error) {
	c := Claims{User: r.Subject, Expires: r.ExpiresAt.Time, Channels: r.Channels}
	if c.User == "" {
		c.User = r.UserID
	}
	if r.IssuedAt != nil {
		c.Issued = r.IssuedAt.Time
	}
	c.ID = r.ID
	for _, s := range r.Scope {
		c.Scopes = append(c.Scopes, strings.Fields(s)...)
	}
	if !t.now().Before(c.Expires) {
		return Claims{}, expired()
	}
	if err := topics.CheckUserID(c.User); err != nil {
		return Claims{}, tokenInvalid("the token's sub: " + err.Error())
	}
	return c, nil
}

// Unverified reads what a token claims, without any check: only for explaining a token to whoever has it.
func Unverified(token string) (Claims, error) {
	var r rawClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &r); err != nil {
		return Claims{}, tokenInvalid("the token is none")
	}
	if r.Subject == "" {
		r.Subject = r.UserID
	}
	return Claims{User: r.Subject, ID: r.ID}, nil
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

func tokenInvalid(message string) *topics.Error {
	return &topics.Error{Code: topics.CodeTokenInvalid, Message: message}
}

func expired() *topics.Error {
	return &topics.Error{Code: topics.CodeTokenExpired, Message: "the token has expired"}
}
