"""The event log as the rest of the server sees it: partitioned topics, appended to and read in order.

Order: records with one key stay in the order in which they were appended. Partition *p* of all the topics of a
consumer belongs to the same worker. Delivery is at least once: an append that failed may have been written, and a
worker that lost a partition may have read what the next owner reads again, so readers keep their position with their
state (`nearcast.keys.offsets`) and are fenced by its epoch; the log's own bookkeeping is a hint.

An adapter must not decide what a record means, drop one, or keep a reader waiting beyond the time it asked for.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from nearcast.errors import TooLarge

#: A record's value may not be larger: Kafka's default limit for a request is 1 MiB, headers included.
MAX_VALUE_BYTES = 1_000_000


# Not tracked by the garbage collector: a record holds no container, and there are a hundred thousand a second.
class Record(msgspec.Struct, frozen=True, gc=False):
    """One record as it was read."""

    topic: str
    partition: int
    #: The record's own place in its topic and partition: a decimal offset (Kafka) or a stream id (Valkey Streams).
    position: str
    #: "" when the producer gave none.
    key: str
    value: bytes
    #: When the log, or the producer, says it was appended.
    arrived_ms: int


class Entry(NamedTuple):
    """One record to append; its partition follows from its key."""

    topic: str
    key: str
    value: bytes


class LogConsumer(Protocol):
    """One worker's membership in a consumer group.

    Used by one task at a time, except for `stop`, `restart`, `lag` and `processed`.
    """

    async def start(self) -> None:
        """Join the group; partitions are assigned in the background. Raises Unavailable."""
        ...

    async def stop(self) -> None:
        """Leave the group, so that others take the partitions over at once."""
        ...

    async def restart(self) -> None:
        """Throw the connections away, and the membership that hangs on them, and join the group anew.

        What was assigned is gone at once, with a new generation. Raises Unavailable; then the next `fetch` tries again.
        """
        ...

    def assignment(self) -> tuple[int, frozenset[int]]:
        """The partitions assigned to this worker, and a generation that rises whenever they were dealt out anew.

        A new generation forgets every `seek`, also of partitions that stayed. While partitions are on the move the set
        may be empty.
        """
        ...

    async def seek(self, partition: int, after: Mapping[str, str]) -> None:
        """Deliver the records of `partition` that come after these positions, by topic ("" or missing: from the start).

        Until then nothing of the partition is delivered. Does nothing when the partition is no longer assigned: the
        generation says so.
        """
        ...

    async def fetch(self, max_records: int, wait_ms: int) -> list[Record]:
        """The next records, in order per topic and partition; as soon as there is one, or [] after `wait_ms`.

        Raises Unavailable when the log can't be reached; calling again is how to recover.
        """
        ...

    async def progress(self, partition: int, after: Mapping[str, str]) -> None:
        """Say that everything up to these positions is processed and stored: for lag tools, and for trimming.

        A hint: it waits for nothing, never raises Unavailable, and nothing is read from it again.
        """
        ...

    def processed(self) -> dict[tuple[str, int], str]:
        """Where `progress` (or `seek`) left off, by topic and partition: opaque, it changes when there is progress."""
        ...

    async def lag(self) -> dict[tuple[str, int], int]:
        """Records after the last `progress` (or `seek`), by topic and partition. Raises Unavailable."""
        ...


class EventLog(Protocol):
    """The log: append to it, or make a consumer of it."""

    partitions: int

    async def start(self) -> None:
        """Connect. Raises Unavailable, or ConfigurationError when the log's partitions aren't the configured ones."""
        ...

    async def stop(self) -> None:
        """Close the connections of `append`. Consumers are stopped by whoever made them."""
        ...

    async def append(self, entries: Sequence[Entry]) -> None:
        """Append; when it returns, all entries are durable. Raises Unavailable (then some may have been written),
        TooLarge for a value over `MAX_VALUE_BYTES` (then none was)."""
        ...

    async def check(self) -> None:
        """Ask the log for a sign of life. Raises Unavailable."""
        ...

    def consumer(self, group: str, topics: Sequence[str]) -> LogConsumer:
        """A new member of `group` that reads `topics`, not started yet."""
        ...


def check_sizes(entries: Sequence[Entry]) -> None:
    """Refuse a value that a log could not carry."""
    for entry in entries:
        if len(entry.value) > MAX_VALUE_BYTES:
            raise TooLarge("too_large", f"{len(entry.value)} bytes; the log carries {MAX_VALUE_BYTES}", entry.topic)
