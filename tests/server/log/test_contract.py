"""The contract of `server.log.base`, over every adapter, each on its real server."""

import asyncio
import time
from collections import defaultdict

import pytest

from nearcast.errors import ConfigurationError, TooLarge
from nearcast.ids import partition_of
from server.log.base import MAX_VALUE_BYTES, Entry, EventLog
from tests.server.log.rigs import CARTS, LOCATIONS, PARTITIONS, WITHIN_S, Rig, member, read, seek_all, settle


def entries(count: int, topic: str = LOCATIONS, keys: int = 7) -> list[Entry]:
    return [Entry(topic, f"customer-{n % keys}", str(n).encode()) for n in range(count)]


def key_in(partition: int) -> str:
    return next(key for n in range(1000) if partition_of(key := f"key-{n}", PARTITIONS) == partition)


async def test_records_of_a_key_keep_their_order(log: EventLog) -> None:
    """Everything appended is read once, in order per key, from the partition that the key belongs to."""
    written = entries(600)
    for start in range(0, 600, 150):
        await log.append(written[start : start + 150])
    async with member(log) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        by_key: dict[str, list[int]] = defaultdict(list)
        for record in await read(consumer, 600):
            assert record.topic == LOCATIONS
            assert record.partition == partition_of(record.key, PARTITIONS)
            by_key[record.key].append(int(record.value))
        assert by_key == {f"customer-{k}": list(range(k, 600, 7)) for k in range(7)}
        assert await consumer.fetch(100, 50) == []


async def test_concurrent_appends_all_arrive(log: EventLog) -> None:
    """Many callers append at once; nothing is lost or doubled."""
    await asyncio.gather(*(log.append([Entry(CARTS, f"c{n}", str(n).encode())]) for n in range(200)))
    async with member(log) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        assert sorted(int(record.value) for record in await read(consumer, 200)) == list(range(200))


async def test_a_record_says_when_it_arrived(log: EventLog) -> None:
    """`arrived_ms` is wall-clock time, in milliseconds."""
    before_ms = time.time_ns() // 1_000_000
    await log.append(entries(1))
    async with member(log) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        (record,) = await read(consumer, 1)
    assert before_ms - 1000 <= record.arrived_ms <= time.time_ns() // 1_000_000 + 1000


async def test_seek_resumes_exactly_after_a_position(log: EventLog) -> None:
    """From the position of a processed record the next one follows; from an older position, the same ones again."""
    key = key_in(2)
    await log.append([Entry(LOCATIONS, key, str(n).encode()) for n in range(10)])
    async with member(log) as consumer:
        await settle(consumer)
        await consumer.seek(2, {})
        first = await read(consumer, 10)
        await consumer.seek(2, {LOCATIONS: first[6].position})
        assert await read(consumer, 3) == first[7:]
        await consumer.seek(2, {LOCATIONS: first[2].position})
        assert await read(consumer, 7) == first[3:]
        await consumer.seek(2, {LOCATIONS: first[9].position})
        assert await consumer.fetch(10, 50) == []
        await log.append([Entry(LOCATIONS, key, b"10")])
        assert [record.value for record in await read(consumer, 1)] == [b"10"]


async def test_a_position_outlives_the_consumer(log: EventLog, group: str) -> None:
    """A later worker goes on from the stored position, whatever was told to the log as progress."""
    await log.append([Entry(LOCATIONS, key_in(1), str(n).encode()) for n in range(5)])
    async with member(log, group) as consumer:
        await settle(consumer)
        await consumer.seek(1, {})
        records = await read(consumer, 5)
        await consumer.progress(1, {LOCATIONS: records[4].position})
    async with member(log, group) as consumer:
        await settle(consumer)
        await consumer.seek(1, {LOCATIONS: records[1].position})
        assert await read(consumer, 3) == records[2:]


async def test_nothing_is_delivered_before_seek(log: EventLog) -> None:
    """An assigned partition is silent until it was sought; the others don't wait for it."""
    await log.append([Entry(LOCATIONS, key_in(partition), b"") for partition in range(PARTITIONS)])
    async with member(log) as consumer:
        await settle(consumer)
        assert await consumer.fetch(10, 300) == []
        await consumer.seek(3, {})
        assert {record.partition for record in await read(consumer, 1)} == {3}
        assert await consumer.fetch(10, 300) == []
        await consumer.seek(0, {})
        assert {record.partition for record in await read(consumer, 1)} == {0}


async def test_an_empty_fetch_returns_after_its_wait(log: EventLog) -> None:
    """[] comes after about `wait_ms`, not at once and not much later."""
    async with member(log) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        await consumer.fetch(10, 0)
        began_s = time.monotonic()
        assert await consumer.fetch(10, 400) == []
        assert 0.3 < time.monotonic() - began_s < 2.0


async def test_a_waiting_fetch_returns_as_soon_as_there_is_a_record(log: EventLog) -> None:
    """A record appended while a fetch waits ends the wait, and the append is not held up by it."""
    async with member(log) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        fetching = asyncio.create_task(consumer.fetch(10, 10_000))
        began_s = time.monotonic()
        await log.append(entries(1))
        assert len(await fetching) == 1
        assert time.monotonic() - began_s < 5.0


async def test_fetch_keeps_to_its_limit_and_is_fair(log: EventLog) -> None:
    """A thousand can come at once, never more than asked for, and a long partition doesn't starve a short one."""
    await log.append([Entry(LOCATIONS, key_in(0), bytes(2048)) for _ in range(1500)])
    await log.append([Entry(CARTS, key_in(1), b"short") for _ in range(5)])
    async with member(log) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        values: list[bytes] = []
        deadline = time.monotonic() + WITHIN_S
        while len(values) < 1505:
            batch = await consumer.fetch(100, 200)
            assert len(batch) <= 100
            values += [record.value for record in batch]
            assert time.monotonic() < deadline
        assert b"short" in values[:1200]
        await seek_all(consumer)
        assert 100 < max([len(await consumer.fetch(1000, 500)) for _ in range(3)]) <= 1000


