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
	"strings"
	"time"

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

func publish(ctx context.Context, args []string, env environment, stdout, stderr io.Writer) error {
	f := newFlags("publish", publishHelp, stderr)
	server := f.String("server", "", serverUsage)
	bearer := f.String("token", "", "token to use; default: one signed with JWT_SECRET or the secret under DATA_DIR")
	user, channel := f.String("user", "", "user to address"), f.String("channel", "", "channel to address")
	from, to := f.String("from", "", "sender of a message"), f.String("to", "", "receiver of a message")
	title, body, words := f.String("title", "", "title"), f.String("body", "", "body"), f.String("text", "", "text of an activity or message")
	typ, priority := f.String("type", "", "type of a notification or activity"), f.String("priority", "", "low, normal or high")
	data := f.String("data", "", "further data, a JSON object")
	key := f.String("idempotency-key", "", "a repeat with the same key within the dedup window is dropped")
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		if len(args) > 0 && (args[0] == "--help" || args[0] == "-h") {
			f.Usage()
			return flag.ErrHelp
		}
		return usageError{errors.New("say what to publish: notification, activity, announcement or message (see --help)")}
	}
	what := args[0]
	c, tokens, err := signer(f, args[1:], env)
	var wrong usageError
	if err != nil && (*bearer == "" || errors.As(err, &wrong) || errors.Is(err, flag.ErrHelp)) {
		return err
	}
	set := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	var path string
	var payload []byte
	claims := api.Claims{User: "nexus-publish", Scopes: []string{api.ScopePublish}}
	switch what {
	case "notification":
		path, payload = "/notifications", topics.Fields("userId", set(*user), "channel", set(*channel), "title", *title, "body", *body,
			"type", *typ, "priority", set(*priority), "data", json.RawMessage(*data))
	case "activity":
		path, payload = "/activities", topics.Fields("userId", set(*user), "channel", set(*channel), "type", *typ, "message", *words, "data", json.RawMessage(*data))
	case "announcement":
		path, payload = "/announcements", topics.Fields("title", *title, "body", *body)
	case "message":
		path, payload = "/messages", topics.Fields("receiverId", *to, "content", *words)
		claims = api.Claims{User: *from}
	default:
		return usageError{fmt.Errorf("%q is not notification, activity, announcement or message", what)}
	}
	if *bearer == "" {
		if *bearer, err = tokens.Sign(claims, time.Minute); err != nil {
			return err
		}
	}
	return post(ctx, c.serverURL(*server)+path, *bearer, *key, payload, stdout)
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
