"""One engine in a process of its own: the server's wiring, a gate before it and a stopwatch behind it.

    python -m bench.engine_worker --redis URL [--kafka host:port] [--world FILE] [--customers N]

Reads `Order`s and writes `Ready`, then one `Phase` for each order, as JSON lines (see `bench.processes`). Between
orders the gate is shut: the engine's fetches find nothing, while it keeps its partitions.

A batch counts as committed when the engine tells the log how far it got, which is right after its commit. Nothing else
is looked at while it works. `--customers` writes as many customers' records into the store before the engine starts.
"""

import argparse
import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
from prometheus_client import REGISTRY

from bench.city import profile
from bench.processes import PARTITIONS, Commit, Order, Phase, Place, Ready, usage, write
from nearcast.customer import Customer
from server import state as stored
from server.core import open_core
from server.log.base import EventLog, LogConsumer, Record
from server.roles import ENGINE_GROUP, Root, make_collector, make_engine
from server.settings import Settings, load

_PRELOADED_AT_ONCE = 1_000
_COUNTERS = ("nearcast_events", "nearcast_transitions", "nearcast_decisions", "nearcast_dead_letters")
_STAGES = "nearcast_batch_seconds"


class _Sample(NamedTuple):
    """Everything that a phase is the difference of."""

    wall_s: float
    cpu_s: float
    stages: dict[str, float]
    batches: float
    counters: dict[str, float]


def _sample() -> _Sample:
    wall_s, cpu_s = time.monotonic(), time.process_time()
    stages: dict[str, float] = {}
    counters = dict.fromkeys(_COUNTERS, 0.0)
    batches = 0.0
    for family in REGISTRY.collect():
        if family.name == _STAGES:
            stages = {each.labels["stage"]: each.value for each in family.samples if each.name.endswith("_sum")}
        elif family.name == "nearcast_batch_events":
            batches = sum(each.value for each in family.samples if each.name.endswith("_count"))
        elif family.name in counters:
            counters[family.name] = sum(each.value for each in family.samples if each.name.endswith("_total"))
    return _Sample(wall_s, cpu_s, stages, batches, counters)


def _phase(before: _Sample, after: _Sample, rss_bytes: int) -> Phase:
    return Phase(
        seconds=after.wall_s - before.wall_s,
        cpu_s=after.cpu_s - before.cpu_s,
        stages={stage: seconds - before.stages.get(stage, 0.0) for stage, seconds in after.stages.items()},
        batches=after.batches - before.batches,
        counters={name: count - before.counters[name] for name, count in after.counters.items()},
        rss_bytes=rss_bytes,
        started_s=before.wall_s,
        ended_s=after.wall_s,
    )


class _Gate:
    """A log consumer that can be shut, and knows how far its reader got. All else goes through to the real one."""

    def __init__(self, inner: LogConsumer) -> None:
        self._inner = inner
        self._open = asyncio.Event()
        self._shut_out = asyncio.Event()
        self._ended = asyncio.Event()
        self._reached: dict[Place, str] = {}
        self._missing: dict[Place, str] | None = None
        self._records = False
        self._commits: list[Commit] = []
        self._before = self._after = _sample()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, *, record: bool) -> None:
        """From here on time counts, and with `record` the times of commits are noted."""
        self._missing, self._commits, self._records = None, [], record
        self._ended.clear()
        self._shut_out.clear()
        self._before = _sample()
        self._open.set()

    async def until(self, ends: Mapping[Place, str]) -> tuple[Phase, list[Commit]]:
        """Shut the gate again once everything up to `ends` is committed."""
        self._missing = {place: end for place, end in ends.items() if self._reached.get(place) != end}
        self._end_if_complete()
        await self._ended.wait()
        # A fetch that was under way would take the first records of what comes next. And a batch is counted after its
        # commit.
        await self._shut_out.wait()
        self._after = _sample()._replace(wall_s=self._after.wall_s, cpu_s=self._after.cpu_s)
        return _phase(self._before, self._after, usage(os.getpid()).rss_bytes), self._commits

    async def fetch(self, max_records: int, wait_ms: int) -> list[Record]:
        if not self._open.is_set():
            self._shut_out.set()
            try:
                async with asyncio.timeout(wait_ms / 1000):
                    await self._open.wait()
            except TimeoutError:
                return []
        return await self._inner.fetch(max_records, wait_ms)

    async def progress(self, partition: int, after: Mapping[str, str]) -> None:
        if self._records:
            self._commits.append(Commit(time.monotonic_ns(), partition, dict(after)))
        for topic, position in after.items():
            place = (topic, partition)
            self._reached[place] = position
            if self._missing is not None and self._missing.get(place) == position:
                del self._missing[place]
        self._end_if_complete()
        await self._inner.progress(partition, after)

    def _end_if_complete(self) -> None:
        if self._missing is not None and not self._missing and not self._ended.is_set():
            self._open.clear()
            self._after = _sample()
            self._ended.set()


