"""Puts traffic into an event log: all at once, or so many events a second from a process of its own.

    python -m bench.load --walk FILE --rate 1000 --seconds 10 --produced FILE (--kafka host:port | --redis URL)

The process goes on with the pickled `Walk` in the file and writes it back, so that the next one can go on from there.
It writes `Ready` when its events are made, waits for a line of input, produces, and writes `Produced`. With `--steady`
it makes its events second by second instead, which a long run needs.

Events are handed to the log as soon as they are due, in one append together with those that came due while the last
append was under way. The time kept for an event is that of its hand-over, on the clock of `time.monotonic_ns`.
"""

import argparse
import asyncio
import pickle
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer
from numpy.typing import NDArray
from redis.asyncio import Redis

from bench.city import Traffic, Walk
from bench.processes import PARTITIONS, Ends, Place, Ready, write
from nearcast import keys

_AT_ONCE = 20_000
#: Between two looks at what is due.
_TICK_S = 0.001
#: The sequence number in a stream's id, below its milliseconds, in one number.
_SEQUENCE_BITS = 22


class Written(NamedTuple):
    """What one append put into one place: its positions, ascending, as numbers."""

    place: Place
    positions: NDArray[np.int64]


class Produced(msgspec.Struct):
    """What the process of a paced load did."""

    events: int
    seconds: float
    ends: list[Ends]


class Appender(Protocol):
    """Appends to a log without any code of the server's."""

    async def append(self, rows: Mapping[Place, list[tuple[bytes, bytes]]]) -> list[Written]:
        """Keys and values by place, durable when it returns."""
        ...

    async def close(self) -> None: ...


def number_of(position: str) -> int:
    """A log position as a number that rises with it."""
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds) << _SEQUENCE_BITS | int(sequence) if sequence else int(milliseconds)


class KafkaAppender:
    """`prefix` goes before the names of topics."""

    def __init__(self, bootstrap: str, prefix: str = "") -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap, acks="all", max_batch_size=900_000, max_request_size=4_000_000
        )
        self._prefix = prefix
        self._started = False

    async def append(self, rows: Mapping[Place, list[tuple[bytes, bytes]]]) -> list[Written]:
        if not self._started:
            await self._producer.start()
            self._started = True
        acknowledged = []
        for place, entries in rows.items():
            batch = self._producer.create_batch()
            for key, value in entries:
                if batch.append(key=key, value=value, timestamp=None) is None:
                    acknowledged.append((place, batch.record_count(), await self._send(batch, place)))
                    batch = self._producer.create_batch()
                    batch.append(key=key, value=value, timestamp=None)
            acknowledged.append((place, batch.record_count(), await self._send(batch, place)))
        written = []
        for place, count, future in acknowledged:
            first = (await future).offset
            written.append(Written(place, np.arange(first, first + count)))
        return written

    async def close(self) -> None:
        await self._producer.stop()

    async def _send(self, batch: object, place: Place) -> "asyncio.Future[Any]":
        topic, partition = place
        sent: asyncio.Future[Any] = await self._producer.send_batch(batch, self._prefix + topic, partition=partition)
        return sent


class StreamsAppender:
    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url)

    async def append(self, rows: Mapping[Place, list[tuple[bytes, bytes]]]) -> list[Written]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for place, entries in rows.items():
                stream = keys.log_stream(*place)
                for key, value in entries:
                    pipe.xadd(stream, {"k": key, "v": value})
            ids = iter(await pipe.execute())
        return [
            Written(place, np.array([number_of(next(ids).decode()) for _ in entries]))
            for place, entries in rows.items()
        ]

    async def close(self) -> None:
        await self._redis.aclose()


