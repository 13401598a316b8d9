package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/nexus/nexus/api"
	"github.com/nexus/nexus/topics"
)

// demoTTL is how long the demo's tokens live.
const demoTTL = 24 * time.Hour

// printDemo prints tokens of two users and a service, and lines to try with them.
func (a *app) printDemo(base string) error {
	alice, err := a.tokens.Sign(api.Claims{User: "alice"}, demoTTL)
	if err != nil {
		return err
	}
	bob, err := a.tokens.Sign(api.Claims{User: "bob"}, demoTTL)
	if err != nil {
		return err
	}
	service, err := a.tokens.Sign(api.Claims{User: "demo-service", Scopes: []string{api.ScopePublish}}, demoTTL)
	if err != nil {
		return err
	}
	topic := a.kafka.Names.Name(topics.Notifications)
	fmt.Fprintf(a.stdout, `
Tokens, good for %s:
  alice    %s
  bob      %s
  service  %s

Open alice's dashboard and keep it open:
  wscat -c "ws://%[5]s/dashboard?userId=alice&token=%[2]s"
  > {"event": "subscribe", "data": {"channels": ["referrals", "events"]}}

Send her a notification, as a product service by REST, and straight into the topic:
  curl -s http://%[5]s/notifications -H 'Authorization: Bearer %[4]s' -H 'Content-Type: application/json' \
    -d '{"userId":"alice","title":"Hello","body":"from REST","type":"SYSTEM"}'
  echo 'user:alice|{"title":"Hello","body":"from Kafka","type":"SYSTEM"}' | kcat -P -b %[6]s -t %[7]s -K '|' -X partitioner=murmur2_random

Read her inbox:
  curl -s http://%[5]s/notifications -H 'Authorization: Bearer %[2]s'

Chat: bob listens, alice writes:
  wscat -c "ws://%[5]s/ws?userId=bob&token=%[3]s"
  wscat -c "ws://%[5]s/ws?userId=alice&token=%[2]s"
  > {"event": "sendMessage", "data": {"receiverId": "bob", "content": "Hello"}}

Stop with Ctrl-C; everything is kept in %[8]s.
`, strconv.Itoa(int(demoTTL.Hours()))+" hours", alice, bob, service, base, a.kafka.Brokers[0], topic, a.c.DataDir)
	return nil
}
