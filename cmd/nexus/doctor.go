package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/apierr"
	"github.com/nexus/nexus/topics"
)

const doctorHelp = `nexus doctor looks into the guide's three troubles for a token, a user or a device, and says what to do.

  nexus doctor --token "$TOKEN" --user alice --origin https://app.example.com   connection failed
  nexus doctor --user alice --channel news                                      messages not received
  nexus doctor --user alice --device "$FCM_TOKEN"                               push notifications not working

It asks the server at --server. For what concerns a user it signs a token of scope admin with JWT_SECRET, or with the secret
kept under DATA_DIR. Exit code 0: nothing is wrong; 1: something is.

`

// doctor is one examination.
type doctor struct {
	ctx    context.Context // of the command
	out    io.Writer
	colour bool
	server *url.URL
	client *http.Client
	failed int
}

func diagnose(ctx context.Context, args []string, env environment, stdout, stderr io.Writer) error {
	f := newFlags("doctor", doctorHelp, stderr)
	server := f.String("server", "", serverUsage)
	token := f.String("token", "", "a client's token to examine")
	user := f.String("user", "", "the user in question: the userId that the client sends")
	channel := f.String("channel", "", "a channel whose events the user misses")
	device := f.String("device", "", "a device token of the user's that gets no push")
	origin := f.String("origin", "", "the origin of the page that cannot connect, like https://app.example.com")
	c, tokens, signErr := signer(f, args, env)
	var wrong usageError
	if errors.Is(signErr, flag.ErrHelp) || errors.As(signErr, &wrong) {
		return signErr
	}
	u, err := url.Parse(c.serverURL(*server))
	if err != nil || u.Host == "" {
		return usageError{errors.New("--server: must be a URL like http://localhost:3000")}
	}
	if *token == "" && *user == "" && *origin == "" {
		return usageError{errors.New("say what to examine: --token, --user or --origin (see --help)")}
	}
	d := &doctor{ctx: ctx, out: stdout, colour: isTerminal(stdout) && env["NO_COLOR"] == "", server: u,
		client: &http.Client{Timeout: 10 * time.Second}}
	defer d.client.CloseIdleConnections()
	if d.serverWell() {
		if *origin != "" {
			d.originAllowed(*origin)
		}
		if *token != "" {
			d.tokenGood(*token, *user, *origin) // d.ctx is the command's
		}
		if *user != "" && *token == "" {
			d.userWell(*user, *channel, *device, tokens, signErr)
		}
	}
	if d.failed > 0 {
		return fmt.Errorf("%s found", counted(d.failed, "problem"))
	}
	return nil
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (d *doctor) good(what string, args ...any) {
	fmt.Fprintf(d.out, "%s %s\n", paint(d.colour, green, "ok  "), fmt.Sprintf(what, args...))
}

// bad tells a finding and what to do about it.
func (d *doctor) bad(remedy, what string, args ...any) {
	d.failed++
	fmt.Fprintf(d.out, "%s %s\n       %s\n", paint(d.colour, red, "BAD "), fmt.Sprintf(what, args...), remedy)
}

func (d *doctor) note(what string, args ...any) {
	fmt.Fprintf(d.out, "%s %s\n", paint(d.colour, yellow, "note"), fmt.Sprintf(what, args...))
}

// ask makes a request and decodes the answer.
func (d *doctor) ask(method, path, bearer, origin string, into any) (status int, header http.Header, err error) {
	r, err := http.NewRequestWithContext(d.ctx, method, d.server.JoinPath(path).String(), nil)
	if err != nil {
		return 0, nil, err
	}
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	if origin != "" {
		r.Header.Set("Origin", origin)
		r.Header.Set("Access-Control-Request-Method", "POST")
	}
	resp, err := d.client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if into != nil {
		_ = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(into) // another server may answer anything
	}
	return resp.StatusCode, resp.Header, nil
}

type refusal struct {
	Error struct{ Code, Message string }
}

func (d *doctor) serverWell() bool {
	var ready struct{ Problems map[string]string }
	status, _, err := d.ask("GET", "/readyz", "", "", &ready)
	switch {
	case err != nil:
		d.bad("Start it (nexus serve), or name another address with --server.", "the server does not answer: %v", err)
		return false
	case status == http.StatusOK:
		d.good("the server at %s is ready", d.server.Host)
	case len(ready.Problems) > 0:
		for part, problem := range ready.Problems {
			d.bad("Look at its log, at lines of component="+part+".", "the server is not ready: %s %s", part, problem)
		}
	default:
		d.bad("Name the address of a Nexus server with --server.", "what answers at %s is no Nexus server (status %d)", d.server.Host, status)
		return false
	}
	return true
}

func (d *doctor) originAllowed(origin string) {
	status, header, err := d.ask("OPTIONS", "/notifications/device-token", "", origin, nil)
	switch {
	case err != nil:
		d.bad("Try again.", "the server does not answer: %v", err)
	case status == http.StatusForbidden:
		d.bad("Add it to ALLOWED_ORIGIN (comma-separated, without a path; https://*.example.com for all hosts below it) and restart.",
			"pages of %s may not connect", origin)
	case header.Get("Access-Control-Allow-Origin") != origin:
		d.bad("Have the proxy in front of Nexus pass Origin and the answer's headers on.",
			"the answer lacks Access-Control-Allow-Origin for %s", origin)
	default:
		d.good("pages of %s may connect", origin)
	}
}

// tokenGood has the server judge a token, then connects with it as a client would.
func (d *doctor) tokenGood(token, user, origin string) {
	var r refusal
	status, _, err := d.ask("GET", "/stats", token, "", &r)
	switch {
	case err != nil:
		d.bad("Try again.", "the server does not answer: %v", err)
		return
	case status == http.StatusUnauthorized:
		d.bad(map[string]string{
			apierr.CodeTokenExpired: "Have the client fetch a new token before it connects, and send " + topics.CommandAuthenticate +
				" {token} before the old one expires.",
			apierr.CodeTokenRevoked: "The user has to sign in again.",
		}[r.Error.Code]+" Tokens are HS256 over JWT_SECRET, with sub (or userId) and exp; JWT_ISSUER and JWT_AUDIENCE must match where they "+
			"are set.",
			"the token is refused: %s (%s)", r.Error.Message, r.Error.Code)
		return
	}
	d.good("the token is valid")
	subject := subjectOf(token)
	if user == "" {
		user = subject
	}
	if user != subject {
		d.bad("Let the client send the token's own user as userId.", "userId %q is not the token's user %q", user, subject)
		return
	}
	for _, ns := range topics.Namespaces() {
		d.connects(string(ns), user, token, origin)
	}
}

// subjectOf reads the user from a token that the server has verified.
func subjectOf(token string) string {
	c, _ := api.Unverified(token)
	return c.User
}

func (d *doctor) connects(ns, user, token, origin string) {
	u := *d.server.JoinPath(ns)
	u.Scheme = map[string]string{"https": "wss"}[u.Scheme]
	if u.Scheme == "" {
		u.Scheme = "ws"
	}
	u.RawQuery = url.Values{"userId": {user}, "token": {token}}.Encode()
	h := http.Header{}
	if origin != "" {
		h.Set("Origin", origin)
	}
	ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
	defer cancel()
	ws, resp, err := websocket.DefaultDialer.DialContext(ctx, u.String(), h) //nolint:bodyclose // it is in memory (Dial)
	if err != nil {
		var r refusal
		if resp == nil {
			d.bad("Have the proxy in front of Nexus pass WebSocket upgrades on.", "%s: no WebSocket: the connection broke", ns)
			return
		}
		_ = json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&r)
		remedy := "Have the proxy in front of Nexus pass WebSocket upgrades on."
		switch r.Error.Code {
		case apierr.CodeTooManyConnections:
			remedy = "Close one of the user's connections (GET /diagnostics/{userId} lists them), or raise MAX_CONNECTIONS_PER_USER, or set " +
				"CONNECTION_POLICY=evict-oldest."
		case apierr.CodeUnavailable:
			remedy = "The namespace is full (MAX_CONNECTIONS_PER_NAMESPACE), or the log is away: see /readyz."
		case apierr.CodeForbidden:
			remedy = "Let the client send the token's own user as userId, and allow its origin (ALLOWED_ORIGIN)."
		}
		d.bad(remedy, "%s: the handshake is refused with status %d: %s (%s)", ns, resp.StatusCode, r.Error.Message, r.Error.Code)
		return
	}
	defer ws.Close()
	_ = ws.SetReadDeadline(time.Now().Add(10 * time.Second))
	var frame struct{ Event string }
	if err := ws.ReadJSON(&frame); err != nil || frame.Event != topics.EventConnected {
		d.bad("Look at the server's log.", "%s: connected, but no greeting came", ns)
		return
	}
	d.good("%s: connected as %s", ns, user)
}

