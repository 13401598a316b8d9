package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
)

// dotenvs are texts that a .env may have.
var dotenvs = []string{
	"", "A=b", "A=b\nB=c\n", "A = b", " A=b ", "A:b", "A: b", "export A=b", "export  A = b", "exportA=b", "A", "=b", "A==b", "A=b=c",
	"A.B-C_1=d",
	"# c\nA=b", "A=b # c", "A=b#c", "A=b\\#c", "A='b # c'", `A="b # c"`, "A=`b # c`", `A="b" # c`, `A="b" c`, "A=#b", "A= #b", "A=\nB=c",
	"A=\n'b'", "A=", "A=''",
	`A=""`, `A='`, `A="`, `A="b`, `A=b"`, `A="b\nc"`, `A='b\nc'`, "A=`b\\nc`", `A=b\nc`, `A="b\r\nc"`, `A="b\\nc"`, `A="b\tc"`, `A="b\"c"`,
	`A='b\'c'`, "A=`b\"'c`",
	"A=\"b\nc\nd\"\nE=f", "A='b\nc'", "A=`b\nc`", "A=\"b\n# c\nD=e\"", "A=\"b\nC=d", "A=b\r\nB=c\r\n", "A=b\rB=c", "\ufeffA=b", "A=b\nA=c",
	"A='b'\nA=", "A=$B", "A=${B}", `A="$B"`,
	"JWT_SECRET=abc$27def", "A=abc$$d", "A=\tb\t", "A=\u00a0b\u00a0", "A='b' 'c'", `A="a" "b"`, "A=b c  d", "A=ä", "Ä=b",
	"A=b\n\n\n  \n#\nB=c", "A=\"b\\", `A="b\\"`, "A=<b>", "A=1,2", "a=b",
	"FIREBASE_PRIVATE_KEY=\"-----BEGIN PRIVATE KEY-----\\nabc\\n-----END PRIVATE KEY-----\\n\"", "A:\nB=c", "A :  b", "export\nA=b", "A\n=b",
	"A='b'#c", "A='b'c'", "A=\"\"b\"",
}

// A .env reads here as it reads to the npm package dotenv, over a table and thousands of texts made of its pieces.
func TestDotenvIsNpmDotenv(t *testing.T) {
	tool(t, "node")
	dir := clientDir(t)
	if _, err := os.Stat(filepath.Join(dir, "node_modules/dotenv")); err != nil {
		missing(t, "npm's dotenv is not installed; run internal/testenv/setup.sh")
	}
	seed := mathrand.Uint64()
	r := mathrand.New(mathrand.NewPCG(seed, 0))
	texts := slices.Clone(dotenvs)
	pieces := []string{"A", "B_1", "c.d", "=", "=", " = ", ": ", ":", "'", `"`, "`", "\n", "\n", "\r\n", "\r", " ", "\t", "#", " # ", `\`,
		`\n`, `\r`, `\"`, `\'`, "$X", "${A}", "export ", "ü", "\u00a0", "x y", "\ufeff", "\v"}
	for range 5000 {
		var b strings.Builder
		for range 1 + r.IntN(20) {
			b.WriteString(pieces[r.IntN(len(pieces))])
		}
		texts = append(texts, b.String())
	}
	in, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	node := exec.Command("node", "-e", `const d = require("dotenv"); console.log(JSON.stringify(JSON.parse(require("fs").readFileSync(0, "utf8")).map(s => d.parse(s))))`)
	node.Dir, node.Stdin = dir, bytes.NewReader(in)
	out, err := node.Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []map[string]string
	if err := json.Unmarshal(out, &want); err != nil || len(want) != len(texts) {
		t.Fatal(err)
	}
	for i, text := range texts {
		if got, _ := parseDotenv(text); !reflect.DeepEqual(got, want[i]) {
			t.Errorf("%q: %q, npm dotenv has %q (seed %d)", text, got, want[i], seed)
		}
	}
}

func TestDotenvLinesThatAreIgnored(t *testing.T) {
	_, ignored := parseDotenv("A=b\nnonsense here\n# c\n\nB=c\n=d\n")
	if !slices.Equal(ignored, []int{2, 6}) {
		t.Errorf("%v", ignored)
	}
}

func FuzzDotenv(f *testing.F) {
	for _, s := range dotenvs {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, _ := parseDotenv(text)
		size := 0
		for k, v := range values {
			size += len(k) + len(v)
		}
		if size > 3*len(text) { // what is not UTF-8 becomes U+FFFD
			t.Errorf("%d bytes out of %d", size, len(text))
		}
	})
}

