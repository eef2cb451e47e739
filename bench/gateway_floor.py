"""The floor of a broadcast: an asyncio server that does nothing but `transport.write` the same bytes to each client.

    python -m bench.gateway_floor

It answers a handshake and the first frame with fixed bytes, whatever they say. Writes its port as `Listening`, then
reads `Write` and writes `Wrote`, as JSON lines.
"""

import asyncio
import struct
import sys
import time
from typing import cast

import msgspec

from bench.gateway_load import raise_limit
from bench.gateway_publisher import data_of
from bench.processes import write

_ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


class Listening(msgspec.Struct):
    port: int


class Write(msgspec.Struct):
    """Push data of so many bytes to everyone, so many times, as if to this channel."""

    channel: str
    size: int
    times: int


class Wrote(msgspec.Struct):
    frames: int
    cpu_s: float


def frame(payload: bytes) -> bytes:
    size = len(payload)
    return (bytes((0x81, size)) if size < 126 else b"\x81\x7e" + struct.pack("!H", size)) + payload


_CONNECTED = frame(b'{"id":1,"connect":{"subs":{}}}')


class _Connection(asyncio.Protocol):
    def __init__(self, everyone: "set[asyncio.Transport]") -> None:
        self._everyone = everyone
        self._asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._everyone.discard(self._transport)

    def data_received(self, _: bytes) -> None:
        self._asked += 1
        if self._asked == 1:
            self._transport.write(_ACCEPTED)
        elif self._asked == 2:
            self._transport.write(_CONNECTED)
            self._everyone.add(self._transport)


async def work() -> None:
    raise_limit()
    loop = asyncio.get_running_loop()
    everyone: set[asyncio.Transport] = set()
    server = await loop.create_server(lambda: _Connection(everyone), "127.0.0.1", 0, backlog=4_096)
    write(Listening(server.sockets[0].getsockname()[1]))
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    offset = 0
    while line := await reader.readline():
        order = msgspec.json.decode(line, type=Write)
        cpu_s = time.process_time()
        for _ in range(order.times):
            offset += 1
            data = data_of(time.monotonic_ns(), order.size)
            said = frame(
                b'{"push":{"channel":"%b","pub":{"data":%b,"offset":%d}}}' % (order.channel.encode(), data, offset)
            )
            for transport in everyone:
                transport.write(said)
            await asyncio.sleep(0)
        while any(transport.get_write_buffer_size() for transport in everyone):
            await asyncio.sleep(0.01)
        write(Wrote(order.times * len(everyone), time.process_time() - cpu_s))


if __name__ == "__main__":
    asyncio.run(work())