// userWell examines why a user gets nothing: no connection, no subscription, no device.
func (d *doctor) userWell(user, channel, device string, tokens api.Tokens, signErr error) {
	if signErr != nil {
		d.note("the user's sessions and devices cannot be asked for: %v", signErr)
		return
	}
	bearer, err := tokens.Sign(api.Claims{User: "nexus-doctor", Scopes: []string{api.ScopeAdmin}}, time.Minute)
	if err != nil {
		d.note("the user's sessions and devices cannot be asked for: %v", err)
		return
	}
	var r struct {
		refusal
		Sessions []struct {
			Node, Namespace, Since string
			Channels               []string
		}
		Devices []struct{ Hash string }
		Push    bool
	}
	status, _, err := d.ask("GET", "/diagnostics/"+url.PathEscape(user), bearer, "", &r)
	if err != nil || status != http.StatusOK {
		d.bad("Set JWT_SECRET (or DATA_DIR) to the server's own.", "the server does not tell about %s: status %d, %s", user, status,
			r.Error.Message)
		return
	}
	dashboards, joined := 0, 0
	for _, s := range r.Sessions {
		d.note("%s has a session in %s on node %s since %s, channels: %s", user, s.Namespace, s.Node, s.Since, strings.Join(s.Channels, ", "))
		if topics.Namespace(s.Namespace) == topics.Dashboard {
			dashboards++
		}
		if slices.Contains(s.Channels, channel) {
			joined++
		}
	}
	if len(r.Sessions) == 0 {
		d.bad("The client has to connect; examine its token with --token. What it missed is in its inbox (GET /notifications).",
			"%s has no connection", user)
	} else {
		d.good("%s is connected", user)
	}
	switch {
	case channel == "":
	case joined > 0:
		d.good("%s is subscribed to %s", user, channel)
	default:
		d.bad("Have the client send "+topics.CommandSubscribe+
			` {"channels":["`+channel+`"]} after every connect, and look at refused in its acknowledgement.`,
			"%s is not subscribed to %s in any of %d dashboard sessions", user, channel, dashboards)
	}
	known := device == "" && len(r.Devices) > 0
	for _, x := range r.Devices {
		known = known || x.Hash == topics.DeviceHash(device)
	}
	switch {
	case len(r.Devices) > 0 && !known:
		d.bad("Register it again: POST /notifications/device-token. Tokens are removed when FCM says that they are dead, and when another "+
			"user registers them.",
			"that device is not registered for %s, who has %d others", user, len(r.Devices))
	case len(r.Devices) == 0:
		d.bad("Register the device: POST /notifications/device-token, after the browser has granted notifications.",
			"%s has no registered device: nothing can be pushed", user)
	case !r.Push:
		d.bad("Set FIREBASE_PROJECT_ID, FIREBASE_PRIVATE_KEY and FIREBASE_CLIENT_EMAIL.",
			"%s has %d devices, but mobile push is off on this server", user, len(r.Devices))
	default:
		d.good("%s has %d devices, and push is on", user, len(r.Devices))
	}
}
