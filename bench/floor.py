"""The floor: what it costs to get the same records out of the log and decode them, and to do nothing with them.

    python -m bench.floor --events N --after FILE (--kafka host:port | --redis URL)

Bare aiokafka `getmany` (or one bare XREAD of all streams) and `nearcast.events.decode`; none of the server's code. The
file has the positions after which to read, as `Ends` in JSON. Writes a `Floor` as JSON.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from redis.asyncio import Redis

from bench.engine_worker import write
from bench.processes import PARTITIONS, Ends, Place
from nearcast import keys, topics
from nearcast.events import decode
from server.settings import Settings

_BATCH = int(Settings.model_fields["batch_events"].default)


class Floor(msgspec.Struct):
    events: int
    seconds: float
    cpu_s: float


async def kafka(bootstrap: str, events: int, after: dict[Place, str]) -> Floor:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    places = [TopicPartition(topic, number) for topic in topics.CUSTOMER_TOPICS for number in range(PARTITIONS)]
    consumer.assign(places)
    for place in places:
        consumer.seek(place, int(after.get((place.topic, place.partition), -1)) + 1)
    seen, started, cpu_s = 0, time.perf_counter(), time.process_time()
    while seen < events:
        for records in (await consumer.getmany(timeout_ms=250, max_records=_BATCH)).values():
            for record in records:
                decode(record.topic, record.value, position="", arrived_ms=record.timestamp)
            seen += len(records)
    floor = Floor(seen, time.perf_counter() - started, time.process_time() - cpu_s)
    await consumer.stop()
    return floor


async def streams(url: str, events: int, after: dict[Place, str]) -> Floor:
    redis = Redis.from_url(url)
    reached: Any = {
        keys.log_stream(topic, number): after.get((topic, number), "0-0")
        for topic in topics.CUSTOMER_TOPICS
        for number in range(PARTITIONS)
    }
    topic_of = {
        keys.log_stream(topic, number): topic for topic in topics.CUSTOMER_TOPICS for number in range(PARTITIONS)
    }
    seen, started, cpu_s = 0, time.perf_counter(), time.process_time()
    while seen < events:
        answer: Any = await redis.xread(reached, count=_BATCH // PARTITIONS, block=250)
        for name, entries in answer:
            stream = name.decode()
            for entry_id, fields in entries:
                decode(topic_of[stream], fields[b"v"], position="", arrived_ms=int(entry_id.partition(b"-")[0]))
            reached[stream] = entries[-1][0]
            seen += len(entries)
    floor = Floor(seen, time.perf_counter() - started, time.process_time() - cpu_s)
    await redis.aclose()
    return floor


async def work(arguments: argparse.Namespace) -> None:
    ends = msgspec.json.decode(arguments.after.read_bytes(), type=list[Ends])
    after = {(end.topic, end.partition): end.position for end in ends}
    write(
        await kafka(arguments.kafka, arguments.events, after)
        if arguments.kafka
        else await streams(arguments.redis, arguments.events, after)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--after", type=Path, required=True)
    parser.add_argument("--kafka")
    parser.add_argument("--redis")
    asyncio.run(work(parser.parse_args()))
