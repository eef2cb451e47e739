"""The watchdog over consumers that really stall, on a real log."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from nearcast.errors import Unavailable
from nearcast.topics import CUSTOMER_TOPICS
from server.core import open_core
from server.log import kafka
from server.log.base import Entry, LogConsumer, Record
from server.log.kafka import KafkaLog, KafkaOptions
from server.log.streams import StreamsLog
from server.roles import make_engine
from server.settings import load
from server.watchdog import LOOKS, RESTARTS, Watchdog
from tests.services.kafka import ApacheKafka, KafkaBroker, create_topics
from tests.services.valkey import ValkeyProcess

PARTITIONS = 2
TOPIC, *_ = TOPICS = ("customers.locations", "customers.carts")
WITHIN_S = 30.0
#: Of no account: the tests look as often as they like.
STALL_AFTER_S = 60.0


def restarts(consumer: str = "test") -> float:
    return REGISTRY.get_sample_value("nearcast_consumer_restarts_total", {"consumer": consumer}) or 0.0


class Reader:
    """What an engine does with a consumer, without an engine: follow the assignment, fetch, say what is done."""

    def __init__(self, consumer: LogConsumer) -> None:
        self.consumer = consumer
        self._generation = -1
        self._done: dict[tuple[str, int], str] = {}

    async def read(self, *, process: bool = True) -> list[Record]:
        generation, partitions = self.consumer.assignment()
        if generation != self._generation:
            for partition in partitions:
                await self.consumer.seek(partition, {topic: self._done.get((topic, partition), "") for topic in TOPICS})
            self._generation = generation
        try:
            records = await self.consumer.fetch(1, 100)
        except Unavailable:
            return []
        for record in records if process else ():
            self._done[record.topic, record.partition] = record.position
            await self.consumer.progress(record.partition, {record.topic: record.position})
        return records

    async def get(self, count: int) -> None:
        """Read and process until so many records have come."""
        async with asyncio.timeout(WITHIN_S):
            while count > 0:
                count -= len(await self.read())

    async def until(self, condition: Callable[[list[Record]], bool], *, process: bool = True) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not condition(await self.read(process=process)):
                await asyncio.sleep(0)

    async def until_owning(self) -> None:
        await self.until(lambda _: len(self.consumer.processed()) == PARTITIONS * len(TOPICS), process=False)


@asynccontextmanager
async def reading(log: KafkaLog | StreamsLog) -> AsyncIterator[Reader]:
    """A reader in a group of its own that has been dealt everything."""
    await log.start()
    reader = Reader(log.consumer("test", TOPICS))
    try:
        await reader.consumer.start()
        await reader.until_owning()
        yield reader
    finally:
        await reader.consumer.stop()
        await log.stop()


async def append(log: KafkaLog | StreamsLog, count: int) -> None:
    await log.append([Entry(TOPIC, f"customer-{n}", b"") for n in range(count)])


async def look(watchdog: Watchdog, times: int) -> None:
    for _ in range(times):
        await watchdog.look()


def watch(reader: Reader, answering: Callable[[], Awaitable[None]]) -> Watchdog:
    return Watchdog("test", reader.consumer, answering, STALL_AFTER_S)


@pytest.fixture
def streams(valkey_url: str, redis: Redis) -> StreamsLog:
    return StreamsLog(valkey_url, PARTITIONS)


async def test_records_that_wait_without_progress_lead_to_a_restart(streams: StreamsLog) -> None:
    """After so many looks, not before; the reader then finds everything that was not processed."""
    async with reading(streams) as reader:
        watchdog, before = watch(reader, streams.check), restarts()
        await append(streams, 3)
        await reader.until(bool, process=False)
        generation, _ = reader.consumer.assignment()
        await look(watchdog, LOOKS)
        assert (restarts(), reader.consumer.assignment()[0]) == (before, generation)
        await look(watchdog, 1)
        assert restarts() == before + 1
        assert reader.consumer.assignment()[0] > generation
        await reader.get(3)


async def test_progress_however_slow_is_no_stall(streams: StreamsLog) -> None:
    """One record between two looks is enough, while hundreds wait."""
    async with reading(streams) as reader:
        watchdog, before = watch(reader, streams.check), restarts()
        await streams.append([Entry(TOPIC, "one customer", b"") for _ in range(300)])
        for _ in range(3 * LOOKS):
            await reader.get(1)
            await watchdog.look()
        assert restarts() == before


async def test_one_stuck_partition_is_a_stall(streams: StreamsLog) -> None:
    """Others that get on don't hide it."""
    async with reading(streams) as reader:
        watchdog, before = watch(reader, streams.check), restarts()
        await append(streams, 200)
        for _ in range(LOOKS + 1):
            (record,) = await reader.consumer.fetch(1, 1_000)
            while record.partition == 0:
                (record,) = await reader.consumer.fetch(1, 1_000)
            await reader.consumer.progress(record.partition, {record.topic: record.position})
            assert restarts() == before
            await watchdog.look()
        assert restarts() == before + 1


async def test_nothing_to_do_is_no_stall(streams: StreamsLog) -> None:
    """A quiet night restarts nothing."""
    async with reading(streams) as reader:
        watchdog, before = watch(reader, streams.check), restarts()
        await append(streams, 1)
        await reader.get(1)
        await look(watchdog, 3 * LOOKS)
        assert restarts() == before


