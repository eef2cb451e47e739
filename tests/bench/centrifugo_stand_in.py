#!/usr/bin/env python
"""What the benchmark needs of Centrifugo, for machines that have none: run as `centrifugo -c FILE`.

It reads the settings of version 6 that the benchmark writes, and speaks health, batches of publications, and the
client's connect with server-side subscriptions. No history: it proves how the benchmark asks, not how a peer answers.
"""

import asyncio
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import jwt
import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket

config = json.loads(Path(sys.argv[sys.argv.index("-c") + 1]).read_text())
namespaces = {each["name"]: each for each in config["channel"]["namespaces"]}
offsets: dict[str, int] = defaultdict(int)
subscribers: dict[str, set[WebSocket]] = defaultdict(set)
app = FastAPI()


@app.get("/health")
async def health() -> dict[str, Any]:
    assert config["health"]["enabled"]
    return {}


@app.post("/api/batch")
async def batch(request: Request) -> Response:
    if request.headers.get("X-API-Key") != config["http_api"]["key"]:
        return Response(status_code=401)
    replies: list[dict[str, Any]] = []
    for command in (await request.json())["commands"]:
        channel, data = command["publish"]["channel"], command["publish"]["data"]
        if channel.split(":")[0] not in namespaces:
            replies.append({"error": {"code": 102, "message": "unknown channel"}})
            continue
        offsets[channel] += 1
        push = {"push": {"channel": channel, "pub": {"data": data, "offset": offsets[channel]}}}
        for socket in subscribers[channel]:
            await socket.send_text(json.dumps(push, separators=(",", ":")))
        replies.append({"publish": {"offset": offsets[channel], "epoch": "e"}})
    return Response(json.dumps({"replies": replies}), media_type="application/json")


@app.websocket("/connection/websocket")
async def connection(socket: WebSocket) -> None:
    await socket.accept()
    command = json.loads(await socket.receive_text())
    claims = jwt.decode(command["connect"]["token"], config["client"]["token"]["hmac_secret_key"], algorithms=["HS256"])
    subs = {channel: {"recoverable": True, "epoch": "e", "offset": offsets[channel]} for channel in claims["channels"]}
    for channel in subs:
        assert namespaces[channel.split(":")[0]]["force_recovery"]
        subscribers[channel].add(socket)
    reply = {"id": command["id"], "connect": {"client": "c", "version": "0", "subs": subs, "ping": 25, "pong": True}}
    # A ping in the same frame, as Centrifugo may put several messages into one.
    await socket.send_text(json.dumps(reply) + "\n{}")
    assert await socket.receive_text() == "{}"
    try:
        await asyncio.Event().wait()
    finally:
        for channel in subs:
            subscribers[channel].discard(socket)


if __name__ == "__main__":
    address = config["http_server"]
    uvicorn.run(app, host=address["address"], port=address["port"], log_level="warning")
