package stats_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/projections/stats"
)

// Every statement that the server sends to ClickHouse, on the SQL engine of a current release (chdb).
func TestClickHouseOfToday(t *testing.T) {
	if os.Getenv("NEXUS_TEST_EMBEDDED") == "1" {
		t.Skip("left out by make test-embedded")
	}
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	python := filepath.Join(root, ".cache/chdb/bin/python")
	if _, err := os.Stat(python); err != nil {
		testenv.Note("no chdb: run internal/testenv/setup.sh")
		if os.Getenv("NEXUS_TEST_REQUIRE_REAL") == "1" {
			t.Fatal("chdb is required and was not installed")
		}
		t.Skip("no chdb")
	}
	statements, err := json.Marshal(stats.Script())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "-c", `
import json, sys
from chdb import session
s = session.Session()
s.query("CREATE DATABASE nexus"); s.query("USE nexus")
print(json.dumps([str(s.query(q, "CSV")).strip() for q in json.load(sys.stdin)] + [str(s.query("SELECT version()", "CSV")).strip()]))
`)
	cmd.Stdin = strings.NewReader(string(statements))
	out, err := cmd.Output()
	if err != nil {
		exit, _ := errors.AsType[*exec.ExitError](err)
		t.Fatalf("%v: %s", err, exit.Stderr)
	}
	var answers []string
	if err := json.Unmarshal(out, &answers); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	n := len(answers)
	t.Logf("ClickHouse %s", answers[n-1])
	testenv.Note("clickhouse of today (chdb)")
	want := []string{`"messages",0,0,2,"l",2`, "\"a\",0,1,0\n\"b\",0,1,0", "1", "1", `"message",1,7,7,7`, `"message",1,1,0,1`}
	for i, w := range want {
		got := strings.Split(answers[n-1-len(want)+i], "\n")
		if len(got) == 2 && got[0] > got[1] {
			got[0], got[1] = got[1], got[0]
		}
		if strings.Join(got, "\n") != w {
			t.Errorf("answer %d: %q, want %q", i, got, w)
		}
	}
}
