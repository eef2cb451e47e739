"""The event log on Kafka topics, by way of aiokafka; only `kafka_history` imports it besides.

Appends go through an idempotent producer with acks=all, so a retried batch is neither doubled nor reordered
(`KafkaOptions.idempotent` says what happens without). Consumers use the group protocol with the range assignor, which
deals out partitions by topic in the same order of members: topics with equal numbers of partitions go to workers
partition by partition, together. Offsets committed to Kafka are written for lag tools and never read. The rebalance
listener only records; it neither awaits nor locks, since aiokafka calls it from the task that also keeps the membership
alive.

aiokafka recovers from a broker's absence by itself. Where it gives up (an error out of `getmany`, a failed producer),
its object is thrown away and a new one made on the next call.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    ConsumerRecord,
    ConsumerStoppedError,
    TopicPartition,
)
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError, KafkaTimeoutError, for_code
from aiokafka.helpers import create_ssl_context

from nearcast.clock import Clock, SystemClock
from nearcast.errors import ConfigurationError, Unavailable
from nearcast.ids import partition_of
from nearcast.topics import CATALOGUE_TOPICS, CUSTOMER_TOPICS, LOCATIONS, POSITIONS_KEPT_MS
from server.log.base import Entry, Record, check_sizes
from server.log.hints import Hints
from server.log.lanes import Lanes

TOPICS_APPEAR_WITHIN_S = 15.0
STOP_WITHIN_S = 10.0
HINT_WITHIN_S = 5.0
HINT_EVERY_S = 1.0
LOOK_WITHIN_S = 1.0
_POLL_S = 0.05
#: The broker answers a fetch at once when it has anything; until then no other fetch goes to it, also not for a
#: partition that was just sought, or had been paused.
_FETCH_WAIT_MS = 100
#: How often to look whether there is nothing more of a topic that others wait for: that wakes nobody.
_LOOK_EVERY_MS = 20
_TOPIC_ALREADY_EXISTS = 36
#: A broker deletes whole segments: after `segment.ms` one takes no more records, `retention.ms` after its last record
#: it may go, and by default a broker looks for those every 5 minutes. Together less than `POSITIONS_KEPT_MS`.
_BROKER_LOOKS_MS = 5 * 60_000
_SHORT_LIVED = {"retention.ms": str(8 * 60_000), "segment.ms": "60000", "file.delete.delay.ms": "10000"}

logger = logging.getLogger("nearcast.server.log.kafka")


class KafkaOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the cluster, and how patient to be with it."""

    #: `host:port`, comma-separated.
    bootstrap: str
    #: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
    security_protocol: str = "PLAINTEXT"
    #: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
    sasl_mechanism: str = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = None
    #: PEM file; without it, the system's authorities are trusted.
    ssl_ca_file: str | None = None
    #: Copies of the topics that nearcast creates.
    replication: int = 1
    #: False for brokers without idempotent producers. A batch whose acknowledgement got lost may then be written twice,
    #: which changes nothing: events are deduplicated by their id.
    idempotent: bool = True
    #: A worker that gave no sign of life for so long loses its partitions. Its heartbeats share the event loop with
    #: its work: shorter than a long batch means rebalances under load.
    session_timeout_ms: int = 30_000
    #: The worker's own name in its groups, the same after a restart and nobody else's: its partitions then wait for it
    #: for the session time-out, and the others are left in peace. "": a new member at each start.
    instance_id: str = ""
    #: False where topics are made by somebody else: then a missing one stops the start.
    create_topics: bool = True
    #: `append` gives up with Unavailable after this time.
    append_within_s: float = 10.0


