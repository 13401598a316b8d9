package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/topics"
)

const tokenHelp = `nexus token prints a token signed with JWT_SECRET, or with the secret kept under DATA_DIR.

  nexus token --user alice
  nexus token --user billing-service --scope publish --ttl 720h

`

func token(_ context.Context, args []string, env environment, stdout, stderr io.Writer) error {
	f := newFlags("token", tokenHelp, stderr)
	user := f.String("user", "", "whose token it is (sub)")
	scope := f.String("scope", "", "scopes, space-separated: publish lets a service send events, admin an operator revoke tokens")
	id := f.String("id", "", "the token's id (jti), by which it alone can be revoked")
	channels := f.String("channels", "", "channels the token is limited to, comma-separated")
	ttl := f.Duration("ttl", time.Hour, "how long it is valid")
	_, tokens, err := signer(f, args, env)
	if err != nil {
		return err
	}
	if err := topics.CheckUserID(*user); err != nil {
		return usageError{fmt.Errorf("--user: %w", err)}
	}
	c := api.Claims{User: *user, ID: *id, Scopes: strings.Fields(*scope)}
	if *channels != "" {
		c.Channels = strings.Split(*channels, ",")
	}
	t, err := tokens.Sign(c, *ttl)
	if err == nil {
		fmt.Fprintln(stdout, t)
	}
	return err
}

const serverUsage = "the server's address (default http://localhost:<PORT>)"

// serverURL is the address of the server that a command asks: the one named, or where serve listens with these settings.
func (c *Config) serverURL(named string) string {
	if named != "" {
		return named
	}
	host := c.Host
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, c.Port)
}

// signer reads the settings, and what tokens are signed with by them. The settings are there where only the secret is not.
func signer(f *flag.FlagSet, args []string, env environment) (*Config, api.Tokens, error) {
	c, err := load(f, args, env)
	if err != nil {
		return c, api.Tokens{}, err
	}
	secret := c.JWTSecret
	if secret == "" {
		b, err := os.ReadFile(secretFile(c.DataDir))
		if err != nil {
			return c, api.Tokens{}, errors.New("there is no secret to sign with: set JWT_SECRET, or start nexus serve with the same DATA_DIR first")
		}
		secret = strings.TrimSpace(string(b))
	}
	return c, tokensOf(c, secret), nil
}

const publishHelp = `nexus publish sends one event to a running server by REST.

  nexus publish notification --user alice --title Hello --body World --type SYSTEM
  nexus publish activity --channel events --type post_created --text "bob posted"
  nexus publish announcement --title Maintenance --body Tonight
  nexus publish message --from alice --to bob --text Hello

`

// publication is something that may be published: what it is called, the REST path that takes it, the members of its body, and
// what kinds of audience it may name.
type publication struct {
	name, path string
	fields     []topics.Field
	audiences  []topics.AudienceKind
}

// messagesPath takes a user's own message, by the rules of the command sendMessage.
const messagesPath = "/messages"

// publications are the kinds of event that are handed in, and chat messages.
func publications() (list []publication) {
	for _, k := range topics.Kinds() {
		if k.Ingest != "" {
			p := publication{name: k.Type, path: k.Ingest, fields: k.Fields}
			for _, in := range k.In {
				p.audiences = append(p.audiences, in.Keys...)
			}
			list = append(list, p)
		}
	}
	send, _ := topics.CommandOf(topics.Messaging, topics.CommandSendMessage)
	return append(list, publication{name: topics.TypeMessage, path: messagesPath, fields: send.Fields})
}

