package api

import (
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
)

// Origin is one origin that browsers may come from (RFC 6454), or, as https://*.example.com, all whose host ends in
// .example.com.
type Origin struct {
	scheme, host, port string
	below              bool // host stands for whatever is one or more labels below it
	text               string
}

// Origins are those that browsers may come from; nil lets any in.
type Origins []Origin

// ParseOrigins reads origins as an operator writes them.
func ParseOrigins(list []string) (Origins, error) {
	var all Origins
	for _, text := range list {
		o, ok := parseOrigin(text)
		if !ok {
			return nil, fmt.Errorf("%q must be an origin like https://app.example.com, without a path, or https://*.example.com for all hosts "+
				"below it", text)
		}
		all = append(all, o)
	}
	return all, nil
}

func parseOrigin(text string) (o Origin, ok bool) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return o, false
	}
	host, below := strings.CutPrefix(strings.ToLower(u.Hostname()), "*.")
	// A wildcard over a whole top-level domain, or one that is no label of its own, would let strangers in.
	if host == "" || strings.Contains(host, "*") || below && (!strings.Contains(host, ".") || net.ParseIP(host) != nil) {
		return o, false
	}
	return Origin{scheme: u.Scheme, host: host, port: portOf(u), below: below, text: text}, true
}

// portOf is the port that a URL means where it names none (Fetch standard, default ports).
func portOf(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

func (o Origin) lets(in Origin) bool {
	if o.scheme != in.scheme || o.port != in.port || in.below {
		return false
	}
	if o.below {
		return strings.HasSuffix(in.host, "."+o.host)
	}
	return o.host == in.host
}

// texts are the origins as the operator wrote them, or any.
func (all Origins) texts() []string {
	if all == nil {
		return []string{"any"}
	}
	list := make([]string, len(all))
	for i, o := range all {
		list[i] = o.text
	}
	return list
}

// allows tells whether a page may use the server: any page where no origins are named, else one of the server's own
// origin or of one that is named.
func (all Origins) allows(r *http.Request) bool {
	if all == nil {
		return true
	}
	in, ok := parseOrigin(r.Header.Get("Origin"))
	if !ok { // null, a file, an extension
		return false
	}
	if u, err := url.Parse(r.Header.Get("Origin")); err == nil && strings.EqualFold(u.Host, r.Host) {
		return true
	}
	for _, o := range all {
		if o.lets(in) {
			return true
		}
	}
	return false
}

// usualHeaders are the request headers that pages may send in any case.
const usualHeaders = "authorization, content-type, idempotency-key"

// Bounds of what a preflight may ask for: bytes, and header names.
const (
	maxAskedBytes = 1024
	maxAsked      = 32
)

// allowedHeaders answers a preflight's Access-Control-Request-Headers: what is asked for and is safe, besides the usual.
// A page's library adds headers of its own (tracing, versions), which Nexus does not look at.
func allowedHeaders(asked string) string {
	if len(asked) > maxAskedBytes || strings.Count(asked, ",") >= maxAsked {
		return usualHeaders
	}
	var allowed strings.Builder
	allowed.WriteString(usualHeaders)
	for name := range strings.SplitSeq(asked, ",") {
		name = strings.ToLower(strings.Trim(name, " \t"))
		if name == "" || strings.ContainsFunc(name, notToken) || trusted(name) || strings.Contains(", "+usualHeaders+",", ", "+name+",") {
			continue
		}
		allowed.WriteString(", " + name)
	}
	return allowed.String()
}

// notToken tells what may not stand in a header's name (RFC 9110, section 5.6.2).
func notToken(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

// trusted are headers that proxies write and servers behind them believe: no page may set them.
func trusted(name string) bool {
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Forwarded", "X-Real-Ip", "Via", "Host", "Cookie", "True-Client-Ip", "Cf-Connecting-Ip":
		return true
	}
	return strings.HasPrefix(name, "x-forwarded-") || strings.HasPrefix(name, "proxy-") || strings.HasPrefix(name, "sec-")
}
