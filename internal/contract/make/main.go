// Command make writes the contract documents into the tree (make contracts).
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/nexus/nexus/internal/contract"
)

func main() {
	if err := write("."); err != nil {
		fmt.Fprintln(os.Stderr, "contracts:", err)
		os.Exit(1)
	}
}

// write writes every document below root and removes schemas that are made no more.
func write(root string) error {
	files, err := contract.Files(root)
	if err != nil {
		return err
	}
	old, err := contract.Stale(root, files)
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := os.Remove(filepath.Join(root, name)); err != nil {
			return err
		}
	}
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