// flagOf is the flag of a member: clientMessageId is --client-message-id.
func flagOf(f topics.Field) string {
	var b strings.Builder
	for _, r := range f.Name {
		if unicode.IsUpper(r) {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// text is the member that has the words, which --text gives whatever its name is: the last that any text will do for and that
// people read. Of a message to is the member that has the receiver.
func (p publication) text() (name string) {
	for _, f := range p.fields {
		if f.Kind == topics.AString && f.Format == topics.AnyText && len(f.Enum) == 0 && f.Chars.Max == 0 && (f.Required || name == "") {
			name = f.Name
		}
	}
	return name
}

func (p publication) to() string {
	for _, f := range p.fields {
		if f.Format == topics.UserID && f.Fill == nil {
			return f.Name
		}
	}
	return ""
}

// audience is whom REST is told that an event is for, beside the event's own members.
type audience struct {
	UserID  string `json:"userId,omitempty"`
	Channel string `json:"channel,omitempty"`
}

// memberFlags makes a flag for each member that any publication has, but for those that say who is meant.
func memberFlags(f *flag.FlagSet, list []publication) map[string]*string {
	given, usage := make(map[string]*string), make(map[string][]string)
	for _, p := range list {
		for _, m := range p.fields {
			if m.Format != topics.UserID {
				usage[m.Name] = append(usage[m.Name], p.name+": "+m.Doc+usageOf(m))
				if flag := f.Lookup(flagOf(m)); flag != nil {
					flag.Usage = strings.Join(usage[m.Name], "; ")
					continue
				}
				given[m.Name] = f.String(flagOf(m), "", usage[m.Name][0])
			}
		}
	}
	return given
}

// usageOf is what a flag's help says beside the member's meaning.
func usageOf(m topics.Field) string {
	switch {
	case len(m.Enum) > 0:
		return " (" + strings.Join(m.Enum, ", ") + ")"
	case m.Kind != topics.AString:
		return " (JSON, " + m.Kind.String() + ")"
	}
	return ""
}

// check refuses what this publication has no place for: it would be lost without a word.
func (p publication) check(given map[string]*string, whom audience) error {
	for name, v := range given {
		if *v != "" && !slices.ContainsFunc(p.fields, func(f topics.Field) bool { return f.Name == name }) {
			return usageError{fmt.Errorf("--%s does not go with %s, which has no such member", flagOf(topics.Field{Name: name}), p.name)}
		}
	}
	if whom.UserID != "" && !slices.Contains(p.audiences, topics.User) {
		return usageError{fmt.Errorf("--user does not go with %s: it would not go to that user alone", p.name)}
	}
	if whom.Channel != "" && !slices.Contains(p.audiences, topics.Channel) {
		return usageError{fmt.Errorf("--channel does not go with %s: it would not go to that channel alone", p.name)}
	}
	return nil
}

// body is what REST is sent: the members that were given and that this publication has, and whom it is for.
func (p publication) body(given map[string]*string, words, to string, whom audience) ([]byte, error) {
	members := make(map[string]any)
	for _, f := range p.fields {
		v := ""
		if given[f.Name] != nil {
			v = *given[f.Name]
		}
		switch {
		case f.Name == p.text() && v == "":
			v = words
		case f.Name == p.to():
			v = to
		}
		switch {
		case f.Kind == topics.AString && (v != "" || f.Required && f.Fill == nil): // the server says what must not be empty
			members[f.Name] = v
		case v == "":
		case !json.Valid([]byte(v)):
			return nil, usageError{fmt.Errorf("--%s: must be JSON: %s", flagOf(f), f.Kind)}
		default:
			members[f.Name] = json.RawMessage(v)
		}
	}
	also, err := json.Marshal(whom)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(also, &members); err != nil { // into the same object
		return nil, err
	}
	return json.Marshal(members)
}

func publish(ctx context.Context, args []string, env environment, stdout, stderr io.Writer) error {
	f := newFlags("publish", publishHelp, stderr)
	list := publications()
	server := f.String("server", "", serverUsage)
	bearer := f.String("token", "", "token to use; default: one signed with JWT_SECRET or the secret under DATA_DIR")
	user, channel := f.String("user", "", "user to address"), f.String("channel", "", "channel to address")
	from, to := f.String("from", "", "sender of a message"), f.String("to", "", "receiver of a message")
	words := f.String("text", "", "the text, whatever the event calls it")
	given := memberFlags(f, list)
	key := f.String("idempotency-key", "", "a repeat with the same key within the dedup window is dropped")
	var names []string
	for _, p := range list {
		names = append(names, p.name)
	}
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		if len(args) > 0 && (args[0] == "--help" || args[0] == "-h") {
			f.Usage()
			return flag.ErrHelp
		}
		return usageError{fmt.Errorf("say what to publish: %s (see --help)", either(names))}
	}
	at := slices.Index(names, args[0])
	if at < 0 {
		return usageError{fmt.Errorf("%q is not %s", args[0], either(names))}
	}
	what := list[at]
	c, tokens, err := signer(f, args[1:], env)
	var wrong usageError
	if err != nil && (*bearer == "" || errors.As(err, &wrong) || errors.Is(err, flag.ErrHelp)) {
		return err
	}
	whom := audience{*user, *channel}
	if err := what.check(given, whom); err != nil {
		return err
	}
	payload, err := what.body(given, *words, *to, whom)
	if err != nil {
		return err
	}
	claims := api.Claims{User: "nexus-publish", Scopes: []string{api.ScopePublish}}
	if what.path == messagesPath {
		claims = api.Claims{User: *from} // a message is its sender's own
	}
	if *bearer == "" {
		if *bearer, err = tokens.Sign(claims, time.Minute); err != nil {
			return err
		}
	}
	return post(ctx, c.serverURL(*server)+what.path, *bearer, *key, payload, stdout)
}

func post(ctx context.Context, url, bearer, key string, payload []byte, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(payload))
	if err != nil {
		return usageError{errors.New("--server: must be a URL like http://localhost:3000")}
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+bearer)
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("no server answers (name its address with --server, or its PORT): %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		var e struct {
			Error struct{ Code, Message string }
		}
		if json.Unmarshal(answer, &e) == nil && e.Error.Code != "" {
			return fmt.Errorf("the server refused: %s (%s)", e.Error.Message, e.Error.Code)
		}
		return fmt.Errorf("the server answered %s", resp.Status)
	}
	fmt.Fprintln(stdout, string(bytes.TrimSpace(answer)))
	return nil
}
