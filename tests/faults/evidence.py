"""What can be seen from outside: the log's topics, the store, and what the SMS provider holds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from redis.asyncio import Redis

from channels.delivery import Delivery
from nearcast import keys
from nearcast.ids import CustomerId
from nearcast.topics import CUSTOMER_TOPICS
from server.log.base import Record
from server.store import text
from tests import oracle
from tests.channels.sms_provider import SmsProvider
from tests.faults.traffic import PARTITIONS
from tests.server.rig import Committed, committed

#: A topic and partition → the offset after its last record.
Ends = Mapping[tuple[str, int], int]


@dataclass(frozen=True)
class Evidence:
    """Gathered once everything is quiet."""

    records: Sequence[Record]
    ends: Ends
    #: Partition → topic → position, as the store has it.
    offsets: Mapping[int, Mapping[str, str]]
    committed: Committed
    timers: Mapping[tuple[CustomerId, str], int]
    #: Entries that were ever added to the outbox, and entries still there, by partition.
    outbox_added: Mapping[int, int]
    outbox_left: Mapping[int, int]
    #: Message id → how far its delivery got, for as long as that is kept.
    deliveries: Mapping[str, Delivery]
    #: Idempotency key → the form, of every SMS that the provider holds.
    texts: Mapping[str, Mapping[str, str]]
    #: How often the provider was asked, by key.
    requests: Mapping[str, int]


class LogReader:
    """Reads the topics with no part in any group. Close it."""

    def __init__(self, bootstrap: str) -> None:
        self._consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
        self._places = [TopicPartition(topic, number) for topic in CUSTOMER_TOPICS for number in range(PARTITIONS)]

    async def start(self) -> None:
        await self._consumer.start()
        self._consumer.assign(self._places)

    async def close(self) -> None:
        await self._consumer.stop()

    async def ends(self) -> Ends:
        found = await self._consumer.end_offsets(self._places)
        return {(place.topic, place.partition): end for place, end in found.items()}

    async def everything(self) -> list[Record]:
        """All records of the customer topics, in order per topic and partition."""
        await self._consumer.seek_to_beginning(*self._places)
        missing = {place for place in self._places if (await self.ends())[place.topic, place.partition]}
        ends = await self.ends()
        records = []
        while missing:
            for place, found in (await self._consumer.getmany(timeout_ms=200, max_records=5_000)).items():
                records += [
                    Record(place.topic, place.partition, str(r.offset), (r.key or b"").decode(), r.value, r.timestamp)
                    for r in found
                ]
                if found and found[-1].offset + 1 >= ends[place.topic, place.partition]:
                    missing.discard(place)
        return records


async def stored_offsets(redis: Redis) -> dict[int, dict[str, str]]:
    found = {}
    for partition in range(PARTITIONS):
        rows = await redis.hgetall(keys.offsets(partition))
        found[partition] = {text(topic): text(position) for topic, position in rows.items()}
    return found


async def gather(redis: Redis, log: LogReader, provider: SmsProvider) -> Evidence:
    added, left = {}, {}
    deliveries: dict[str, Delivery] = {}
    for partition in range(PARTITIONS):
        stream = keys.outbox(partition)
        if await redis.exists(stream):
            facts = await redis.xinfo_stream(stream)
            added[partition], left[partition] = facts["entries-added"], facts["length"]
        else:
            added[partition] = left[partition] = 0
        prefix = keys.delivery(partition, "")
        names = [text(name) async for name in redis.scan_iter(match=f"{prefix}*", count=1_000)]
        for name, data in zip(names, await redis.mget(names) if names else [], strict=True):
            if data is not None:
                deliveries[name.removeprefix(prefix)] = msgspec.json.decode(data, type=Delivery)
    return Evidence(
        records=await log.everything(),
        ends=await log.ends(),
        offsets=await stored_offsets(redis),
        committed=await committed(redis),
        timers=await oracle.stored_timers(redis, PARTITIONS),
        outbox_added=added,
        outbox_left=left,
        deliveries=deliveries,
        texts=dict(provider.held),
        requests=Counter(provider.keys),
    )
