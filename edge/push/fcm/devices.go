package fcm

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/nexus/nexus/topics"
)

// deviceWait bounds how long Targets waits for the inbox to know the devices registered until now, the question to the log
// included.
const deviceWait = 2 * time.Second

// Targets finds the tokens of users' devices (push.Channel), those registered until now included where the inbox is not far behind.
func (c *Channel) Targets(ctx context.Context, users []string) (map[string][]string, error) {
	if err := c.devicesKnown(ctx); err != nil {
		return nil, err
	}
	return c.o.Inbox.Tokens(ctx, users)
}

// devicesKnown waits for the inbox to know the devices registered until now. An inbox that is further behind is not waited
// for again until there are newer devices: its pushes go to those that it knows.
func (c *Channel) devicesKnown(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	ends, err := c.o.Log.Ends(wait, topics.Devices)
	if err != nil {
		return fmt.Errorf("the ends of %s: %w", topics.Devices, err)
	}
	c.mu.Lock()
	maps.DeleteFunc(ends, func(of topics.Partition, end int64) bool { return end <= c.gaveUpAt[of] })
	c.mu.Unlock()
	err = c.o.Inbox.Await(wait, ends)
	switch {
	case err == nil || ctx.Err() != nil:
		return ctx.Err()
	case wait.Err() == nil:
		return fmt.Errorf("wait for the inbox to know devices: %w", err)
	}
	c.o.Logger.Warn("the inbox is behind on devices; pushes go to those that it knows", "waited", deviceWait)
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.Copy(c.gaveUpAt, ends)
	return nil
}

// Forget appends that a device is not registered any more (push.Channel); the inbox folds that as if its user had said so.
func (c *Channel) Forget(ctx context.Context, user, token string) error {
	err := c.o.Producer.Append(ctx, topics.Device{Token: token}.Unregistered(user, topics.NodeSource(c.o.Node)))
	if err != nil {
		return fmt.Errorf("append that a device is gone: %w", err)
	}
	return nil
}
