package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
)

// The examples do what their READMEs say: the service sends, the client shows it, and an order that is sent twice is told once.
func TestExamples(t *testing.T) {
	t.Run("go", func(t *testing.T) {
		dir := t.TempDir()
		example(t, "go", "go", "build", "-o", dir, "./client", "./service")
		testExample(t, []string{filepath.Join(dir, "client")}, []string{filepath.Join(dir, "service")})
	})
	t.Run("python", func(t *testing.T) {
		python := filepath.Join(exampleDir(t, ""), "../.cache/python-example/bin/python")
		if _, err := os.Stat(python); err != nil {
			missing(t, "what the Python example needs is not installed; run internal/testenv/setup.sh")
		}
		dir := exampleDir(t, "python")
		testExample(t, []string{python, filepath.Join(dir, "client.py")}, []string{python, filepath.Join(dir, "service.py")})
	})
	t.Run("typescript", func(t *testing.T) {
		node, dir := tool(t, "node"), exampleDir(t, "typescript")
		if _, err := os.Stat(filepath.Join(dir, "node_modules/typescript")); err != nil {
			missing(t, "what the TypeScript example needs is not installed; run internal/testenv/setup.sh")
		}
		example(t, "typescript", tool(t, "npm"), "run", "build")
		testExample(t, []string{node, filepath.Join(dir, "dist/client.js")}, []string{node, filepath.Join(dir, "dist/service.js")})
	})
}

func exampleDir(t *testing.T, name string) string {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "examples", name)
}

// example runs a command in an example's folder.
func example(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = exampleDir(t, name)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func testExample(t *testing.T, client, service []string) {
	i := start(t, nil)
	settings := append(os.Environ(), "NEXUS_URL=http://"+i.base, "KAFKA_BROKERS="+i.kafka, "NEXUS_USER=bob")
	shown := &testenv.Buffer{}
	c := exec.Command(client[0], client[1:]...)
	c.Env, c.Stdout, c.Stderr = slices.Concat(settings, []string{"NEXUS_TOKEN=" + tokenFor(t, "bob")}), shown, shown
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if t.Failed() {
			t.Logf("the client has shown:\n%s", shown)
		}
	})
	testenv.Eventually(t, "the client is connected", func() bool { return strings.Contains(shown.String(), "connected\n") })
	send := func(order string) {
		t.Helper()
		s := exec.Command(service[0], append(service[1:], "bob", order)...)
		s.Env = slices.Concat(settings, []string{"NEXUS_TOKEN=" + tokenFor(t, "shop", "publish")})
		if out, err := s.CombinedOutput(); err != nil || !strings.Contains(string(out), "sent: order "+order+" to bob") {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	send("42")
	send("42") // as after an answer that was lost
	send("43") // to the same user, so it comes after the repeat
	line := "Order %s has shipped: It will arrive tomorrow. ("
	testenv.Eventually(t, "the client shows the last order", func() bool { return strings.Contains(shown.String(), fmt.Sprintf(line, "43")) })
	if n := strings.Count(shown.String(), fmt.Sprintf(line, "42")); n != 1 {
		t.Errorf("the client was shown order 42 %d times", n)
	}
	list := i.must(200, "GET", "/notifications", tokenFor(t, "bob"), "")["notifications"].([]any)
	if len(list) != 2 || list[0].(map[string]any)["data"].(map[string]any)["orderId"] != "43" {
		t.Errorf("the inbox has %v", list)
	}
	// The keys stood in the partitions that they belong to: nothing was carried over.
	if !strings.Contains(i.scrape(), "nexus_strays_total 0\n") {
		t.Error("records were sent to another partition than their key's")
	}
}
