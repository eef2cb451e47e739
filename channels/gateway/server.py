"""The gateway's socket server: accepts connections, and ends them in an orderly way.

`/connection/websocket` is where SDKs connect, `/health` answers plain HTTP. Compression is off: messages are small, and
a compressor per connection would cost more memory than all the rest of it.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import MultipleValuesError
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Origin, Subprotocol

from channels.gateway.backend import Backend
from channels.gateway.client import Client, Services, envelope_of
from channels.gateway.codes import SHUTDOWN
from channels.gateway.hub import Hub, end, guarded
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from channels.gateway.transport import WebSocketTransport
from channels.gateway.wheel import Wheel
from nearcast.clock import Clock
from nearcast.metrics import CONNECTIONS

log = logging.getLogger("nearcast.channels.gateway")
# Below INFO websockets logs whole frames, which carry tokens and personal data; INFO is two lines per connection.
_socket_log = logging.getLogger("nearcast.channels.gateway.sockets")
_socket_log.setLevel(logging.WARNING)

CONNECT_PATH = "/connection/websocket"
HEALTH_PATH = "/health"
_PROTOBUF = "centrifuge-protobuf"
_JSON = Subprotocol("centrifuge-json")


class Gateway:
    """Serves clients on its own port between `start` and `stop`."""

    def __init__(
        self, settings: GatewaySettings, tokens: Tokens, streams: ChannelStreams, backend: Backend, clock: Clock
    ) -> None:
        self._settings = settings
        self._hub = Hub(streams, envelope_of)
        self._wheel = Wheel(clock, settings.tick_s)
        self._services = Services(settings, tokens, self._hub, backend, self._wheel, clock)
        self._clients: set[Client] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._server: Server | None = None
        self._turning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises OSError if the port is taken."""
        settings = self._settings
        self._server = await serve(
            self._serve,
            settings.host,
            settings.port,
            origins=[None, *map(Origin, settings.origins)],
            select_subprotocol=_select_subprotocol,
            compression=None,
            process_request=_answer_http,
            open_timeout=settings.connect_timeout_s,
            # The protocol has pings of its own, see `Client.due`.
            ping_interval=None,
            close_timeout=settings.close_timeout_s,
            max_size=settings.max_frame_bytes,
            max_queue=4,
            server_header=None,
            logger=_socket_log,
        )
        self._turning = asyncio.create_task(guarded("gateway-wheel", self._wheel.run), name="gateway-wheel")
        self._hub.start()
        log.info("the gateway listens on %s:%d", settings.host, self.port)

    async def stop(self) -> None:
        """Take no more connections, let running commands end, ask every client to connect elsewhere."""
        if self._server is None or self._turning is None:
            return
        self._server.close(close_connections=False)
        for client in list(self._clients):
            client.drain()
        await self._wait_for_clients(self._settings.drain_s)
        for client in list(self._clients):
            client.close(SHUTDOWN)
        # The wheel cuts off those that don't answer.
        await self._wait_for_clients(self._settings.close_timeout_s + 2 * self._settings.tick_s)
        await self._server.wait_closed()
        await end([self._turning])
        await self._hub.stop()
        self._server = self._turning = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._server is None:
            raise RuntimeError("the gateway has not been started")
        address = self._server.sockets[0].getsockname()
        return int(address[1])

    async def _serve(self, connection: ServerConnection) -> None:
        transport = WebSocketTransport(connection)
        client = Client(transport, self._services)
        self._clients.add(client)
        self._empty.clear()
        CONNECTIONS.inc()
        try:
            # A connection that breaks is the normal end of a phone's.
            with suppress(ConnectionClosed):
                async for message in connection:
                    await client.take(message)
        finally:
            client.left()
            if not client.closed:
                transport.count_close()
            CONNECTIONS.dec()
            self._clients.discard(client)
            if not self._clients:
                self._empty.set()

    async def _wait_for_clients(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()


def _answer_http(connection: ServerConnection, request: Request) -> Response | None:
    """What is not a WebSocket handshake for the connect path gets its answer here."""
    path = request.path.split("?", 1)[0]
    if path == HEALTH_PATH:
        return connection.respond(HTTPStatus.OK, "ok\n")
    if path != CONNECT_PATH:
        return connection.respond(HTTPStatus.NOT_FOUND, f"Connect to {CONNECT_PATH}.\n")
    try:
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
    except MultipleValuesError:
        return None
    if _PROTOBUF in offered:
        return connection.respond(HTTPStatus.BAD_REQUEST, "This server speaks the JSON protocol: turn Protobuf off.\n")
    return None


def _select_subprotocol(_connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """JSON needs no subprotocol; it is named only to clients that offer it."""
    return _JSON if _JSON in offered else None
