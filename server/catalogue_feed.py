"""Catalogue topics into the world: changes of stores, fences, products, promotions and stock as streams.

Each record is one thing as JSON, keyed by its id; an empty value removes it. A fence may also be a GeoJSON Feature. A
record that can't be used becomes a dead letter of its partition; the ones around it are applied. Changes with the same
key are applied in their order, and applying one twice is harmless: first the world is changed, then the positions and
dead letters are written.

Taking a partition over raises its epoch, and both steps ask for it. The second does so in the script that writes. The
first does so between reading the world's version and writing on condition of that version, so a worker that was
stopped anywhere in between can't put an old item over a newer one: either the new owner has changed the world, and the
write is refused, or it has not, and will read these same changes again. Stock has no version. It is asked for just
before the write, so a worker that is stopped in the instant between can still put an old quantity over a newer one; it
stays until that product's stock is reported again.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence

import msgspec
from redis.asyncio import Redis
from redis.typing import EncodableT

from geofence.geojson import fence_from_feature
from nearcast import keys, metrics, topics
from nearcast.errors import DeadLettersFull, Fenced, InputError, Unavailable
from nearcast.world import Fence, Product, Promotion, Stock, Store
from offers.wording import explained
from offers.worldfile import WorldFile
from server.log.base import LogConsumer, Record
from server.state import MAX_DEAD_LETTERS, DeadLetter, too_many_dead_letters
from server.store import reaching_store, text
from server.world import Kind, Place, WorldStore

logger = logging.getLogger("nearcast.server.catalogue")

_BATCH = 500
_WAIT_MS = 500
_BACKOFF_S = 0.5
_MALFORMED = "malformed_catalogue_change"
Item = Store | Fence | Product | Promotion | Stock
#: A record and what it says: a thing as it is now, or None where it is gone.
Change = tuple[Record, Item | None]
_TYPE: dict[str, type[Item]] = {
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

# KEYS: epoch, offsets, dead letters. ARGV: the worker's epoch, how many dead letters there may be, how many topics have
# a new position; topics and positions in turn; the fields of the dead letters, seven each. 0 if another worker took
# over, -1 if there would be too many dead letters.
_COMMIT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
local letters = 4 + 2 * tonumber(ARGV[3])
if #ARGV >= letters and redis.call('XLEN', KEYS[3]) + (#ARGV - letters + 1) / 7 > tonumber(ARGV[2]) then
  return -1
end
for i = 4, letters - 1, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
for i = letters, #ARGV, 7 do
  redis.call('XADD', KEYS[3], '*', 'reason', ARGV[i], 'detail', ARGV[i + 1], 'topic', ARGV[i + 2],
    'position', ARGV[i + 3], 'key', ARGV[i + 4], 'arrived_ms', ARGV[i + 5], 'value', ARGV[i + 6])
end
return 1
"""


class _Typed(msgspec.Struct):
    """What tells GeoJSON from a fence in nearcast's own form, which has no `type`."""

    type: object = None


