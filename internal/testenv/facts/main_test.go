package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The table is written under .cache, and nothing that is committed is changed. A table of an earlier run does not stay.
func TestTable(t *testing.T) {
	t.Chdir(t.TempDir())
	files := map[string]string{"docs/facts.txt": "# A\n`x` is so = TestX TestY/sub\n", "docs/product-guide.md": "`x`\n",
		"docs/facts.md": "as committed\n", ".cache/facts.md": "of an earlier run\n"}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	passed := map[string]string{"TestX": "passed", "TestY/sub": "passed"}
	for _, tc := range []struct {
		name    string
		results map[string]string
		check   bool
		problem string // "" none
		written bool
	}{
		{"all passed", passed, false, "", true},
		{"in CI, and the committed one differs", passed, true, "run make facts", true},
		{"one failed", map[string]string{"TestX": "failed", "TestY/sub": "passed"}, false, "TestX was failed", false},
		{"one skipped with its parent", map[string]string{"TestX": "passed", "TestY": "skipped"}, false, "", false},
		{"one skipped in CI", map[string]string{"TestX": "passed", "TestY": "skipped"}, true, "TestY/sub was skipped", false},
	} {
		problems, err := table(tc.results, tc.check)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(problems, "\n"); (got == "") != (tc.problem == "") || !strings.Contains(got, tc.problem) {
			t.Errorf("%s: problems %q, want %q", tc.name, got, tc.problem)
		}
		b, err := os.ReadFile(".cache/facts.md")
		if (err == nil) != tc.written || err == nil && !strings.Contains(string(b), "| `x` is so | TestX, TestY/sub | passed |") {
			t.Errorf("%s: .cache/facts.md is %q, %v; want it written: %v", tc.name, b, err, tc.written)
		}
		if b, _ := os.ReadFile("docs/facts.md"); string(b) != files["docs/facts.md"] {
			t.Errorf("%s: docs/facts.md was changed to %q", tc.name, b)
		}
	}
	// What comes out is what CI wants to see committed.
	if err := os.Rename(".cache/facts.md", "docs/facts.md"); err == nil {
		t.Error("a table was written though a test was skipped")
	}
	if problems, err := table(passed, false); err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	if err := os.Rename(".cache/facts.md", "docs/facts.md"); err != nil {
		t.Fatal(err)
	}
	if problems, err := table(passed, true); err != nil || len(problems) > 0 {
		t.Errorf("the table that was just made is refused: %q %v", problems, err)
	}
}
