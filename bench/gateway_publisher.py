"""Publishes to a gateway's channels, from a process of its own whose processor time can be told from the gateway's.

    python -m bench.gateway_publisher (--redis URL | --centrifugo http://127.0.0.1:PORT --key KEY)

With nearcast it is the server's own code that publishes, as its dispatcher does; with Centrifugo it is HTTP requests of
up to 64 publications, so that the server's part of the work is done by the server. Reads `Publish` and writes
`Published`, as JSON lines. Each publication's data says when it was due, on the clock of `time.monotonic_ns`.
"""

import argparse
import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import Sequence
from typing import Protocol

import httpx
import msgspec

from bench.processes import write
from channels.gateway.streams import ChannelStreams
from nearcast.clock import SystemClock
from server.store import client_of

#: Publications under way, when it is to go as fast as may be.
_AT_ONCE = 64
_TICK_S = 0.001
_WITHIN_S = 60.0


class Publish(msgspec.Struct):
    """Publish to `channel`, or to those of customers `first` to `first + count - 1` in turns."""

    pushes: int
    #: Bytes of data.
    size: int = 300
    channel: str = ""
    first: int = 0
    count: int = 0
    #: Publications a second, at their time whatever became of those before; 0: `at_once` at a time.
    rate: float = 0.0
    at_once: int = _AT_ONCE
    #: Meanwhile publish so many bytes to this channel, so many times a second.
    bulk: str = ""
    bulk_size: int = 0
    bulk_rate: float = 0.0

    def channel_of(self, number: int) -> str:
        return self.channel or f"customer:c{self.first + number % self.count}"


class Published(msgspec.Struct):
    pushes: int
    bulk: int
    seconds: float
    cpu_s: float


class Publisher(Protocol):
    async def publish(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """Channels and data; when it returns they are published."""
        ...

    async def close(self) -> None: ...


class NearcastPublisher:
    def __init__(self, url: str) -> None:
        self._redis = client_of(url)
        self._streams = ChannelStreams(self._redis, "benchmark", SystemClock())

    async def publish(self, rows: Sequence[tuple[str, bytes]]) -> None:
        for channel, data in rows:
            await self._streams.publish(channel, data)

    async def close(self) -> None:
        await self._redis.aclose()


class CentrifugoPublisher:
    def __init__(self, url: str, key: str) -> None:
        self._url = f"{url}/api/batch"
        self._http = httpx.AsyncClient(headers={"X-API-Key": key}, timeout=_WITHIN_S, trust_env=False)

    async def publish(self, rows: Sequence[tuple[str, bytes]]) -> None:
        commands = b",".join(
            b'{"publish":{"channel":%b,"data":%b}}' % (msgspec.json.encode(channel), data) for channel, data in rows
        )
        answer = await self._http.post(
            self._url,
            content=b'{"commands":[%b],"parallel":true}' % commands,
            headers={"Content-Type": "application/json"},
        )
        answer.raise_for_status()
        said = answer.json()
        problems = [reply["error"] for reply in said.get("replies", []) if "error" in reply]
        if "error" in said or problems:
            raise RuntimeError(f"Centrifugo refused a publication: {said.get('error') or problems[0]}")

    async def close(self) -> None:
        await self._http.aclose()


def data_of(at_ns: int, size: int) -> bytes:
    start = b'{"at":%d,"text":"' % at_ns
    return start + b"x" * (size - len(start) - 2) + b'"}'


async def publish(publisher: Publisher, order: Publish, together: int) -> Published:
    """`together`: how many publications one call may take when there is no rate."""
    started, cpu_s = time.monotonic(), time.process_time()
    enough = asyncio.Event()
    bulk = asyncio.create_task(_bulk(publisher, order, enough)) if order.bulk else None
    if order.rate:
        await _paced(publisher, order)
    else:
        await _fast(publisher, order, together)
    times = 0
    if bulk is not None:
        enough.set()
        times = await bulk
    return Published(order.pushes, times, time.monotonic() - started, time.process_time() - cpu_s)


async def _fast(publisher: Publisher, order: Publish, together: int) -> None:
    numbers = iter(range(order.pushes))

    async def worker(size: int) -> None:
        while rows := [
            (order.channel_of(number), data_of(time.monotonic_ns(), order.size))
            for number in itertools.islice(numbers, size)
        ]:
            await publisher.publish(rows)

    size = min(together, order.at_once)
    await asyncio.gather(*(worker(size) for _ in range(max(1, order.at_once // size))))


async def _paced(publisher: Publisher, order: Publish) -> None:
    under_way: set[asyncio.Task[None]] = set()
    start_ns = time.monotonic_ns()
    done = 0
    while done < order.pushes:
        due = min(int((time.monotonic_ns() - start_ns) / 1e9 * order.rate) + 1, order.pushes)
        for number in range(done, due):
            row = (order.channel_of(number), data_of(start_ns + int(number / order.rate * 1e9), order.size))
            task = asyncio.create_task(publisher.publish([row]))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        done = due
        await asyncio.sleep(_TICK_S)
    if under_way:
        await asyncio.gather(*under_way)


async def _bulk(publisher: Publisher, order: Publish, enough: asyncio.Event) -> int:
    times = 0
    while not enough.is_set():
        await publisher.publish([(order.bulk, data_of(0, order.bulk_size))])
        times += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1 / order.bulk_rate):
                await enough.wait()
    return times


async def work(arguments: argparse.Namespace) -> None:
    publisher: Publisher = (
        CentrifugoPublisher(arguments.centrifugo, arguments.key)
        if arguments.centrifugo
        else NearcastPublisher(arguments.redis)
    )
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    decoder = msgspec.json.Decoder(Publish)
    while line := await reader.readline():
        write(await publish(publisher, decoder.decode(line), _AT_ONCE if arguments.centrifugo else 1))
    await publisher.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis")
    parser.add_argument("--centrifugo")
    parser.add_argument("--key", default="")
    asyncio.run(work(parser.parse_args()))
