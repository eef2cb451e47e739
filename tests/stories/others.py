"""Other systems, which read the topic `customers.promotions` with clients of their own."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer
from redis.asyncio import Redis

from server.log.kafka import KafkaOptions
from server.valkey import Access
from tests.system.process import Server

Json = dict[str, Any]
TOPIC = "customers.promotions"
_SOON_S = 20.0


async def told(server: Server, kafka: KafkaOptions | None, key: str, wanted: Callable[[Json], bool]) -> Json:
    """The first record of a key that is wanted, as soon as it is there."""
    # Not ended by a cancellation, which redis-py can swallow.
    until_s = time.monotonic() + _SOON_S
    records = _on_streams(server, until_s) if kafka is None else _on_kafka(kafka, until_s)
    async with aclosing(records):
        async for found, value in records:
            record: Json = msgspec.json.decode(value)
            if found.decode() == key and wanted(record):
                return record
    raise AssertionError(f"not within {_SOON_S} s")


async def _on_kafka(kafka: KafkaOptions, until_s: float) -> AsyncGenerator[tuple[bytes, bytes], None]:
    consumer = AIOKafkaConsumer(TOPIC, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        while time.monotonic() < until_s:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    yield record.key, record.value
    finally:
        await consumer.stop()


async def _on_streams(server: Server, until_s: float) -> AsyncGenerator[tuple[bytes, bytes], None]:
    """Of the server's own Valkey, by the command that docs/channels.md shows."""
    access = (server.folder / "data" / "valkey" / "access.json").read_bytes()
    redis = Redis.from_url(msgspec.json.decode(access, type=Access).url)
    after = {f"nearcast:log:{{{partition}}}:{TOPIC}": "(0-0" for partition in range(4)}
    try:
        while time.monotonic() < until_s:
            for stream, start in after.items():
                for entry, fields in await redis.xrange(stream, min=start):
                    after[stream] = f"({entry.decode()}"
                    yield fields[b"k"], fields[b"v"]
            await asyncio.sleep(0.05)
    finally:
        await redis.aclose()
