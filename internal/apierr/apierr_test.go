package apierr_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nexus/nexus/internal/apierr"
)

// Every constant Code… and Close… stands in its table once, with what a client should do.
func TestTables(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "apierr.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var codes, closes []string
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 {
			return true
		}
		if value, ok := v.Values[0].(*ast.BasicLit); ok && strings.HasPrefix(v.Names[0].Name, "Code") {
			code, err := strconv.Unquote(value.Value)
			if err != nil {
				t.Fatal(err)
			}
			codes = append(codes, code)
		} else if ok && strings.HasPrefix(v.Names[0].Name, "Close") {
			closes = append(closes, value.Value)
		}
		return true
	})
	var inTable []string
	for _, c := range apierr.Codes() {
		inTable = append(inTable, c.Code)
		if c.Doc == "" || c.Do == "" || c.Status < 400 {
			t.Errorf("%s: a code says what has happened, what to do, and has a status", c.Code)
		}
		rec := httptest.NewRecorder()
		(&apierr.Error{Code: c.Code, Message: "x"}).WriteHTTP(rec)
		if rec.Code != c.Status {
			t.Errorf("%s is answered with %d, want %d", c.Code, rec.Code, c.Status)
		}
	}
	slices.Sort(codes)
	slices.Sort(inTable)
	if !slices.Equal(codes, inTable) {
		t.Errorf("the constants are %q, the table has %q", codes, inTable)
	}
	for _, code := range closes {
		if !slices.ContainsFunc(apierr.Closes(), func(c apierr.Close) bool { return strconv.Itoa(c.Code) == code && c.Do != "" }) {
			t.Errorf("close code %s is not in the table", code)
		}
	}
	if len(closes) < 3 {
		t.Errorf("only %d close codes were found", len(closes))
	}
}
