"""The world: stores, fences, products and promotions as one immutable snapshot, and the live stock beside it.

The store holds each item under its id and a version that rises with every change. Every process polls the version
and swaps in a whole new snapshot; nobody ever sees half a change. Files, the admin API and the catalogue topics all
come through `WorldStore`, so there is one validator. A change is checked against the version it was made from, and
written only if that is still the newest; otherwise it is checked again. So what is stored can be built, whoever else
writes; where it can't all the same (another release wrote it, or a hand), the last good snapshot stays in use,
`problem` says why, and changes are still taken, since one of them may be the repair.

Stock changes far more often than the world does: it has no version, and is read when it is needed.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import WatchError
from redis.typing import EncodableT, FieldT

from channels.templates import check_words
from geofence.displays import display_fences
from geofence.index import FenceIndex
from nearcast import keys, metrics
from nearcast.errors import Conflict, InputError, NotFound, Unavailable
from nearcast.hours import Timetable, zone_named
from nearcast.ids import FenceId, Sku, StoreId
from nearcast.world import Fence, Product, Promotion, Stock, Store
from offers.catalogue import Catalogue
from offers.worldfile import WorldFile, check_references
from server.store import raw, reaching_store, text

logger = logging.getLogger("nearcast.server.world")

Kind = Literal["store", "fence", "product", "promotion"]
#: An item's place in the world.
Place = tuple[Kind, str]
#: Raises when its caller may no longer write.
Guard = Callable[[], Awaitable[None]]
_TYPES: dict[Kind, type[Any]] = {"store": Store, "fence": Fence, "product": Product, "promotion": Promotion}
_Rows = Mapping[Kind, Mapping[str, Any]]
_POLL_S = 0.25
#: Other processes that change the world at the same time make us check again; so often, then the caller waits.
_TRIES = 20
_NAMED_PROBLEMS = 20


class World(msgspec.Struct, frozen=True):
    """One version of the world, ready to match and decide with."""

    version: int
    catalogue: Catalogue
    fences: FenceIndex
    #: As described by the retailer, without stock and the fences made from display positions.
    items: WorldFile
    #: By SKU, the products with displays, and the fences made of them.
    displays: Mapping[str, tuple[Product, list[Fence]]]


class _Stored(NamedTuple):
    """What the store holds, whether or not a world can be built from it."""

    version: int
    #: As it stands there, by kind; and decoded.
    encoded: Mapping[Kind, Mapping[bytes, bytes]]
    rows: _Rows
    #: Why those items can't be read that can't.
    unreadable: Mapping[Place, str]


def build(version: int, items: WorldFile, previous: World | None = None) -> World:
    """Compile a snapshot; what it shares with the `previous` one is not computed again.

    Raises `InputError` for a fence whose geometry can't be used.
    """
    displays = _displays_of(items.products, previous.displays if previous else {})
    fences = FenceIndex.build(
        [*items.fences, *(fence for _, made in displays.values() for fence in made)],
        previous.fences if previous else None,
        {store.store_id: zone_named(store.time_zone) for store in items.stores},
        {store.store_id: store.special_days for store in items.stores if store.special_days},
    )
    catalogue = Catalogue.build(items.stores, items.products, items.promotions, _hours_of(fences))
    return World(version, catalogue, fences, items, displays)


def _displays_of(
    products: Iterable[Product], known: Mapping[str, tuple[Product, list[Fence]]]
) -> dict[str, tuple[Product, list[Fence]]]:
    """The index is quick with fences that are the same objects as before: they are made once for each product."""
    found = {}
    for product in products:
        if product.displays:
            before = known.get(product.sku)
            same = before is not None and (before[0] is product or before[0] == product)
            found[product.sku] = before if before is not None and same else (product, display_fences(product))
    return found


def _hours_of(fences: FenceIndex) -> dict[FenceId, Timetable]:
    """The hours and special days of all fences that have some, their own or of a fence around them."""

    def has_some(fence: Fence) -> bool:
        return fence.hours is not None or fence.special_days is not None

    if not any(map(has_some, fences.fences)):
        return {}
    found: dict[FenceId, Timetable] = {}
    for fence in fences.fences:
        if has_some(fence) or any(map(has_some, fences.ancestors(fence.fence_id))):
            rules = fences.rules[fence.fence_id]
            found[fence.fence_id] = Timetable(rules.hours, rules.special_days, rules.narrowed_by)
    return found


async def _unguarded() -> None: ...


class WorldStore:
    """The current snapshot, and the one way to change it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._current = build(0, WorldFile())
        self._stored = _Stored(0, {kind: {} for kind in _TYPES}, {kind: {} for kind in _TYPES}, {})
        self._problem: str | None = None
        #: Held by whoever replaces the snapshot, so that it never goes back to an older one.
        self._turn = asyncio.Lock()

    @property
    def current(self) -> World:
        return self._current

    @property
    def problem(self) -> str | None:
        """Why the stored world can't be used; then `current` is the last one that could (at first an empty one)."""
        return self._problem

    async def put(self, items: WorldFile) -> int:
        """Add or replace items; returns the version of the world that has them.

        All or nothing, but for the stock, which follows. Raises `InputError` for a reference that leads nowhere and
        did not before, and for geometry or words that can't be used.
        """

        def check(before: WorldFile, after: WorldFile) -> None:
            if problems := _new_problems(before, after):
                raise InputError("unknown_reference", "; ".join(problems[:_NAMED_PROBLEMS]))

        return await self._change(items, (), check, _unguarded)

    async def remove(self, kind: Kind, item_id: str) -> int:
        """Take an item out of the world; returns the new version. Raises `NotFound`, or `Conflict` if it is needed."""

        def check(before: WorldFile, after: WorldFile) -> None:
            if item_id not in self._stored.rows[kind] and (kind, item_id) not in self._stored.unreadable:
                raise NotFound("unknown_item", f"there is no {kind} {item_id!r}")
            if problems := _new_problems(before, after):
                raise Conflict("still_referenced", f"{kind} {item_id!r} is still needed: {'; '.join(problems[:5])}")

        return await self._change(WorldFile(), [(kind, item_id)], check, _unguarded)

    async def apply(self, items: WorldFile, gone: Collection[Place], guard: Guard = _unguarded) -> int:
        """Put and remove as the catalogue topics say; returns the version of the world that has it so.

        Topics promise no order between them, so references may lead nowhere yet, and what is to go may be gone. Raises
        `InputError` for geometry or words that can't be used.

        `guard` is asked after the world's version was read and before anything is written: when it passes, nobody who
        could have made it raise has changed the world before this change. For stock it is asked just before.
        """
        return await self._change(items, gone, lambda *_: None, guard)

    async def stock(self, wanted: Iterable[tuple[StoreId, Sku]]) -> Mapping[tuple[StoreId, Sku], int]:
        """Pieces in stock of each (store, SKU); a pair that nobody ever reported is missing. One round trip."""
        pairs = list(dict.fromkeys(wanted))
        if not pairs:
            return {}
        by_store: dict[StoreId, list[Sku]] = {}
        for store, sku in pairs:
            by_store.setdefault(store, []).append(sku)
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for store, skus in by_store.items():
                    pipe.hmget(keys.stock(store), skus)
                answers = await pipe.execute()
        return {
            (store, sku): int(quantity)
            for (store, skus), found in zip(by_store.items(), answers, strict=True)
            for sku, quantity in zip(skus, found, strict=True)
            if quantity is not None
        }

    async def refresh(self) -> None:
        """Swap in the newest version, if there is one and it can be used; else `problem` says why not."""
        async with self._turn:
            await self._refresh()

    async def run(self) -> None:
        """Follow changes made by other processes, for ever."""
        while True:
            try:
                await self.refresh()
            except Unavailable as error:
                logger.warning("keeping world version %d: %s", self._current.version, error)
            await asyncio.sleep(_POLL_S)

    async def _change(
        self, items: WorldFile, gone: Collection[Place], check: Callable[[WorldFile, WorldFile], None], guard: Guard
    ) -> int:
        items = await asyncio.to_thread(_checked_words, items)
        async with self._turn:
            if gone or any(_rows(items).values()):
                await self._change_items(items, gone, check, guard)
            elif items.stock:
                await self._refresh()
                before = _named_by(items.stock, self._stored.rows)
                check(before, msgspec.structs.replace(before, stock=items.stock))
            if items.stock:
                await guard()
                await self._write_stock(items.stock)
            return self._stored.version

    async def _change_items(
        self, items: WorldFile, gone: Collection[Place], check: Callable[[WorldFile, WorldFile], None], guard: Guard
    ) -> None:
        for _ in range(_TRIES):
            await self._refresh()
            rows, world = await asyncio.to_thread(self._prepare, items, gone, check)
            if await self._write_items(items, gone, guard):
                if world is None or self._problem is not None:
                    await self._refresh()
                else:
                    encoded = _changed_bytes(self._stored.encoded, items, gone)
                    self._stored = _Stored(world.version, encoded, rows, {})
                    self._use(world)
                return
        raise Unavailable("others keep changing the world")

    def _prepare(
        self, items: WorldFile, gone: Collection[Place], check: Callable[[WorldFile, WorldFile], None]
    ) -> tuple[_Rows, World | None]:
        """The stored world with the change made, checked; no snapshot if others' items stand in its way."""
        rows = _changed(self._stored.rows, items, gone)
        after = _world_file(rows)
        check(_world_file(self._stored.rows), msgspec.structs.replace(after, stock=items.stock))
        try:
            return rows, build(self._stored.version + 1, after, self._current)
        except InputError:
            if self._problem is None:
                raise
        # It could not be built before either. What can be asked for is that the new items are no problem by themselves.
        build(0, items)
        return rows, None

    async def _write_items(self, items: WorldFile, gone: Collection[Place], guard: Guard) -> bool:
        """Write the change and the next version, both or neither; False if the version is not what we checked with."""
        with reaching_store():
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(keys.world_version())
                if int(await pipe.get(keys.world_version()) or 0) != self._stored.version:
                    return False
                await guard()
                pipe.multi()  # type: ignore[no-untyped-call]  # so it is in redis-py
                for kind, item_id in gone:
                    pipe.hdel(keys.world(kind), item_id)
                for kind, rows in _rows(items).items():
                    if rows:
                        encoded: dict[FieldT, EncodableT] = {
                            name: msgspec.json.encode(row) for name, row in rows.items()
                        }
                        pipe.hset(keys.world(kind), mapping=encoded)
                pipe.set(keys.world_version(), self._stored.version + 1)
                try:
                    await pipe.execute()
                except WatchError:
                    return False
        return True

    async def _write_stock(self, stock: Sequence[Stock]) -> None:
        by_store: dict[str, dict[FieldT, EncodableT]] = {}
        for row in stock:
            by_store.setdefault(row.store, {})[row.sku] = row.quantity
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for store, quantities in by_store.items():
                    pipe.hset(keys.stock(store), mapping=quantities)
                await pipe.execute()

    async def _refresh(self) -> None:
        with reaching_store():
            version = int(await self._redis.get(keys.world_version()) or 0)
            if version == self._stored.version:
                return
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.get(keys.world_version())
                for kind in _TYPES:
                    pipe.hgetall(keys.world(kind))
                newest, *found = await pipe.execute()
        self._stored, world, problem = await asyncio.to_thread(
            _load, int(newest or 0), found, self._stored, self._current
        )
        if world is None:
            self._problem = problem
            metrics.WORLD_BROKEN.set(1)
            logger.error(
                "keeping world version %d: the stored version %d can't be used: %s",
                self._current.version,
                self._stored.version,
                problem,
            )
        else:
            self._use(world)

    def _use(self, world: World) -> None:
        self._current = world
        self._problem = None
        metrics.WORLD_BROKEN.set(0)
        logger.info(
            "world version %d: %d stores, %d fences, %d products, %d promotions",
            world.version,
            len(world.items.stores),
            len(world.fences.fences),
            len(world.items.products),
            len(world.items.promotions),
        )