class KafkaLog:
    """`server.log.base.EventLog` on a Kafka cluster.

    `customer_topics` are keyed by customer and must have exactly `partitions` partitions; `other_topics` may have any
    number. Those missing are created.
    """

    def __init__(
        self,
        options: KafkaOptions,
        partitions: int,
        customer_topics: Sequence[str] = CUSTOMER_TOPICS,
        other_topics: Sequence[str] = CATALOGUE_TOPICS,
    ) -> None:
        self.partitions = partitions
        self.options = options
        self._customer_topics = tuple(customer_topics)
        self._other_topics = tuple(other_topics)
        self._producer: AIOKafkaProducer | None = None
        self._opening = asyncio.Lock()

    async def start(self) -> None:
        with as_unavailable("can't be reached"):
            await self._prepare_topics()
            await self._open_producer()

    async def stop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop_producer(producer)

    async def append(self, entries: Sequence[Entry]) -> None:
        check_sizes(entries)
        acknowledged: list[asyncio.Future[object]] = []
        producer = None
        try:
            with as_unavailable("did not take the records"):
                async with asyncio.timeout(self.options.append_within_s):
                    producer = await self._open_producer()
                    partitions = {
                        topic: len(await producer.partitions_for(topic)) for topic in {e.topic for e in entries}
                    }
                    for topic, key, value in entries:
                        partition = partition_of(key, partitions[topic])
                        acknowledged.append(await producer.send(topic, value, key.encode(), partition))
                    await asyncio.gather(*acknowledged)
        except Unavailable as error:
            # After a timeout the producer goes on trying, in order; after an error of its own it is of no more use.
            if producer is not None and not isinstance(error.__cause__, TimeoutError):
                await self._drop(producer)
            raise
        finally:
            for future in acknowledged:
                future.cancel()

    async def check(self) -> None:
        with as_unavailable("can't be reached"):
            async with asyncio.timeout(self.options.append_within_s):
                # Partitions are looked up in cached metadata; this one goes to a broker.
                await (await self._open_producer()).client.fetch_all_metadata()

    def consumer(self, group: str, topics: Sequence[str]) -> "KafkaLogConsumer":
        return KafkaLogConsumer(self.options, group, topics, SystemClock())

    async def _open_producer(self) -> AIOKafkaProducer:
        async with self._opening:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **connection(self.options),
                    acks="all",
                    enable_idempotence=self.options.idempotent,
                    linger_ms=1,
                    max_batch_size=256 * 1024,
                )
                try:
                    await producer.start()
                except BaseException:
                    await _stop_producer(producer)
                    raise
                self._producer = producer
            return self._producer

    async def _drop(self, producer: AIOKafkaProducer) -> None:
        if self._producer is producer:
            self._producer = None
            await _stop_producer(producer)

    async def _prepare_topics(self) -> None:
        """Create what is missing; ConfigurationError naming every topic that isn't as it must be."""
        wanted = {*self._customer_topics, *self._other_topics}
        admin = AIOKafkaAdminClient(**connection(self.options))
        try:
            await admin.start()
            existing = await partition_counts(admin)
            self._check(existing, wanted)
            if LOCATIONS in existing.keys() & wanted:
                await _say_if_positions_stay(admin)
            async with asyncio.timeout(TOPICS_APPEAR_WITHIN_S):
                while missing := wanted - existing.keys():
                    await self._create(admin, missing)
                    await asyncio.sleep(_POLL_S)
                    existing = await partition_counts(admin)
        finally:
            await admin.close()
        # Another process, set to another number, may have created them at the same time.
        self._check(existing, wanted)

    def _check(self, existing: Mapping[str, int], wanted: Iterable[str]) -> None:
        wrong = [
            f"{topic} has {existing[topic]} partitions"
            for topic in self._customer_topics
            if existing.get(topic, self.partitions) != self.partitions
        ]
        missing = sorted(set(wanted) - existing.keys())
        problems: list[str] = []
        if wrong:
            problems.append(
                f"{', '.join(wrong)}, and NEARCAST_PARTITIONS is {self.partitions}: a customer's events of all of "
                f"{', '.join(self._customer_topics)} must be in the same partition. Set NEARCAST_PARTITIONS to their "
                "number, or make the topics anew with the configured one"
            )
        if missing and not self.options.create_topics:
            problems.append(
                f"missing topics: {', '.join(missing)}. Create them ({', '.join(self._customer_topics)} with "
                f"{self.partitions} partitions each, the others with any number), or let NEARCAST_KAFKA_CREATE_TOPICS "
                "do it"
            )
        if problems:
            raise ConfigurationError("\n".join(problems))

    async def _create(self, admin: AIOKafkaAdminClient, missing: Iterable[str]) -> None:
        # The broker's clock is one; producers' clocks are many, and some of them wrong.
        stamped = {"message.timestamp.type": "LogAppendTime"}
        topics = [
            NewTopic(
                topic,
                self.partitions,
                self.options.replication,
                topic_configs=stamped | (_SHORT_LIVED if topic == LOCATIONS else {}),
            )
            for topic in sorted(missing)
        ]
        response = await admin.create_topics(topics)
        refused = [
            f"{topic} ({for_code(code).__name__}: {' '.join(filter(None, detail))})"
            for topic, code, *detail in response.topic_errors
            if code not in (0, _TOPIC_ALREADY_EXISTS) and not for_code(code).retriable
        ]
        if refused:
            raise ConfigurationError(
                f"Kafka does not create {', '.join(refused)}. Create these topics by hand, with {self.partitions} "
                f"partitions each, or mend what it says (NEARCAST_KAFKA_REPLICATION is {self.options.replication})"
            )