// settle reads settings as serve does, with a .env beside the process.
func settle(t *testing.T, dotenv string, env environment) (*Config, error) {
	t.Helper()
	t.Chdir(t.TempDir())
	if dotenv != "" {
		if err := os.WriteFile(".env", []byte(dotenv), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	return load(fs, nil, env)
}

// Names that are no setting: an error where they are meant for Nexus and leave something unset, else a word.
func TestUnknownNames(t *testing.T) {
	const url, secret = "postgres://u:p@h/d", testSecret
	for name, tc := range map[string]struct {
		dotenv string
		env    environment
		errors []string // all of them in one error; none: it starts
		warns  []string
	}{
		"the guide's .env with other programs' names": {dotenv: "ALLOWED_ORIGIN=http://localhost:3001\n" +
			"NODE_ENV=development\nAPI_KEY=x\nREDIS_HOST=h\nLOG_FORMAT=json\nFIREBASE_PROJECT_ID=your-project-id",
			warns: []string{"NODE_ENV in .env: is no setting", "API_KEY", "REDIS_HOST", "LOG_FORMAT"}},
		"other programs' settings with prefixes of ours": {dotenv: "JWT_EXPIRES_IN=1h\nKAFKA_CLIENT_ID=x\nMAX_FRAMES=2",
			warns: []string{"JWT_EXPIRES_IN in .env: there is no such setting", "KAFKA_CLIENT_ID", "MAX_FRAMES"}},
		"mistakes in .env, all at once": {dotenv: "POTR=1\nALLOWED_ORIGINS=x\nKAFKA_BROKER=h:1\nMAX_FRAMES=2",
			errors: []string{"POTR in .env: there is no such setting; you may mean PORT", "you may mean ALLOWED_ORIGIN",
				"you may mean KAFKA_BROKERS"}},
		"in small letters": {dotenv: "port=1", errors: []string{"you may mean PORT"}},
		"KAFKA_BROKER": {env: environment{"KAFKA_BROKER": "h:1"},
			errors: []string{"KAFKA_BROKER: there is no such setting; you may mean KAFKA_BROKERS, which is not set"}},
		"KAFKA_BROKER beside KAFKA_BROKERS": {env: environment{"KAFKA_BROKER": "h:1", "KAFKA_BROKERS": "h:1", "JWT_SECRET": secret},
			warns: []string{"KAFKA_BROKER: there is no such setting; you may mean KAFKA_BROKERS"}},
		"DATABASE_URI":            {env: environment{"DATABASE_URI": url}, errors: []string{"you may mean DATABASE_URL"}},
		"CLICKHOUSE_URI":          {env: environment{"CLICKHOUSE_URI": url}, errors: []string{"you may mean CLICKHOUSE_URL"}},
		"JWT_SECERT":              {env: environment{"JWT_SECERT": secret}, errors: []string{"you may mean JWT_SECRET"}},
		"KAFKA_BOOTSTRAP_SERVERS": {env: environment{"KAFKA_BOOTSTRAP_SERVERS": "h:1"}, errors: []string{"you may mean KAFKA_BROKERS"}},
		"the typo in .env, the name in the environment": {dotenv: "DATABASE_URI=" + url,
			env: environment{"DATABASE_URL": url, "JWT_SECRET": secret}, errors: []string{"DATABASE_URI in .env"}},
		"a near miss of another setting": {env: environment{"RATE_LIMIT_MESAGES": "1", "PUSH_TLL": "1h"},
			warns: []string{"RATE_LIMIT_MESSAGES", "PUSH_TTL"}},
		"a prefix of ours": {env: environment{"NEXUS_COLOUR": "red"},
			warns: []string{"NEXUS_COLOUR: there is no such setting; nexus serve --help"}},
		"what Kubernetes injects": {env: environment{"KAFKA_SERVICE_HOST": "1.2.3.4", "KAFKA_SERVICE_PORT": "9092",
			"KAFKA_SERVICE_PORT_CLIENT": "9092", "KAFKA_PORT": "tcp://1.2.3.4:9092", "KAFKA_PORT_9092_TCP": "tcp://1.2.3.4:9092",
			"KAFKA_PORT_9092_TCP_ADDR": "1.2.3.4", "NEXUS_PORT": "tcp://1.2.3.4:3000", "KAFKA_BROKERS_SERVICE_HOST": "x"}},
		"what every shell has": {env: environment{"PATH": "/bin", "HOME": "/root", "HOSTNAME": "h", "SHELL": "sh", "USER": "u", "LANG": "C",
			"TERM": "x", "PWD": "/", "NODE_OPTIONS": "x", "LOGNAME": "u", "POSTGRES_USER": "u"}},
		"an empty prefix":       {env: environment{"NEXUS_TOPIC_PREFIX": ""}, warns: []string{"NEXUS_TOPIC_PREFIX is empty"}},
		"an empty line of .env": {dotenv: "KAFKA_BROKERS=\nJWT_SECRET="},
		"a line that is none":   {dotenv: "PORT 3000", warns: []string{".env: line 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := settle(t, tc.dotenv, tc.env)
			var wrong usageError
			if (err != nil) != (tc.errors != nil) || err != nil && !errors.As(err, &wrong) {
				t.Fatalf("%v", err)
			}
			for _, want := range tc.errors {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no word of %q in %v", want, err)
				}
			}
			if err != nil {
				return
			}
			said := strings.Join(c.Warnings, "\n")
			for _, want := range tc.warns {
				if !strings.Contains(said, want) {
					t.Errorf("no warning of %q in %s", want, said)
				}
			}
			if len(c.Warnings) != len(tc.warns) {
				t.Errorf("warnings: %s", said)
			}
		})
	}
}

func TestDollarInSecret(t *testing.T) {
	const secret = "abc$27def$HOME0123456789abcdef0123456789"
	c, err := settle(t, "JWT_SECRET="+secret, nil)
	if err != nil || c.JWTSecret != secret {
		t.Errorf("%q, %v", c.JWTSecret, err)
	}
}

// A secret that anybody can guess is refused wherever it would be accepted, and never repeated.
func TestWeakSecrets(t *testing.T) {
	external := environment{"KAFKA_BROKERS": "127.0.0.1:1"}
	weakOnes := []string{"your-secret-key-here", "your-super-secret-jwt-key-change-in-production", "changeme-changeme-changeme-changeme",
		"secret", "short",
		strings.Repeat("a", 40), strings.Repeat("abc", 20), "<put-your-secret-here-0123456789abcdef>", "this-is-only-an-example-0123456789abcdef",
		"replace-me-0123456789abcdef0123456789",
		"change_me_0123456789abcdef0123456789", "${JWT_SECRET_FROM_VAULT_0123456789}"}
	ended, cancel := context.WithCancel(t.Context())
	cancel() // a node that takes the secret and starts ends at once
	for _, weak := range weakOnes {
		for _, name := range []string{"JWT_SECRET", "JWT_SECRET_PREVIOUS"} {
			for _, command := range [][]string{{"serve"}, {"token", "--user", "u"}, {"publish", "announcement", "--title", "t", "--body", "b"},
				{"doctor", "--user", "u"}} {
				env := environment{"JWT_SECRET": testSecret}
				maps.Copy(env, external)
				env[name] = weak
				var out bytes.Buffer
				if code := run(ended, command, env, &out, &out); code != 2 || !strings.Contains(out.String(), name+":") ||
					strings.Contains(out.String(), weak) {
					t.Errorf("%v with %s=%s: %d %s", command, name, weak, code, &out)
				}
			}
		}
	}
	for _, strong := range []string{testSecret, "5f2b8c1d9e3a7046f1c2d3e4b5a69788", "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MGFiY2RlZg==",
		"correct horse battery staple 4711 !"} {
		if err := weak(strong); err != nil {
			t.Errorf("%s: %v", strong, err)
		}
	}
	if _, err := settle(t, "", environment{"JWT_SECRET": testSecret, "JWT_SECRET_PREVIOUS": "your-secret-key-here"}); err == nil {
		t.Error("a placeholder that was rotated away is still accepted beside embedded engines")
	}
	c, err := settle(t, "", environment{"JWT_SECRET": "your-secret-key-here"})
	if err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "JWT_SECRET is weak") {
		t.Errorf("the guide's secret beside embedded engines: %v, %v", c, err)
	}
}