def template_faults(items: WorldFile) -> list[str]:
    """What is wrong with the words of promotions, one sentence each."""
    return [f"promotion {each.id!r}: {fault}" for each in items.promotions for fault in check_words(each)]


def _checked_words(items: WorldFile) -> WorldFile:
    """The items as every other process will read them: a 15 that was given for a float comes back as 15.0."""
    if faults := template_faults(items):
        raise InputError("broken_template", "; ".join(faults[:_NAMED_PROBLEMS]))
    return msgspec.json.decode(msgspec.json.encode(items), type=WorldFile)


def _new_problems(before: WorldFile, after: WorldFile) -> list[str]:
    """What a change breaks. What was broken before it is not its fault, and must not keep it from being made."""
    problems = check_references(after)
    known = set(check_references(before)) if problems else set()
    return [problem for problem in problems if problem not in known]


def _load(
    version: int, found: Sequence[Mapping[bytes, bytes]], known: _Stored, previous: World
) -> tuple[_Stored, World | None, str | None]:
    """Decode what the store holds, by kind, and build it; if that can't be done, the problem instead of a world.

    What stands there as it did before stays the same object.
    """
    encoded = dict(zip(_TYPES, found, strict=True))
    rows: dict[Kind, dict[str, Any]] = {}
    unreadable: dict[Place, str] = {}
    for kind, item_type in _TYPES.items():
        rows[kind] = {}
        before, decoded = known.encoded[kind], known.rows[kind]
        for name, row in encoded[kind].items():
            item_id = text(name)
            if before.get(name) == row and item_id in decoded:
                rows[kind][item_id] = decoded[item_id]
                continue
            try:
                rows[kind][item_id] = msgspec.json.decode(raw(row), type=item_type)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                unreadable[kind, item_id] = f"{kind} {item_id!r} can't be read: {error}"
    stored = _Stored(version, encoded, rows, unreadable)
    if unreadable:
        return stored, None, "; ".join([*unreadable.values()][:_NAMED_PROBLEMS])
    try:
        return stored, build(version, _world_file(rows), previous), None
    except InputError as error:
        return stored, None, str(error)


