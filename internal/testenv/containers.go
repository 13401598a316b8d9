package testenv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// containers is the program internal/testenv/containers, built into .cache. It is a module of its own: testcontainers-go
// stays out of the product's module graph.
var containers = sync.OnceValues(func() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cache := filepath.Join(root, ".cache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	// Test binaries run at once and share the file: each moves a whole one into its place.
	part, err := os.CreateTemp(cache, "containers-")
	if err != nil {
		return "", err
	}
	part.Close()
	defer os.Remove(part.Name())
	build := exec.Command("go", "build", "-o", part.Name(), ".")
	build.Dir = filepath.Join(root, "internal/testenv/containers")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build of internal/testenv/containers: %w\n%s", err, out)
	}
	program := filepath.Join(cache, "containers")
	return program, os.Rename(part.Name(), program)
})

// inContainer obtains a service (kafka, postgres or clickhouse) in a container.
func inContainer(service string) obtain {
	return func(ctx context.Context) (string, func(), error) {
		program, err := containers()
		if err != nil {
			return "", nil, err
		}
		cmd := exec.Command(program, service)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe() // it ends with this process, whatever ends that; then the program removes its container
		if err != nil {
			return "", nil, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return "", nil, err
		}
		if err := cmd.Start(); err != nil {
			return "", nil, err
		}
		stop := sync.OnceFunc(func() {
			in.Close()
			_ = cmd.Wait() // it has said what was wrong
		})
		defer context.AfterFunc(ctx, func() { in.Close() })() // a start that takes too long is given up
		var answer struct{ Addr, Error string }
		if err := json.NewDecoder(out).Decode(&answer); err != nil {
			return "", stop, fmt.Errorf("internal/testenv/containers %s: %w", service, err)
		}
		if answer.Error != "" {
			return "", stop, errors.New(answer.Error)
		}
		return answer.Addr, stop, nil
	}
}
