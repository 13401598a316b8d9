package wire

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A drain that meets a connection whose handler does not end is over when its time is (B17).
func TestDrainIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := bare(t, time.Minute, time.Minute)
		srv.serving.Begin() // as Upgrade does
		srv.Shutdown()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		drained := make(chan struct{})
		go func() {
			srv.Drain(ctx)
			close(drained)
		}()
		time.Sleep(time.Second)
		synctest.Wait()
		select {
		case <-drained:
		default:
			t.Error("the drain goes on beyond its time")
		}
		srv.serving.End()
		<-drained
	})
}
