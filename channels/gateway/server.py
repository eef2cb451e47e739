"""The gateway's socket server: accepts connections, and ends them in an orderly way.

`/connection/websocket` is where SDKs connect, see `wire`. Compression is off: messages are small, and a compressor per
connection would cost more memory than all the rest of it.
"""

import asyncio
import logging
import socket

from channels.gateway.addresses import Addresses
from channels.gateway.backend import Backend
from channels.gateway.client import Services, envelope_of
from channels.gateway.clients import Clients
from channels.gateway.emulation import Sessions
from channels.gateway.fallback import Fallback
from channels.gateway.hub import Hub, end, guarded
from channels.gateway.limits import limit_per_address
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from channels.gateway.turnstile import Turnstile
from channels.gateway.users import Users
from channels.gateway.wheel import Wheel
from channels.gateway.wire import Door, Wire
from nearcast.clock import Clock

log = logging.getLogger("nearcast.channels.gateway")

#: Connections that the kernel keeps until they are accepted; one that finds no room there tries again a second later.
LISTEN_BACKLOG = 4096
#: Accepted in one turn of the loop; the others wait that long.
ACCEPTED_AT_ONCE = 64


class Gateway:
    """Serves clients on its own port between `start` and `stop`."""

    def __init__(
        self, settings: GatewaySettings, tokens: Tokens, streams: ChannelStreams, backend: Backend, clock: Clock
    ) -> None:
        """Raises ValueError for a trusted proxy that is no network."""
        self._settings = settings
        self._wheel = Wheel(clock, settings.tick_s)
        self._users = Users(settings.connections_per_user)
        self._hub = Hub(streams, envelope_of, self._control, check_every_s=settings.check_every_s)
        services = Services(settings, tokens, self._hub, streams, self._users, backend, self._wheel, clock)
        self._clients = Clients()
        self._turnstile = Turnstile(
            settings.handshakes_per_second, settings.joins_at_once, settings.queue_s, settings.queue_room, clock
        )
        per_address = limit_per_address(settings.connections_per_address, settings.connections)
        addresses = Addresses(per_address, settings.trusted_proxies)
        self._sessions = Sessions(services, self._clients, streams.alias, streams.tell)
        self._fallback = Fallback(services, self._sessions, addresses, self._turnstile)
        self._door = Door(services, self._clients, addresses, self._turnstile, self._fallback)
        self._server: asyncio.Server | None = None
        self._turning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises OSError if the port is taken."""
        settings = self._settings
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Wire(self._door), settings.host, settings.port, backlog=ACCEPTED_AT_ONCE, start_serving=False
        )
        for listening in self._server.sockets:
            # Its connections inherit it.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
        await self._server.start_serving()
        for listening in self._server.sockets:
            # asyncio takes its own number both for this and for how many it accepts at once.
            with listening.dup() as handle:
                handle.listen(LISTEN_BACKLOG)
        self._turning = asyncio.create_task(guarded("gateway-wheel", self._wheel.run), name="gateway-wheel")
        self._hub.start()
        log.info("the gateway listens on %s:%d", settings.host, self.port)

    async def stop(self) -> None:
        """Take no more connections, let running commands end, ask every client to connect elsewhere."""
        if self._server is None or self._turning is None:
            return
        self._server.close()
        self._fallback.draining = True
        self._turnstile.close()
        await self._clients.drain(self._settings.drain_window_s)
        await self._clients.left(self._settings.drain_s)
        self._clients.close()
        # The wheel cuts off those that don't answer.
        await self._clients.left(self._settings.close_timeout_s + 2 * self._settings.tick_s)
        await self._door.close()
        await self._fallback.stop()
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

    def _control(self, frame: bytes) -> None:
        """What another process says to this node."""
        if not self._sessions.hand_over(frame):
            self._users.hand_over(frame)
