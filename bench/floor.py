"""The floor: what it costs to get the same records out of the log and decode them, and to do nothing with them.

    python -m bench.floor --after FILE (--events N | --times FILE) (--kafka host:port | --redis URL)

Bare aiokafka `getmany` (or one bare XREAD of all streams) and `nearcast.events.decode`; none of the server's code. The
file has the positions after which to read, as `Ends` in JSON. Writes `Ready` when it reads, and a `Floor` at the end,
as JSON: when it has read so many events, or with `--times` everything up to the ends of an `Order` in its input. Then
it has written to the file when it had read what, as a JSON list of `Commit`s.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from redis.asyncio import Redis

from bench.processes import PARTITIONS, Commit, Ends, Order, Place, Ready, write
from nearcast import keys, topics
from nearcast.events import decode
from server.settings import Settings

_BATCH = int(Settings.model_fields["batch_events"].default)


class Floor(msgspec.Struct):
    events: int
    seconds: float
    cpu_s: float


class Reading:
    """What was read when, and whether that was all."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.seen = 0
        self.times: list[Commit] = []
        self._reached: dict[Place, str] = {}
        self._ends: list[Ends] | None = None

    @property
    def goes_on(self) -> bool:
        if self.events:
            return self.seen < self.events
        return self._ends is None or any(self._reached.get((e.topic, e.partition)) != e.position for e in self._ends)

    def note(self, topic: str, partition: int, records: int, position: str) -> None:
        self.seen += records
        if not self.events:
            self._reached[topic, partition] = position
            self.times.append(Commit(time.monotonic_ns(), partition, {topic: position}))

    async def follow_orders(self) -> None:
        self._ends = msgspec.json.decode(await asyncio.to_thread(sys.stdin.readline), type=Order).ends


async def kafka(bootstrap: str, after: dict[Place, str], reading: Reading) -> Floor:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    places = [TopicPartition(topic, number) for topic in topics.CUSTOMER_TOPICS for number in range(PARTITIONS)]
    consumer.assign(places)
    for place in places:
        consumer.seek(place, int(after.get((place.topic, place.partition), -1)) + 1)
    write(Ready([], 0))
    started, cpu_s = time.perf_counter(), time.process_time()
    while reading.goes_on:
        for place, records in (await consumer.getmany(timeout_ms=250, max_records=_BATCH)).items():
            for record in records:
                decode(record.topic, record.value, position="", arrived_ms=record.timestamp)
            reading.note(place.topic, place.partition, len(records), str(records[-1].offset))
    floor = Floor(reading.seen, time.perf_counter() - started, time.process_time() - cpu_s)
    await consumer.stop()
    return floor


async def streams(url: str, after: dict[Place, str], reading: Reading) -> Floor:
    redis = Redis.from_url(url)
    reached: Any = {
        keys.log_stream(topic, number): after.get((topic, number), "0-0")
        for topic in topics.CUSTOMER_TOPICS
        for number in range(PARTITIONS)
    }
    place_of = {
        keys.log_stream(topic, number): (topic, number)
        for topic in topics.CUSTOMER_TOPICS
        for number in range(PARTITIONS)
    }
    await redis.ping()
    write(Ready([], 0))
    started, cpu_s = time.perf_counter(), time.process_time()
    while reading.goes_on:
        answer: Any = await redis.xread(reached, count=_BATCH // PARTITIONS, block=250)
        for name, entries in answer:
            stream = name.decode()
            topic, partition = place_of[stream]
            for entry_id, fields in entries:
                decode(topic, fields[b"v"], position="", arrived_ms=int(entry_id.partition(b"-")[0]))
            reached[stream] = entries[-1][0]
            reading.note(topic, partition, len(entries), entries[-1][0].decode())
    floor = Floor(reading.seen, time.perf_counter() - started, time.process_time() - cpu_s)
    await redis.aclose()
    return floor


async def work(arguments: argparse.Namespace) -> None:
    ends = msgspec.json.decode(arguments.after.read_bytes(), type=list[Ends])
    after = {(end.topic, end.partition): end.position for end in ends}
    reading = Reading(arguments.events)
    orders = asyncio.create_task(reading.follow_orders()) if arguments.times else None
    floor = (
        await kafka(arguments.kafka, after, reading)
        if arguments.kafka
        else await streams(arguments.redis, after, reading)
    )
    if orders is not None:
        await orders
        arguments.times.write_bytes(msgspec.json.encode(reading.times))
    write(floor)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=0)
    parser.add_argument("--after", type=Path, required=True)
    parser.add_argument("--times", type=Path)
    parser.add_argument("--kafka")
    parser.add_argument("--redis")
    asyncio.run(work(parser.parse_args()))
