"""Who is connected to this node, in order of arrival, and how they are sent elsewhere."""

import asyncio
from contextlib import suppress

from channels.gateway.client import Client
from channels.gateway.codes import SHUTDOWN
from nearcast.metrics import CONNECTIONS

#: Clients come back within half a second. A node's few clients need not wait for the end of the window.
DRAINED_PER_S = 100
_STEP_S = 0.05


class Clients:
    """Every client enters once and leaves once, whatever carries it."""

    def __init__(self) -> None:
        self._clients: dict[Client, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._clients)

    def enter(self, client: Client) -> None:
        self._clients[client] = None
        self._empty.clear()
        CONNECTIONS.inc()

    def leave(self, client: Client) -> None:
        del self._clients[client]
        CONNECTIONS.dec()
        if not self._clients:
            self._empty.set()

    async def drain(self, window_s: float) -> None:
        """Ask all to connect elsewhere, newest first, evenly over the window: their return is a storm there."""
        leaving = list(self._clients)
        steps = round(min(window_s, len(leaving) / DRAINED_PER_S) / _STEP_S)
        for step in range(steps, 0, -1):
            for _ in range(-(-len(leaving) // step)):
                self._send_away(leaving.pop())
            await asyncio.sleep(_STEP_S)
        for client in reversed(leaving):
            self._send_away(client)

    def _send_away(self, client: Client) -> None:
        if client in self._clients:
            client.drain()

    def close(self) -> None:
        """Close those that are still here, whatever they are doing."""
        for client in list(self._clients):
            client.close(SHUTDOWN)

    async def left(self, timeout_s: float) -> None:
        """Wait until everybody has left, or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
