package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/edge"
	"github.com/nexus/nexus/edge/push"
	"github.com/nexus/nexus/edge/push/fcm"
	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
)

// Config is everything an operator can set. Below cmd nobody reads the environment. What belongs to a package is that package's
// own type, which says what each field means, its unit and when to change it; what is left is this command's.
type Config struct {
	// Host and Port are where HTTP and WebSocket are served. Host empty: on all addresses; Port 0: on a free one.
	Host, Port string
	// NodeName tells this node from others, and is the same at every start.
	NodeName string
	// DataDir is the folder of the embedded engines, and of what a node keeps for itself.
	DataDir string
	// LogLevel is the least level that is logged.
	LogLevel string
	// Demo has the start print tokens and lines to try.
	Demo bool
	// StartupTimeout is how long a start waits for the engines, ShutdownTimeout how long a stop may take to drain.
	StartupTimeout, ShutdownTimeout time.Duration

	// Kafka is the log; without Brokers it is the embedded one.
	Kafka pipeline.Kafka
	// Broker is the embedded log. BrokerPortSet tells that an operator asked for its port.
	Broker        pipeline.BrokerOptions
	BrokerPortSet bool
	// Topics is how topics are made that are missing.
	Topics pipeline.TopicOptions
	// DedupWindow is how long a repeat is a duplicate. DedupWindowSet tells that an operator asked for it: only then is
	// another one in the log's contract an error.
	DedupWindow    time.Duration
	DedupWindowSet bool

	// DatabaseURL is PostgreSQL for the inbox, ClickHouseURL ClickHouse for statistics; empty: SQLite under DataDir.
	DatabaseURL, ClickHouseURL string
	// FeedRetention is how long the feed is kept that clients resume from.
	FeedRetention time.Duration

	// JWTSecret and JWTSecretPrevious become the Secrets of Tokens, which has what else is demanded of tokens.
	JWTSecret, JWTSecretPrevious string
	Tokens                       api.Tokens
	// AllowedOrigins are those that browsers may come from; nil: any.
	AllowedOrigins api.Origins

	Edge edge.Settings

	Push     push.Settings
	Firebase fcm.Credentials
	// FirebasePlaceholder names the Firebase setting that has the guide's placeholder, which counts as unset.
	FirebasePlaceholder string

	// Warnings are what an operator is told of the settings, though they hold.
	Warnings []string
}

// setting is one thing an operator can set: NAME in the environment or in .env, --name on the command line.
type setting struct {
	name, fallback, usage string
	set                   func(c *Config, v string) error
}

func (s setting) flag() string { return strings.ReplaceAll(strings.ToLower(s.name), "_", "-") }

func text(p func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error { *p(c) = v; return nil }
}

func oneOf(p func(*Config) *string, allowed ...string) func(*Config, string) error {
	return choice(func(c *Config, v string) { *p(c) = v }, allowed...)
}

// choice is oneOf for what is not kept as the text.
func choice(take func(c *Config, v string), allowed ...string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if !slices.Contains(allowed, v) {
			return fmt.Errorf("must be one of %s", strings.Join(allowed, ", "))
		}
		take(c, v)
		return nil
	}
}

func list(p func(*Config) *[]string) func(*Config, string) error {
	return func(c *Config, v string) error {
		*p(c) = items(v)
		return nil
	}
}

