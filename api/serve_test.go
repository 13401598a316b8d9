package api_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/internal/testenv/pipe"
)

// What the HTTP server bears of clients that take their time (row S08), by the bubble's time.

// serving runs a test on a served API; server is how to reach it.
func serving(t *testing.T, test func(t *testing.T, server *pipe.Listener)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ln := pipe.Listen()
		ctx, stop := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- api.New((&world{}).options(t)).Serve(ctx, ln, time.Second) }()
		t.Cleanup(func() {
			stop()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
		test(t, ln)
	})
}

// connect opens a connection; ended tells what came and when it ended.
func connect(t *testing.T, ln *pipe.Listener) (c net.Conn, ended <-chan string) {
	t.Helper()
	c, err := ln.DialContext(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	got := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(bufio.NewReader(c))
		got <- string(b)
	}()
	return c, got
}

// Connections that send their headers a byte a second are closed after five seconds; whoever behaves is served meanwhile.
func TestSlowLoris(t *testing.T) {
	serving(t, func(t *testing.T, ln *pipe.Listener) {
		begun := time.Now()
		client := &http.Client{Transport: &http.Transport{DialContext: ln.DialContext}}
		t.Cleanup(client.CloseIdleConnections)
		var slow []<-chan string
		var dripping sync.WaitGroup
		defer dripping.Wait()
		for range 200 {
			c, ended := connect(t, ln)
			slow = append(slow, ended)
			dripping.Go(func() {
				for _, b := range []byte("GET / HTTP/1.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaa") {
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			})
		}
		for range 3 {
			time.Sleep(time.Second)
			resp, err := client.Get("http://nexus/healthz")
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("whoever behaves: %v %v", resp, err)
			}
			resp.Body.Close()
		}
		for _, ended := range slow {
			<-ended
		}
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("slow headers were borne for %s, want 5s", took)
		}
	})
}

// A body that drips is given up after half a minute, and what it was to be is not done.
func TestSlowBody(t *testing.T) {
	serving(t, func(t *testing.T, ln *pipe.Listener) {
		c, ended := connect(t, ln)
		begun := time.Now()
		fmt.Fprint(c, "POST /messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice\r\nContent-Length: 1000\r\n\r\n{")
		if got := <-ended; strings.Contains(got, "202") {
			t.Errorf("answered %s", got)
		}
		if took := time.Since(begun); took != 30*time.Second {
			t.Errorf("the body was waited for for %s, want 30s", took)
		}
	})
}

// A header that is too large is refused before anything of it is looked at.
func TestLargeHeader(t *testing.T) {
	serving(t, func(t *testing.T, ln *pipe.Listener) {
		c, ended := connect(t, ln)
		go func() {
			fmt.Fprintf(c, "GET /stats HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", strings.Repeat("a", 1<<20))
		}()
		if got := <-ended; !strings.HasPrefix(got, "HTTP/1.1 431") {
			t.Errorf("answered %.100s", got)
		}
	})
}
