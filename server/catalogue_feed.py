"""Catalogue topics into the world: changes of stores, fences, products, promotions and stock as streams.

Each record is one thing as JSON, keyed by its id; an empty value removes it. A record that can't be used becomes a
dead letter of its partition; the ones after it go on. Applying a change twice is harmless, so the position is kept by a
plain write after the change.
"""

import asyncio
import logging
from collections.abc import Sequence

import msgspec
from redis.asyncio import Redis
from redis.typing import EncodableT, FieldT

from nearcast import keys, metrics, topics
from nearcast.errors import InputError, Unavailable
from nearcast.world import Fence, Product, Promotion, Stock, Store
from offers.worldfile import WorldFile
from server.log.base import LogConsumer, Record
from server.store import reaching_store, text
from server.world import Kind, WorldStore

logger = logging.getLogger("nearcast.server.catalogue")

_BATCH = 500
_WAIT_MS = 500
_BACKOFF_S = 0.5
_KEPT_DEAD_LETTERS = 10_000
Change = Store | Fence | Product | Promotion | Stock
_TYPE: dict[str, type[Change]] = {
    topics.STORES: Store,
    topics.FENCES: Fence,
    topics.PRODUCTS: Product,
    topics.PROMOTIONS: Promotion,
    topics.STOCK: Stock,
}
_KIND: dict[str, Kind] = {
    topics.STORES: "store",
    topics.FENCES: "fence",
    topics.PRODUCTS: "product",
    topics.PROMOTIONS: "promotion",
}


class CatalogueFeed:
    """Reads the catalogue topics and changes the world, until cancelled."""

    def __init__(self, consumer: LogConsumer, world: WorldStore, redis: Redis) -> None:
        self._consumer = consumer
        self._world = world
        self._redis = redis
        self._generation: int | None = None

    async def run(self) -> None:
        while True:
            try:
                await self._follow_assignment()
                records = await self._consumer.fetch(_BATCH, _WAIT_MS)
                if records:
                    await self.process(records)
            except Unavailable as error:
                logger.warning("catalogue changes wait: %s", error)
                self._generation = None
                await asyncio.sleep(_BACKOFF_S)

    async def process(self, records: Sequence[Record]) -> None:
        """Apply records in order, then remember how far we are."""
        waiting: list[tuple[Record, Change]] = []
        offsets: dict[int, dict[str, str]] = {}
        for record in records:
            offsets.setdefault(record.partition, {})[record.topic] = record.position
            try:
                if record.value:
                    waiting.append((record, _decode(record)))
                    continue
                await self._put(waiting)
                waiting = []
                await self._world.remove(_kind(record), record.key, dangling=True)
            except InputError as error:
                await self._bury(record, error)
        await self._put(waiting)
        with reaching_store():
            for partition, after in offsets.items():
                fields: dict[FieldT, EncodableT] = dict(after.items())
                await self._redis.hset(keys.catalogue_offsets(partition), mapping=fields)
        for partition, after in offsets.items():
            await self._consumer.progress(partition, after)

    async def _put(self, changes: Sequence[tuple[Record, Change]]) -> None:
        """Put changes, all in one new version of the world; if one of them is bad, by halves to find it."""
        if not changes:
            return
        try:
            await self._world.put(_world_file([change for _, change in changes]), dangling=True)
        except InputError as error:
            if len(changes) == 1:
                await self._bury(changes[0][0], error)
                return
            middle = len(changes) // 2
            await self._put(changes[:middle])
            await self._put(changes[middle:])

    async def _bury(self, record: Record, error: InputError) -> None:
        logger.warning("a catalogue change was refused: %s on %s", error.reason, record.topic)
        metrics.DEAD_LETTERS.labels(error.reason).inc()
        letter: dict[FieldT, EncodableT] = {
            "reason": error.reason,
            "detail": error.detail[:1_000],
            "topic": record.topic,
            "position": record.position,
            "key": record.key,
            "value": record.value,
        }
        with reaching_store():
            await self._redis.xadd(keys.dead_letters(record.partition), letter, maxlen=_KEPT_DEAD_LETTERS)

    async def _follow_assignment(self) -> None:
        generation, partitions = self._consumer.assignment()
        if generation == self._generation:
            return
        for partition in sorted(partitions):
            with reaching_store():
                offsets = await self._redis.hgetall(keys.catalogue_offsets(partition))
            after = {text(topic): text(position) for topic, position in offsets.items()}
            await self._consumer.seek(partition, after)
        self._generation = generation


def _decode(record: Record) -> Change:
    try:
        return msgspec.json.decode(record.value, type=_TYPE[record.topic])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("malformed_catalogue_change", str(error), record.topic) from None


def _world_file(changes: Sequence[Change]) -> WorldFile:
    return WorldFile(
        stores=[change for change in changes if isinstance(change, Store)],
        fences=[change for change in changes if isinstance(change, Fence)],
        products=[change for change in changes if isinstance(change, Product)],
        promotions=[change for change in changes if isinstance(change, Promotion)],
        stock=[change for change in changes if isinstance(change, Stock)],
    )


def _kind(record: Record) -> Kind:
    kind = _KIND.get(record.topic)
    if kind is None:
        raise InputError("malformed_catalogue_change", "stock can't be removed, only set to 0", record.topic)
    return kind
