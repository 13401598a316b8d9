package fcm

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"regexp"
	"strings"
)

// Credentials are those of a Firebase service account; without a project the channel is off.
type Credentials struct {
	// ProjectID, ClientEmail and PrivateKey are members of the account's JSON file (FIREBASE_PROJECT_ID, FIREBASE_CLIENT_EMAIL,
	// FIREBASE_PRIVATE_KEY). The key is PEM.
	ProjectID, ClientEmail, PrivateKey string
	// Endpoint and TokenURI point elsewhere than Google (FIREBASE_ENDPOINT, FIREBASE_TOKEN_URI); empty: Google.
	Endpoint, TokenURI string
}

// On tells whether there are credentials.
func (c Credentials) On() bool { return c.ProjectID != "" }

// projectID is what Google allows (Resource Manager, "Project ID").
var projectID = regexp.MustCompile(`^[a-z][a-z0-9-]{4,28}[a-z0-9]$`)

// Check puts the key into its plain form, whatever a shell, an .env file or a secret store made of it, and says by the settings'
// names what is wrong with the credentials, all of it at once. Without any credentials nothing is wrong. No error repeats a value.
func (c *Credentials) Check() error {
	if c.ProjectID == "" && c.PrivateKey == "" && c.ClientEmail == "" {
		return nil
	}
	c.PrivateKey = pemText(c.PrivateKey)
	var problems []error
	if !projectID.MatchString(c.ProjectID) {
		problems = append(problems, errors.New("FIREBASE_PROJECT_ID: must be a project id like my-app-1234"))
	}
	if !strings.Contains(c.ClientEmail, "@") {
		problems = append(problems, errors.New("FIREBASE_CLIENT_EMAIL: must be the service account's address, like "+
			"name@project.iam.gserviceaccount.com"))
	}
	return errors.Join(append(problems, checkKey(c.PrivateKey))...)
}

// checkKey tells whether a text is a private key: PKCS #8, as Google's files have it, or PKCS #1.
func checkKey(text string) error {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return errors.New("FIREBASE_PRIVATE_KEY: must be the service account's private_key, from -----BEGIN to " +
			"END-----, with its line ends or with \\n in their place")
	}
	if _, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		return nil
	}
	if _, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return nil
	}
	return errors.New("FIREBASE_PRIVATE_KEY: is no private key (PKCS #8): copy it from the service account's JSON file as it is")
}

// pemText undoes what shells, .env files and secret stores do to a PEM: quotes around it, and \n, \\n or \r\n for a
// line's end.
func pemText(s string) string {
	s = strings.Trim(strings.TrimSpace(s), `"'`)
	return escapedLineEnd.ReplaceAllString(s, "\n")
}

var escapedLineEnd = regexp.MustCompile(`(\\+r)?\\+n|\r\n|\\+r`)
