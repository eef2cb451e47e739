"""Runs a real engine on a real log and a real store, for tests, and reads back what it committed."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from models.registry import FixedModels, Models
from models.scorer import Scorer
from nearcast import keys, topics
from nearcast.clock import SystemClock
from nearcast.decisions import Decision
from nearcast.events import TOPIC_OF, Event, encode
from nearcast.fold import FoldRules
from nearcast.ids import CustomerId, partition_of
from nearcast.messages import OutboxEntry, decode_outbox
from offers.policy import Policy
from offers.worldfile import WorldFile
from server.budgets import Leases
from server.engine import Engine
from server.log.base import Entry, EventLog, LogConsumer, Record
from server.state import Known, StateStore
from server.world import WorldStore
from tests.server.town import WORLD

PARTITIONS = 4
SCORER = Scorer.load(Path(str(resources.files("models").joinpath("artifacts", "redeem"))))


class Committed(msgspec.Struct):
    """Everything that the engine has written, as far as tests ask for it."""

    customers: dict[CustomerId, Known]
    decisions: dict[str, Decision]
    outbox: list[OutboxEntry]
    dead_letters: list[dict[bytes, bytes]]


class Bench:
    """An engine at work between `running` and its end; `log` takes events."""

    def __init__(self, redis: Redis, log: EventLog, *, batch_events: int = 100, models: Models | None = None) -> None:
        self.redis = redis
        self.log = log
        self.world = WorldStore(redis)
        self.consumer = log.consumer(f"engine-{uuid.uuid4().hex}", topics.CUSTOMER_TOPICS)
        self.engine = engine_on(redis, self.consumer, self.world, batch_events, models=models)

    async def send(self, *events: Event) -> None:
        await self.log.append([Entry(TOPIC_OF[type(event)], event.customer, encode(event)) for event in events])

    async def send_raw(self, topic: str, key: str, value: bytes) -> None:
        await self.log.append([Entry(topic, key, value)])

    @asynccontextmanager
    async def running(self, world: WorldFile = WORLD) -> AsyncIterator[None]:
        await self.world.put(world)
        await self.consumer.start()
        task = asyncio.create_task(self.engine.run(), name="engine under test")
        try:
            yield
        finally:
            # Again and again: redis-py can swallow a cancellation that meets a reply.
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=0.1)
            await asyncio.gather(task, return_exceptions=True)
            await self.consumer.stop()

    async def caught_up(self, within_s: float = 60.0) -> None:
        """Wait until everything that was sent has been committed."""
        async with asyncio.timeout(within_s):
            while len(self.engine.partitions) < PARTITIONS or any((await self.consumer.lag()).values()):
                await asyncio.sleep(0.02)


class Playback:
    """Stands in for a consumer that owns every partition; tests hand batches to `engine.process` directly."""

    def assignment(self) -> tuple[int, frozenset[int]]:
        return 1, frozenset(range(PARTITIONS))

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def seek(self, partition: int, after: Mapping[str, str]) -> None: ...

    async def fetch(self, max_records: int, wait_ms: int) -> list[Record]:
        raise NotImplementedError("batches are handed to the engine directly")

    async def progress(self, partition: int, after: Mapping[str, str]) -> None: ...

    def processed(self) -> dict[tuple[str, int], str]:
        return {}

    async def restart(self) -> None: ...

    async def lag(self) -> dict[tuple[str, int], int]:
        return {}


def engine_on(
    redis: Redis,
    consumer: LogConsumer,
    world: WorldStore,
    batch_events: int = 100,
    policy: Policy | None = None,
    models: Models | None = None,
) -> Engine:
    """An engine with the shipped model or others, a cart that counts as abandoned after a second, and for which nothing
    is late: tests have fixed times."""
    return Engine(
        consumer=consumer,
        state=StateStore(redis, PARTITIONS),
        world=world,
        budgets=Leases(redis, PARTITIONS, SystemClock()),
        models=models or FixedModels(SCORER),
        rules=FoldRules(cart_abandoned_after_ms=1_000, late_after_ms=10**13),
        policy=policy or Policy(),
        clock=SystemClock(),
        batch_events=batch_events,
        cached_customers=1_000,
    )


async def committed(redis: Redis) -> Committed:
    """What stands in the store, read with nothing but the documented keys. Of decisions, all that there are: one that
    is in no customer's list gets that added to its name, so that nobody takes it for one that stands.
    """
    found = Committed({}, {}, [], [])
    # These first: what is decided meanwhile is in the lists, which are read after them.
    stored = await _stored_decisions(redis)
    state = StateStore(redis, PARTITIONS)
    for partition in range(PARTITIONS):
        prefix = keys.customer(partition, "")
        names = [key.decode().removeprefix(prefix) async for key in redis.scan_iter(match=f"{prefix}*")]
        prefix = keys.presence(partition, "")
        names += [key.decode().removeprefix(prefix) async for key in redis.scan_iter(match=f"{prefix}*")]
        people = sorted({CustomerId(name) for name in names})
        found.customers |= dict(zip(people, await state.load(partition, people), strict=True))
        for person in people:
            for decision in await state.decisions(person, 1_000):
                found.decisions[decision.id] = decision
        found.outbox += [decode_outbox(fields[b"e"]) for _, fields in await redis.xrange(keys.outbox(partition))]
        found.dead_letters += [fields for _, fields in await redis.xrange(keys.dead_letters(partition))]
    leftovers = {name: decision for name, decision in stored.items() if name not in found.decisions}
    found.decisions |= {f"{name} (in no list)": decision for name, decision in leftovers.items()}
    return found


async def _stored_decisions(redis: Redis) -> dict[str, Decision]:
    found = {}
    for partition in range(PARTITIONS):
        prefix = keys.decision(partition, "")
        for name in [key.decode() async for key in redis.scan_iter(match=f"{prefix}*", count=1_000)]:
            data = await redis.get(name)
            if data is not None:
                found[name.removeprefix(prefix)] = msgspec.json.decode(data, type=Decision)
    return found


def records_of(events: Sequence[Event], first_ms: int) -> list[Record]:
    """The records a log would hold for these events, arriving a millisecond apart."""
    return [
        Record(
            topic=TOPIC_OF[type(event)],
            partition=partition_of(event.customer, PARTITIONS),
            position=str(place),
            key=event.customer,
            value=encode(event),
            arrived_ms=first_ms + place,
        )
        for place, event in enumerate(events)
    ]
