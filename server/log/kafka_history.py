"""`server.log.history.LogHistory` of Kafka topics: assigned partitions instead of a group, and nothing committed."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from nearcast.clock import Clock, SystemClock
from nearcast.errors import ConfigurationError, Unavailable
from server.log.base import Record
from server.log.history import Place
from server.log.kafka import KafkaLog, as_unavailable, connection, partition_counts

#: The brokers answered nothing for so long although there is more.
ANSWER_WITHIN_S = 30.0
_AT_ONCE = 1_000


class KafkaHistory:
    """Of a log, started or not. Use `start` and `stop` around it; the records of many places may be read by turns."""

    def __init__(self, log: KafkaLog, clock: Clock | None = None) -> None:
        self._partitions = log.partitions
        self._clock = clock or SystemClock()
        self._connection = connection(log.options)
        self._consumer = AIOKafkaConsumer(
            **self._connection,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            # A fetch holds those that come after it up; at the end of a partition it would wait for half a second.
            fetch_max_wait_ms=20,
        )

    async def start(self) -> None:
        with as_unavailable("can't be reached"):
            try:
                await self._consumer.start()
            except BaseException:
                await self._consumer.stop()
                raise

    async def stop(self) -> None:
        await self._consumer.stop()

    async def ends(self, topics: Sequence[str]) -> Mapping[Place, str]:
        with as_unavailable("does not tell its offsets"):
            async with asyncio.timeout(ANSWER_WITHIN_S):
                existing = await self._partition_counts()
                for topic in topics:
                    if existing.get(topic, self._partitions) != self._partitions:
                        raise ConfigurationError(
                            f"topic {topic} has {existing[topic]} partitions, and nearcast is set to "
                            f"{self._partitions} (NEARCAST_PARTITIONS)"
                        )
                places = [
                    TopicPartition(topic, partition)
                    for topic in topics
                    if topic in existing
                    for partition in range(self._partitions)
                ]
                # All at once: assigning anew throws away what was fetched.
                self._consumer.assign(places)
                first = await self._consumer.beginning_offsets(places)
                end = await self._consumer.end_offsets(places)
        return {(at.topic, at.partition): str(end[at] - 1) for at in places if end[at] > first[at]}

    async def read(self, place: Place, since_ms: int | None, last: str) -> AsyncIterator[Sequence[Record]]:
        at = TopicPartition(*place)
        end = int(last) + 1
        with as_unavailable("could not be read"):
            async with asyncio.timeout(ANSWER_WITHIN_S):
                start = (await self._consumer.beginning_offsets([at]))[at]
                if since_ms is not None:
                    found = (await self._consumer.offsets_for_times({at: since_ms}))[at]
                    start = end if found is None else max(start, found.offset)
                self._consumer.seek(at, start)
        position, moved_s = start, self._clock.monotonic_s()
        while position < end:
            with as_unavailable("could not be read"):
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    fetched = (await self._consumer.getmany(at, timeout_ms=500, max_records=_AT_ONCE)).get(at, [])
                    before, position = position, await self._consumer.position(at)
            now_ms, now_s = self._clock.now_ms(), self._clock.monotonic_s()
            if position > before:
                moved_s = now_s
            elif now_s - moved_s > ANSWER_WITHIN_S:
                raise Unavailable(f"Kafka gives no more records of {at.topic}, partition {at.partition}")
            yield [
                Record(
                    at.topic,
                    at.partition,
                    str(record.offset),
                    (record.key or b"").decode(errors="replace"),
                    record.value or b"",
                    record.timestamp if 0 < record.timestamp <= now_ms else now_ms,
                )
                for record in fetched
                if record.offset < end
            ]

    async def _partition_counts(self) -> dict[str, int]:
        admin = AIOKafkaAdminClient(**self._connection)
        try:
            await admin.start()
            return await partition_counts(admin)
        finally:
            await admin.close()
