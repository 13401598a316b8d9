// Command vuln tells which known vulnerabilities the code of this module calls. It runs govulncheck and sorts what that finds by
// who can mend it. It ends with 1 only where a version of a module is out that mends one: nothing else can be mended here.
//
// The database is GOVULNDB, or vuln.go.dev, or, where that cannot be reached, the module golang.org/x/vulndb: the Go proxy
// serves it, some weeks old. Where there is none of them, it says so and ends with 0.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	govulncheck := flag.String("govulncheck", "govulncheck", "the program")
	cache := flag.String("cache", ".cache/vulndb", "where the index of a database is kept that came as a module")
	flag.Parse()
	db, err := database(*cache)
	if err != nil {
		fmt.Println("vuln: no vulnerability database can be reached, nothing was checked:", err)
		return
	}
	found, err := check(*govulncheck, db)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vuln:", err)
		os.Exit(2)
	}
	if tell(os.Stdout, db, found) {
		os.Exit(1)
	}
}

const official = "https://vuln.go.dev"

// database is the address of the vulnerability database.
func database(cache string) (string, error) {
	if set := os.Getenv("GOVULNDB"); set != "" {
		return set, nil
	}
	client := http.Client{Timeout: 10 * time.Second}
	if resp, err := client.Head(official + "/index/db.json"); err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return official, nil
		}
	}
	return fromModule(cache)
}

// fromModule makes a database of the reports in the newest golang.org/x/vulndb that the Go proxy has.
func fromModule(cache string) (string, error) {
	var module struct{ Version, Dir string }
	out, err := run("go", "mod", "download", "-json", "golang.org/x/vulndb@latest")
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(out, &module); err != nil {
		return "", fmt.Errorf("go mod download: %w", err)
	}
	index, err := filepath.Abs(filepath.Join(cache, module.Version))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(index); err == nil {
		return "file://" + index, nil
	}
	unfinished := index + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	if _, err := run("go", "run", "golang.org/x/vulndb/cmd/indexdb@"+module.Version,
		"-vulns", filepath.Join(module.Dir, "data", "osv"), "-out", unfinished); err != nil {
		return "", err
	}
	return "file://" + index, os.Rename(unfinished, index)
}

func run(name string, args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s %s: %w: %s", name, args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// finding is a vulnerability that the code calls.
type finding struct {
	ID, Module, Version string
	Fixed               string // the first version without it; empty: none is known
	Summary             string
	Caller              string // a function of ours from which it is reached
}

// stdlib is what govulncheck calls the standard library.
const stdlib = "stdlib"

// check runs govulncheck on ./... and returns the vulnerabilities that are called, one for each id.
func check(govulncheck, db string) ([]finding, error) {
	out, err := run(govulncheck, "-db", db, "-format", "json", "./...")
	if err != nil {
		return nil, err
	}
	return read(bytes.NewReader(out))
}

// read takes govulncheck's stream of messages (golang.org/x/vuln/internal/govulncheck.Message).
func read(r io.Reader) ([]finding, error) {
	called, summaries := make(map[string]finding), make(map[string]string)
	for d := json.NewDecoder(r); ; {
		var m struct {
			OSV *struct {
				ID      string `json:"id"`
				Summary string `json:"summary"`
			} `json:"osv"`
			Finding *struct {
				OSV   string `json:"osv"`
				Fixed string `json:"fixed_version"`
				Trace []struct {
					Module   string `json:"module"`
					Version  string `json:"version"`
					Package  string `json:"package"`
					Function string `json:"function"`
				} `json:"trace"`
			} `json:"finding"`
		}
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("the answer of govulncheck: %w", err)
		}
		if m.OSV != nil {
			summaries[m.OSV.ID] = m.OSV.Summary
		}
		if f := m.Finding; f != nil && len(f.Trace) > 0 && f.Trace[0].Function != "" { // else it is imported or required only
			at, by := f.Trace[0], f.Trace[len(f.Trace)-1]
			called[f.OSV] = finding{ID: f.OSV, Module: at.Module, Version: at.Version, Fixed: f.Fixed, Caller: by.Package + "." + by.Function}
		}
	}
	list := make([]finding, 0, len(called))
	for id, f := range called {
		f.Summary = strings.Join(strings.Fields(summaries[id]), " ")
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b finding) int { return cmp.Or(cmp.Compare(a.Module, b.Module), cmp.Compare(a.ID, b.ID)) })
	return list, nil
}

// tell writes what was found; it is true where a newer version of a module would mend something.
func tell(w io.Writer, db string, found []finding) (mendable bool) {
	for _, f := range found {
		advice := "no version without it is known"
		switch {
		case f.Module == stdlib:
			advice = "build with Go " + strings.TrimPrefix(f.Fixed, "v")
		case f.Fixed != "":
			advice, mendable = "go get "+f.Module+"@"+f.Fixed, true
		}
		fmt.Fprintf(w, "%s %s %s: %s (from %s): %s\n", f.ID, f.Module, f.Version, f.Summary, f.Caller, advice)
	}
	fmt.Fprintf(w, "vuln: %d known vulnerabilities are called, by %s\n", len(found), db)
	return mendable
}