def _rows(items: WorldFile) -> _Rows:
    return {
        "store": {each.id: each for each in items.stores},
        "fence": {each.id: each for each in items.fences},
        "product": {each.sku: each for each in items.products},
        "promotion": {each.id: each for each in items.promotions},
    }


def _changed(old: _Rows, items: WorldFile, gone: Collection[Place]) -> _Rows:
    rows = {kind: dict(of_kind) for kind, of_kind in old.items()}
    for kind, item_id in gone:
        rows[kind].pop(item_id, None)
    for kind, new in _rows(items).items():
        rows[kind].update(new)
    return rows


def _changed_bytes(
    old: Mapping[Kind, Mapping[bytes, bytes]], items: WorldFile, gone: Collection[Place]
) -> dict[Kind, Mapping[bytes, bytes]]:
    """What stands in the store after a change that we made."""
    encoded = {kind: dict(of_kind) for kind, of_kind in old.items()}
    for kind, item_id in gone:
        encoded[kind].pop(item_id.encode(), None)
    for kind, new in _rows(items).items():
        encoded[kind].update((name.encode(), msgspec.json.encode(row)) for name, row in new.items())
    return dict(encoded)


def _world_file(rows: _Rows) -> WorldFile:
    """In the order of the ids, so that every process numbers the fences alike."""
    stores, fences, products, promotions = ([item for _, item in sorted(rows[kind].items())] for kind in _TYPES)
    return WorldFile(stores=stores, fences=fences, products=products, promotions=promotions)


def _named_by(stock: Iterable[Stock], rows: _Rows) -> WorldFile:
    """The stores and products of stock entries, as far as they exist: looked up, since stock changes all the time."""
    return WorldFile(
        stores=[rows["store"][name] for name in {each.store for each in stock} if name in rows["store"]],
        products=[rows["product"][name] for name in {each.sku for each in stock} if name in rows["product"]],
    )
