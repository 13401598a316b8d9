package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// environment is what the process was given, by name.
type environment map[string]string

// environmentOf reads a list like os.Environ's.
func environmentOf(list []string) environment {
	env := make(environment)
	for _, pair := range list {
		if name, value, ok := strings.Cut(pair, "="); ok {
			env[name] = value
		}
	}
	return env
}

// engineSettings are the settings without which a node has an engine, or a secret, of its own: three nodes with a misspelt one
// are three logs.
var engineSettings = []string{"KAFKA_BROKERS", "DATABASE_URL", "CLICKHOUSE_URL", "JWT_SECRET"}

// alsoCalled are the names that other programs have for the engines.
var alsoCalled = map[string]string{"KAFKA_BOOTSTRAP_SERVERS": "KAFKA_BROKERS", "KAFKA_URL": "KAFKA_BROKERS", "KAFKA_HOSTS": "KAFKA_BROKERS",
	"DATABASE_DSN": "DATABASE_URL", "POSTGRES_URL": "DATABASE_URL", "POSTGRESQL_URL": "DATABASE_URL", "CLICKHOUSE_DSN": "CLICKHOUSE_URL"}

// shared begin names of settings that other programs' names begin with as well: NODE_ENV, LOG_FORMAT, DATA_PATH.
var shared = []string{"NODE", "LOG", "DATA"}

// names are the settings that there are.
type names struct {
	known    []string
	prefixes []string // KAFKA_, JWT_, …: a name that begins so is meant for this program
}

func namesOf(all []setting) names {
	var n names
	for _, s := range all {
		n.known = append(n.known, s.name)
		if first, _, ok := strings.Cut(s.name, "_"); ok && !slices.Contains(shared, first) && !slices.Contains(n.prefixes, first+"_") {
			n.prefixes = append(n.prefixes, first+"_")
		}
	}
	return n
}

// near is the setting that was meant by a name, or empty: one that differs by two letters, or by one where the name is
// short.
func (n names) near(name string) string {
	if meant := alsoCalled[name]; meant != "" {
		return meant
	}
	best, least := "", 2
	if len(name) < shortName {
		least = 1
	}
	for _, k := range n.known {
		if d := distance(strings.ToUpper(name), k); d <= least && (best == "" || d < least) {
			best, least = k, d
		}
	}
	return best
}

// shortName is the length below which two letters make another word.
const shortName = 8

// ours tells whether a name is meant for this program.
func (n names) ours(name string) bool {
	return n.near(name) != "" || slices.ContainsFunc(n.prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// unknown judges names that are no setting: those of .env, where one that is near a setting is a mistake (other programs read
// the same file, so all others are only told), and those of the environment, where a mistake is only what leaves an engine
// unset. set tells what is set.
func (n names) unknown(dotenv map[string]string, env environment, set func(name string) bool) (problems []error, warnings []string) {
	for _, name := range slices.Sorted(maps.Keys(dotenv)) {
		switch {
		case slices.Contains(n.known, name):
		case alsoCalled[name] != "" && set(alsoCalled[name]): // another program's name for what we have
			warnings = append(warnings, name+" in .env: is no setting of Nexus and is ignored")
		case n.near(name) != "":
			problems = append(problems, fmt.Errorf("%s in .env: %s", name, n.advice(name)))
		case n.ours(name):
			warnings = append(warnings, name+" in .env: "+n.advice(name))
		default:
			warnings = append(warnings, name+" in .env: is no setting of Nexus and is ignored")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if slices.Contains(n.known, name) || !n.ours(name) || injected(name, env[name]) {
			continue
		}
		if meant := n.near(name); slices.Contains(engineSettings, meant) && !set(meant) {
			problems = append(problems, fmt.Errorf("%s: %s, which is not set", name, n.advice(name)))
			continue
		}
		warnings = append(warnings, name+": "+n.advice(name))
	}
	return problems, warnings
}

func (n names) advice(name string) string {
	if meant := n.near(name); meant != "" {
		return "there is no such setting; you may mean " + meant
	}
	return "there is no such setting; nexus serve --help lists them"
}

// kubernetes are the names that Kubernetes gives every container for each service ("Discovering services").
var kubernetes = regexp.MustCompile(`_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$`)

func injected(name, value string) bool {
	return kubernetes.MatchString(name) || strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://")
}

// distance is the number of letters that are wrong, missing, too many or exchanged with the next (optimal string
// alignment).
func distance(a, b string) int {
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
