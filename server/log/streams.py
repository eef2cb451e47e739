"""The event log on Valkey (or Redis) Streams: one stream per topic and partition.

The producer and each consumer have connections of their own: a blocking read never delays an append. Appends are as
durable as the server's append-only file: they survive the death of the server process, and with `appendfsync everysec`
a power cut takes the last second, of the log and of the state beside it alike.

Workers of a group show themselves in a sorted set, by the server's clock. Each works out the same fair deal of the
partitions over the members alive, gives back the leases that are no longer its own, and takes those that are as they
become free; a killed worker's leases expire. A worker that can't renew drops its partitions before they can be leased
to another. Leases only save double work: what makes a late worker harmless is the epoch it commits with.

Known limits: on a Cluster one command can't read streams of several slots, so the log needs a single server (or Kafka);
a stream is trimmed for all groups together, by age, so a group that is further behind than the retention loses records.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import RedisError
from redis.typing import KeyT, StreamIdT

from nearcast import keys
from nearcast.clock import Clock, SystemClock
from nearcast.errors import ConfigurationError, Unavailable
from nearcast.ids import partition_of
from nearcast.topics import SENT
from server.log.base import Entry, Record, check_sizes
from server.log.hints import Hints
from server.log.lanes import Lanes
from server.log.leases import Leases
from server.store import reaching_store

ANSWER_WITHIN_S = 5.0
#: How long one blocking read may take: a change of the assignment is noticed after it.
_SLICE_MS = 200
_MIN_PER_STREAM = 16
_BEGINNING = "0-0"
#: Counting further would keep the server from its work.
MAX_LAG = 10_000

TIDY_EVERY_S = 1.0
#: How many records, or some more, a partition holds of a topic that no consumer of ours reads: no progress trims it.
#: Their age is bounded by `server.forgetting`.
_AT_MOST = {SENT: 10_000}

_Place = tuple[str, int]
#: By stream, its entries: an id, and fields and values in turn.
_Answer = list[tuple[bytes, list[tuple[bytes, list[bytes]]]]]

_COUNT_AFTER = "return #redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])"

logger = logging.getLogger("nearcast.server.log.streams")


class StreamsLog:
    """`server.log.base.EventLog` on one Valkey server.

    `session_timeout_ms`: a worker that gave no sign of life for so long loses its partitions.
    `retention_ms`: processed records are kept for so long after newer ones were processed.
    `instance_id`: the worker's own name, the same after a restart and nobody else's: its partitions then wait for it
    for the session time-out, and the others are left in peace. "": a new member at each start.
    """

    def __init__(
        self,
        url: str,
        partitions: int,
        *,
        session_timeout_ms: int = 10_000,
        retention_ms: int = 600_000,
        instance_id: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.partitions = partitions
        self._url = url
        self._session_timeout_ms = session_timeout_ms
        self._retention_ms = retention_ms
        self._instance_id = instance_id
        self._clock = clock or SystemClock()
        self._turn = asyncio.Lock()
        self._waiting: list[tuple[Sequence[Entry], asyncio.Future[None]]] = []
        # One quick retry: after a restart of the server, pooled connections turn out to be dead.
        self._redis = Redis.from_url(
            url, retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), 2), socket_timeout=ANSWER_WITHIN_S
        )

    async def start(self) -> None:
        name = f"{keys.PREFIX}log:partitions"
        with reaching_store("the Valkey log can't be reached"):
            await self._redis.set(name, self.partitions, nx=True)
            existing = int(await self._redis.get(name) or 0)
        if existing != self.partitions:
            raise ConfigurationError(
                f"the event log in this Valkey has {existing} partitions, and nearcast is set to {self.partitions}"
            )

    async def stop(self) -> None:
        await self._redis.aclose()

    async def append(self, entries: Sequence[Entry]) -> None:
        check_sizes(entries)
        if not entries:
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entries, written))
        # Whoever gets the turn writes for all who wait: one connection, one round trip, in the order of the calls.
        async with self._turn:
            if not written.done():
                await self._write_waiting()
        written.result()

    async def _write_waiting(self) -> None:
        together, self._waiting = self._waiting, []
        error: BaseException | None = Unavailable("the append was broken off")
        try:
            with reaching_store("the Valkey log did not take the records"):
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for entries, _ in together:
                        for topic, key, value in entries:
                            stream = keys.log_stream(topic, partition_of(key, self.partitions))
                            pipeline.xadd(stream, {"k": key, "v": value}, maxlen=_AT_MOST.get(topic))
                    await pipeline.execute()
            error = None
        except Unavailable as unavailable:
            error = unavailable
        finally:
            for _, written in together:
                if error is None:
                    written.set_result(None)
                else:
                    written.set_exception(error)
                    written.exception()  # a caller that was cancelled will not look

    async def check(self) -> None:
        with reaching_store("the Valkey log can't be reached"):
            await self._redis.ping()

    def consumer(self, group: str, topics: Sequence[str]) -> "StreamsConsumer":
        leases = Leases(
            self._url, group, self.partitions, self._session_timeout_ms, self._clock, member=self._instance_id
        )
        return StreamsConsumer(self._url, topics, leases, self._retention_ms, self._clock)


class StreamsConsumer:
    """`server.log.base.LogConsumer` on leased partitions."""

    def __init__(self, url: str, topics: Sequence[str], leases: Leases, retention_ms: int, clock: Clock) -> None:
        self._topics = tuple(topics)
        self._leases = leases
        self._retention_ms = retention_ms
        self._clock = clock
        self._generation = 0
        self._lanes = Lanes()
        #: By stream, those that were sought: the last id read, and the last id processed.
        self._read_to: dict[_Place, str] = {}
        self._processed: dict[_Place, str] = {}
        #: What the streams hold below these times is older than the retention, and can go.
        self._oldest_ms: dict[_Place, int] = {}
        self._trimmed_ms: dict[_Place, int] = {}
        self._tidying = Hints("streams-trimming", self._trim, TIDY_EVERY_S)
        # No retries: whoever fetches again is the retry. The time-out leaves room for the blocking.
        timeout_s = _SLICE_MS / 1000 + ANSWER_WITHIN_S
        self._reader = Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=timeout_s, protocol=2)
        # As the server says it: a dict for each entry is the better part of what reading costs.
        self._reader.set_response_callback("XREAD", _as_it_is)
        self._helper = Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=ANSWER_WITHIN_S)
        self._count_after = self._helper.register_script(_COUNT_AFTER)

    async def start(self) -> None:
        with reaching_store("the Valkey log can't be reached"):
            await self._leases.start()

    async def stop(self) -> None:
        await self._tidying.stop()
        await self._leases.stop()
        await self._reader.aclose()
        await self._helper.aclose()

    async def restart(self) -> None:
        with reaching_store("the Valkey log can't be reached"):
            for client in (self._reader, self._helper):
                await client.connection_pool.disconnect()
            await self._leases.restart()

    def assignment(self) -> tuple[int, frozenset[int]]:
        generation, partitions = self._leases.assignment()
        if generation != self._generation:
            self._generation = generation
            self._lanes.clear()
            self._read_to.clear()
            self._processed.clear()
        return generation, partitions

    async def seek(self, partition: int, after: Mapping[str, str]) -> None:
        _, partitions = self.assignment()
        if partition in partitions:
            self._lanes.open(partition, self._topics)
            for topic in self._topics:
                position = after.get(topic) or _BEGINNING
                self._read_to[topic, partition] = self._processed[topic, partition] = position

    async def fetch(self, max_records: int, wait_ms: int) -> list[Record]:
        deadline_s = self._clock.monotonic_s() + wait_ms / 1000
        while True:
            generation, _ = self.assignment()
            left_ms = max(0, round((deadline_s - self._clock.monotonic_s()) * 1000))
            block_ms = min(left_ms, _SLICE_MS)
            if self._read_to:
                await self._read(max_records, block_ms)
                # Nothing is sought any more in a generation that began meanwhile.
                if self.assignment()[0] == generation and (records := self._lanes.take(max_records)):
                    return records
            else:
                await asyncio.sleep(block_ms / 1000)
            if not left_ms:
                return []

    async def progress(self, partition: int, after: Mapping[str, str]) -> None:
        for topic, position in after.items():
            place = (topic, partition)
            if not position or place not in self._processed:
                continue
            self._processed[place] = position
            oldest_ms = _milliseconds(position) - self._retention_ms
            # Not at every step: trimming looks through the stream's first block again and again.
            if oldest_ms > self._trimmed_ms.get(place, 0) + self._retention_ms // 10:
                self._oldest_ms[place] = oldest_ms
                self._tidying.soon()

    def processed(self) -> dict[tuple[str, int], str]:
        return dict(self._processed)

    async def _trim(self) -> None:
        """Drop what is processed and old."""
        due, self._oldest_ms = self._oldest_ms, {}
        for place, oldest_ms in due.items():
            try:
                # One command drops a bounded number, so that nobody waits long for the server: ask until none is left.
                while await self._helper.xtrim(keys.log_stream(*place), minid=oldest_ms, approximate=True):
                    pass
                self._trimmed_ms[place] = oldest_ms
            except RedisError as error:
                logger.info("could not trim %s: %s", place, type(error).__name__)

    async def lag(self) -> dict[tuple[str, int], int]:
        self.assignment()
        places = dict(self._processed)
        with reaching_store("the Valkey log does not tell its lag"):
            async with self._helper.pipeline(transaction=False) as pipeline:
                for place, position in places.items():
                    await self._count_after(keys=[keys.log_stream(*place)], args=[position, MAX_LAG], client=pipeline)
                counts = await pipeline.execute()
        return dict(zip(places, counts, strict=True))

    async def _read(self, enough: int, block_ms: int) -> None:
        """Put into the lanes what the streams hold, each its fair share first; what room is left then goes to those
        that hold more. Waits only if there was nothing, in the lanes neither."""
        generation = self._generation
        waiting = {place: self._lanes.size(*place) for place in self._read_to}
        room = enough
        # The count holds for each stream.
        count = min(enough, max(_MIN_PER_STREAM, enough // len(waiting)))
        wanted = [place for place, size in waiting.items() if size < count]
        for place in waiting.keys() - wanted:
            self._lanes.at_end(*place, at_end=False)
        block_ms = 0 if any(waiting.values()) else block_ms
        while wanted:
            answer = dict(await self._ask(wanted, count, block_ms))
            if self.assignment()[0] != generation:
                return
            full = []
            for place in wanted:
                entries = answer.get(place, ())
                if entries:
                    records = _records(place, entries)
                    self._lanes.add(*place, records)
                    self._read_to[place] = records[-1].position
                    room -= len(records)
                self._lanes.at_end(*place, at_end=len(entries) < count)
                if len(entries) == count:
                    full.append(place)
            # Those that gave all they were asked for may hold more, and get all the room between them.
            wanted = full[: max(0, room) // _MIN_PER_STREAM]
            count, block_ms = max(0, room) // max(1, len(wanted)), 0

    async def _ask(
        self, places: Sequence[_Place], count: int, block_ms: int
    ) -> list[tuple[_Place, list[tuple[bytes, list[bytes]]]]]:
        by_stream = {keys.log_stream(*place): place for place in places}
        positions: dict[KeyT, StreamIdT] = {stream: self._read_to[place] for stream, place in by_stream.items()}
        with reaching_store("the Valkey log could not be read"):
            answer = cast("_Answer | None", await self._reader.xread(positions, count=count, block=block_ms or None))
        return [(by_stream[name.decode()], entries) for name, entries in answer or ()]


def _records(place: _Place, entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Record]:
    topic, partition = place
    records = []
    for entry_id, fields in entries:
        position = entry_id.decode()
        if len(fields) == 4 and fields[0] == b"k" and fields[2] == b"v":
            key, value = fields[1], fields[3]
        else:
            # Somebody else wrote it.
            named = dict(zip(fields[::2], fields[1::2], strict=True))
            key, value = named.get(b"k", b""), named.get(b"v", b"")
        records.append(
            Record(topic, partition, position, key.decode("utf-8", "replace"), value, _milliseconds(position))
        )
    return records


def _as_it_is(response: Any, **_options: Any) -> Any:
    return response


def _milliseconds(position: str) -> int:
    return int(position.partition("-")[0])