// items are those of a comma-separated list.
func items(v string) (list []string) {
	for item := range strings.SplitSeq(v, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

func truth(p func(*Config) *bool) func(*Config, string) error {
	return func(c *Config, v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return errors.New("must be true or false")
		}
		*p(c) = b
		return nil
	}
}

func number[N int | int32](p func(*Config) *N, least, most N) func(*Config, string) error {
	return func(c *Config, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < int(least) || n > int(most) {
			return fmt.Errorf("must be a number from %d to %d", least, most)
		}
		*p(c) = N(n)
		return nil
	}
}

func span(p func(*Config) *time.Duration, least time.Duration) func(*Config, string) error {
	return func(c *Config, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < least {
			return fmt.Errorf("must be a duration like 30s or 5m, at least %s", least)
		}
		*p(c) = d
		return nil
	}
}

const many = 1 << 30

// Values of settings that are kept as a bool.
const (
	evictOldest = "evict-oldest"
	fsync       = "fsync"
)

func settings() []setting {
	return []setting{
		{"PORT", "3000", "port of HTTP and WebSocket; 0 takes a free one and prints it", func(c *Config, v string) error {
			n, err := strconv.Atoi(v)
			if err != nil || n < 0 || n > 65535 {
				return errors.New("must be a port number from 0 to 65535")
			}
			c.Port = v
			return nil
		}},
		{"HOST", "", "address to listen on; empty means all", text(func(c *Config) *string { return &c.Host })},
		{"NODE_NAME", "", "name of this node, the same at every start; default <hostname>:<port>",
			text(func(c *Config) *string { return &c.NodeName })},
		{"DATA_DIR", "nexus-data", "folder of the embedded engines", text(func(c *Config) *string { return &c.DataDir })},
		{"LOG_LEVEL", "info", "debug, info, warn or error",
			oneOf(func(c *Config) *string { return &c.LogLevel }, "debug", "info", "warn", "error")},

		{"KAFKA_BROKERS", "", "Kafka as host:port,…; unset: the embedded one", list(func(c *Config) *[]string { return &c.Kafka.Brokers })},
		{"KAFKA_TLS", "false", "reach Kafka over TLS", truth(func(c *Config) *bool { return &c.Kafka.TLS })},
		{"KAFKA_SASL_MECHANISM", "", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
			oneOf(func(c *Config) *string { return &c.Kafka.SASLMechanism }, "", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")},
		{"KAFKA_SASL_USERNAME", "", "user name for SASL", text(func(c *Config) *string { return &c.Kafka.SASLUsername })},
		{"KAFKA_SASL_PASSWORD", "", "password for SASL", text(func(c *Config) *string { return &c.Kafka.SASLPassword })},
		{"EMBEDDED_KAFKA_PORT", "", "port of the embedded Kafka on loopback; default 9092, or a free one where that is taken", func(c *Config,
			v string) error {
			c.BrokerPortSet = true
			return number(func(c *Config) *int { return &c.Broker.Port }, 0, 65535)(c, v)
		}},
		{"DURABILITY", "process", "process: the embedded log survives kill -9; fsync: also a loss of power, slower",
			choice(func(c *Config, v string) { c.Broker.Fsync = v == fsync }, "process", fsync)},
		{topicPrefix, "nexus.", "what the topics' names begin with", text(func(c *Config) *string { return &c.Kafka.Names.Prefix })},
		{"TOPIC_PARTITIONS", "6", "partitions of topics that Nexus makes",
			number(func(c *Config) *int32 { return &c.Topics.Partitions }, 1, 1000)},
		{"TOPIC_REPLICATION", "0", "replicas of topics that Nexus makes; 0 means min(3, brokers)",
			number(func(c *Config) *int { return &c.Topics.Replication }, 0, 10)},

		{"DATABASE_URL", "", "PostgreSQL for the inbox, like postgres://user:password@host:5432/name; unset: SQLite", func(c *Config,
			v string) error {
			c.DatabaseURL = v
			return urlOf(v, "postgres", "postgresql")
		}},
		{"CLICKHOUSE_URL", "", "ClickHouse for statistics, like clickhouse://user:password@host:9000/database; unset: SQLite", func(c *Config,
			v string) error {
			c.ClickHouseURL = v
			return urlOf(v, "clickhouse", "tcp")
		}},
		{"FEED_RETENTION", "168h", "how long the feed that clients resume from is kept",
			span(func(c *Config) *time.Duration { return &c.FeedRetention }, time.Minute)},

		{"JWT_SECRET", "", "secret that tokens are signed with (HS256), at least 32 bytes",
			text(func(c *Config) *string { return &c.JWTSecret })},
		{"JWT_SECRET_PREVIOUS", "", "secret that is still accepted while it is being replaced",
			text(func(c *Config) *string { return &c.JWTSecretPrevious })},
		{"JWT_ISSUER", "", "demanded iss of tokens", text(func(c *Config) *string { return &c.Tokens.Issuer })},
		{"JWT_AUDIENCE", "", "demanded aud of tokens", text(func(c *Config) *string { return &c.Tokens.Audience })},
		{"ALLOWED_ORIGIN", "", "origins that browsers may come from, comma-separated; unset: any", func(c *Config, v string) error {
			all, err := api.ParseOrigins(items(v))
			c.AllowedOrigins = all
			return err
		}},

		{"MAX_CONNECTIONS_PER_USER", "5", "connections of a user in a namespace",
			number(func(c *Config) *int { return &c.Edge.Limits.PerUser }, 1, many)},
		{"MAX_CONNECTIONS_PER_NAMESPACE", "1000", "connections in a namespace",
			number(func(c *Config) *int { return &c.Edge.Limits.PerNamespace }, 1, many)},
		{"CONNECTION_POLICY", "refuse", "what happens to one connection too many of a user: refuse it, or evict-oldest",
			choice(func(c *Config, v string) { c.Edge.Limits.EvictOldest = v == evictOldest }, "refuse", evictOldest)},
		{"RATE_LIMIT_MESSAGES", "100", "messages of a user within the window",
			number(func(c *Config) *int { return &c.Edge.RateLimit }, 1, many)},
		{"RATE_LIMIT_WINDOW", "1m", "the window of the rate limit",
			span(func(c *Config) *time.Duration { return &c.Edge.RateWindow }, time.Second)},
		{"DEDUP_WINDOW", "5m", "how long a repeat is a duplicate; fixed by the log's first start",
			span(func(c *Config) *time.Duration { return &c.DedupWindow }, time.Millisecond)},
		{"DEDUP_CONTENT_WINDOW", "5m", "how long a node gives copies of a message without an id the first one's id",
			span(func(c *Config) *time.Duration { return &c.Edge.ContentWindow }, 0)},
		{"PING_INTERVAL", "30s", "heartbeat of connections",
			span(func(c *Config) *time.Duration { return &c.Edge.PingInterval }, 50*time.Millisecond)},
		{"PING_TIMEOUT", "20s", "how long an answer to the heartbeat may take",
			span(func(c *Config) *time.Duration { return &c.Edge.PingTimeout }, 50*time.Millisecond)},
		{"CONNECT_TIMEOUT", "45s", "how long a Socket.IO session may take to join a namespace",
			span(func(c *Config) *time.Duration { return &c.Edge.ConnectTimeout }, time.Second)},
		{"STATS_INTERVAL", "30s", "how often stats_update is sent without a change",
			span(func(c *Config) *time.Duration { return &c.Edge.StatsInterval }, time.Second)},
		{"PRESENCE_GRACE", "2s", "how long a user who is gone is still shown as online",
			span(func(c *Config) *time.Duration { return &c.Edge.PresenceGrace }, 0)},
		{"COMPRESSION_THRESHOLD", "1024", "longer messages are compressed, in bytes",
			number(func(c *Config) *int { return &c.Edge.CompressionThreshold }, 0, many)},
		{"MAX_MESSAGE_BYTES", "1000000", "longest frame from a client",
			number(func(c *Config) *int { return &c.Edge.MaxMessageBytes }, 1024, 64<<20)},
		{"MAX_CONTENT_BYTES", "32768", "longest content of a chat message",
			number(func(c *Config) *int { return &c.Edge.MaxContentBytes }, 1, 200<<10)},
		{"MAX_QUEUE_BYTES", "1048576", "bytes that may wait for a slow client before it is closed",
			number(func(c *Config) *int { return &c.Edge.MaxQueueBytes }, 64<<10, many)},
		{"FIREBASE_PROJECT_ID", "", "Firebase project that pushes are sent for; unset: push is off",
			unlessPlaceholder("FIREBASE_PROJECT_ID", func(c *Config) *string { return &c.Firebase.ProjectID })},
		{"FIREBASE_PRIVATE_KEY", "", "private key of its service account, PEM; \\n stands for a line's end",
			unlessPlaceholder("FIREBASE_PRIVATE_KEY", func(c *Config) *string { return &c.Firebase.PrivateKey })},
		{"FIREBASE_CLIENT_EMAIL", "", "its service account",
			unlessPlaceholder("FIREBASE_CLIENT_EMAIL", func(c *Config) *string { return &c.Firebase.ClientEmail })},
		{"FIREBASE_ENDPOINT", "", "a proxy or a fake in FCM's place, like https://host/v1", func(c *Config, v string) error {
			c.Firebase.Endpoint = v
			return httpURL(v)
		}},
		{"FIREBASE_TOKEN_URI", "", "where access tokens come from, in Google's place", func(c *Config, v string) error {
			c.Firebase.TokenURI = v
			return httpURL(v)
		}},
		{"PUSH_TTL", "24h", "older events are not pushed any more", span(func(c *Config) *time.Duration { return &c.Push.TTL }, time.Second)},
		{"PUSH_LEASE", "90s", "when a push that a node was making when it died is made again",
			span(func(c *Config) *time.Duration { return &c.Push.Lease }, time.Second)},
		{"PUSH_RATE", "200", "pushes of this node in a second by each channel, at most",
			number(func(c *Config) *int { return &c.Push.Rate }, 1, 100_000)},

		{"STARTUP_TIMEOUT", "30s", "how long a start waits for the engines to be there",
			span(func(c *Config) *time.Duration { return &c.StartupTimeout }, time.Second)},
		{"SHUTDOWN_TIMEOUT", "8s", "how long a shutdown may take to drain",
			span(func(c *Config) *time.Duration { return &c.ShutdownTimeout }, time.Second)},
	}
}

// unlessPlaceholder takes a value unless it is the guide's placeholder, which counts as unset.
func unlessPlaceholder(name string, p func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if strings.HasPrefix(v, "your-") {
			c.FirebasePlaceholder = name
			return nil
		}
		*p(c) = v
		return nil
	}
}

func httpURL(v string) error {
	u, err := url.Parse(v)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return errors.New("must be a URL like https://host/v1")
	}
	return nil
}

func urlOf(v string, schemes ...string) error {
	if err := sqldb.CheckURL("the URL", v); err != nil {
		return err
	}
	u, err := url.Parse(v)
	if err != nil || !slices.Contains(schemes, u.Scheme) || u.Host == "" { // the URL may hold a password: it is not repeated
		return fmt.Errorf("must be a URL like %s://user:password@host:port/name", schemes[0])
	}
	return nil
}

// load reads the settings from args, the environment and ./.env, in this order of precedence. Every problem is
// reported at once, by the name that the operator typed. An empty value counts as unset.
func load(fs *flag.FlagSet, args []string, env environment) (*Config, error) {
	c, err := readSettings(fs, args, env)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		err = usageError{err}
	}
	return c, err
}

