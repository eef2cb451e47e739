"""What the contract suite needs to know about each adapter: how to make one, and how to break what is behind it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Protocol
from uuid import uuid4

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from nearcast.topics import CUSTOMER_TOPICS
from server.log.base import EventLog, LogConsumer, Record
from server.log.kafka import KafkaLog, KafkaLogConsumer, KafkaOptions
from server.log.streams import StreamsConsumer, StreamsLog
from tests.server.log.worker import Order
from tests.services.kafka import KafkaBroker, Tansu
from tests.services.valkey import ValkeyProcess

PARTITIONS = 4
LOCATIONS, CARTS = TOPICS = ("customers.locations", "customers.carts")
SESSION_TIMEOUT_MS = 1_500
WITHIN_S = 20.0


class Rig(Protocol):
    """An adapter and the server behind it."""

    def make_log(self, session_timeout_ms: int = SESSION_TIMEOUT_MS) -> EventLog: ...

    def locate(self, order: Order) -> None:
        """Write into the order of a worker process where the log is."""
        ...

    def skip_on_stand_in(self, why: str) -> None:
        """Skip the test if the server is only a stand-in, about which `why` is true."""
        ...

    async def progress_seen(self, group: str, topic: str, partition: int) -> int | None:
        """How many records of a partition a tool for lag sees as processed; None where there are no such tools."""
        ...

    def lose(self, consumer: LogConsumer) -> None:
        """What happens inside a consumer when its group takes its partitions away."""
        ...

    async def crash(self, consumer: LogConsumer) -> None:
        """End a consumer as SIGKILL would: no goodbye to anyone."""
        ...

    async def take_away(self) -> None:
        """Stop the server."""
        ...

    async def bring_back(self) -> None:
        """Start the server again, on the same port and data."""
        ...


class StreamsRig:
    """Valkey Streams on a server of the rig's own."""

    def __init__(self, valkey: ValkeyProcess) -> None:
        self._valkey = valkey

    def make_log(self, session_timeout_ms: int = SESSION_TIMEOUT_MS) -> StreamsLog:
        return StreamsLog(self._valkey.url, PARTITIONS, session_timeout_ms=session_timeout_ms)

    def locate(self, order: Order) -> None:
        order.valkey_url = self._valkey.url

    async def progress_seen(self, group: str, topic: str, partition: int) -> int | None:
        return None

    def skip_on_stand_in(self, why: str) -> None:
        """It is the real one."""

    def lose(self, consumer: LogConsumer) -> None:
        assert isinstance(consumer, StreamsConsumer)
        consumer._leases._hold(frozenset())

    async def crash(self, consumer: LogConsumer) -> None:
        assert isinstance(consumer, StreamsConsumer)
        leases = consumer._leases
        await leases._stop_keeping()
        for client in (leases._redis, consumer._reader, consumer._helper):
            await client.aclose()

    async def take_away(self) -> None:
        await asyncio.to_thread(self._valkey.kill)

    async def bring_back(self) -> None:
        self._valkey.start()


class KafkaRig:
    """Kafka topics on the session's broker."""

    def __init__(self, options: KafkaOptions, broker: KafkaBroker | None) -> None:
        self._options = msgspec.structs.replace(options, append_within_s=2.0)
        self._broker = broker

    def make_log(self, session_timeout_ms: int = SESSION_TIMEOUT_MS) -> KafkaLog:
        options = msgspec.structs.replace(self._options, session_timeout_ms=session_timeout_ms)
        return KafkaLog(options, PARTITIONS, CUSTOMER_TOPICS, ())

    def locate(self, order: Order) -> None:
        order.kafka = self._options

    async def progress_seen(self, group: str, topic: str, partition: int) -> int | None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._options.bootstrap)
        await admin.start()
        try:
            offsets = await admin.list_consumer_group_offsets(group)
        finally:
            await admin.close()
        return int(offsets[TopicPartition(topic, partition)].offset)

    def skip_on_stand_in(self, why: str) -> None:
        if isinstance(self._broker, Tansu):
            pytest.skip(f"{Tansu.name} stands in for Apache Kafka, and {why}")

    def lose(self, consumer: LogConsumer) -> None:
        assert isinstance(consumer, KafkaLogConsumer)
        assert consumer._consumer is not None
        consumer._reassign(consumer._consumer, frozenset())

    async def crash(self, consumer: LogConsumer) -> None:
        assert isinstance(consumer, KafkaLogConsumer)
        assert consumer._consumer is not None
        client, coordinator = consumer._consumer, consumer._consumer._coordinator
        tasks = [coordinator._heartbeat_task, coordinator._coordination_task, coordinator._commit_refresh_task]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        await client._fetcher.close()
        await client._client.close()
        client._closed = True

    async def take_away(self) -> None:
        assert self._broker is not None
        await self._broker.stop()

    async def bring_back(self) -> None:
        assert self._broker is not None
        await self._broker.start()


@asynccontextmanager
async def running(log: EventLog) -> AsyncIterator[EventLog]:
    """A log, started and stopped."""
    await log.start()
    try:
        yield log
    finally:
        await log.stop()


@asynccontextmanager
async def member(log: EventLog, group: str = "", topics: Iterable[str] = TOPICS) -> AsyncIterator[LogConsumer]:
    """A consumer in a group of its own unless told otherwise, started and stopped."""
    consumer = log.consumer(group or uuid4().hex, tuple(topics))
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def settle(*consumers: LogConsumer) -> list[frozenset[int]]:
    """Wait until the consumers own all partitions between them, evenly; what each owns."""
    deadline = time.monotonic() + WITHIN_S
    share = PARTITIONS // len(consumers)
    while True:
        owned = [consumer.assignment()[1] for consumer in consumers]
        if all(len(each) == share for each in owned) and frozenset().union(*owned) == frozenset(range(PARTITIONS)):
            return owned
        assert time.monotonic() < deadline, f"the partitions were not dealt out: {owned}"
        await asyncio.sleep(0.02)


async def seek_all(consumer: LogConsumer) -> None:
    """Read everything assigned from the start."""
    for partition in consumer.assignment()[1]:
        await consumer.seek(partition, {})


async def read(consumer: LogConsumer, count: int, max_records: int = 500) -> list[Record]:
    """Fetch until `count` records have come."""
    deadline = time.monotonic() + WITHIN_S
    records: list[Record] = []
    while len(records) < count:
        assert time.monotonic() < deadline, f"{len(records)} of {count} records came"
        records += await consumer.fetch(max_records, 200)
    return records
