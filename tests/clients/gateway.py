"""A scripted Centrifuge server on a real socket: does what a test tells it, and remembers what it was sent."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

CHANNEL = "customer:ann"


def push_data(number: int) -> dict[str, Any]:
    """The JSON of a push, told apart by its number."""
    return {
        "kind": "offer",
        "message": f"m{number}",
        "decision": f"d{number}",
        "title": f"Title {number}",
        "body": "Body",
        "promotion": "p",
        "trigger": "walk_past",
        "event": f"e{number}",
        "at_ms": 1,
        "deadline_ms": 2,
    }


class ScriptedGateway:
    """One channel with a history; answers rpcs with `answer`, and `connect` with what recovery finds."""

    def __init__(self) -> None:
        self.epoch = "a"
        self.history: list[dict[str, Any]] = []
        #: Offsets up to here were trimmed: who asks for less can't recover.
        self.trimmed = 0
        self.connects: list[dict[str, Any]] = []
        self.calls: list[tuple[str, Any]] = []
        self.sent: list[Any] = []
        self.pongs = 0
        self.refuse: dict[str, Any] | None = None
        #: Tokens that get error 109, how long the others last, and those handed in later.
        self.expired: set[str] = set()
        self.ttl_s = 0.0
        self.refreshes: list[str] = []
        self.close_with: tuple[int, str] | None = None
        self.answer: Callable[[str, Any], dict[str, Any] | None] = lambda method, data: {"rpc": {"data": {}}}
        self.sockets: set[ServerConnection] = set()
        self.by_token: dict[str, ServerConnection] = {}
        self._server: Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/connection/websocket"

    async def publish(self, number: int) -> None:
        """Append to the history, and send to whoever is connected."""
        self.history.append(push_data(number))
        await self.send({"push": {"channel": CHANNEL, "pub": self._publication(len(self.history))}})

    async def say(self, data: object) -> None:
        """Publish data to whoever is connected, outside the history."""
        await self.send({"push": {"channel": CHANNEL, "pub": {"data": data}}})

    async def send(self, *messages: dict[str, Any]) -> None:
        """All messages in one frame, a line each."""
        for socket in list(self.sockets):
            await socket.send("\n".join(json.dumps(message) for message in messages))

    async def send_to(self, token: str, data: dict[str, Any]) -> None:
        """A publication for the one client that connected with this token."""
        await until(lambda: token in self.by_token)
        push = {"push": {"channel": CHANNEL, "pub": {"data": data}}}
        await self.by_token[token].send(json.dumps(push))

    async def drop(self, code: int = 1011) -> None:
        for socket in list(self.sockets):
            await socket.close(code)

    async def handle(self, socket: ServerConnection) -> None:
        try:
            async for frame in socket:
                for line in str(frame).splitlines():
                    await self._command(socket, json.loads(line))
        except ConnectionClosed:
            pass
        finally:
            self.sockets.discard(socket)

    async def _command(self, socket: ServerConnection, command: dict[str, Any]) -> None:
        if "connect" in command:
            self.connects.append(command["connect"])
            if self.close_with is not None:
                await socket.close(*self.close_with)
                return
            expired = command["connect"]["token"] in self.expired
            refuse = {"code": 109, "message": "token expired"} if expired else self.refuse
            reply = {"error": refuse} if refuse else {"connect": self._connected(command["connect"])}
            await socket.send(json.dumps({"id": command["id"], **reply}))
            if not refuse:
                self.sockets.add(socket)
                self.by_token[command["connect"]["token"]] = socket
        elif "rpc" in command:
            self.calls.append((command["rpc"]["method"], command["rpc"]["data"]))
            answer = self.answer(command["rpc"]["method"], command["rpc"]["data"])
            if answer is not None:
                await socket.send(json.dumps({"id": command["id"], **answer}))
        elif "refresh" in command:
            self.refreshes.append(command["refresh"]["token"])
            await socket.send(json.dumps({"id": command["id"], "refresh": {"client": "c", "ttl": self.ttl_s}}))
        elif "send" in command:
            self.sent.append(command["send"]["data"])
        elif command == {}:
            self.pongs += 1

    def _connected(self, connect: dict[str, Any]) -> dict[str, Any]:
        asked = connect.get("subs", {}).get(CHANNEL)
        recovered = asked is not None and asked["epoch"] == self.epoch and asked["offset"] >= self.trimmed
        missed = range(asked["offset"] + 1, len(self.history) + 1) if asked is not None and recovered else range(0)
        subscribed = {
            "epoch": self.epoch,
            "offset": len(self.history),
            "recoverable": True,
            "was_recovering": asked is not None,
            "recovered": recovered,
            "publications": [self._publication(offset) for offset in missed],
        }
        about = {"client": "c", "version": "t", "ping": 25, "pong": True, "ttl": self.ttl_s}
        return {**about, "subs": {CHANNEL: subscribed}}

    def _publication(self, offset: int) -> dict[str, Any]:
        return {"data": self.history[offset - 1], "offset": offset}


@asynccontextmanager
async def scripted_gateway() -> AsyncIterator[ScriptedGateway]:
    gateway = ScriptedGateway()
    async with serve(gateway.handle, "127.0.0.1", 0, compression=None) as server:
        gateway._server = server
        yield gateway


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Until the condition holds; fails after the limit."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)
