package wire

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nexus/nexus/internal/apierr"
)

// A client that does not read is closed as too slow; nothing is dropped silently.
func TestQueueIsBounded(t *testing.T) {
	c := &Conn{writing: true, maxQueue: 1000}
	for range 11 {
		c.send(make([]byte, 100))
	}
	if !c.closing || len(c.queue) != 1 {
		t.Fatalf("closing %v with %d frames queued, want the close frame alone", c.closing, len(c.queue))
	}
	if code := int(c.queue[0][2])<<8 | int(c.queue[0][3]); code != apierr.CloseTooSlow {
		t.Errorf("close code %d, want %d", code, apierr.CloseTooSlow)
	}
	if c.send(make([]byte, 10)); len(c.queue) != 1 {
		t.Error("something follows the close frame")
	}
}

// A challenge stands however often it is repeated: who is silent ends, though others ask for room all the time.
func TestChallengeStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, there) }()
		c := &Conn{net: here, maxQueue: 1 << 20, patience: time.Hour}
		if err := c.alive(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_, _ = here.Read(make([]byte, 1))
			close(ended)
		}()
		for range 4 {
			c.Challenge(time.Second)
			time.Sleep(600 * time.Millisecond)
		}
		select {
		case <-ended:
		default:
			t.Error("a silent client is still waited for after more than twice its time")
		}
		here.Close()
		there.Close()
		<-ended
	})
}
