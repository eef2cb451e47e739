"""What the gateway's tests share: a backend that answers by script, and two kinds of client.

`Device` is the real Centrifuge SDK with everything it was told written down; `Raw` is a bare WebSocket.
"""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

import centrifuge
import websockets
from websockets.asyncio.client import ClientConnection

from channels.gateway.backend import Identity
from channels.gateway.codes import Disconnect
from channels.gateway.server import Gateway
from channels.gateway.wire import CONNECT_PATH
from nearcast.errors import Gone, Unavailable

SECRET = b"a secret of the tests, 32 bytes and more"
WITHIN_S = 10.0


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, up to a deadline."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting until {what}"
        await asyncio.sleep(0.01)


class ScriptedBackend:
    """Answers the methods below; keeps the events it got. There is every store and zone but `nowhere`."""

    def __init__(self) -> None:
        self.events: list[tuple[Identity, Any]] = []
        self.gate = asyncio.Event()
        self.knows_channels = True
        self.waiting = 0

    async def exists(self, channel: str) -> bool:
        if not self.knows_channels:
            raise Unavailable("what there is can't be told")
        return not channel.endswith(":nowhere")

    async def rpc(self, identity: Identity, method: str, data: bytes) -> bytes:
        match method:
            case "whoami":
                return json.dumps(identity._asdict()).encode()
            case "echo":
                return data
            case "gone":
                raise Gone("coupon_expired", "its time is over")
            case "away":
                raise Unavailable("the log is away")
            case "wait":
                self.waiting += 1
                await self.gate.wait()
                return b'"waited"'
            case "event":
                return b"{}"
        raise RuntimeError("a bug in the backend")

    async def event(self, identity: Identity, data: bytes) -> None:
        if data == b'"away"':
            raise Unavailable("the log is away")
        self.events.append((identity, json.loads(data)))


class Device(centrifuge.ClientEventHandler):
    """A phone with the Python SDK. `log` holds what the SDK said, in order."""

    def __init__(self, gateway: Gateway, token: str, **options: Any) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.publications: list[tuple[str, int, Any]] = []
        self.client = centrifuge.Client(
            f"ws://127.0.0.1:{gateway.port}{CONNECT_PATH}",
            events=self,
            token=token,
            min_reconnect_delay=0.02,
            max_reconnect_delay=0.1,
            proxy=None,
            **options,
        )

    async def __aenter__(self) -> Self:
        await self.client.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.disconnect()

    async def ready(self) -> None:
        await self.client.ready(WITHIN_S)
        await until(
            lambda: any(entry[0] == "subscribed" for entry in self.log), "the server-side subscription is there"
        )

    async def has(self, count: int) -> None:
        await until(lambda: len(self.publications) >= count, f"{count} publications have arrived")

    async def has_offset(self, offset: int) -> None:
        await until(lambda: self.offsets[-1:] == [offset], f"offset {offset} has arrived")

    def drop(self) -> None:
        """Cut the TCP connection, as a tunnel does."""
        connection = self.client._conn
        assert connection is not None
        connection.transport.abort()

    def said(self, kind: str) -> list[tuple[Any, ...]]:
        return [entry for entry in self.log if entry[0] == kind]

    @property
    def offsets(self) -> list[int]:
        return [offset for _, offset, _ in self.publications]

    async def on_connecting(self, ctx: centrifuge.ConnectingContext) -> None:
        self.log.append(("connecting", ctx.code, ctx.reason))

    async def on_disconnected(self, ctx: centrifuge.DisconnectedContext) -> None:
        self.log.append(("disconnected", ctx.code, ctx.reason))

    async def on_connected(self, ctx: centrifuge.ConnectedContext) -> None:
        self.log.append(("connected", ctx.version))

    async def on_error(self, ctx: centrifuge.ErrorContext) -> None:
        self.log.append(("error", ctx.code, str(ctx.error)))

    async def on_subscribed(self, ctx: centrifuge.ServerSubscribedContext) -> None:
        assert ctx.stream_position is not None
        self.log.append(("subscribed", ctx.channel, ctx.was_recovering, ctx.recovered, ctx.stream_position.offset))

    async def on_publication(self, ctx: centrifuge.ServerPublicationContext) -> None:
        self.publications.append((ctx.channel, ctx.pub.offset, ctx.pub.data))


class Raw:
    """A bare WebSocket that speaks the protocol by hand."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, *commands: object) -> None:
        await self.connection.send("\n".join(json.dumps(command) for command in commands))

    async def connect(self, token: str, **more: object) -> Any:
        await self.send({"id": 1, "connect": {"token": token, **more}})
        return await self.receive()

    async def receive(self) -> Any:
        """The next message other than a ping."""
        while True:
            message = json.loads(await asyncio.wait_for(self.connection.recv(), WITHIN_S))
            if message != {}:
                return message

    async def closed_with(self) -> tuple[int | None, str | None]:
        """How the server closed the connection; anything it sent before is thrown away."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                try:
                    await self.connection.recv()
                except websockets.ConnectionClosed:
                    return self.connection.close_code, self.connection.close_reason

    async def assert_closed(self, disconnect: Disconnect) -> None:
        assert await self.closed_with() == (disconnect.code, disconnect.reason)


class Opened(AbstractAsyncContextManager["Raw"]):
    """`async with Opened(gateway) as raw`."""

    def __init__(self, gateway: Gateway, **options: Any) -> None:
        url = f"ws://127.0.0.1:{gateway.port}{CONNECT_PATH}"
        self._connecting = websockets.connect(url, proxy=None, close_timeout=1, **options)

    async def __aenter__(self) -> Raw:
        return Raw(await self._connecting.__aenter__())

    async def __aexit__(self, *error: Any) -> None:
        await self._connecting.__aexit__(*error)