class CatalogueFeed:
    """Reads the catalogue topics and changes the world, until cancelled."""

    def __init__(
        self, consumer: LogConsumer, world: WorldStore, redis: Redis, max_dead_letters: int = MAX_DEAD_LETTERS
    ) -> None:
        self._max_dead_letters = max_dead_letters
        self._consumer = consumer
        self._world = world
        self._redis = redis
        self._commit = redis.register_script(_COMMIT)
        self._generation: int | None = None
        self._epochs: dict[int, int] = {}

    async def run(self) -> None:
        while True:
            try:
                await self._follow_assignment()
                records = await self._consumer.fetch(_BATCH, _WAIT_MS)
                if records:
                    await self.process(records)
            except (Unavailable, Fenced) as error:
                logger.warning("catalogue changes start over from the stored positions: %s", error)
                self._generation = None
                await asyncio.sleep(_BACKOFF_S)

    async def process(self, records: Sequence[Record]) -> None:
        """Apply records of owned partitions in order, then remember how far we are. Raises `Fenced`."""
        letters: dict[int, list[DeadLetter]] = {}
        offsets: dict[int, dict[str, str]] = {}
        waiting: list[Change] = []
        changing: set[Place] = set()
        for record in records:
            if record.partition not in self._epochs:
                continue
            offsets.setdefault(record.partition, {})[record.topic] = record.position
            try:
                item = _decode(record)
            except InputError as error:
                letters.setdefault(record.partition, []).append(_dead_letter(record, error))
                continue
            # Several changes of one thing are made one after the other, so that none hides another's faults.
            if not isinstance(item, Stock):
                place = _place(record, item)
                if place in changing:
                    await self._apply(waiting, letters)
                    waiting, changing = [], set()
                changing.add(place)
            waiting.append((record, item))
        await self._apply(waiting, letters)
        for partition, after in offsets.items():
            await self._remember(partition, after, letters.get(partition, []))
            await self._consumer.progress(partition, after)

    async def _apply(self, changes: Sequence[Change], letters: dict[int, list[DeadLetter]]) -> None:
        """Make changes, all in one new version of the world; if one of them is bad, by halves to find it."""
        if not changes:
            return
        partitions = {record.partition for record, _ in changes}
        items = _world_file(item for _, item in changes if item is not None)
        gone = [_place(record, None) for record, item in changes if item is None]
        try:
            await self._world.apply(items, gone, lambda: self._check_epochs(partitions))
        except InputError as error:
            if len(changes) == 1:
                ((record, _),) = changes
                letters.setdefault(record.partition, []).append(_dead_letter(record, error))
                return
            middle = len(changes) // 2
            await self._apply(changes[:middle], letters)
            await self._apply(changes[middle:], letters)

    async def _check_epochs(self, partitions: Collection[int]) -> None:
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for partition in partitions:
                    pipe.get(keys.catalogue_epoch(partition))
                epochs = await pipe.execute()
        for partition, epoch in zip(partitions, epochs, strict=True):
            if int(epoch or 0) != self._epochs[partition]:
                raise Fenced(f"another worker has taken partition {partition} of the catalogue over")

    async def _remember(self, partition: int, after: dict[str, str], letters: Sequence[DeadLetter]) -> None:
        """Write positions and dead letters together, if the partition is still ours."""
        args: list[EncodableT] = [self._epochs[partition], self._max_dead_letters, len(after)]
        args += [part for place in after.items() for part in place]
        args += [part for letter in letters for part in letter]
        names = [keys.catalogue_epoch(partition), keys.catalogue_offsets(partition), keys.dead_letters(partition)]
        with reaching_store():
            written = await self._commit(keys=names, args=args)
        if written == -1:
            raise DeadLettersFull(too_many_dead_letters(partition, self._max_dead_letters))
        if not written:
            raise Fenced(f"another worker has taken partition {partition} of the catalogue over")
        for letter in letters:
            logger.warning("a catalogue change was refused: %s on %s", letter.reason, letter.topic)
            metrics.DEAD_LETTERS.labels(letter.reason).inc()

    async def _follow_assignment(self) -> None:
        """After a rebalance, take what is ours now: fence the owners before us, read on from the stored positions."""
        generation, partitions = self._consumer.assignment()
        if generation == self._generation:
            return
        self._epochs.clear()
        for partition in sorted(partitions):
            with reaching_store():
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.incr(keys.catalogue_epoch(partition))
                    pipe.hgetall(keys.catalogue_offsets(partition))
                    epoch, offsets = await pipe.execute()
            after = {text(topic): text(position) for topic, position in offsets.items()}
            await self._consumer.seek(partition, after)
            self._epochs[partition] = epoch
        self._generation = generation


def _decode(record: Record) -> Item | None:
    if not record.value:
        if record.topic not in _KIND:
            raise InputError(_MALFORMED, "stock can't be removed, only set to 0")
        return None
    try:
        if record.topic == topics.FENCES and msgspec.json.decode(record.value, type=_Typed).type == "Feature":
            return fence_from_feature(record.value)
        return msgspec.json.decode(record.value, type=_TYPE[record.topic])
    except msgspec.ValidationError as error:
        where, detail = explained(str(error), _TYPE[record.topic])
        raise InputError(_MALFORMED, detail, where) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(_MALFORMED, str(error)) from None


def _place(record: Record, item: Store | Fence | Product | Promotion | None) -> Place:
    if item is None:
        return _KIND[record.topic], record.key
    return _KIND[record.topic], item.sku if isinstance(item, Product) else item.id


def _dead_letter(record: Record, error: InputError) -> DeadLetter:
    return DeadLetter(
        error.reason, str(error)[:1_000], record.topic, record.position, record.key, record.arrived_ms, record.value
    )


def _world_file(items: Iterable[Item]) -> WorldFile:
    listed = list(items)
    return WorldFile(
        stores=[item for item in listed if isinstance(item, Store)],
        fences=[item for item in listed if isinstance(item, Fence)],
        products=[item for item in listed if isinstance(item, Product)],
        promotions=[item for item in listed if isinstance(item, Promotion)],
        stock=[item for item in listed if isinstance(item, Stock)],
    )
