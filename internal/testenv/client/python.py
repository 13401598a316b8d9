"""Drives the real python-socketio against a running server, by both transports, with handlers of one argument.

Usage: python.py BASE TOKENS. Prints "all seen" if all was seen.
"""
import json
import queue
import sys
import threading
import urllib.request

import socketio

base, tokens = sys.argv[1], json.loads(sys.argv[2])
failures = queue.Queue()
threading.excepthook = lambda e: failures.put(repr(e.exc_value))  # the client runs its handlers in threads


def post(path, body, user):
    request = urllib.request.Request(base + path, json.dumps(body).encode(), {
        "Authorization": "Bearer " + tokens[user], "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 202, answer.status


def drive(transport):
    client, seen = socketio.Client(reconnection=False), queue.Queue()

    def on(namespace, event):
        def handler(data):
            seen.put((event, data))
        client.on(event, handler, namespace=namespace)

    for namespace, event in (("/dashboard", "connected"), ("/dashboard", "notification"), ("/dashboard", "stats_update"),
                             ("/ws", "connected"), ("/ws", "message:new"), ("/ws", "MESSAGE_BROADCAST")):
        on(namespace, event)
    client.connect(base, auth={"userId": "alice", "token": tokens["alice"]}, namespaces=["/dashboard", "/ws"],
                   transports=[transport], wait_timeout=10)
    post("/notifications", {"userId": "alice", "title": "for " + transport, "body": "", "type": "SYSTEM"}, "service")
    post("/messages", {"receiverId": "alice", "content": "chat by " + transport}, "bob")
    missing = {"connected", "stats_update", "for " + transport, "message:new", "MESSAGE_BROADCAST"}
    while missing:
        event, data = seen.get(timeout=15)
        assert isinstance(data, dict), (event, data)
        missing -= {event, data.get("title")}
    client.disconnect()


for name in ("websocket", "polling"):
    drive(name)
if not failures.empty():
    sys.exit("a handler failed: " + failures.get())
print("all seen")
