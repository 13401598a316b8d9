package fcm

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