async def test_a_partition_that_nobody_takes_up_is_a_stall(streams: StreamsLog) -> None:
    """It was dealt to this worker, and its reader hangs before it reads from it."""
    await streams.start()
    reader = Reader(streams.consumer("test", TOPICS))
    await reader.consumer.start()
    watchdog, before = watch(reader, streams.check), restarts()
    await look(watchdog, LOOKS + 1)
    assert restarts() == before + 1
    await reader.consumer.stop()
    await streams.stop()


async def test_restarts_that_do_not_help_end_it(streams: StreamsLog) -> None:
    """The process ends with the reason, so that whatever supervises it starts a new one."""
    async with reading(streams) as reader:
        watchdog, before = watch(reader, streams.check), restarts()
        await append(streams, 3)
        for _ in range(RESTARTS):
            await look(watchdog, LOOKS + 1)
            await reader.until_owning()
        await look(watchdog, LOOKS)
        with pytest.raises(Unavailable, match=r"no progress .* customers\.locations .* 2 restarts .* did not help"):
            await watchdog.look()
        assert restarts() == before + RESTARTS


async def test_stalls_far_apart_are_counted_anew(streams: StreamsLog) -> None:
    """A restart that helped for long does not bring the end nearer."""
    async with reading(streams) as reader:
        watchdog, before = watch(reader, streams.check), restarts()
        for _ in range(RESTARTS + 1):
            await append(streams, 1)
            await look(watchdog, LOOKS + 1)
            await reader.get(1)
            await look(watchdog, 3 * LOOKS)
        assert restarts() == before + RESTARTS + 1


async def test_an_outage_is_no_stall(tmp_path: Path) -> None:
    """While the log answers nobody there is nothing to restart; afterwards the count begins anew."""
    valkey = ValkeyProcess(tmp_path)
    valkey.start()
    log = StreamsLog(valkey.url, PARTITIONS)
    async with reading(log) as reader:
        watchdog, before = watch(reader, log.check), restarts()
        await append(log, 1)
        await look(watchdog, LOOKS)
        valkey.kill()
        await look(watchdog, LOOKS)
        valkey.start()
        await look(watchdog, LOOKS)
        assert restarts() == before
        await look(watchdog, 1)
        assert restarts() == before + 1
    valkey.stop()


async def test_the_engine_role_is_watched(tmp_path: Path) -> None:
    """With an engine that does nothing (its root is not run), the watchdog of the role ends in an error by itself."""
    settings = load(data_dir=tmp_path / "data", stall_after_s=1.0)
    async with open_core(settings) as core, AsyncExitStack() as stack:
        roots = {root.name: root for root in await make_engine(core, stack)}
        assert "catalogue watchdog" in roots
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(Unavailable, match="engine: no progress for 1 s"):
                await roots["engine watchdog"].work()


async def test_a_store_that_refuses_writes_is_no_stall(tmp_path: Path) -> None:
    """It answers, and the engine can't commit: no restart of its consumer mends that. With room again they count."""
    async with open_core(load(data_dir=tmp_path / "data")) as core, AsyncExitStack() as stack:
        roots = {root.name: root for root in await make_engine(core, stack)}
        watchdog = getattr(roots["engine watchdog"].work, "__self__", None)
        assert isinstance(watchdog, Watchdog)
        async with asyncio.timeout(WITHIN_S):
            while not watchdog._consumer.assignment()[1]:
                await asyncio.sleep(0.01)
        before = restarts("engine")
        await core.redis.config_set("maxmemory", "1")
        await look(watchdog, 2 * LOOKS)
        assert restarts("engine") == before
        await core.redis.config_set("maxmemory", "0")
        await look(watchdog, LOOKS + 1)
        assert restarts("engine") == before + 1


@pytest.mark.kafka
async def test_a_consumer_whose_connections_hang_is_restarted(
    kafka_broker: KafkaBroker | None, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections stay open and carry nothing, while the broker answers others: new ones get the records."""
    if not isinstance(kafka_broker, ApacheKafka):
        pytest.skip("needs an Apache Kafka of this test session, behind a proxy")
    monkeypatch.setattr(kafka, "HINT_WITHIN_S", 0.5)
    monkeypatch.setattr(kafka, "STOP_WITHIN_S", 1.0)
    proxy = kafka_broker.proxy
    options = KafkaOptions(bootstrap=f"127.0.0.1:{proxy.port}", append_within_s=2.0, session_timeout_ms=3_000)
    await create_topics(kafka_bootstrap, dict.fromkeys(CUSTOMER_TOPICS, PARTITIONS))
    log = KafkaLog(options, PARTITIONS, TOPICS, ())
    async with reading(log) as reader:
        await append(log, 2)
        await reader.get(2)
        await log.stop()
        proxy.hang()
        # Connections made from here on are good: those of the log itself, on which others append and ask.
        await append(log, 3)
        await log.check()
        assert [await reader.read() for _ in range(10)] == [[]] * 10
        watchdog, before = watch(reader, log.check), restarts()
        await look(watchdog, LOOKS + 1)
        assert restarts() == before + 1
        await reader.get(3)
