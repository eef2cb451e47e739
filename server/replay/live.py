"""An installation as a replay sees it: its log, world and decisions, read and left exactly as they are.

No group is joined, no lease or epoch taken, no offset committed, nothing created. Next to a running server with an
embedded Valkey this is one more client of that Valkey; without a server it is started for the time of reading.
"""

from array import array
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

from nearcast import keys
from nearcast.clock import Clock, SystemClock
from nearcast.decisions import Decision
from nearcast.errors import InputError
from nearcast.events import Erase, decode
from nearcast.ids import CustomerId, EventId, partition_of
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
from server.state import DECISION_TTL_S, KEPT_DECISIONS
from server.store import reaching_store, text
from server.world import WorldStore

_AT_ONCE = 500
#: Whose decisions are read together: a few thousand of them at most.
_CUSTOMERS_AT_ONCE = 50
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

    def __init__(self, redis: Redis, history: LogHistory, settings: Settings, clock: Clock | None = None) -> None:
        self._redis = redis
        self._history = history
        self._settings = settings
        self._clock = clock or SystemClock()

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
        about = _About()
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
                about.see(record)
                if writer.records_count % _AT_ONCE == 0:
                    progress(writer.records_count)
            if writer.records_count == 0:
                raise InputError(
                    "empty_recording",
                    "the log has no such records: it is empty, they are too old to be kept, or the engine has not "
                    "worked on them yet (`--unprocessed` takes those too)",
                )
            # After the offsets: whatever was decided about the records up to there is in the store by now.
            writer.recorded(await self._recorded(about))
            writer.end()
        progress(writer.records_count)
        return writer.records_count

    async def recorded(self, records: Iterable[Record]) -> Recorded:
        """What the store holds of the decisions about these records."""
        about = _About()
        for record in records:
            about.see(record)
        return await self._recorded(about)

    async def _processed(self, ends: Mapping[Place, str]) -> dict[Place, str]:
        """The places cut at the engine's own offsets."""
        stored: dict[Place, str] = {}
        for partition in range(self._settings.partitions):
            with reaching_store():
                offsets = await self._redis.hgetall(keys.offsets(partition))
            stored |= {(text(topic), partition): text(position) for topic, position in offsets.items()}
        return {place: stored[place] for place in ends if stored.get(place)}

    async def _recorded(self, about: "_About") -> Recorded:
        """The stored decisions about these events, and since when all those about each of the customers are there."""
        by_partition: dict[int, list[CustomerId]] = {}
        for customer in sorted(about.customers):
            by_partition.setdefault(partition_of(customer, self._settings.partitions), []).append(customer)
        events = about.events()
        decisions: list[Decision] = []
        kept_from: dict[CustomerId, int] = {}
        for partition, customers in sorted(by_partition.items()):
            for first in range(0, len(customers), _CUSTOMERS_AT_ONCE):
                some = customers[first : first + _CUSTOMERS_AT_ONCE]
                for customer, kept in zip(some, await self._kept(partition, some), strict=True):
                    kept_from[customer] = max(kept.since_ms, about.erased_ms.get(customer, 0))
                    decisions += [each for each in kept.decisions if _is_among(events, each)]
        return Recorded(sorted(decisions, key=lambda decision: (decision.at_ms, decision.id)), kept_from)

    async def _kept(self, partition: int, customers: Sequence[CustomerId]) -> "list[_Kept]":
        """What the store has of each of some customers of a partition."""
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for customer in customers:
                    pipe.lrange(keys.decisions_of(partition, customer), 0, -1)
                lists = await pipe.execute()
            wanted = [keys.decision(partition, text(name)) for names in lists for name in names]
            blobs = iter(await self._redis.mget(wanted) if wanted else ())
        now_ms = self._clock.now_ms()
        kept: list[_Kept] = []
        for names in lists:
            found = [None if blob is None else _DECISION.decode(blob) for blob in islice(blobs, len(names))]
            # What is older than this has expired.
            since_ms = now_ms - DECISION_TTL_S * 1000
            decisions = [decision for decision in found if decision is not None]
            if len(names) >= KEPT_DECISIONS or None in found:
                # The newest come first. Of those as old as the last, some may be gone.
                since_ms = max(since_ms, decisions[-1].at_ms + 1 if decisions else now_ms)
            kept.append(_Kept(decisions, since_ms))
        return kept


class _Kept(NamedTuple):
    """A customer's decisions in the store, newest first, and since when there are all of them."""

    decisions: list[Decision]
    since_ms: int


class _About:
    """Whom records are about, and which events they are."""

    def __init__(self) -> None:
        self.customers: set[CustomerId] = set()
        #: When the request arrived: of what was decided before, nothing is left.
        self.erased_ms: dict[CustomerId, int] = {}
        # There may be millions: eight bytes for each.
        self._events = array("q")

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
        self.customers.add(event.customer)
        self._events.append(_hash(event.customer, event.event_id))
        if isinstance(event, Erase):
            self.erased_ms[event.customer] = record.arrived_ms

    def events(self) -> NDArray[np.int64]:
        """Their hashes in order."""
        return np.sort(np.array(self._events))


def _hash(customer: CustomerId, event: EventId) -> int:
    return hash((customer, event))


def _is_among(events: NDArray[np.int64], decision: Decision) -> bool:
    wanted = _hash(decision.customer, decision.moment.event)
    at = np.searchsorted(events, wanted)
    return bool(at < len(events) and events[at] == wanted)


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
