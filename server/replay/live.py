"""An installation as a replay sees it: its log, world and decisions, read and left exactly as they are.

No group is joined, no lease or epoch taken, no offset committed, nothing created. Next to a running server with an
embedded Valkey this is one more client of that Valkey; without a server it is started for the time of reading.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.decisions import Decision
from nearcast.errors import InputError
from nearcast.events import decode
from nearcast.ids import CustomerId, DecisionId, EventId, partition_of
from nearcast.topics import CUSTOMER_TOPICS
from nearcast.world import Stock
from offers.worldfile import WorldFile
from server.commands.session import opened_store
from server.core import log_of
from server.log.base import Record
from server.log.history import LogHistory, Place, StreamsHistory, merged
from server.log.kafka import KafkaLog
from server.log.kafka_history import KafkaHistory
from server.replay.recording import FORMAT, Header, Recorded, writing
from server.settings import Settings
from server.state import KEPT_DECISIONS
from server.store import reaching_store, text
from server.world import WorldStore

_AT_ONCE = 500
_DECISION = msgspec.json.Decoder(Decision)

#: Told how many records there are so far.
Progress = Callable[[int], None]


class Stretch(NamedTuple):
    """Which part of the log; times of arrival in ms since the Unix epoch, None for no bound."""

    since_ms: int | None = None
    until_ms: int | None = None
    #: Also what the engine has not worked on yet; nothing is known of what it will decide.
    unprocessed: bool = False


class Live:
    """Use `open_live`."""

    def __init__(self, redis: Redis, history: LogHistory, settings: Settings) -> None:
        self._redis = redis
        self._history = history
        self._settings = settings

    async def world(self) -> WorldFile:
        """The world as it is now, with the stock. Raises `InputError` if the stored one can't be used."""
        store = WorldStore(self._redis)
        await store.refresh()
        if store.problem is not None:
            raise InputError("broken_world", f"the stored world can't be used: {store.problem}")
        items = store.current.items
        stores = [store.id for store in items.stores]
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for store_id in stores:
                    pipe.hgetall(keys.stock(store_id))
                found = await pipe.execute()
        stock = [
            Stock(store=store_id, sku=text(sku), quantity=int(quantity))
            for store_id, quantities in zip(stores, found, strict=True)
            for sku, quantity in sorted(quantities.items())
        ]
        return msgspec.structs.replace(items, stock=stock)

    async def record(self, file: Path, stretch: Stretch, progress: Progress) -> int:
        """Make a recording of a stretch of the log; returns the number of records.

        Raises `InputError` if there are none, or the file can't be made.
        """
        ends = await self._history.ends(CUSTOMER_TOPICS)
        if not stretch.unprocessed:
            ends = await self._processed(ends)
        # After the offsets: whatever was decided about the records up to there is in the store by now.
        decided = await self._decided()
        with writing(file) as writer:
            writer.header(
                Header(
                    nearcast_recording=FORMAT,
                    log="kafka" if self._settings.kafka else "streams",
                    partitions=self._settings.partitions,
                    since_ms=stretch.since_ms,
                    until_ms=stretch.until_ms,
                )
            )
            writer.world(await self.world())
            async for record in merged(self._history, ends, stretch.since_ms):
                if not _within(record, stretch):
                    continue
                writer.record(record)
                decided.see(record)
                if writer.records_count % _AT_ONCE == 0:
                    progress(writer.records_count)
            if writer.records_count == 0:
                raise InputError(
                    "empty_recording",
                    "the log has no such records: it is empty, they are too old to be kept, or the engine has not "
                    "worked on them yet (`--unprocessed` takes those too)",
                )
            writer.recorded(await self._recorded(decided))
            writer.end()
        progress(writer.records_count)
        return writer.records_count

    async def recorded(self, records: Iterable[Record]) -> Recorded:
        """What the store holds of the decisions about these records."""
        decided = await self._decided()
        for record in records:
            decided.see(record)
        return await self._recorded(decided)

    async def _processed(self, ends: Mapping[Place, str]) -> dict[Place, str]:
        """The places cut at the engine's own offsets."""
        stored: dict[Place, str] = {}
        for partition in range(self._settings.partitions):
            with reaching_store():
                offsets = await self._redis.hgetall(keys.offsets(partition))
            stored |= {(text(topic), partition): text(position) for topic, position in offsets.items()}
        return {place: stored[place] for place in ends if stored.get(place)}

    async def _decided(self) -> "_Decided":
        """Every decision in the store."""
        decided = _Decided()
        for partition in range(self._settings.partitions):
            cursor = 0
            while True:
                with reaching_store():
                    cursor, names = await self._redis.scan(cursor, f"{keys.decision(partition, '')}*", count=5_000)
                    blobs = await self._redis.mget(names) if names else []
                for blob in blobs:
                    if blob is not None:
                        decided.add(_DECISION.decode(blob))
                if cursor == 0:
                    break
        return decided

    async def _recorded(self, decided: "_Decided") -> Recorded:
        decisions = sorted(decided.seen.values(), key=lambda decision: (decision.at_ms, decision.id))
        kept_from: dict[CustomerId, int] = {}
        for customer in sorted({decision.customer for decision in decisions}):
            partition = partition_of(customer, self._settings.partitions)
            with reaching_store():
                names = await self._redis.lrange(keys.decisions_of(partition, customer), 0, -1)
                oldest = await self._redis.get(keys.decision(partition, text(names[-1]))) if names else None
            if oldest is not None and len(names) >= KEPT_DECISIONS:
                kept_from[customer] = _DECISION.decode(oldest).at_ms
        return Recorded(decisions, kept_from)


class _Decided:
    """The store's decisions, and which of them are about records that were seen."""

    def __init__(self) -> None:
        self.seen: dict[DecisionId, Decision] = {}
        self._by_event: dict[tuple[CustomerId, EventId], list[Decision]] = {}

    def add(self, decision: Decision) -> None:
        self._by_event.setdefault((decision.customer, decision.moment.event), []).append(decision)

    def see(self, record: Record) -> None:
        try:
            event = decode(
                record.topic,
                record.value,
                position=f"{record.partition}:{record.position}",
                arrived_ms=record.arrived_ms,
            )
        except InputError:
            return
        for decision in self._by_event.pop((event.customer, event.event_id), ()):
            self.seen[decision.id] = decision


def _within(record: Record, stretch: Stretch) -> bool:
    return (stretch.since_ms is None or record.arrived_ms >= stretch.since_ms) and (
        stretch.until_ms is None or record.arrived_ms < stretch.until_ms
    )


@asynccontextmanager
async def open_live() -> AsyncIterator[Live]:
    """Reach the configured store and log. Raises `ConfigurationError` or `Unavailable`."""
    async with opened_store() as (settings, redis, url):
        log = log_of(settings, url)
        if not isinstance(log, KafkaLog):
            yield Live(redis, StreamsHistory(redis, settings.partitions), settings)
            return
        history = KafkaHistory(log)
        await history.start()
        try:
            yield Live(redis, history, settings)
        finally:
            await history.stop()
