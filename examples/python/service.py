"""A product service in miniature: it tells a user that an order has shipped, by one record in Kafka.

Usage: python service.py USER ORDER
"""
import json
import os
import sys

from confluent_kafka import Producer

if len(sys.argv) != 3:
    sys.exit("usage: service.py USER ORDER")
user, order = sys.argv[1:]

producer = Producer({
    "bootstrap.servers": os.environ.get("KAFKA_BROKERS", "localhost:9092"),
    # Keys go where Java puts them. librdkafka's default (CRC32) puts them into other partitions: Nexus would have to carry
    # every record over, and their order would be lost.
    "partitioner": "murmur2_random",
})

value = {
    "title": f"Order {order} has shipped",
    "body": "It will arrive tomorrow.",
    "type": "SYSTEM",            # one of the eight types
    "data": {"orderId": order},  # whatever the client needs beside; optional
}
problems = []
producer.produce(
    os.environ.get("NEXUS_TOPIC", "nexus.notifications"),
    key=f"user:{user}",  # whom it is for
    value=json.dumps(value),
    headers={
        "ce_source": "/shop",
        # It names what happened. A repeat within five minutes is the same event: after an error, send it again.
        "idempotency-key": f"order-{order}-shipped",
    },
    on_delivery=lambda error, _: error and problems.append(error),
)
if producer.flush(30) > 0 or problems:  # flush waits for Kafka's answer, at most 30 s
    sys.exit(f"not sent; it is safe to try again: {problems or 'no answer'}")
print("sent: order", order, "to", user)