func readSettings(fs *flag.FlagSet, args []string, env environment) (*Config, error) {
	all := settings()
	given := make(map[string]*string)
	for _, s := range all {
		usage := fmt.Sprintf("%s [%s]", s.usage, s.name)
		if s.fallback != "" {
			usage += fmt.Sprintf(" (default %s)", s.fallback)
		}
		given[s.name] = fs.String(s.flag(), "", usage)
	}
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("%q is not expected: settings are flags like --port 3000 (see --help)", fs.Arg(0))
	}
	dotenv, ignored, err := readDotenv()
	if err != nil {
		return nil, err
	}
	c := &Config{}
	var problems []error
	set := make(map[string]bool)
	for _, s := range all {
		v, typed := *given[s.name], "--"+s.flag()
		if v == "" {
			v, typed = env[s.name], s.name
		}
		if v == "" {
			v, typed = dotenv[s.name], s.name+" in .env"
		}
		set[s.name] = v != ""
		if v == "" {
			v = s.fallback
		}
		if v == "" {
			continue
		}
		if err := s.set(c, v); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", typed, err))
		}
	}
	c.DedupWindowSet = set["DEDUP_WINDOW"]
	for _, line := range ignored {
		c.Warnings = append(c.Warnings, fmt.Sprintf(".env: line %d is not like NAME=value and is ignored", line))
	}
	if _, there := env[topicPrefix]; there && !set[topicPrefix] {
		c.Warnings = append(c.Warnings, topicPrefix+" is empty, which counts as unset: topics are called "+c.Kafka.Names.Prefix+"…")
	}
	mistakes, warnings := namesOf(all).unknown(dotenv, env, func(name string) bool { return set[name] })
	c.Warnings = append(c.Warnings, warnings...)
	return c, errors.Join(append(append(problems, mistakes...), c.validate())...)
}

