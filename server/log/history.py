"""Reading a stretch of the log without taking part in it: no group, no lease, no offset committed, nothing trimmed.

A reader goes through one partition of one topic at a time, from a time or from the oldest record that is left, up to
and including a position. It must not create what is missing.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol, cast

from redis.asyncio import Redis

from nearcast import keys, topics
from nearcast.errors import ConfigurationError
from server.log.base import Record
from server.store import reaching_store, text

#: A partition of a topic.
Place = tuple[str, int]
_AT_ONCE = 1_000
_Entries = list[tuple[bytes, dict[bytes, bytes]]]


class LogHistory(Protocol):
    """What can be read of a log."""

    async def ends(self, topics: Sequence[str]) -> Mapping[Place, str]:
        """The position of the last record of each place; places without records are left out.

        Raises `Unavailable`, or `ConfigurationError` when the log has other partitions than the settings say.
        """
        ...

    def read(self, place: Place, since_ms: int | None, last: str) -> AsyncIterator[Sequence[Record]]:
        """The records of a place in order, some at a time, up to and including the position `last`.

        Raises `Unavailable`.
        """
        ...


class StreamsHistory:
    """`LogHistory` of Valkey Streams."""

    def __init__(self, redis: Redis, partitions: int) -> None:
        self._redis = redis
        self._partitions = partitions

    async def ends(self, topics: Sequence[str]) -> Mapping[Place, str]:
        with reaching_store():
            existing = await self._redis.get(f"{keys.PREFIX}log:partitions")
            if existing is not None and int(existing) != self._partitions:
                raise ConfigurationError(
                    f"the event log in this Valkey has {int(existing)} partitions, and nearcast is set to "
                    f"{self._partitions} (NEARCAST_PARTITIONS)"
                )
            places = [(topic, partition) for topic in topics for partition in range(self._partitions)]
            async with self._redis.pipeline(transaction=False) as pipe:
                for topic, partition in places:
                    pipe.xrevrange(keys.log_stream(topic, partition), count=1)
                found = await pipe.execute()
        return {place: text(last[0][0]) for place, last in zip(places, found, strict=True) if last}

    async def read(self, place: Place, since_ms: int | None, last: str) -> AsyncIterator[Sequence[Record]]:
        topic, partition = place
        after = "-" if since_ms is None else str(since_ms)
        while True:
            with reaching_store():
                answer = await self._redis.xrange(keys.log_stream(topic, partition), after, last, count=_AT_ONCE)
            entries = cast("_Entries", answer)
            if not entries:
                return
            yield [
                Record(
                    topic,
                    partition,
                    entry_id.decode(),
                    fields.get(b"k", b"").decode(errors="replace"),
                    fields.get(b"v", b""),
                    int(entry_id.partition(b"-")[0]),
                )
                for entry_id, fields in entries
            ]
            after = f"({entries[-1][0].decode()}"


async def merged(history: LogHistory, ends: Mapping[Place, str], since_ms: int | None) -> AsyncIterator[Record]:
    """The records of several places in one order: by arrival, and within a place as they stand.

    Holds no more than one chunk of each place.
    """
    async with contextlib.AsyncExitStack() as stack:
        heads: list[_Head] = []
        for place, last in sorted(ends.items()):
            chunks = history.read(place, since_ms, last)
            stack.push_async_callback(_close, chunks)
            heads.append(_Head(chunks))
        for head in heads:
            await head.step()
        while waiting := [head for head in heads if head.record is not None]:
            first = min(waiting, key=lambda head: head.order)
            if first.record is not None:
                yield first.record
            await first.step()


async def _close(chunks: AsyncIterator[Sequence[Record]]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()


class _Head:
    """The next record of a place."""

    def __init__(self, chunks: AsyncIterator[Sequence[Record]]) -> None:
        self._chunks = chunks
        self._chunk: Sequence[Record] = ()
        self._at = -1
        self.record: Record | None = None

    @property
    def order(self) -> tuple[int, bool]:
        """As `server.batch.in_order` has it: what changes a customer comes before where they are."""
        return (
            (self.record.arrived_ms, self.record.topic == topics.LOCATIONS) if self.record is not None else (0, False)
        )

    async def step(self) -> None:
        self._at += 1
        while self._at >= len(self._chunk):
            try:
                self._chunk, self._at = await anext(self._chunks), 0
            except StopAsyncIteration:
                self.record = None
                return
        self.record = self._chunk[self._at]
