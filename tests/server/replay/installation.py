"""A whole installation in the test's process: engine, timers, dispatcher, catalogue feed, on a real log and store."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from redis.asyncio import Redis

from nearcast import keys, topics
from nearcast.decisions import Decision
from nearcast.events import Event
from nearcast.ids import CustomerId
from offers.worldfile import WorldFile
from server import settings as settings_module
from server.core import Core, open_core
from server.log.base import Entry
from server.log.history import LogHistory, StreamsHistory
from server.log.kafka import KafkaLog
from server.log.kafka_history import KafkaHistory
from server.roles import make_dispatcher, make_engine

WITHIN_S = 60.0
PARTITIONS = 4
KEYS = {role: f"key-of-{role}" for role in ("intake", "pos", "admin", "staff")}
_SECRET = "a-secret-of-the-tests-with-more-than-32-bytes"


def environment(valkey_url: str) -> dict[str, str]:
    """The settings of an installation on this store, in which no hour is quiet and carts are abandoned in a second."""
    values = {
        "REDIS_URL": valkey_url,
        "PARTITIONS": str(PARTITIONS),
        "API_KEYS": json.dumps(KEYS),
        "TOKEN_SECRET": _SECRET,
        "COUPON_SECRET": _SECRET,
        "LINK_SECRET": _SECRET,
        "QUIET_HOURS": "",
        "CART_ABANDONED_AFTER_S": "1",
    }
    return {f"NEARCAST_{name}": value for name, value in values.items()}


class Installation:
    """What a test may do while it runs."""

    def __init__(self, core: Core, history: LogHistory) -> None:
        self.core = core
        self._history = history

    async def send(self, *events: Event) -> None:
        """Append events, and wait until the engine has committed them and what they led to at once."""
        await self.core.intake.append(events)
        await self.settled()

    async def send_raw(self, topic: str, key: str, value: bytes) -> None:
        await self.core.log.append([Entry(topic, key, value)])
        await self.settled()

    async def settled(self) -> None:
        """Wait until every record of the log is processed."""
        async with asyncio.timeout(WITHIN_S):
            while not await self._is_settled():
                await asyncio.sleep(0.02)

    async def decided(self, customer: str, trigger: str, count: int = 1) -> list[Decision]:
        """Wait for so many decisions of a trigger; the customer's decisions, newest first."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                found = await self.core.state.decisions(CustomerId(customer), 100)
                if sum(decision.moment.trigger == trigger for decision in found) >= count:
                    return found
                await asyncio.sleep(0.02)

    async def receipt(self, customer: str) -> None:
        """Wait until the dispatcher has reported something about every message of the customer, and it is folded."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                known = await self.core.state.read(CustomerId(customer))
                if known is not None and all(sent.status is not None for sent in known.customer.messages):
                    return
                await asyncio.sleep(0.02)

    async def _is_settled(self) -> bool:
        for (topic, partition), last in (await self._history.ends(topics.CUSTOMER_TOPICS)).items():
            stored = await self.core.redis.hget(keys.offsets(partition), topic)
            if stored != last.encode():
                return False
        return True


@asynccontextmanager
async def installed(world: WorldFile) -> AsyncIterator[Installation]:
    """An installation with the settings in the environment, all its parts at work until the end of the block."""
    settings = settings_module.load()
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings))
        await core.world.put(world)
        roots = [*await make_engine(core, stack), *make_dispatcher(core, stack)]
        history: LogHistory = StreamsHistory(core.redis, PARTITIONS)
        if isinstance(core.log, KafkaLog):
            kafka = KafkaHistory(core.log)
            await kafka.start()
            stack.push_async_callback(kafka.stop)
            history = kafka
        tasks = [asyncio.create_task(root.work(), name=root.name) for root in roots]
        try:
            yield Installation(core, history)
        finally:
            for root, task in zip(roots, tasks, strict=True):
                if root.halt is not None:
                    await root.halt()
                while not task.done():
                    task.cancel()
                    await asyncio.wait({task}, timeout=0.5)


async def dump(redis: Redis) -> dict[bytes, bytes | None]:
    """Everything in the store, as the store serialises it; but for who looked after a partition in the last instant."""
    names = [key async for key in redis.scan_iter(count=1_000) if not key.endswith(b":sweeping")]
    return {name: await redis.dump(name) for name in names}