const topicPrefix = "NEXUS_TOPIC_PREFIX"

func (c *Config) external() bool {
	return len(c.Kafka.Brokers) > 0 || c.DatabaseURL != "" || c.ClickHouseURL != ""
}

// engines names the engine of each part, for the log's first line.
func (c *Config) engines() []any {
	pick := func(set bool, external, own string) string {
		if set {
			return external
		}
		return own
	}
	return []any{"log", pick(len(c.Kafka.Brokers) > 0, "kafka", "embedded"), "inbox", pick(c.DatabaseURL != "", "postgres", "sqlite"),
		"stats", pick(c.ClickHouseURL != "", "clickhouse", "sqlite"), "push", pick(c.pushes(), "fcm", "off")}
}

// validate judges what no single setting shows.
func (c *Config) validate() error {
	problems := []error{c.checkSecrets(), c.Firebase.Check()}
	if k := &c.Kafka; k.SASLMechanism != "" && (k.SASLUsername == "" || k.SASLPassword == "") {
		problems = append(problems, errors.New("KAFKA_SASL_MECHANISM: needs KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"))
	}
	return errors.Join(problems...)
}

// pushes tells whether push is configured.
func (c *Config) pushes() bool { return c.Firebase.On() }

// pushOff says why push is off.
func (c *Config) pushOff() string {
	if c.FirebasePlaceholder != "" {
		return c.FirebasePlaceholder + " is the guide's placeholder"
	}
	return "FIREBASE_PROJECT_ID is not set"
}

// newFlags makes a command's flag set; its help goes to out.
func newFlags(name, help string, out io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(out)
	f.Usage = func() {
		fmt.Fprint(out, help)
		f.VisitAll(func(x *flag.Flag) {
			if x.DefValue != "" && x.DefValue != "false" {
				fmt.Fprintf(out, "  --%-30s %s (default %s)\n", x.Name, x.Usage, x.DefValue)
				return
			}
			fmt.Fprintf(out, "  --%-30s %s\n", x.Name, x.Usage)
		})
	}
	return f
}