async def test_a_fetch_is_filled_when_enough_waits(log: EventLog) -> None:
    """A backlog comes in fetches as large as allowed, also when one partition has most of it."""
    await log.append([Entry(LOCATIONS, key_in(0), str(n).encode()) for n in range(9_000)])
    await log.append(entries(1_000, CARTS))
    async with member(log) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        sizes: list[int] = []
        deadline = time.monotonic() + WITHIN_S
        while sum(sizes) < 10_000:
            sizes.append(len(await consumer.fetch(2_000, 200)))
            assert time.monotonic() < deadline
        assert max(sizes) == 2_000
        assert len([size for size in sizes if size]) <= 8


async def test_topics_of_a_backlog_come_in_order_of_arrival(log: EventLog) -> None:
    """Of a partition nothing is delivered before what arrived earlier in another topic, however far apart they are."""
    key, rounds, of_each = key_in(1), 6, 1_400
    for n in range(rounds):
        await log.append([Entry(LOCATIONS, key, b"x" * 300) for _ in range(of_each)])
        await asyncio.sleep(0.005)
        await log.append([Entry(CARTS, key, str(n).encode())])
        await asyncio.sleep(0.005)
    async with member(log) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        fixes, carts = 0, 0
        async with asyncio.timeout(WITHIN_S):
            while fixes < rounds * of_each or carts < rounds:
                records = await consumer.fetch(300, 200)
                before = fixes
                fixes += sum(record.topic == LOCATIONS for record in records)
                for cart in (record for record in records if record.topic == CARTS):
                    assert int(cart.value) == carts
                    carts += 1
                    assert before <= carts * of_each <= fixes


@pytest.mark.parametrize(
    "value", [b"", b"\x00\xff\r\n\x80", bytes(range(256)) * 3500], ids=["empty", "binary", "900KB"]
)
async def test_values_are_bytes(log: EventLog, value: bytes) -> None:
    """A value comes back byte for byte, and a key may be any text."""
    await log.append([Entry(LOCATIONS, "clé ☕", value)])
    async with member(log) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        (record,) = await read(consumer, 1)
    assert record.value == value
    assert record.key == "clé ☕"


async def test_a_value_over_the_limit_is_refused(log: EventLog) -> None:
    """TooLarge, and none of the entries beside it are written."""
    with pytest.raises(TooLarge):
        await log.append([Entry(LOCATIONS, "k", b"fits"), Entry(LOCATIONS, "k", bytes(MAX_VALUE_BYTES + 1))])
    async with member(log) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        assert await consumer.fetch(10, 200) == []


async def test_lag_counts_what_is_not_processed(log: EventLog) -> None:
    """Lag is from the sought position, and falls with progress."""
    await log.append([Entry(LOCATIONS, key_in(1), str(n).encode()) for n in range(8)])
    async with member(log) as consumer:
        await settle(consumer)
        await consumer.seek(1, {})
        records = await read(consumer, 8)
        assert await consumer.lag() == {(LOCATIONS, 1): 8, (CARTS, 1): 0}
        await consumer.progress(1, {LOCATIONS: records[4].position})
        assert (await consumer.lag())[LOCATIONS, 1] == 3


async def test_processed_changes_with_progress_only(log: EventLog) -> None:
    """It tells whether a consumer gets on: by progress, not by fetching or by what is appended."""
    await log.append([Entry(LOCATIONS, key_in(1), str(n).encode()) for n in range(3)])
    async with member(log) as consumer:
        await settle(consumer)
        assert consumer.processed() == {}
        await consumer.seek(1, {})
        at_start = consumer.processed()
        assert at_start.keys() == {(LOCATIONS, 1), (CARTS, 1)}
        records = await read(consumer, 3)
        await log.append(entries(5))
        assert consumer.processed() == at_start
        await consumer.progress(1, {LOCATIONS: records[1].position})
        changed = {place for place, position in consumer.processed().items() if position != at_start[place]}
        assert changed == {(LOCATIONS, 1)}


async def test_progress_is_said_at_the_latest_when_it_stops(rig: Rig, log: EventLog, group: str) -> None:
    """Progress right after progress is not lost for those who watch the group from outside."""
    await log.append([Entry(LOCATIONS, key_in(1), str(n).encode()) for n in range(200)])
    async with member(log, group) as consumer:
        await settle(consumer)
        await consumer.seek(1, {})
        records = await read(consumer, 200)
        for record in records:
            await consumer.progress(1, {LOCATIONS: record.position})
    assert await rig.progress_seen(group, LOCATIONS, 1) in (None, 200)


async def test_the_number_of_partitions_is_checked(rig: Rig, log: EventLog) -> None:
    """A log made with another number of partitions would scatter customers: start-up stops."""
    other = rig.make_log()
    other.partitions = PARTITIONS + 1
    with pytest.raises(ConfigurationError, match=f"{PARTITIONS} partitions"):
        await other.start()
    await other.stop()


async def test_two_groups_each_get_everything(log: EventLog) -> None:
    """Groups don't take partitions from each other."""
    await log.append(entries(20))
    async with member(log) as one, member(log) as two:
        for consumer in (one, two):
            await settle(consumer)
            await seek_all(consumer)
            assert len(await read(consumer, 20)) == 20
