package main

import (
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nexus/nexus/internal/testenv"
)

func lineCount(s, of string) int { return strings.Count(s, "msg=\""+of+"\"") }

var suppressedOf = regexp.MustCompile(`suppressed=(\d+)`)

// total is the number of lines that a log tells of: those written and those left out.
func total(log string) int {
	n := strings.Count(log, "\n")
	for _, m := range suppressedOf.FindAllStringSubmatch(log, -1) {
		left, _ := strconv.Atoi(m[1])
		n += left
	}
	return n
}

// An outage's lines: one a second of each kind, with the number of the rest, and none lost at the end.
func TestLogOfAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out testenv.Buffer
		c := newCalm(slog.NewTextHandler(&out, nil))
		log := slog.New(c)
		api, gate := log.With("component", "api"), log.With("component", "gate")
		for range 10 { // seconds
			for i := range 100 {
				api.Warn("a request failed", "route", fmt.Sprint("/", i))
				gate.Warn("a request failed")
				log.Info("session opened")
				time.Sleep(10 * time.Millisecond)
			}
		}
		c.Close()
		text := out.String()
		if n := lineCount(text, "session opened"); n != 1000 {
			t.Errorf("%d of 1000 lines of INFO", n)
		}
		for _, component := range []string{"api", "gate"} {
			var lines []string
			for line := range strings.Lines(text) {
				if strings.Contains(line, "component="+component) {
					lines = append(lines, line)
				}
			}
			if len(lines) < 10 || len(lines) > 12 {
				t.Errorf("%s: %d lines in ten seconds", component, len(lines))
			}
			if n := total(strings.Join(lines, "")); n != 1000 {
				t.Errorf("%s: the log tells of %d of 1000", component, n)
			}
		}
		if !strings.Contains(text, "route=/99") {
			t.Error("what is written at the end of a second is not its last line")
		}
	})
}

// A kind is its component, message and level; the first line of each is written at once.
func TestLogKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out testenv.Buffer
		c := newCalm(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		log := slog.New(c).With("component", "a")
		log.Warn("x")
		log.Error("x")
		log.Warn("y")
		log.With("component", "b").Warn("x")
		log.With("more", 1).WithGroup("g").Warn("x", "k", 1) // the same kind as the first
		log.Debug("x")
		log.Debug("x")
		if n := strings.Count(out.String(), "\n"); n != 6 {
			t.Errorf("%d lines at once:\n%s", n, out.String())
		}
		time.Sleep(repeatEvery)
		synctest.Wait()
		if text := out.String(); strings.Count(text, "\n") != 7 || strings.Contains(text, "suppressed") || !strings.Contains(text, "g.k=1") {
			t.Errorf("one line that waited is written as it is:\n%s", text)
		}
		c.Close()
		log.Warn("late")
		log.Warn("late")
		if n := lineCount(out.String(), "late"); n != 0 && strings.Count(out.String(), "msg=late") != 2 {
			t.Errorf("after Close:\n%s", out.String())
		}
	})
}

// Memory is bounded though every line has a message of its own, and lines of many goroutines are all accounted for.
func TestLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out testenv.Buffer
		c := newCalm(slog.NewTextHandler(&out, nil))
		var all sync.WaitGroup
		for g := range 10 {
			all.Go(func() {
				for i := range 500 {
					slog.New(c).Warn(fmt.Sprint("m", g, "-", i)) //nolint:sloglint // many kinds of lines are what is tested
				}
			})
		}
		all.Wait()
		if n := len(c.lines.kinds); n > maxKinds+1 {
			t.Errorf("%d kinds are kept", n)
		}
		c.Close()
		if n := total(out.String()); n != 5000 {
			t.Errorf("the log tells of %d of 5000", n)
		}
		if len(c.lines.kinds) != 0 {
			t.Error("Close left lines behind")
		}
	})
}
