package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nexus/nexus/api"
)

const versionHelp = `nexus version prints which build this is: version, commit, the compiler and the platform.

`

// What the linker is told (make build: -ldflags -X); empty where it is told nothing. Go's own record is then all there is: it knows
// the version of go install, and the commit where the build could ask git.
var (
	builtVersion string // git describe
	builtCommit  string // git rev-parse HEAD
	builtDirty   string // true: files were changed since
)

func version(_ context.Context, args []string, _ environment, stdout, stderr io.Writer) error {
	f := newFlags("version", versionHelp, stderr)
	if err := f.Parse(args); err != nil {
		return usageError{err}
	}
	if f.NArg() > 0 {
		return usageError{errors.New("it takes no arguments")}
	}
	b := buildOf()
	dirty := ""
	if b.Dirty {
		dirty = " (dirty)"
	}
	fmt.Fprintf(stdout, "nexus %s\ncommit %s%s\n%s %s\n", b.Version, b.Commit, dirty, b.GoVersion, b.Platform)
	return nil
}

// buildOf is this build.
func buildOf() build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return buildFrom(info, builtVersion, builtCommit, builtDirty)
}

type build api.Build

// buildFrom is what the linker was told, and what Go recorded where it was told nothing.
func buildFrom(info *debug.BuildInfo, version, commit, dirty string) build {
	recorded := make(map[string]string)
	for _, s := range info.Settings {
		recorded[s.Key] = s.Value
	}
	if commit == "" { // the two belong together
		commit, dirty = recorded["vcs.revision"], recorded["vcs.modified"]
	}
	module := info.Main.Version
	if module == "(devel)" {
		module = ""
	}
	changed, _ := strconv.ParseBool(dirty)
	return build{Version: cmp.Or(version, module, "devel"), Commit: cmp.Or(commit, "unknown"), Dirty: changed,
		GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
}

// attributes are those of the log's first line.
func (b build) attributes() []any {
	return []any{"version", b.Version, "commit", b.Commit, "dirty", b.Dirty, "go", b.GoVersion, "platform", b.Platform}
}

// metric shows the build to Prometheus, as a gauge that is always 1, to be joined with others by its labels.
func (b build) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "nexus_build_info", Help: "which build runs; always 1",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "goversion": b.GoVersion}}, func() float64 { return 1 })
}
