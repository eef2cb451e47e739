"""Roles of the server in a process of its own, with a stopwatch at its seams.

    python -m bench.latency_worker --roles engine,dispatcher,gateway --redis URL [--kafka host:port]
        [--gateway-port PORT] [--world FILE] [--customers N]

What is timed is wrapped from outside, so the server runs as it always does: what the engine is given by the log
(`fetch`) and tells it after a commit (`progress`), the scorer's calls, and the dispatcher's calls to publish. Writes
`Ready` when it runs, then reads `Order`s: with `ends` it answers with `Ready` when all up to them is committed; with
`commits` it writes `Notes` to that file, forgets them, and answers with `Ready`.
"""

import argparse
import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import msgspec

from bench.engine_worker import preload, settings
from bench.processes import Order, Place, Ready, usage, write
from channels.gateway.streams import ChannelStreams
from models.fallback import Scored
from models.features.base import Kind
from models.registry import Models, Serving
from nearcast.ids import CustomerId
from server import roles
from server.core import open_core
from server.live_models import LiveModels
from server.log.base import EventLog, LogConsumer, Record


class Event(msgspec.Struct, array_like=True):
    """A record that the engine was given, and in which of the batches."""

    event: str
    topic: str
    partition: int
    position: str
    batch: int


class Work(msgspec.Struct, array_like=True):
    """A batch: when the engine had it, and from when to when it was scored; 0 if nothing of it was."""

    taken_ns: int
    scoring_ns: int = 0
    scored_ns: int = 0


class Committed(msgspec.Struct, array_like=True):
    topic: str
    partition: int
    position: str
    at_ns: int


class Notes(msgspec.Struct):
    """What one process saw. Times are those of `time.monotonic_ns`."""

    events: list[Event]
    batches: list[Work]
    commits: list[Committed]
    #: When the dispatcher began to publish each message.
    publishing_ns: dict[str, int]


class _Named(msgspec.Struct):
    id: str = ""


class Watch:
    """All that is noted. Records are kept as they are, and looked into only when the load is over."""

    def __init__(self) -> None:
        self._given: list[Sequence[Record]] = []
        self._batches: list[Work] = []
        self._commits: list[Committed] = []
        self._publishing_ns: dict[str, int] = {}
        self.reached: dict[Place, str] = {}
        self.moved = asyncio.Event()

    def given(self, records: Sequence[Record]) -> None:
        self._given.append(records)
        self._batches.append(Work(time.monotonic_ns()))

    def scored(self, began_ns: int) -> None:
        batch = self._batches[-1]
        batch.scoring_ns = batch.scoring_ns or began_ns
        batch.scored_ns = time.monotonic_ns()

    def committed(self, partition: int, after: dict[str, str]) -> None:
        at_ns = time.monotonic_ns()
        for topic, position in after.items():
            if self.reached.get((topic, partition)) != position:
                self._commits.append(Committed(topic, partition, position, at_ns))
                self.reached[topic, partition] = position
        self.moved.set()

    def publishing(self, message: str) -> None:
        self._publishing_ns.setdefault(message, time.monotonic_ns())

    def notes(self) -> Notes:
        """Everything since the last time."""
        named = msgspec.json.Decoder(_Named)
        events = [
            Event(named.decode(record.value).id, record.topic, record.partition, record.position, number)
            for number, records in enumerate(self._given)
            for record in records
        ]
        found = Notes(events, self._batches, self._commits, self._publishing_ns)
        self._given, self._batches, self._commits, self._publishing_ns = [], [], [], {}
        return found


class _Consumer:
    def __init__(self, inner: LogConsumer, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def fetch(self, max_records: int, wait_ms: int) -> list[Record]:
        records = await self._inner.fetch(max_records, wait_ms)
        if records:
            self._watch.given(records)
        return records

    async def progress(self, partition: int, after: dict[str, str]) -> None:
        self._watch.committed(partition, after)
        await self._inner.progress(partition, after)


class _Log:
    def __init__(self, inner: EventLog, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def consumer(self, group: str, topics: Any) -> LogConsumer:
        consumer = self._inner.consumer(group, topics)
        return cast("LogConsumer", _Consumer(consumer, self._watch)) if group == roles.ENGINE_GROUP else consumer


class _Models:
    def __init__(self, inner: Models, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch

    def serving(self, kind: Kind) -> Serving:
        return cast("Serving", _Serving(self._inner.serving(kind), self._watch))


class _Serving:
    def __init__(self, inner: Serving, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def score(self, rows: Sequence[Sequence[float]], customers: Sequence[CustomerId]) -> Scored:
        began_ns = time.monotonic_ns()
        scores = self._inner.score(rows, customers)
        if rows:
            self._watch.scored(began_ns)
        return scores


class _Streams:
    def __init__(self, inner: ChannelStreams, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def publish_once(self, channel: str, key: str, *more: Any, **named: Any) -> object:
        self._watch.publishing(key)
        return await self._inner.publish_once(channel, key, *more, **named)

    async def publish_if_heard(self, channel: str, key: str, *more: Any, **named: Any) -> bool:
        self._watch.publishing(key)
        return bool(await self._inner.publish_if_heard(channel, key, *more, **named))


async def work(arguments: argparse.Namespace) -> None:
    wanted = arguments.roles.split(",")
    watch = Watch()
    chosen = settings(arguments).model_copy(update={"roles": wanted, "gateway_port": arguments.gateway_port})
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(chosen))
        if arguments.customers:
            await preload(core.state, arguments.customers)
        parts = [roles.Root("world", core.world.run), roles.make_collector()]
        if "engine" in wanted:
            watched = dataclasses.replace(
                core,
                log=cast("EventLog", _Log(core.log, watch)),
                models=cast("LiveModels", _Models(core.models, watch)),
            )
            parts += await roles.make_engine(watched, stack)
        if "dispatcher" in wanted:
            watched = dataclasses.replace(core, streams=cast("ChannelStreams", _Streams(core.streams, watch)))
            parts += roles.make_dispatcher(watched, stack)
        if "gateway" in wanted:
            await roles.open_gateway(core, roles.make_desk(core), stack)
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part.work(), name=part.name)
            await answer_orders(watch)
            # The store is thrown away: nothing to be kept in order for.
            os._exit(0)


async def answer_orders(watch: Watch) -> None:
    """Until the end of the input."""
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    ready = Ready([], usage(os.getpid()).rss_bytes)
    write(ready)
    while line := await reader.readline():
        order = msgspec.json.decode(line, type=Order)
        for end in order.ends or ():
            while watch.reached.get((end.topic, end.partition)) != end.position:
                watch.moved.clear()
                await watch.moved.wait()
        if order.commits:
            await asyncio.to_thread(Path(order.commits).write_bytes, msgspec.json.encode(watch.notes()))
        write(ready)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--roles", required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--kafka")
    parser.add_argument("--gateway-port", type=int, default=0)
    parser.add_argument("--world", type=Path)
    parser.add_argument("--customers", type=int, default=0)
    asyncio.run(work(parser.parse_args()))
