"""How much work waits, as gauges: records before the engine, entries before the dispatcher."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from redis.asyncio import Redis

from nearcast import keys, metrics, topics
from nearcast.errors import Unavailable
from server.log.base import LogConsumer
from server.store import reaching_store

logger = logging.getLogger("nearcast.server.backlog")

_EVERY_S = 5.0


async def watch_backlog(consumer: LogConsumer, redis: Redis, owned: Callable[[], frozenset[int]]) -> None:
    """Keep the gauges up to date, for ever."""
    while True:
        try:
            lag = Counter(dict.fromkeys(topics.CUSTOMER_TOPICS, 0))
            for (topic, _), records in (await consumer.lag()).items():
                lag[topic] += records
            for topic, records in lag.items():
                metrics.LAG.labels(topic).set(records)
            with reaching_store():
                metrics.OUTBOX.set(sum([await redis.xlen(keys.outbox(partition)) for partition in owned()]))
        except Unavailable as error:
            logger.warning("the backlog is unknown for now: %s", error)
        await asyncio.sleep(_EVERY_S)
