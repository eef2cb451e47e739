"""A TCP proxy that delays what comes back, to leave replies on their way when those who asked have gone."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 64 * 1024


class DelayingProxy:
    """Answers of the server behind it come `delay_s` later, more or less; the order within a connection stays."""

    def __init__(self, target_port: int, delay_s: float, seed: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._delay_s = delay_s
        self._chance = random.Random(seed)
        self._connections: dict[asyncio.Future[list[BaseException | None]], list[asyncio.Task[None]]] = {}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        pumps = [
            asyncio.create_task(_pump(reader, target_writer), name="proxy there"),
            asyncio.create_task(self._pump_late(target_reader, writer), name="proxy back"),
        ]
        connection = asyncio.gather(*pumps, return_exceptions=True)
        self._connections[connection] = pumps
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await connection
        del self._connections[connection]
        for each in (writer, target_writer):
            each.close()

    async def close(self) -> None:
        for pumps in self._connections.values():
            for pump in pumps:
                pump.cancel()
        while self._connections:
            await asyncio.sleep(0.01)

    async def _pump_late(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await asyncio.sleep(self._chance.uniform(0.0, 2 * self._delay_s))
            writer.write(data)
            await writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def delaying(target_port: int, delay_s: float, seed: int) -> AsyncIterator[DelayingProxy]:
    """A proxy on a port of its own, in front of a port of this machine."""
    proxy = DelayingProxy(target_port, delay_s, seed)
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
