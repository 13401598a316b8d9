"""Shows a user's notifications as they come, over Socket.IO. It reconnects by itself.

Usage: NEXUS_TOKEN=… python client.py
"""
import os
from urllib.parse import urlencode

import socketio

base = os.environ.get("NEXUS_URL", "http://localhost:3000")
who = urlencode({"userId": os.environ.get("NEXUS_USER", "alice"), "token": os.environ.get("NEXUS_TOKEN", "")})

client = socketio.Client()


@client.on("connected", namespace="/dashboard")
def connected(data):
    print("connected", flush=True)


@client.on("notification", namespace="/dashboard")
def notification(data):
    # After a reconnect the same notification may come again; who must not show it twice remembers its id.
    print(f"{data['title']}: {data['body']} ({data['id']})", flush=True)


@client.on("error", namespace="/dashboard")
def error(data):
    print("the server says:", data, flush=True)


client.connect(f"{base}?{who}", namespaces=["/dashboard"], transports=["websocket"])
client.wait()
