package main

import (
	"errors"
	"io/fs"
	"os"
	"regexp"
	"strings"
)

// dotenvSpace is what JavaScript's \s and trim take for white space (ECMA-262, WhiteSpace and LineTerminator).
const dotenvSpace = "[\\t\\n\\v\\f\\r \\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}\\x{feff}]"

// dotenvLine is the grammar of the npm package dotenv, which the guide's readers have their .env from: the expression of
// its lib/main.js (version 17). RE2 finds the match that JavaScript's backtracking would have found first.
var dotenvLine = regexp.MustCompile(strings.ReplaceAll("(?m)^\\s*(?:export\\s+)?([\\w.-]+)(?:\\s*=\\s*?|:\\s+?)"+
	"(\\s*'(?:\\\\'|[^'])*'|\\s*\"(?:\\\\\"|[^\"])*\"|\\s*`(?:\\\\`|[^`])*`|[^#\\r\\n]+)?\\s*(?:#.*)?$", `\s`, dotenvSpace))

// parseDotenv reads a .env as npm dotenv does: nothing is expanded, \n and \r only in double quotes; of a name that
// stands twice the last line counts. ignored are the numbers of the lines that are no assignment, which npm passes over.
func parseDotenv(text string) (values map[string]string, ignored []int) {
	text = strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\r\n", "\n")
	text = strings.ReplaceAll(text, "\r", "\n")
	values = make(map[string]string)
	from := 0
	for _, m := range dotenvLine.FindAllStringSubmatchIndex(text, -1) {
		ignored = append(ignored, leftOver(text, from, m[0])...)
		from = m[1]
		value := ""
		if m[4] >= 0 {
			value = text[m[4]:m[5]]
		}
		values[text[m[2]:m[3]]] = dotenvValue(value)
	}
	return values, append(ignored, leftOver(text, from, len(text))...)
}

// leftOver lists the lines of text[from:to] that hold more than a comment.
func leftOver(text string, from, to int) (lines []int) {
	first := 1 + strings.Count(text[:from], "\n")
	for i, line := range strings.Split(text[from:to], "\n") {
		if line = trimDotenv(line); line != "" && line[0] != '#' {
			lines = append(lines, first+i)
		}
	}
	return lines
}

func dotenvValue(raw string) string {
	v := trimDotenv(raw)
	if v == "" {
		return ""
	}
	quote := v[0]
	if len(v) > 1 && strings.IndexByte("'\"`", quote) >= 0 && v[len(v)-1] == quote {
		v = v[1 : len(v)-1]
	}
	if quote == '"' {
		v = strings.ReplaceAll(strings.ReplaceAll(v, `\n`, "\n"), `\r`, "\r")
	}
	return v
}

var dotenvBlanks = regexp.MustCompile("^" + dotenvSpace + "+|" + dotenvSpace + "+$")

func trimDotenv(s string) string { return dotenvBlanks.ReplaceAllString(s, "") }

// readDotenv reads ./.env; without one there is nothing.
func readDotenv() (values map[string]string, ignored []int, err error) {
	b, err := os.ReadFile(".env")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case err != nil:
		return nil, nil, errors.New(".env could not be read: it must be a file that this user may read, with lines like NAME=value")
	case len(b) > maxDotenv:
		return nil, nil, errors.New(".env has more than 1 MB: it must be a file with lines like NAME=value")
	}
	values, ignored = parseDotenv(string(b))
	return values, ignored, nil
}

// maxDotenv bounds a .env, in bytes.
const maxDotenv = 1 << 20
