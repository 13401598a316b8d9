package topics_test

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/nexus/nexus/topics"
)

func TestCheckTimestamp(t *testing.T) {
	for s, ok := range timestamps {
		if err := topics.CheckTimestamp(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// timestamps are some, and whether they are valid.
var timestamps = map[string]bool{
	"2025-12-01T10:00:00Z": true, "2025-12-01T10:00:00.000Z": true, "2025-12-01T10:00:00.123456789Z": true, "2025-12-01T10:00:00+00:00": true,
	"2025-12-01T10:00:00-00:00": true, "2025-12-01T10:00:00.5+05:30": true, "2025-12-01T10:00:00-11:30": true,
	"2025-12-01T10:00:00+23:59": true,
	"2024-02-29T00:00:00Z":      true, "0000-01-01T00:00:00Z": true, "9999-12-31T23:59:59.999Z": true,

	"2025-12-01T9:00:00Z": false, "2025-12-01 10:00:00Z": false, "2025-12-01t10:00:00z": false, "2025-12-01T10:00:00z": false,
	"2025-12-01T10:00Z":   false,
	"2025-12-01T10:00:00": false, "2025-12-01T10:00:60Z": false, "2025-12-01T24:00:00Z": false, "2025-12-01T10:00:00,5Z": false,
	"2025-12-01T10:00:00.Z":    false,
	"2025-12-01T10:00:00+0000": false, "2025-12-01T10:00:00+24:00": false, "2025-12-01T10:00:00+00:60": false,
	"2025-12-01T10:00:00+1:00": false,
	"2025-02-29T00:00:00Z":     false, "2025-13-01T00:00:00Z": false, "2025-12-32T00:00:00Z": false, "2025-12-01T10:00:00.1234567890Z": false,
	"12025-12-01T10:00:00Z": false, "-2025-12-01T10:00:00Z": false, "2025-12-01": false, "1764583200": false, "": false,
	"2025-12-01T10:00:00Z ":  false,
	"2025-12-01T10:00:00Z\n": false, "２025-12-01T10:00:00Z": false,
}

// What is valid can be read by every browser: new Date() of node never answers NaN to it.
func TestTimestampsInJavaScript(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		if os.Getenv("NEXUS_TEST_REQUIRE_REAL") == "1" {
			t.Fatal("node is not installed")
		}
		t.Skip("node is not installed")
	}
	var list []string
	for s := range timestamps {
		list = append(list, s)
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for s := range timestamps { // and others like them
		for range 200 {
			b := []byte(s)
			for range 1 + r.IntN(2) {
				if len(b) > 0 {
					b[r.IntN(len(b))] = "0123456789:-+.TZ"[r.IntN(16)]
				}
			}
			list = append(list, strings.ToValidUTF8(string(b), "?"))
		}
	}
	in, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	node := exec.Command("node", "-e",
		`const l = JSON.parse(require("fs").readFileSync(0, "utf8")); console.log(JSON.stringify(l.map(s => !isNaN(new Date(s)))))`)
	node.Stdin = strings.NewReader(string(in))
	out, err := node.Output()
	if err != nil {
		t.Fatal(err)
	}
	var readable []bool
	if err := json.Unmarshal(out, &readable); err != nil || len(readable) != len(list) {
		t.Fatal(err)
	}
	valid := 0
	for i, s := range list {
		if topics.CheckTimestamp(s) != nil {
			continue
		}
		if valid++; !readable[i] {
			t.Errorf("%q is valid here and no date in JavaScript (seed %d)", s, seed)
		}
	}
	if valid < 100 {
		t.Errorf("only %d of %d were valid: nothing was tested (seed %d)", valid, len(list), seed)
	}
}