class _GatedLog:
    """The event log, with a gate before the engine."""

    def __init__(self, inner: EventLog) -> None:
        self._inner = inner
        self.gate: _Gate | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def consumer(self, group: str, topics: Any) -> LogConsumer:
        consumer = self._inner.consumer(group, topics)
        if group != ENGINE_GROUP:
            return consumer
        self.gate = _Gate(consumer)
        return cast("LogConsumer", self.gate)


def settings(arguments: argparse.Namespace) -> Settings:
    """The defaults, but for where things are, and no quiet hours: the hour of the day must not change the work."""
    return load(
        redis_url=arguments.redis,
        kafka=arguments.kafka,
        partitions=PARTITIONS,
        quiet_hours="",
        world_files=[arguments.world] if arguments.world else [],
        roles=["engine"],
        api_keys={"admin": "benchmark"},
        token_secret="t" * 32,
        coupon_secret="c" * 32,
        link_secret="l" * 32,
    )


async def preload(state: stored.StateStore, customers: int) -> None:
    """Write the records of `customers` customers, as if an engine had."""
    now_ms = time.time_ns() // 1_000_000
    waiting: dict[int, dict[str, Customer]] = {partition: {} for partition in range(PARTITIONS)}
    owners = {partition: await state.take(partition) for partition in waiting}

    async def write(partition: int) -> None:
        owner = owners[partition]
        commit = stored.Commit(partition=partition, epoch=owner.epoch, expected=owner.offsets)
        commit.customers = cast("Any", waiting[partition])
        waiting[partition] = {}
        await state.commit([state.encode(commit)])

    for number in range(customers):
        customer = profile(number, now_ms)
        partition = state.partition(customer.id)
        waiting[partition][customer.id] = customer
        if len(waiting[partition]) == _PRELOADED_AT_ONCE:
            await write(partition)
    for partition in waiting:
        await write(partition)


async def work(arguments: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings(arguments)))
        if arguments.customers:
            await preload(core.state, arguments.customers)
        log = _GatedLog(core.log)
        roots = [
            Root("world", core.world.run),
            Root("models", core.models.run),
            make_collector(),
            *await make_engine(dataclasses.replace(core, log=cast("EventLog", log)), stack),
        ]
        assert log.gate is not None
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(root.work(), name=root.name) for root in roots]
            await answer_orders(log.gate)
            for task in tasks:
                task.cancel()


async def answer_orders(gate: _Gate) -> None:
    """Until the end of the input."""
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    write(Ready(sorted(gate.assignment()[1]), usage(os.getpid()).rss_bytes))
    while line := await reader.readline():
        order = msgspec.json.decode(line, type=Order)
        if order.ends is None:
            if not order.status:
                gate.open(record=order.record)
            write(Ready(sorted(gate.assignment()[1]), usage(os.getpid()).rss_bytes))
            continue
        phase, commits = await gate.until({(end.topic, end.partition): end.position for end in order.ends})
        if order.commits:
            await asyncio.to_thread(Path(order.commits).write_bytes, msgspec.json.encode(commits))
        write(phase)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", required=True)
    parser.add_argument("--kafka")
    parser.add_argument("--world", type=Path)
    parser.add_argument("--customers", type=int, default=0)
    asyncio.run(work(parser.parse_args()))