class KafkaLogConsumer:
    """`server.log.base.LogConsumer` on the group protocol."""

    def __init__(self, options: KafkaOptions, group: str, topics: Sequence[str], clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._group = group
        self._topics = tuple(topics)
        self._consumer: AIOKafkaConsumer | None = None
        self._opening = asyncio.Lock()
        self._generation = 0
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._sought: set[int] = set()
        self._lanes = Lanes()
        #: Those of which enough is waiting to be delivered.
        self._paused: set[TopicPartition] = set()
        #: Those not read to their end, as far as is known.
        self._behind: set[TopicPartition] = set()
        #: The offsets after the last record read, and after the last one processed.
        self._read_to: dict[TopicPartition, int] = {}
        self._next: dict[TopicPartition, int] = {}
        self._unsaid: dict[TopicPartition, int] = {}
        self._hints = Hints(f"kafka-progress-{group}", self._commit, HINT_EVERY_S)

    async def start(self) -> None:
        with as_unavailable("can't be reached"):
            await self._open()

    async def stop(self) -> None:
        await self._hints.stop()
        async with self._opening:
            await self._close()

    async def restart(self) -> None:
        with as_unavailable("can't be reached"):
            async with self._opening:
                await self._close()
            await self._open()

    def assignment(self) -> tuple[int, frozenset[int]]:
        return self._generation, frozenset(place.partition for place in self._assigned)

    async def seek(self, partition: int, after: Mapping[str, str]) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        places = [place for place in self._assigned if place.partition == partition]
        for place in places:
            # An offset that no longer exists, 0 included, becomes the earliest that does (auto_offset_reset).
            position = after.get(place.topic)
            offset = int(position) + 1 if position else 0
            self._next[place] = self._read_to[place] = offset
            consumer.seek(place, offset)
            consumer.resume(place)
            self._paused.discard(place)
            self._behind.add(place)
        if places:
            self._lanes.open(partition, (place.topic for place in places))
            self._sought.add(partition)
        await _say_what_is_gone(
            consumer, {place: int(after[place.topic]) + 1 for place in places if after.get(place.topic)}
        )

    async def fetch(self, max_records: int, wait_ms: int) -> list[Record]:
        deadline_s = self._clock.monotonic_s() + wait_ms / 1000
        # What has come while the reader was busy; and if nothing of it can go, what comes next.
        await self._read(0, max_records)
        records = self._lanes.take(max_records)
        while not records and (left_ms := round((deadline_s - self._clock.monotonic_s()) * 1000)) > 0:
            await self._read(min(left_ms, _LOOK_EVERY_MS) if self._lanes.waiting else left_ms, max_records)
            records = self._lanes.take(max_records)
        return records

    async def _read(self, wait_ms: int, enough: int) -> None:
        """Put what aiokafka has, or gets within this time, into the lanes; leave those alone that hold `enough`."""
        consumer, generation = self._consumer, self._generation
        with as_unavailable("could not be read"):
            if consumer is None:
                await self._open()
                return
            try:
                # aiokafka waits for a rebalance to end, however long that takes.
                async with asyncio.timeout(max(wait_ms, _FETCH_WAIT_MS) / 1000):
                    fetched = await consumer.getmany(timeout_ms=wait_ms)
            except (TimeoutError, ConsumerStoppedError):
                return
            except KafkaError:
                async with self._opening:
                    if self._consumer is consumer:
                        await self._close()
                raise
        if generation != self._generation:
            # Nothing is sought any more.
            return
        now_ms = self._clock.now_ms()
        for place, found in fetched.items():
            if found and place.partition in self._sought:
                self._read_to[place] = found[-1].offset + 1
                self._lanes.add(place.topic, place.partition, _records(place, found, now_ms))
        # An answer cut short by its size leaves some out; else nothing has changed for those that gave nothing.
        long = sum(map(len, fetched.values())) > enough
        for place in self._sought_places() if long else [*(self._behind | fetched.keys())]:
            if place.partition not in self._sought:
                continue
            full = self._lanes.size(place.topic, place.partition) >= enough
            if full and place not in self._paused:
                consumer.pause(place)
                self._paused.add(place)
            elif not full and place in self._paused:
                consumer.resume(place)
                self._paused.discard(place)
            at_end = not full and await self._is_at_end(consumer, place)
            if generation != self._generation:
                return
            self._lanes.at_end(place.topic, place.partition, at_end=at_end)
            if at_end:
                self._behind.discard(place)
            else:
                self._behind.add(place)

    def _sought_places(self) -> list[TopicPartition]:
        return [place for place in self._assigned if place.partition in self._sought]

    async def _is_at_end(self, consumer: AIOKafkaConsumer, place: TopicPartition) -> bool:
        """Whether the last answer had all that there was of a place."""
        stable = consumer.last_stable_offset(place)
        if stable is None:
            return False
        if self._read_to[place] < stable:
            # What aiokafka has passed beyond are marks of transactions. It waits here only if its position is lost.
            with contextlib.suppress(TimeoutError, KafkaError):
                async with asyncio.timeout(_FETCH_WAIT_MS / 1000):
                    return bool(await consumer.position(place) >= stable)
            return False
        return True

    async def progress(self, partition: int, after: Mapping[str, str]) -> None:
        for topic, position in after.items():
            place = TopicPartition(topic, partition)
            if position and place in self._next:
                self._next[place] = self._unsaid[place] = int(position) + 1
                self._hints.soon()

    def processed(self) -> dict[tuple[str, int], str]:
        return {(place.topic, place.partition): str(offset) for place, offset in self._next.items()}

    async def lag(self) -> dict[tuple[str, int], int]:
        consumer = self._consumer
        places = [place for place in self._assigned if place in self._next]
        if consumer is None or not places:
            return {}
        # The end as the latest records told it: Tansu (0.6), asked for the end, tells where the last batch begins.
        # Looked up before anything is awaited: a partition that was taken away meanwhile has none.
        fetched = {place: consumer.last_stable_offset(place) or 0 for place in places}
        with as_unavailable("does not tell its offsets"):
            async with asyncio.timeout(HINT_WITHIN_S):
                first = await consumer.beginning_offsets(places)
                end = await consumer.end_offsets(places)
                reading = {place: await consumer.position(place) for place in places}
        lag: dict[tuple[str, int], int] = {}
        for place in places:
            if place not in self._next:
                continue
            read = self._next[place]
            if read >= self._read_to[place]:
                # Everything read is processed; what aiokafka has passed beyond are marks of transactions.
                read = max(read, reading[place])
            lag[place.topic, place.partition] = max(0, max(end[place], fetched[place]) - max(read, first[place]))
        return lag

    async def _commit(self) -> None:
        """Tell Kafka the latest progress, for tools that show lag."""
        unsaid, self._unsaid = self._unsaid, {}
        consumer = self._consumer
        if consumer is None or not unsaid:
            return
        try:
            async with asyncio.timeout(HINT_WITHIN_S):
                await consumer.commit(unsaid)
        except (KafkaError, TimeoutError) as error:
            logger.info("Kafka did not note the progress of %d partitions: %r", len(unsaid), error)

    async def _open(self) -> None:
        """Make aiokafka's object and join, unless that has been done meanwhile."""
        async with self._opening:
            if self._consumer is not None:
                return
            consumer = AIOKafkaConsumer(
                **connection(self._options),
                group_id=self._group,
                group_instance_id=self._options.instance_id or None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                partition_assignment_strategy=(RangePartitionAssignor,),
                session_timeout_ms=self._options.session_timeout_ms,
                heartbeat_interval_ms=self._options.session_timeout_ms // 10,
                # Whether a worker gets on is watched by its lag; one that waits for a slow store keeps its place.
                max_poll_interval_ms=24 * 3600 * 1000,
                fetch_max_wait_ms=_FETCH_WAIT_MS,
            )
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
            consumer.subscribe(self._topics, listener=_Listener(consumer, self._reassign))

    async def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._forget(frozenset())
        if consumer is not None:
            await _stop_consumer(consumer)

    def _reassign(self, consumer: AIOKafkaConsumer, assigned: frozenset[TopicPartition]) -> None:
        if consumer is self._consumer:
            self._forget(assigned)

    def _forget(self, assigned: frozenset[TopicPartition]) -> None:
        """Begin a new generation, in which nothing has been sought yet."""
        self._generation += 1
        self._assigned = assigned
        self._sought.clear()
        self._lanes.clear()
        self._paused.clear()
        self._behind.clear()
        self._read_to.clear()
        self._next.clear()
        self._unsaid.clear()


def _records(place: TopicPartition, found: Iterable[ConsumerRecord], now_ms: int) -> list[Record]:
    """The hot loop: one object per record, and nothing looked up twice."""
    topic, partition = place
    records: list[Record] = []
    append = records.append
    for record in found:
        key, arrived_ms = record.key, record.timestamp
        # A topic that isn't ours may carry its producers' clocks: nothing arrives in the future or before time.
        if not 0 < arrived_ms <= now_ms:
            arrived_ms = now_ms
        text = key.decode("utf-8", "replace") if key else ""
        append(Record(topic, partition, str(record.offset), text, record.value or b"", arrived_ms))
    return records


async def _say_what_is_gone(consumer: AIOKafkaConsumer, sought: Mapping[TopicPartition, int]) -> None:
    """Log an error for each place whose log no longer holds, or never held, the offset that is to be read next."""
    if not sought:
        return
    try:
        async with asyncio.timeout(LOOK_WITHIN_S):
            first = await consumer.beginning_offsets(list(sought))
            end = await consumer.end_offsets(list(sought))
    except (KafkaError, ConsumerStoppedError, TimeoutError, OSError) as error:
        # Reading waits for the brokers, and not for this.
        logger.info("Kafka does not tell what it holds: %r", error)
        return
    for place, offset in sought.items():
        if offset < first[place]:
            said = "%s, partition %d: %d records are gone before they were read; reading goes on at offset %d"
            logger.error(said, place.topic, place.partition, first[place] - offset, first[place])
        elif offset > end[place]:
            said = (
                "%s, partition %d: the log has lost %d records that had been read already (its end is offset %d, and "
                "reading is to go on at %d); all that it holds is read again"
            )
            logger.error(said, place.topic, place.partition, offset - end[place], end[place], offset)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka comes without types
    def __init__(
        self, consumer: AIOKafkaConsumer, reassign: Callable[[AIOKafkaConsumer, frozenset[TopicPartition]], None]
    ) -> None:
        self._consumer = consumer
        self._reassign = reassign

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:  # noqa: ARG002  # aiokafka's signature
        self._reassign(self._consumer, frozenset())

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        places = frozenset(assigned)
        self._consumer.pause(*places)
        self._reassign(self._consumer, places)


def connection(options: KafkaOptions) -> dict[str, str | ssl.SSLContext | None]:
    encrypted = options.security_protocol in ("SSL", "SASL_SSL")
    return {
        "bootstrap_servers": options.bootstrap,
        "security_protocol": options.security_protocol,
        "sasl_mechanism": options.sasl_mechanism,
        "sasl_plain_username": options.sasl_username,
        "sasl_plain_password": options.sasl_password,
        "ssl_context": create_ssl_context(cafile=options.ssl_ca_file) if encrypted else None,
    }


async def _say_if_positions_stay(admin: AIOKafkaAdminClient) -> None:
    """Log a warning if the topic of the fixes keeps them for longer than positions should be kept."""
    names = ("cleanup.policy", "retention.ms", "segment.ms")
    resource = ConfigResource(ConfigResourceType.TOPIC, LOCATIONS, dict.fromkeys(names))
    try:
        async with asyncio.timeout(LOOK_WITHIN_S):
            (answer,) = await admin.describe_configs([resource])
    except (KafkaError, TimeoutError) as error:
        logger.warning("Kafka does not tell for how long %s keeps positions: %r", LOCATIONS, error)
        return
    (_, _, _, _, entries), *_ = answer.resources
    values = {name: value for name, value, *_ in entries}
    if not values.keys() >= set(names):
        logger.warning("Kafka does not tell for how long %s keeps positions", LOCATIONS)
        return
    retention_ms, segment_ms = int(values["retention.ms"]), int(values["segment.ms"])
    kept_ms = retention_ms + segment_ms + _BROKER_LOOKS_MS
    if values["cleanup.policy"] != "delete" or retention_ms < 0 or kept_ms > POSITIONS_KEPT_MS:
        logger.warning(
            "%s keeps positions for longer than 15 minutes (%s): set cleanup.policy=delete, %s",
            LOCATIONS,
            ", ".join(f"{name}={values[name]}" for name in names),
            ", ".join(f"{name}={value}" for name, value in _SHORT_LIVED.items()),
        )


async def partition_counts(admin: AIOKafkaAdminClient) -> dict[str, int]:
    return {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}


async def _stop_producer(producer: AIOKafkaProducer) -> None:
    """Flush and close; when the brokers are away, close without what could not be written."""
    stopping = asyncio.ensure_future(producer.stop())
    done, _ = await asyncio.wait({stopping}, timeout=STOP_WITHIN_S)
    if not done:
        # An idempotent producer tries for ever: nothing public ends its flush.
        producer._message_accumulator.fail_all(KafkaTimeoutError())  # noqa: SLF001
    with contextlib.suppress(KafkaError):
        await stopping


async def _stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leave the group and close; when the brokers don't answer, close without a goodbye."""
    stopping = asyncio.ensure_future(consumer.stop())
    done, _ = await asyncio.wait({stopping}, timeout=STOP_WITHIN_S)
    if not done:
        # Nothing public ends the wait for an answer that will not come.
        await consumer._client.close()  # noqa: SLF001
        await asyncio.wait({stopping}, timeout=STOP_WITHIN_S)
        stopping.cancel()
        await asyncio.wait({stopping})
    # aiokafka may let the cancellation of one of its own tasks out of `stop`, before it has closed its connections.
    error = asyncio.CancelledError() if stopping.cancelled() else stopping.exception()
    if error is not None:
        logger.warning("the Kafka consumer did not end well: %r", error)
        await consumer._client.close()  # noqa: SLF001


@contextlib.contextmanager
def as_unavailable(what: str) -> Iterator[None]:
    try:
        yield
    except (KafkaError, TimeoutError, OSError) as error:
        raise Unavailable(f"Kafka {what}: {error!r}") from error
