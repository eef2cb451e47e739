"""Workers come, leave and die, and the server goes away: the contract of `server.log.base` under change."""

import asyncio
import time

import pytest

from nearcast.errors import Unavailable
from nearcast.ids import partition_of
from server.log.base import Entry, EventLog, LogConsumer, Record
from tests.server.log.rigs import (
    CARTS,
    LOCATIONS,
    PARTITIONS,
    SESSION_TIMEOUT_MS,
    WITHIN_S,
    Rig,
    member,
    read,
    running,
    seek_all,
    settle,
)

#: So long that nobody waits for its end by accident.
LONG_SESSION_TIMEOUT_MS = 10_000


def one_per_partition(mark: bytes) -> list[Entry]:
    keys = {partition_of(f"key-{n}", PARTITIONS): f"key-{n}" for n in range(1000)}
    return [Entry(topic, keys[partition], mark) for topic in (LOCATIONS, CARTS) for partition in range(PARTITIONS)]


async def test_workers_share_the_partitions(log: EventLog, group: str) -> None:
    """Two workers get half each; a partition's records of all topics go to one of them."""
    await log.append(one_per_partition(b""))
    async with member(log, group) as one, member(log, group) as two:
        owned = await settle(one, two)
        for consumer, partitions in zip((one, two), owned, strict=True):
            await seek_all(consumer)
            seen = {(record.topic, record.partition) for record in await read(consumer, PARTITIONS)}
            assert seen == {(topic, partition) for topic in (LOCATIONS, CARTS) for partition in partitions}


async def test_a_rebalance_starts_a_new_generation(log: EventLog, group: str) -> None:
    """After one, nothing is delivered until it is sought again, not even from a partition that stayed."""
    async with member(log, group) as one:
        await settle(one)
        await seek_all(one)
        generation, _ = one.assignment()
        async with member(log, group) as two:
            await settle(one, two)
            assert one.assignment()[0] > generation
            await log.append(one_per_partition(b""))
            assert await one.fetch(100, 300) == []
            await seek_all(one)
            assert len(await read(one, PARTITIONS)) == PARTITIONS


async def test_records_that_come_too_late_are_not_delivered(rig: Rig, log: EventLog) -> None:
    """The partitions went while a fetch was waiting: what it then reads belongs to their next owner."""
    async with member(log) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        await consumer.fetch(10, 50)
        fetching = asyncio.create_task(consumer.fetch(10, 1_000))
        await asyncio.sleep(0)
        rig.lose(consumer)
        await log.append(one_per_partition(b""))
        assert await fetching == []


async def test_a_restarted_consumer_starts_over(log: EventLog, group: str) -> None:
    """What it had is gone with a new generation, also for a fetch that waits; then it is dealt its share again."""
    async with member(log, group) as one, member(log, group) as two:
        owned = await settle(one, two)
        for consumer in (one, two):
            await seek_all(consumer)
        generation, _ = one.assignment()
        fetching = asyncio.create_task(fetch_or_nothing(one, 2_000))
        await one.restart()
        assert one.assignment()[0] > generation
        assert await fetching == []
        assert one.processed() == {}
        await log.append(one_per_partition(b""))
        await settle(one, two)
        for consumer in (one, two):
            await seek_all(consumer)
            assert len(await read(consumer, PARTITIONS)) == PARTITIONS
        assert {len(partitions) for partitions in owned} == {PARTITIONS // 2}


async def test_a_worker_that_leaves_is_replaced_at_once(rig: Rig, group: str) -> None:
    """`stop` hands the partitions over without waiting for the session time-out."""
    rig.skip_on_stand_in("waits for the session time-out whenever a group changes")
    async with running(rig.make_log(LONG_SESSION_TIMEOUT_MS)) as log, member(log, group) as stays:
        async with member(log, group) as leaves:
            await settle(stays, leaves)
            began_s = time.monotonic()
        await settle(stays)
        assert time.monotonic() - began_s < LONG_SESSION_TIMEOUT_MS / 1000 / 2
        await log.append(one_per_partition(b""))
        await seek_all(stays)
        assert len(await read(stays, 2 * PARTITIONS)) == 2 * PARTITIONS


async def test_a_killed_worker_is_replaced_after_its_session(rig: Rig, log: EventLog, group: str) -> None:
    """Without a goodbye, the others take over once the session has timed out, and not before."""
    victim = log.consumer(group, (LOCATIONS, CARTS))
    async with member(log, group) as stays:
        await victim.start()
        await settle(stays, victim)
        began_s = time.monotonic()
        await rig.crash(victim)
        await settle(stays)
        assert SESSION_TIMEOUT_MS / 1000 * 0.5 < time.monotonic() - began_s < 5 * SESSION_TIMEOUT_MS / 1000
        await log.append(one_per_partition(b""))
        await seek_all(stays)
        assert len(await read(stays, 2 * PARTITIONS)) == 2 * PARTITIONS


async def test_seeking_what_is_no_longer_assigned_does_nothing(log: EventLog, group: str) -> None:
    """The partition may have moved between `assignment` and `seek`; the new generation tells."""
    async with member(log, group) as one, member(log, group) as two:
        owned, others = await settle(one, two)
        await log.append(one_per_partition(b""))
        for partition in others:
            await one.seek(partition, {})
        assert await one.fetch(100, 300) == []
        assert one.assignment()[1] == owned


async def test_the_server_goes_away_and_comes_back(rig: Rig, log: EventLog, group: str) -> None:
    """Appends fail with Unavailable meanwhile, fetches do too or are empty; then both go on."""
    rig.skip_on_stand_in("keeps its records in memory: it comes back without them")
    async with member(log, group) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        await log.append(one_per_partition(b"before"))
        after = {(record.topic, record.partition): record.position for record in await read(consumer, 2 * PARTITIONS)}
        await rig.take_away()
        try:
            with pytest.raises(Unavailable):
                await log.append(one_per_partition(b"while away"))
            assert await fetch_or_nothing(consumer) == []
        finally:
            await rig.bring_back()

        await append_when_possible(log, one_per_partition(b"after"))
        # The engine's own loop: a new generation is sought again from the stored positions.
        sought, seen = consumer.assignment()[0], set[tuple[str, int]]()
        deadline = time.monotonic() + WITHIN_S
        while len(seen) < 2 * PARTITIONS:
            assert time.monotonic() < deadline, f"only {seen} came after the outage"
            generation, partitions = consumer.assignment()
            if generation != sought:
                for partition in partitions:
                    await consumer.seek(partition, {topic: after[topic, partition] for topic in (LOCATIONS, CARTS)})
                sought = generation
            for record in await fetch_or_nothing(consumer):
                assert record.value != b"before"
                if record.value == b"after":
                    seen.add((record.topic, record.partition))


async def fetch_or_nothing(consumer: LogConsumer, wait_ms: int = 200) -> list[Record]:
    try:
        return await consumer.fetch(100, wait_ms)
    except Unavailable:
        await asyncio.sleep(0.05)
        return []


async def append_when_possible(log: EventLog, entries: list[Entry]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while True:
        try:
            return await log.append(entries)
        except Unavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