// A Firebase key is taken in every form that shells, .env files and secret stores give it.
func TestFirebaseKey(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	in := func(end string) string { return strings.ReplaceAll(text, "\n", end) }
	env := func(key string) environment {
		return environment{"FIREBASE_PROJECT_ID": "my-app-1234", "FIREBASE_CLIENT_EMAIL": "x@y.iam.gserviceaccount.com",
			"FIREBASE_PRIVATE_KEY": key}
	}
	for name, form := range map[string]string{"as it is": text, `\n`: in(`\n`), `\\n`: in(`\\n`), `\r\n escaped`: in(`\r\n`),
		"CRLF": in("\r\n"), "in quotes": `"` + in(`\n`) + `"`,
		"in single quotes": "'" + in(`\n`) + "'", `\\n in quotes with blanks`: ` "` + in(`\\n`) + `" `} {
		if c, err := settle(t, "", env(form)); err != nil || c.Firebase.PrivateKey != strings.TrimSpace(text) && c.Firebase.PrivateKey != text {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := settle(t, "", env("nonsense")); err == nil || strings.Contains(err.Error(), "nonsense") {
		t.Error(err)
	}
	c, err := settle(t, "FIREBASE_PROJECT_ID=your-project-id", nil)
	if err != nil || !strings.Contains(c.pushOff(), "FIREBASE_PROJECT_ID is the guide's placeholder") {
		t.Errorf("%v", err)
	}
	if c, _ := settle(t, "", nil); c.pushOff() != "FIREBASE_PROJECT_ID is not set" {
		t.Error(c.pushOff())
	}
}

// No error of a setting repeats a password, however the URL is broken.
func TestSecretsInErrors(t *testing.T) {
	for _, url := range []string{"postgres://u:4711/x@h/d", "clickhouse://u:4711/x@h/d", "postgres://u:hunter2/x@h/d",
		"postgres://u:hunter2#x@h/d", "mysql://u:hunter2@h/d", "postgres://u:hunter2@ /d", "u:hunter2@h", "postgres://u:hunter2@h:port/d"} {
		for _, name := range []string{"DATABASE_URL", "CLICKHOUSE_URL"} {
			_, err := settle(t, "", environment{name: url, "JWT_SECRET": testSecret})
			if err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "4711") {
				t.Errorf("%s=%s: %v", name, url, err)
			}
		}
	}
}

func TestEngines(t *testing.T) {
	c := &Config{DatabaseURL: "d"}
	c.Kafka.Brokers = []string{"k"}
	c.Firebase.ProjectID = "p"
	if got := c.engines(); !reflect.DeepEqual(got, []any{"log", "kafka", "inbox", "postgres", "stats", "sqlite", "push", "fcm"}) {
		t.Error(got)
	}
	if got := (&Config{ClickHouseURL: "c"}).engines(); !reflect.DeepEqual(got,
		[]any{"log", "embedded", "inbox", "sqlite", "stats", "clickhouse", "push", "off"}) {
		t.Error(got)
	}
}

// docs/settings.md has one row for each setting, with its default, and no other.
func TestSettingsAreDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "settings.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]string)
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(line, "|"); len(cells) == 6 && strings.HasPrefix(cells[1], " `") {
			rows[strings.Trim(cells[1], " `")] = strings.TrimSpace(cells[3])
		}
	}
	for _, s := range settings() {
		told, ok := rows[s.name]
		delete(rows, s.name)
		switch {
		case !ok:
			t.Errorf("%s has no row", s.name)
		case s.fallback != "" && told != "`"+s.fallback+"`":
			t.Errorf("%s: the default is %q, the page says %s", s.name, s.fallback, told)
		case s.fallback == "" && strings.HasPrefix(told, "`") && !strings.Contains(s.usage, strings.Trim(told, "`")):
			t.Errorf("%s has no default, the page says %s", s.name, told)
		}
	}
	for name := range rows {
		t.Errorf("there is no setting %s", name)
	}
}

// Configuration problems are told all at once, by the names that were typed.
func TestConfigProblems(t *testing.T) {
	var log testenv.Buffer
	env := map[string]string{"PORT": "99999", "PING_INTERVAL": "soon", "KAFKA_BROKERS": "k:9092", "JWT_SECRET": "your-secret-key-here",
		"DATABASE_URL": "mysql://u:hunter2@h/d"}
	code := run(t.Context(), []string{"serve", "--max-connections-per-user", "none"}, env, &log, &log)
	if code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	for _, want := range []string{"PORT:", "PING_INTERVAL:", "JWT_SECRET: is a placeholder", "--max-connections-per-user:", "DATABASE_URL:"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no word of %s in:\n%s", want, log.String())
		}
	}
	if strings.Contains(log.String(), "hunter2") {
		t.Error("a password was printed")
	}
}
