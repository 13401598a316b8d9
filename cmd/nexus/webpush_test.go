package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nexus/nexus/internal/testenv"
)

// The guide's registration sample in a real browser, a push to the token it registers, and a service worker that shows a
// repeat once.
func TestWebPush(t *testing.T) {
	node, dir := tool(t, "node"), clientDir(t)
	tool(t, "chromium")
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	f := testenv.NewFCM(t)
	i := start(t, pushing(f, nil))
	cmd := exec.Command(node, dir+"/webpush.mjs", "http://"+i.base, guide(t), filepath.Join(root, "docs/webpush/firebase-messaging-sw.js"),
		tokenFor(t, "alice"))
	var problems testenv.Buffer
	cmd.Stderr = &problems
	in, out := piped(t, cmd)
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "registered" {
		t.Fatalf("%q %s", lines.Text(), problems.String())
	}
	id := i.notify("alice", `,"title":"Hello","body":"from a phone","icon":"/i.png","data":{"link":"https://app.example.com/x"}`)
	testenv.Eventually(t, "the push to the browser", func() bool { return len(f.Accepted("browser-token")) == 1 })
	message, err := json.Marshal(f.Accepted("browser-token")[0])
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(in, "%s\n", message)
	if !lines.Scan() {
		t.Fatal(problems.String())
	}
	want := fmt.Sprintf(`{"shown":[{"title":"Hello","body":"from a phone","tag":%q,"icon":"/i.png","link":"https://app.example.com/x"}],"foreground":["Hello"]}`, id)
	if got := strings.TrimSpace(lines.Text()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
