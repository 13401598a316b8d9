// Package contract makes the documents that tell outsiders what Nexus takes and sends: OpenAPI 3.1 from the API's table of routes,
// AsyncAPI 3 and a JSON Schema for each record, frame and command from the vocabulary (topics), a page that shows them to people,
// and the tables of docs/protocol.md and docs/events.md. `make contracts` writes them where the API embeds them (api/contract); a test fails where
// what is committed is something else. Book holds what was sent against them: tests check every answer, frame and record with it.
// Nothing of this package is in the program's paths; it imports the tables and no tables import it.
package contract

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// Where the documents stand in the tree.
const (
	dir      = "api/contract"
	protocol = "docs/protocol.md"
	events   = "docs/events.md"
)

// Files makes every file by its path below root. What people have written in the docs is read from there and stays.
func Files(root string) (map[string][]byte, error) {
	page, err := htmlPage()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		path.Join(dir, "openapi.yaml"):  OpenAPI(),
		path.Join(dir, "asyncapi.yaml"): AsyncAPI(),
		path.Join(dir, "docs.html"):     page,
	}
	for name, text := range Schemas() {
		files[path.Join(dir, "schemas", name+".json")] = text
	}
	for name, parts := range map[string]map[string]string{protocol: protocolParts(), events: eventsParts()} {
		written, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return nil, fmt.Errorf("read what people have written: %w", err)
		}
		if files[name], err = fill(name, written, parts); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// Stale lists schemas that stand in the tree and are made no more.
func Stale(root string, files map[string][]byte) (old []string, err error) {
	all, err := filepath.Glob(filepath.Join(root, dir, "schemas", "*"))
	if err != nil {
		return nil, err
	}
	for _, file := range all {
		if name := path.Join(dir, "schemas", filepath.Base(file)); files[name] == nil {
			old = append(old, name)
		}
	}
	slices.Sort(old)
	return old, nil
}