class Load:
    """A log to be filled, and how far it is."""

    def __init__(self, appender: Appender, partition_of: NDArray[np.uint16]) -> None:
        self._appender = appender
        self._partition_of = partition_of
        self._ends: dict[Place, int] = {}

    async def fill(self, traffic: Traffic) -> None:
        """Append all of it, as fast as may be."""
        for first in range(0, len(traffic), _AT_ONCE):
            await self.append(traffic, first, min(first + _AT_ONCE, len(traffic)))

    async def append(self, traffic: Traffic, first: int, end: int) -> list[Written]:
        rows: dict[Place, list[tuple[bytes, bytes]]] = {}
        partitions = self._partition_of[traffic.customer[first:end]].tolist()
        for partition, (topic, key, value) in zip(partitions, traffic.part(first, end).rows(), strict=True):
            rows.setdefault((topic, partition), []).append((key.encode(), value))
        written = await self._appender.append(rows)
        self._ends.update({place: int(positions[-1]) for place, positions in written})
        return written

    async def close(self) -> None:
        await self._appender.close()

    def ends(self) -> list[Ends]:
        """The last position of each place so far."""
        streams = isinstance(self._appender, StreamsAppender)
        return [
            Ends(topic, partition, _text(number) if streams else str(number))
            for (topic, partition), number in self._ends.items()
        ]


def _text(number: int) -> str:
    return f"{number >> _SEQUENCE_BITS}-{number & ((1 << _SEQUENCE_BITS) - 1)}"


def appender(redis: str | None, kafka: str | None) -> Appender:
    if kafka:
        return KafkaAppender(kafka)
    assert redis is not None
    return StreamsAppender(redis)


class _Times:
    """When what was handed over, by place."""

    def __init__(self) -> None:
        self._chunks: dict[Place, list[tuple[NDArray[np.int64], int, int]]] = {}

    def note(self, at_ns: int, durable_ns: int, written: list[Written]) -> None:
        for place, positions in written:
            self._chunks.setdefault(place, []).append((positions, at_ns, durable_ns))

    def save(self, path: Path) -> None:
        """By place three rows: positions, when each was handed over, and when the log had confirmed it."""
        columns = {}
        for (topic, partition), chunks in self._chunks.items():
            sizes = [len(positions) for positions, *_ in chunks]
            columns[f"{topic} {partition}"] = np.stack(
                [
                    np.concatenate([positions for positions, *_ in chunks]),
                    np.repeat([at_ns for _, at_ns, _ in chunks], sizes),
                    np.repeat([durable_ns for *_, durable_ns in chunks], sizes),
                ]
            )
        np.savez(path, **columns)  # type: ignore[arg-type]


async def produce(load: Load, traffic: Traffic, rate: float, times: _Times) -> None:
    """Hand the events over at `rate` a second."""
    started, sent = time.monotonic(), 0
    while sent < len(traffic):
        due = min(int((time.monotonic() - started) * rate) + 1, len(traffic))
        if due > sent:
            at_ns = time.monotonic_ns()
            written = await load.append(traffic, sent, due)
            times.note(at_ns, time.monotonic_ns(), written)
            sent = due
        else:
            await asyncio.sleep(_TICK_S)


async def work(arguments: argparse.Namespace) -> None:
    walk: Walk = pickle.loads(arguments.walk.read_bytes())
    load = Load(appender(arguments.redis, arguments.kafka), walk.partition_of(PARTITIONS))
    # Now that they happen while we look, event time is the clock's.
    walk.now_ms, walk.step_ms = time.time_ns() / 1e6, 1000 / arguments.rate
    in_all, at_once = int(arguments.rate * arguments.seconds), int(arguments.rate)
    traffic = walk.next(at_once if arguments.steady else in_all)
    write(Ready([], 0))
    await asyncio.to_thread(sys.stdin.readline)
    times, produced, started = _Times(), len(traffic), time.monotonic()
    await produce(load, traffic, arguments.rate, times)
    while produced < in_all:
        times = _Times()
        traffic = walk.next(at_once)
        await asyncio.sleep(started + produced / arguments.rate - time.monotonic())
        await produce(load, traffic, arguments.rate, times)
        produced += len(traffic)
    seconds = time.monotonic() - started
    times.save(arguments.produced)
    await load.close()
    arguments.walk.write_bytes(pickle.dumps(walk))
    write(Produced(produced, seconds, load.ends()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--walk", type=Path, required=True)
    parser.add_argument("--produced", type=Path, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--steady", action="store_true")
    parser.add_argument("--kafka")
    parser.add_argument("--redis")
    asyncio.run(work(parser.parse_args()))
