package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// minSecret is the least length of an HS256 key (RFC 7518, section 3.2).
const minSecret = 32

// minLetters is how many different characters a secret has at least: 32 hexadecimal digits at random have fewer once in
// a hundred million.
const minLetters = 6

const makeOne = "; make one with: openssl rand -hex 32"

// placeholders are what guides write where a secret belongs, without the characters between the words.
var placeholders = []string{"secret", "jwtsecret", "supersecret", "password", "changeme", "changeit", "secretkey", "mysecret", "test",
	"dev", "todo", "none"}

// placeholderShape is how guides write it otherwise: your-…, change-…, <…>, …example….
var placeholderShape = regexp.MustCompile(`^(your|my|change|replace|insert|enter|put)[-_ ]|^<.*>$|^\$?\{.*\}$|` +
	`changeme|change[-_ ](me|this|it)|replace[-_ ]?(me|this)|example|placeholder|secret[-_ ]?key[-_ ]?here`)

// isPlaceholder tells whether everybody who has read a guide knows the secret.
func isPlaceholder(secret string) bool {
	lower := strings.ToLower(strings.TrimSpace(secret))
	words := strings.NewReplacer("-", "", "_", "", " ", "", ".", "").Replace(lower)
	return slices.Contains(placeholders, words) || placeholderShape.MatchString(lower)
}

// weak says what is wrong with a secret; nil where it is good.
func weak(secret string) error {
	letters := make(map[rune]bool)
	for _, r := range secret {
		letters[r] = true
	}
	switch {
	case isPlaceholder(secret):
		return errors.New("is a placeholder" + makeOne)
	case len(secret) < minSecret:
		return fmt.Errorf("must have at least %d bytes%s", minSecret, makeOne)
	case len(letters) < minLetters:
		return errors.New("repeats a few characters: anybody can guess it" + makeOne)
	}
	return nil
}

// checkSecrets judges the secrets that tokens are verified with. Beside embedded engines JWT_SECRET may be weak, for a
// first try, and is warned of; a placeholder that is still accepted after a rotation never may.
func (c *Config) checkSecrets() error {
	var problems []error
	if c.external() && c.JWTSecret == "" {
		problems = append(problems, errors.New("JWT_SECRET: must be set where an external engine is used"))
	}
	for _, s := range []struct{ name, value string }{{"JWT_SECRET", c.JWTSecret}, {"JWT_SECRET_PREVIOUS", c.JWTSecretPrevious}} {
		if s.value == "" {
			continue
		}
		err := weak(s.value)
		switch {
		case err == nil:
		case c.external(), s.name == "JWT_SECRET_PREVIOUS" && isPlaceholder(s.value):
			problems = append(problems, fmt.Errorf("%s: %w", s.name, err))
		default:
			c.Warnings = append(c.Warnings, s.name+" is weak, anybody can guess it: "+err.Error())
		}
	}
	return errors.Join(problems...)
}
