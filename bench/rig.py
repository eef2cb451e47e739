"""A benchmark's surroundings: a store, a log, a city with its walkers, and engine processes that work the log off."""

import pickle
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.city import Traffic, Walk
from bench.load import Load, appender
from bench.processes import PARTITIONS, Ends, Order, Phase, Place, Process, Ready, usage
from offers.worldfile import WorldFile
from server.store import client_of
from server.valkey import EmbeddedValkey

#: How often a walker sends a fix; but no longer than this span of event time do all planned events take.
_FIX_EVERY_MS = 15_000
_SPAN_MS = 120_000


class Site(NamedTuple):
    """Where a run finds its services."""

    folder: Path
    redis: str
    kafka: str | None
    kafka_pid: int | None

    @property
    def log(self) -> list[str]:
        return ["--kafka", self.kafka] if self.kafka else ["--redis", self.redis]

    @property
    def services(self) -> list[str]:
        return ["--redis", self.redis, *(["--kafka", self.kafka] if self.kafka else [])]

    async def service_cpu_s(self) -> dict[str, float]:
        """Processor time of the services so far."""
        redis = client_of(self.redis)
        found = await redis.info("cpu")
        await redis.aclose()
        used = {"valkey": found["used_cpu_user"] + found["used_cpu_sys"]}
        return used | ({"kafka": usage(self.kafka_pid).cpu_s} if self.kafka_pid else {})


@asynccontextmanager
async def site(log: str, bootstrap: str | None) -> AsyncIterator[Site]:
    """A new Valkey, and a broker if the log is on Kafka and nobody gave one."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = EmbeddedValkey(folder / "data")
        await valkey.start()
        stack.push_async_callback(valkey.stop)
        pid = None
        if log == "kafka" and bootstrap is None:
            from tests.services.kafka import choose_broker

            kind, why = choose_broker(force_tansu=False)
            print(f"starting {kind.name}{f', not Apache Kafka: {why}' if why else ''}", flush=True)
            (folder / "kafka").mkdir()
            broker = kind(folder / "kafka")
            await broker.start()
            stack.push_async_callback(broker.stop)
            bootstrap = broker.bootstrap
            pid = broker._process.pid if broker._process else None  # noqa: SLF001  # nobody else needs it
        yield Site(folder, valkey.url, bootstrap if log == "kafka" else None, pid)


class Rig:
    """A site with a city, its walkers and engine processes on the log, which is filled as the run goes on."""

    def __init__(self, place: Site, world: WorldFile, walk: Walk) -> None:
        self.site = place
        self.walk = walk
        self.world_file = place.folder / "world.json"
        self.world_file.write_bytes(msgspec.json.encode(world))
        #: Where a producing process leaves the walk as it is then, and the time of each event.
        self.walk_file = place.folder / "walk.pickle"
        self.produced_file = place.folder / "produced.npz"
        self._load: Load | None = None
        self._partition_of = walk.partition_of(PARTITIONS)
        self._ends: dict[Place, str] = {}
        #: What the engines of before worked off.
        self._settled: dict[Place, str] = {}

    async def worker(self, *, first: bool, customers: int = 0) -> Process:
        """An engine's process, its index built; the first one brings world and customers into the store."""
        arguments = ["--world", str(self.world_file), "--customers", str(customers)] if first else []
        process = await Process.start(
            self.site.folder / "engine.log", "bench.engine_worker", *self.site.services, *arguments
        )
        await process.answer(Ready)
        return process

    async def fill(self, traffic: Traffic) -> None:
        if self._load is None:
            self._load = Load(appender(self.site.redis, self.site.kafka), self._partition_of)
        await self._load.fill(traffic)
        self.note(self._load.ends())

    def note(self, ends: Sequence[Ends]) -> None:
        """Somebody filled the log up to here."""
        self._ends.update({(end.topic, end.partition): end.position for end in ends})

    def ends(self, partitions: Sequence[int] = range(PARTITIONS)) -> list[Ends]:
        """Where the log ends, in these partitions, for engines started since `settle`."""
        return [
            Ends(*place, position)
            for place, position in self._ends.items()
            if place[1] in partitions and self._settled.get(place) != position
        ]

    def settle(self) -> None:
        """All is worked off, and the engines that come will see none of it."""
        self._settled = dict(self._ends)

    def walk_left(self) -> Walk:
        """As a producing process left it."""
        walk: Walk = pickle.loads(self.walk_file.read_bytes())
        return walk

    async def close(self) -> None:
        if self._load is not None:
            await self._load.close()

    async def run(self, worker: Process, partitions: Sequence[int] = range(PARTITIONS)) -> Phase:
        """Have an engine that owns these partitions work off all that was filled in."""
        await worker.ask(Order(), Ready)
        return await worker.ask(Order(self.ends(partitions)), Phase)


@asynccontextmanager
async def rig(place: Site, world: WorldFile, customers: int, planned_events: int) -> AsyncIterator[Rig]:
    step_ms = min(_FIX_EVERY_MS / customers, _SPAN_MS / planned_events)
    start_ms = time.time_ns() // 1_000_000 - round(planned_events * step_ms) - _SPAN_MS
    made = Rig(place, world, Walk(world, customers, start_ms=start_ms, step_ms=step_ms))
    try:
        yield made
    finally:
        await made.close()


async def producer(here: Rig, rate: float, seconds: float, *more: str) -> Process:
    """A process that will go on with the walk at this rate, at the next order; its first events are made."""
    here.walk_file.write_bytes(pickle.dumps(here.walk))
    process = await Process.start(
        here.site.folder / "load.log",
        "bench.load",
        *("--walk", str(here.walk_file), "--produced", str(here.produced_file)),
        *("--rate", str(rate), "--seconds", str(seconds), *more),
        *here.site.log,
    )
    await process.answer(Ready)
    return process
