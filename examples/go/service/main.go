// Command service is a product service in miniature: it tells a user that an order has shipped, by one record in Kafka.
//
//	go run ./examples/go/service USER ORDER
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: service USER ORDER")
	}
	user, order := os.Args[1], os.Args[2]
	// franz-go puts keys where Java does (murmur2) and waits for all in-sync replicas; Nexus needs both, and both are its defaults.
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(cmp.Or(os.Getenv("KAFKA_BROKERS"), "localhost:9092"), ",")...))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	value, err := json.Marshal(map[string]any{
		"title": "Order " + order + " has shipped",
		"body":  "It will arrive tomorrow.",
		"type":  "SYSTEM",                         // one of the eight types
		"data":  map[string]any{"orderId": order}, // whatever the client needs beside; optional
	})
	if err != nil {
		log.Fatal(err)
	}
	record := &kgo.Record{
		Topic: cmp.Or(os.Getenv("NEXUS_TOPIC"), "nexus.notifications"),
		Key:   []byte("user:" + user), // whom it is for
		Value: value,
		Headers: []kgo.RecordHeader{
			{Key: "ce_source", Value: []byte("/shop")},
			// It names what happened. A repeat within five minutes is the same event: after an error, send it again.
			{Key: "idempotency-key", Value: []byte("order-" + order + "-shipped")},
		},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
		log.Fatal("not sent; it is safe to try again: ", err)
	}
	fmt.Println("sent: order", order, "to", user)
}
