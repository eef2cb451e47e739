"""Worker processes come, leave, are killed and come back: the contract of `server.log.base`, seen from outside."""

from collections import defaultdict
from functools import partial

import pytest

from nearcast.ids import partition_of
from nearcast.topics import CUSTOMER_TOPICS
from server.log.base import Entry, EventLog
from tests.server.log.crew import Place, crew, dealt, delivered
from tests.server.log.rigs import PARTITIONS, Rig
from tests.server.log.worker import Order

KEYS = {partition_of(f"key-{n}", PARTITIONS): f"key-{n}" for n in range(1000)}
SESSION_TIMEOUT_MS = 3_000
#: Time for a process to start again before the others take its partitions.
LONG_SESSION_MS = 10_000


class Writer:
    """Writes to every partition of every customer topic, and remembers."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.written: dict[Place, list[str]] = defaultdict(list)

    async def write(self, count: int = 5) -> None:
        entries = []
        for topic in CUSTOMER_TOPICS:
            for partition in range(PARTITIONS):
                values = self.written[topic, partition]
                for _ in range(count):
                    values.append(str(len(values)))
                    entries.append(Entry(topic, KEYS[partition], values[-1].encode()))
        await self._log.append(entries)


def order_of(rig: Rig, group: str, session_timeout_ms: int = SESSION_TIMEOUT_MS, instance_id: str = "") -> Order:
    order = Order(group, list(CUSTOMER_TOPICS), PARTITIONS, session_timeout_ms=session_timeout_ms)
    order.instance_id = instance_id
    rig.locate(order)
    return order


async def test_every_record_reaches_the_one_owner_through_every_change(rig: Rig, log: EventLog, group: str) -> None:
    """Three join, one leaves, one is killed, one joins: partition p of all topics stays together, nothing is lost."""
    rig.skip_on_stand_in("waits for the session time-out whenever a group changes")
    writer, order = Writer(log), order_of(rig, group)
    async with crew("abcd") as workers:
        a, b, c, d = workers
        for present, change in (
            ([a], partial(a.start, order)),
            ([a, b], partial(b.start, order)),
            ([a, b, c], partial(c.start, order)),
            ([a, b], c.leave),
            ([b], a.kill),
            ([b, d], partial(d.start, order)),
        ):
            await writer.write()
            await change()
            await writer.write()
            await dealt(present)
            await delivered(present, writer.written)
        for worker in workers:
            worker.check(writer.written)


@pytest.mark.parametrize("politely", [False, True], ids=["killed", "stopped"])
async def test_a_named_worker_that_returns_disturbs_nobody(rig: Rig, log: EventLog, group: str, politely: bool) -> None:
    """Within its session it gets its own partitions back, and no other sees a rebalance; the first of them included."""
    rig.skip_on_stand_in("knows no static members")
    writer = Writer(log)
    async with crew("abcd") as workers:
        first, second, *successors = workers
        orders = [order_of(rig, group, LONG_SESSION_MS, name) for name in ("one", "two")]
        await first.start(orders[0])
        await dealt([first])
        await second.start(orders[1])
        await dealt([first, second])
        await writer.write()
        await delivered([first, second], writer.written)

        # Kafka's first member leads its group: the one who deals.
        for goes, stays, returns, order in (
            (second, first, successors[0], orders[1]),
            (first, successors[0], successors[1], orders[0]),
        ):
            generation = stays.generation
            await (goes.leave() if politely else goes.kill())
            await writer.write()
            await returns.start(order)
            await dealt([stays, returns])
            await writer.write()
            await delivered([stays, returns], writer.written)
            assert returns.owned == goes.owned
            assert stays.generation == generation
        for worker in workers:
            worker.check(writer.written)


async def test_a_named_worker_that_stays_away_is_replaced(rig: Rig, log: EventLog, group: str) -> None:
    """After its session the others take its partitions over, also when it said goodbye."""
    rig.skip_on_stand_in("knows no static members")
    writer = Writer(log)
    async with crew("ab") as workers:
        for worker in workers:
            await worker.start(order_of(rig, group, SESSION_TIMEOUT_MS, worker.name))
        stays, goes = workers
        await dealt([stays, goes])
        await goes.leave()
        await writer.write()
        await dealt([stays])
        await delivered([stays], writer.written)


async def test_a_worker_without_a_name_disturbs_the_others(rig: Rig, log: EventLog, group: str) -> None:
    """The counter-example: a restart without a name deals everything out anew."""
    rig.skip_on_stand_in("waits for the session time-out whenever a group changes")
    writer, order = Writer(log), order_of(rig, group)
    async with crew("abr") as (stays, goes, returns):
        await stays.start(order)
        await goes.start(order)
        await dealt([stays, goes])
        generation = stays.generation
        await goes.leave()
        await dealt([stays])
        await returns.start(order)
        await dealt([stays, returns])
        await writer.write()
        await delivered([stays, returns], writer.written)
        assert stays.generation > generation
