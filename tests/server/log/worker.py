"""A worker in a process of its own, so that a test can kill it: reads all it is assigned, and says what it got.

Each line that it writes is a JSON object: `{"generation": 3, "owned": [0, 2]}` when partitions were dealt out,
`{"generation": 3, "batch": [[topic, partition, position, value], ...]}` for a fetch. After each deal it reads its
partitions from the start. SIGTERM ends it politely.
"""

import asyncio
import os
import signal
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from nearcast.errors import Unavailable
from server.log.base import EventLog
from server.log.kafka import KafkaLog, KafkaOptions
from server.log.streams import StreamsLog

MAX_RECORDS = 7


class Order(msgspec.Struct):
    """What to read. One of `kafka` and `valkey_url` says where the log is."""

    group: str
    topics: list[str]
    partitions: int
    kafka: KafkaOptions | None = None
    valkey_url: str = ""
    session_timeout_ms: int = 3_000
    instance_id: str = ""

    def make_log(self) -> EventLog:
        if self.kafka is None:
            return StreamsLog(
                self.valkey_url,
                self.partitions,
                session_timeout_ms=self.session_timeout_ms,
                instance_id=self.instance_id,
            )
        options = msgspec.structs.replace(
            self.kafka, session_timeout_ms=self.session_timeout_ms, instance_id=self.instance_id
        )
        return KafkaLog(options, self.partitions, self.topics, ())


def run(order: bytes, output: Connection) -> None:
    """The whole life of a worker process. `order` is an `Order` as JSON."""
    with output:
        asyncio.run(_work(msgspec.json.decode(order, type=Order), output.fileno()))


async def _work(order: Order, output: int) -> None:
    def say(**message: Any) -> None:
        line = msgspec.json.encode(message) + b"\n"
        while line:
            line = line[os.write(output, line) :]

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    consumer = order.make_log().consumer(order.group, order.topics)
    await consumer.start()
    known = -1
    while not stop.is_set():
        generation, partitions = consumer.assignment()
        if generation != known:
            for partition in partitions:
                await consumer.seek(partition, {})
            known = generation
            say(generation=generation, owned=sorted(partitions))
        try:
            records = await consumer.fetch(MAX_RECORDS, 50)
        except Unavailable:
            continue
        if records:
            batch = [(each.topic, each.partition, each.position, each.value.decode()) for each in records]
            say(generation=consumer.assignment()[0], batch=batch)
    await consumer.stop()
