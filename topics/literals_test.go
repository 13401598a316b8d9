package topics_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/nexus/nexus/topics"
)

// One fact, one file: outside this package no code names an event, a frame or a command by a literal, and none writes or reads
// a member of theirs by one. Exempt are keys of log lines, labels of metrics and names of flags, which are words for people, and
// the bodies and answers of REST (api), from which its own contract is made.
func TestNoLiteralsOutside(t *testing.T) {
	exempt := map[string]string{ // file → the words that mean something else there
		"cmd/nexus/config.go":      `"error"`,                                            // a log level
		"cmd/nexus/tail.go":        `"topic" "partition" "offset" "type" "id" "message"`, // what nexus tail --json prints
		"cmd/nexus/client.go":      `"userId" "channel"`,                                 // whom REST is told that an event is for
		"edge/push/fcm/message.go": `"notification"`,                                     // a name that FCM reserves
		// The envelopes of the protocols, not what is in them.
		"edge/gateway/raw.go": `"event" "data" "id"`, // a bare client's frame
		"edge/wire/engine.go": `"code" "message"`,    // an Engine.IO error
	}
	found := make(map[string]int)
	for _, file := range sources(t, "..") {
		words := exempt[filepath.ToSlash(strings.TrimPrefix(file, ".."+string(filepath.Separator)))]
		for _, l := range literalsOf(t, file) {
			if strings.Contains(words, l.what) {
				continue
			}
			t.Errorf("%s: %s stands as a literal; use package topics", l.at, l.what)
			found[filepath.Dir(file)]++
		}
	}
	if len(found) > 0 {
		t.Logf("by folder: %v", found)
	}
}

// What it looks for is found: each of these lines has one.
func TestLiteralsAreFound(t *testing.T) {
	for _, line := range []string{
		`if e.Type == "message.read" {}`, `e.hub.send("notification:read", nil)`, `x := []string{"presence.connected"}`,
		`switch c { case "sendMessage": }`,
		`_ = topics.Fields("userId", "a")`, `_ = q.Get("pid")`, `_ = e.Body.Text("senderId")`, "type v struct { A string `json:\"isTyping\"` }",
	} {
		file := token.NewFileSet()
		parsed, err := parser.ParseFile(file, "x.go", "package x\nfunc f() {\n"+line+"\n}", 0)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(literals(file, parsed, false)); n != 1 {
			t.Errorf("%d found in %s", n, line)
		}
	}
}

// sources are the product's files, without tests and what only they use.
func sources(t *testing.T, root string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && (name == "topics" || name == "testenv" || name == "examples" || name == "contract" || name == "tools" ||
			name == "node_modules" || len(name) > 2 && name[0] == '.') {
			return fs.SkipDir
		}
		if strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
			list = append(list, path)
		}
		return nil
	})
	if err != nil || len(list) < 50 {
		t.Fatalf("%d files, %v", len(list), err)
	}
	return list
}

type literal struct{ at, what string }

func literalsOf(t *testing.T, path string) []literal {
	t.Helper()
	file := token.NewFileSet()
	parsed, err := parser.ParseFile(file, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return literals(file, parsed, strings.HasPrefix(path, filepath.Join("..", "api")+string(filepath.Separator)))
}

func literals(file *token.FileSet, parsed *ast.File, rest bool) (list []literal) {
	events, members := vocabulary()
	exempt := make(map[ast.Node]bool)
	add := func(n ast.Node, what string) {
		list = append(list, literal{file.Position(n.Pos()).String(), strconv.Quote(what)})
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.Field:
			if n.Tag != nil && !rest {
				tag, _ := strconv.Unquote(n.Tag.Value)
				if name, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ","); members[name] {
					add(n.Tag, name)
				}
			}
		case *ast.CallExpr:
			name := calledName(n)
			for _, arg := range n.Args {
				text, ok := textOf(arg)
				switch {
				case !ok:
				case forPeople[name]:
					exempt[arg] = true
				case byMember[name] && members[text] && !events[text]:
					add(arg, text)
				}
			}
			if forPeople[name] {
				for _, arg := range n.Args { // labels of metrics
					if labels, ok := arg.(*ast.CompositeLit); ok {
						for _, e := range labels.Elts {
							exempt[e] = true
						}
					}
				}
			}
		case *ast.BasicLit:
			if text, ok := textOf(n); ok && events[text] && !exempt[n] {
				add(n, text)
			}
		}
		return true
	})
	return list
}

// forPeople are functions whose texts are keys of log lines, labels of metrics, flags' names or words of an error.
var forPeople = map[string]bool{"Info": true, "Warn": true, "Error": true, "Debug": true, "With": true, "String": true, "Duration": true,
	"Bool": true, "Int": true,
	"WithLabelValues": true, "NewCounterVec": true, "NewGaugeVec": true, "NewHistogramVec": true, "NewDesc": true, "NotFound": true}

// byMember are functions that write or read a member by its name.
var byMember = map[string]bool{"Fields": true, "Text": true, "Raw": true, "Has": true, "True": true, "Int64": true, "Get": true}

func calledName(c *ast.CallExpr) string {
	switch f := c.Fun.(type) {
	case *ast.SelectorExpr:
		return f.Sel.Name
	case *ast.Ident:
		return f.Name
	}
	return ""
}

func textOf(n ast.Node) (string, bool) {
	l, ok := n.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(l.Value)
	return text, err == nil
}

// vocabulary is every name of an event, a frame or a command, and every name of their members.
func vocabulary() (events, members map[string]bool) {
	events, members = make(map[string]bool), make(map[string]bool)
	fields := func(list []topics.Field) {
		for _, f := range list {
			members[f.Name] = true
		}
	}
	frames := func(list []topics.Frame) {
		for _, f := range list {
			events[f.Event], events[f.Alias] = true, true
			fields(f.Fields)
		}
	}
	for _, k := range topics.Kinds() {
		events[k.Type] = true
		fields(k.Fields)
		frames(k.Frames)
	}
	frames(topics.DerivedFrames())
	for _, p := range parts {
		fields(topics.HandshakeFields(p))
	}
	for _, c := range topics.Commands() {
		events[c.Event] = true
		fields(c.Fields)
		fields(c.Answer)
	}
	delete(events, "")
	return events, members
}
