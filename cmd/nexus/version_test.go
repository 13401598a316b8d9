package main

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestBuildFrom(t *testing.T) {
	recorded := func(version string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: version}, Settings: settings}
	}
	git := []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "c0ffee"}, {Key: "vcs.modified", Value: "true"}}
	for name, tc := range map[string]struct {
		info                   *debug.BuildInfo
		version, commit, dirty string
		want                   build
	}{
		"nothing is known":    {recorded("(devel)"), "", "", "", build{Version: "devel", Commit: "unknown"}},
		"go install of a tag": {recorded("v1.2.3"), "", "", "", build{Version: "v1.2.3", Commit: "unknown"}},
		"go build in a repository": {recorded("v1.2.4-0.20261125-c0ffee+dirty", git...), "", "", "",
			build{Version: "v1.2.4-0.20261125-c0ffee+dirty", Commit: "c0ffee", Dirty: true}},
		"make build": {recorded("(devel)"), "v1.2.3", "abc", "", build{Version: "v1.2.3", Commit: "abc"}},
		"make build of changed files": {recorded("(devel)"), "v1.2.3-dirty", "abc", "true", build{Version: "v1.2.3-dirty",
			Commit: "abc", Dirty: true}},
		"the linker's commit beside Go's own":     {recorded("v9", git...), "v1.2.3", "abc", "", build{Version: "v1.2.3", Commit: "abc"}},
		"make build where there is no repository": {recorded("(devel)"), "", "", "", build{Version: "devel", Commit: "unknown"}},
	} {
		tc.want.GoVersion, tc.want.Platform = runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH
		if got := buildFrom(tc.info, tc.version, tc.commit, tc.dirty); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

// The same build is told by nexus version, in the log's first line, by GET /healthz and as a metric.
func TestVersion(t *testing.T) {
	const tag, commit = "v1.2.3-test", "0123456789abcdef0123456789abcdef01234567"
	builtVersion, builtCommit, builtDirty = tag, commit, "true"
	defer func() { builtVersion, builtCommit, builtDirty = "", "", "" }()
	var out, problem bytes.Buffer
	if code := run(t.Context(), []string{"version"}, nil, &out, &problem); code != 0 || problem.Len() > 0 {
		t.Fatalf("%d %s", code, &problem)
	}
	want := "nexus " + tag + "\ncommit " + commit + " (dirty)\n" + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH + "\n"
	if out.String() != want {
		t.Errorf("%q, want %q", &out, want)
	}
	if code := run(t.Context(), []string{"version", "please"}, nil, io.Discard, &problem); code != 2 {
		t.Errorf("an argument: %d", code)
	}
	i := start(t, nil)
	first, _, _ := strings.Cut(i.log.String(), "\n")
	for _, want := range []string{"version=" + tag, "commit=" + commit, "dirty=true", "go=" + runtime.Version(), "platform=" + runtime.GOOS} {
		if !strings.Contains(first, want) {
			t.Errorf("no %s in the log's first line: %s", want, first)
		}
	}
	alive := i.must(200, "GET", "/healthz", "", "")
	told := alive["version"] == tag && alive["commit"] == commit && alive["dirty"] == true && alive["goVersion"] == runtime.Version()
	if alive["status"] != "ok" || !told {
		t.Errorf("%v", alive)
	}
	resp, err := http.Get("http://" + i.base + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	line := `nexus_build_info{commit="` + commit + `",goversion="` + runtime.Version() + `",version="` + tag + `"} 1`
	if !strings.Contains(string(metrics), line+"\n") {
		t.Errorf("no %s in the metrics", line)
	}
}

// make build knows its commit, in a worktree and without Go's own look at git.
func TestMakeBuildKnowsItsCommit(t *testing.T) {
	git, make_ := tool(t, "git"), tool(t, "make")
	root := filepath.Join("..", "..")
	commit, err := exec.Command(git, "-C", root, "rev-parse", "HEAD").Output()
	if err != nil {
		missing(t, "no git repository")
	}
	dry, err := exec.Command(make_, "-n", "-C", root, "build").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, dry)
	}
	if want := "-X main.builtCommit=" + strings.TrimSpace(string(commit)); !strings.Contains(string(dry), want) {
		t.Errorf("no %s in %s", want, dry)
	}
	for _, name := range []string{"builtVersion", "builtCommit", "builtDirty"} { // the linker ignores a name that is not there
		source, err := os.ReadFile("version.go")
		if err != nil || !strings.Contains(string(source), "\t"+name) || !strings.Contains(string(dry), "-X main."+name+"=") {
			t.Errorf("%s: not in both the Makefile and version.go (%v)", name, err)
		}
	}
}
