// Command facts reads `go test -json` on standard input and prints what `go test` would. Then it holds every row of
// docs/facts.txt, a fact of the product guide and the tests that show it, against what it has read, and writes the table to
// .cache/facts.md where every row holds; make facts puts that into docs/facts.md. It exits with 1 where a test failed, where
// a row's test did not pass (with -check: or was skipped), where the guide has a fact that no row names, or, with -check,
// where the table that is committed says something else.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	check := flag.Bool("check", false, "no row's test may be skipped, and the table that is committed must be the one that comes out")
	flag.Parse()
	results, failed := follow(os.Stdin, os.Stdout)
	problems, err := table(results, *check)
	if err != nil {
		problems = append(problems, err.Error())
	}
	for _, p := range problems {
		fmt.Println("facts:", p)
	}
	if failed || len(problems) > 0 {
		os.Exit(1)
	}
}

// event is a line of test2json.
type event struct{ Action, Package, Test, Output string }

// follow prints package lines and the output of failed tests, and returns each test's result by name.
func follow(in io.Reader, out io.Writer) (results map[string]string, failed bool) {
	results = make(map[string]string)
	outputs := make(map[string]*bytes.Buffer)
	for lines := bufio.NewReader(in); ; {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return results, failed
		}
		var e event
		if json.Unmarshal(line, &e) != nil { // a compiler's words
			fmt.Fprintf(out, "%s", line)
			failed = true
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "output", "build-output":
			if e.Test == "" {
				if e.Output != "PASS\n" {
					fmt.Fprint(out, e.Output)
				}
				continue
			}
			if outputs[key] == nil {
				outputs[key] = &bytes.Buffer{}
			}
			outputs[key].WriteString(e.Output)
		case "fail", "build-fail":
			failed = true
			if b := outputs[key]; b != nil {
				_, _ = io.Copy(out, b)
			}
			results[e.Test] = "failed"
		case "pass", "skip":
			delete(outputs, key)
			if results[e.Test] == "" || e.Action == "pass" && results[e.Test] != "failed" {
				results[e.Test] = map[string]string{"pass": "passed", "skip": "skipped"}[e.Action]
			}
		}
	}
}

// open marks a fact whose test is still to come.
const open = "open"

// Where the table is written, and where it is committed. A run of the tests changes no file that is committed.
const (
	written   = ".cache/facts.md"
	committed = "docs/facts.md"
)

// table reads the rows, judges them, and writes the table.
func table(results map[string]string, check bool) (problems []string, err error) {
	text, err := os.ReadFile("docs/facts.txt")
	if err != nil {
		return nil, err
	}
	guide, err := os.ReadFile("docs/product-guide.md")
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString("# The guide's facts\n\n" +
		"Each fact of [product-guide.md](product-guide.md) and the tests that show it. Written by `make facts` from the tests' own output\n" +
		"and `facts.txt`; a row whose test failed, was skipped or is missing fails the run.\n")
	rows, still, left := 0, 0, 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "//"):
			continue
		case strings.HasPrefix(line, "# "):
			fmt.Fprintf(&out, "\n## %s\n\n| fact | shown by | |\n|---|---|---|\n", strings.TrimPrefix(line, "# "))
			continue
		}
		fact, shown, ok := strings.Cut(line, " = ")
		if !ok {
			problems = append(problems, "docs/facts.txt: not a row: "+line)
			continue
		}
		rows++
		verdict, bad := judge(strings.Fields(shown), results)
		if verdict == "skipped" && !check { // a machine that lacks something
			left++
			bad = nil
		}
		if verdict == open {
			still++
		}
		for _, b := range bad {
			problems = append(problems, fmt.Sprintf("%q: %s", fact, b))
		}
		fmt.Fprintf(&out, "| %s | %s | %s |\n", fact, strings.Join(strings.Fields(shown), ", "), verdict)
	}
	problems = append(problems, unnamed(string(guide), string(text))...)
	fmt.Printf("facts: %d rows, %d still open, %d not shown here because their tests were skipped\n", rows, still, left)
	if len(problems) > 0 || left > 0 {
		return problems, remove(written) // it would be that of an earlier run
	}
	if err := os.WriteFile(written, out.Bytes(), 0o644); err != nil {
		return nil, err
	}
	old, err := os.ReadFile(committed)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if check && !bytes.Equal(old, out.Bytes()) {
		return []string{committed + " is not what the tests say: run make facts and commit it"}, nil
	}
	return nil, nil
}

func judge(tests []string, results map[string]string) (verdict string, bad []string) {
	if len(tests) == 1 && strings.HasPrefix(tests[0], open) {
		return open, nil
	}
	verdict = "passed"
	for _, t := range tests {
		r := results[t]
		if parent, _, sub := strings.Cut(t, "/"); r == "" && sub && results[parent] == "skipped" {
			r = "skipped"
		}
		if r == "" {
			r = "not run"
		}
		if r != "passed" {
			verdict, bad = r, append(bad, t+" was "+r)
		}
	}
	return verdict, bad
}

// remove removes a file that may not be there.
func remove(file string) error {
	if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

var (
	codeSpan = regexp.MustCompile("`([^`\n]+)`")
	jsonKey  = regexp.MustCompile(`"(\w+)":`)
	variable = regexp.MustCompile(`(?m)^([A-Z_]{4,})=`)
	route    = regexp.MustCompile(`(?m)^(GET|POST|PUT|DELETE) (/\S+)$`)
	listener = regexp.MustCompile(`(?:on|emit)\('(\w[\w:]*)'`)
	listed   = regexp.MustCompile(`(?m)^\d\. \*\*([^*]+)\*\*`)
)

// unnamed are the guide's names that no row mentions: events, fields, routes, variables, types, headings of lists.
func unnamed(guide, rows string) (problems []string) {
	found := make(map[string]bool)
	add := func(r *regexp.Regexp, text string) {
		for _, m := range r.FindAllStringSubmatch(text, -1) {
			found[strings.Join(m[1:], " ")] = true
		}
	}
	prose := guide
	for fence := regexp.MustCompile("(?s)```(\\w*)\n(.*?)```"); ; {
		m := fence.FindStringSubmatch(prose)
		if m == nil {
			break
		}
		prose = strings.Replace(prose, m[0], "", 1)
		switch m[1] {
		case "json":
			add(jsonKey, m[2])
		case "env":
			add(variable, m[2])
		case "http":
			add(route, m[2])
		case "typescript":
			add(listener, m[2])
		}
	}
	add(codeSpan, prose)
	add(listed, prose)
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if !strings.Contains(rows, name) {
			problems = append(problems, "the guide names "+name+", and no row of docs/facts.txt does")
		}
	}
	return problems
}
