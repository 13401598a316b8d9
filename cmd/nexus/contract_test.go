package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/testenv"
)

// pythonOf finds the Python that has schemathesis and validators of the three kinds of document.
func pythonOf(t *testing.T) (bin string) {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	bin = filepath.Join(root, ".cache/schemathesis/bin")
	if _, err := os.Stat(filepath.Join(bin, "schemathesis")); err != nil {
		missing(t, "schemathesis is not installed; run internal/testenv/setup.sh")
	}
	return bin
}

// Schemathesis calls every route of /openapi.yaml with what fits its schemas and what does not, at random: the running server answers
// nothing that is not declared, and no 5xx.
func TestSchemathesis(t *testing.T) {
	bin := pythonOf(t)
	i := start(t, map[string]string{"RATE_LIMIT_MESSAGES": "1000000"})
	dir := t.TempDir()
	cmd := exec.Command(filepath.Join(bin, "schemathesis"), "--config-file", filepath.Join(bin, "../../../internal/testenv/contract/schemathesis.toml"),
		"run", "http://"+i.base+"/openapi.yaml", "--url", "http://"+i.base,
		"--header", "Authorization: Bearer "+tokenFor(t, "alice", api.ScopePublish, api.ScopeAdmin))
	cmd.Dir = dir // it keeps what it has found there
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("schemathesis: %v\n%s", err, out)
	}
	t.Logf("%s", lastOf(out))
}

func lastOf(b []byte) []byte { return b[max(0, len(b)-1500):] }
