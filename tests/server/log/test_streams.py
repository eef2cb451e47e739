"""What only the Valkey Streams adapter has: trimming, and streams that others write to."""

import asyncio

from redis.asyncio import Redis

from nearcast import keys
from nearcast.ids import partition_of
from nearcast.topics import SENT
from server.log.base import Entry
from server.log.streams import StreamsLog
from tests.server.log.rigs import LOCATIONS, PARTITIONS, WITHIN_S, member, read, running, seek_all, settle

PARTITION = partition_of("key", PARTITIONS)
STREAM = keys.log_stream(LOCATIONS, PARTITION)
HOUR_MS = 3_600_000


async def _write(redis: Redis, at_ms: int, count: int) -> None:
    for n in range(count):
        await redis.xadd(STREAM, {"k": "key", "v": str(n)}, id=f"{at_ms}-{n + 1}")


async def test_only_what_is_processed_and_old_is_trimmed(valkey_url: str, redis: Redis) -> None:
    """Progress trims what is older than the retention below it, and never a record after it."""
    now_ms = 500_000 * HOUR_MS
    await _write(redis, now_ms - 2 * HOUR_MS, 300)
    await _write(redis, now_ms - 1000, 10)
    await _write(redis, now_ms, 10)
    async with (
        running(StreamsLog(valkey_url, PARTITIONS, retention_ms=HOUR_MS)) as log,
        member(log, topics=[LOCATIONS]) as consumer,
    ):
        await settle(consumer)
        await seek_all(consumer)
        records = await read(consumer, 320)
        await consumer.progress(PARTITION, {LOCATIONS: records[299].position})
        assert await redis.xlen(STREAM) == 320
        await consumer.progress(PARTITION, {LOCATIONS: records[309].position})
        # Trimming is by whole blocks of the stream, so some old records may remain.
        assert await shrunk(redis, 200) >= 20
        await consumer.seek(PARTITION, {LOCATIONS: records[299].position})
        assert await read(consumer, 20) == records[300:]


async def test_trimming_keeps_up_with_a_fast_stream(valkey_url: str, redis: Redis) -> None:
    """All that is old goes, however much it is: one command of the server's drops ten thousand at the most."""
    now_ms = 500_000 * HOUR_MS
    async with redis.pipeline(transaction=False) as pipeline:
        for n in range(25_000):
            pipeline.xadd(STREAM, {"k": "key", "v": ""}, id=f"{now_ms - 2 * HOUR_MS}-{n + 1}")
        await pipeline.execute()
    await _write(redis, now_ms, 1)
    async with (
        running(StreamsLog(valkey_url, PARTITIONS, retention_ms=HOUR_MS)) as log,
        member(log, topics=[LOCATIONS]) as consumer,
    ):
        await settle(consumer)
        await seek_all(consumer)
        records = await read(consumer, 25_001, max_records=5_000)
        await consumer.progress(PARTITION, {LOCATIONS: records[-1].position})
        assert await shrunk(redis, 200) >= 1


async def test_one_long_stream_fills_a_batch(valkey_url: str) -> None:
    """When one stream has nearly all that waits, a fetch still returns nearly as many records as were asked for.

    The newest wait until the older ones of their partition are read.
    """
    topics = [f"topic-{n}" for n in range(5)]
    async with running(StreamsLog(valkey_url, PARTITIONS)) as log, member(log, topics=topics) as consumer:
        await log.append([Entry(topics[0], "key", str(n).encode()) for n in range(5_000)])
        await log.append([Entry(topic, "key", b"few") for topic in topics[1:]])
        await settle(consumer)
        await seek_all(consumer)
        batches = [await consumer.fetch(2_000, 200) for _ in range(3)]
        assert all(len(batch) > 1_950 for batch in batches[:2])
        assert sum(map(len, batches)) == 5_004
        assert {record.topic for record in batches[2]} == set(topics)
        long = [int(record.value) for batch in batches for record in batch if record.topic == topics[0]]
        assert long == list(range(5_000))


async def shrunk(redis: Redis, below: int) -> int:
    """Wait until fewer than `below` records are left; how many."""
    async with asyncio.timeout(WITHIN_S):
        while (left := int(await redis.xlen(STREAM))) >= below:
            await asyncio.sleep(0.02)
    return left


async def test_entries_without_our_fields_are_delivered(valkey_url: str, redis: Redis) -> None:
    """Something else wrote to the stream: the record comes through empty, for the decoder to refuse."""
    await redis.xadd(STREAM, {"other": "field"})
    async with running(StreamsLog(valkey_url, PARTITIONS)) as log, member(log, topics=[LOCATIONS]) as consumer:
        await settle(consumer)
        await seek_all(consumer)
        (record,) = await read(consumer, 1)
    assert (record.key, record.value) == ("", b"")


async def test_leases_are_given_back(valkey_url: str, redis: Redis) -> None:
    """After `stop` nothing of the worker is left in the store."""
    async with running(StreamsLog(valkey_url, PARTITIONS)) as log:
        async with member(log, "group") as consumer:
            await settle(consumer)
            assert await redis.exists(*(f"{keys.log_owner(p)}:group" for p in range(PARTITIONS))) == PARTITIONS
        await log.append([Entry(LOCATIONS, "key", b"")])
    assert sorted(await redis.keys("*")) == sorted([STREAM.encode(), b"nearcast:log:partitions"])


async def test_what_nobody_reads_is_bounded(valkey_url: str, redis: Redis) -> None:
    """Of `customers.promotions` a partition keeps the newest ten thousand records or a few more; of others, all."""
    async with running(StreamsLog(valkey_url, PARTITIONS)) as log:
        for topic in (SENT, LOCATIONS):
            for start in range(0, 12_000, 3_000):
                await log.append([Entry(topic, "key", str(start + n).encode()) for n in range(3_000)])
    kept = [fields[b"v"] for _, fields in await redis.xrange(keys.log_stream(SENT, PARTITION))]
    assert 10_000 <= len(kept) < 10_500
    assert kept[-1] == b"11999"
    assert await redis.xlen(STREAM) == 12_000
