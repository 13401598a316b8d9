package testenv

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A test binary that is killed leaves no container behind: this one is started a second time, as the victim.
func TestContainers(t *testing.T) {
	if os.Getenv("NEXUS_TEST_VICTIM") == "1" {
		addr, _, err := inContainer("postgres")(t.Context())
		fmt.Println("victim:", addr, err)
		select {} // until it is killed
	}
	if os.Getenv("NEXUS_TEST_SERVICES") != "containers" {
		t.Skip("for make test-containers")
	}
	victim := exec.Command(os.Args[0], "-test.run=^TestContainers$")
	victim.Env = append(os.Environ(), "NEXUS_TEST_VICTIM=1")
	victim.SysProcAttr = dieWithParent()
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	addr := ""
	for lines := bufio.NewScanner(out); addr == "" && lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "victim: "); ok {
			addr, _, _ = strings.Cut(rest, " ")
			t.Log(rest)
		}
	}
	answers := func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	if addr == "" || !answers() {
		t.Errorf("the victim's PostgreSQL does not answer at %q", addr)
	}
	_ = victim.Process.Kill()
	_ = victim.Wait()
	Eventually(t, "the container of a test that was killed is gone", func() bool { return !answers() })
}
