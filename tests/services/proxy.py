"""A TCP proxy that a test can break: real sockets, nothing of what they carry is known here."""

import asyncio
import contextlib
from collections import deque


class TcpProxy:
    """Forwards connections to a port on loopback; to several in turn, leaving out those that refuse."""

    def __init__(self, port: int, *to_ports: int) -> None:
        self.port = port
        self._to_ports = deque(to_ports)
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        #: Those that carry nothing any more.
        self._hung: set[asyncio.Task[None]] = set()
        self._hang_new = False

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Close the door and every connection."""
        assert self._server is not None
        self._server.close()
        while self._pumps:
            for pump in self._pumps:
                pump.cancel()
            await asyncio.wait(self._pumps)
        await self._server.wait_closed()

    def hang(self, *, new: bool = False) -> None:
        """The connections there are stay open and carry nothing; with `new`, those to come as well."""
        self._hung |= self._pumps
        self._hang_new = new

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened = await self._open()
        if opened is None:
            writer.close()
            return
        there, back = opened
        for source, target in ((reader, back), (there, writer)):
            pump = asyncio.create_task(self._pump(source, target), name=f"proxy {self.port}")
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)
            pump.add_done_callback(self._hung.discard)
            if self._hang_new:
                self._hung.add(pump)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in range(len(self._to_ports)):
            port = self._to_ports[0]
            self._to_ports.rotate(-1)
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        try:
            while data := await source.read(65_536):
                if this in self._hung:
                    continue
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            target.close()
            with contextlib.suppress(ConnectionError):
                await target.wait_closed()
