"""The world: stores, fences, products and promotions as one immutable snapshot, and the live stock beside it.

The store holds each item under its id and a version that rises with every change. Every process polls the version
and swaps in a whole new snapshot; nobody ever sees half a change. Files, the admin API and the catalogue topics all
come through `put` and `remove`, so there is one validator.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis
from redis.typing import EncodableT, FieldT

from channels.templates import check_words
from geofence.displays import display_fences
from geofence.index import FenceIndex
from nearcast import keys
from nearcast.errors import Conflict, InputError, NotFound, Unavailable
from nearcast.ids import Sku, StoreId
from nearcast.world import Fence, Product, Promotion, Stock, Store
from offers.catalogue import Catalogue
from offers.worldfile import WorldFile, check_references
from server.store import reaching_store

logger = logging.getLogger("nearcast.server.world")

Kind = Literal["store", "fence", "product", "promotion"]
Item = Store | Fence | Product | Promotion
_TYPES: dict[Kind, type[Any]] = {"store": Store, "fence": Fence, "product": Product, "promotion": Promotion}
_POLL_S = 0.25


class World(msgspec.Struct, frozen=True):
    """One version of the world, ready to match and decide with."""

    version: int
    catalogue: Catalogue
    fences: FenceIndex
    #: As described by the retailer, without the fences made from display positions.
    items: WorldFile


def build(version: int, items: WorldFile, previous: World | None = None) -> World:
    """Compile a snapshot; what it shares with the `previous` one is not computed again.

    Raises `InputError` for a fence whose geometry can't be used.
    """
    displays = (fence for product in items.products for fence in display_fences(product))
    return World(
        version,
        Catalogue.build(items.stores, items.products, items.promotions),
        FenceIndex.build([*items.fences, *displays], previous.fences if previous else None),
        items,
    )


class WorldStore:
    """The current snapshot, and the one way to change it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._current = build(0, WorldFile())
        self._refreshing = asyncio.Lock()

    @property
    def current(self) -> World:
        return self._current

    async def put(self, items: WorldFile, *, dangling: bool = False) -> int:
        """Add or replace items; returns the world's new version.

        All or nothing: references and geometry are checked against the world as it would be, before anything is
        written. Raises `InputError`. With `dangling`, references may lead nowhere yet: topics promise no order
        between them, so a promotion may come before its product.
        """
        await self.refresh()
        merged = _merge(self._current.items, items)
        problems = [] if dangling else check_references(merged)
        if problems:
            raise InputError("unknown_reference", "; ".join(problems[:20]))
        faults = template_faults(items)
        if faults:
            raise InputError("broken_template", "; ".join(faults[:20]))
        await asyncio.to_thread(build, 0, merged, self._current)
        with reaching_store():
            async with self._redis.pipeline(transaction=True) as pipe:
                for kind, rows in _by_kind(items).items():
                    if rows:
                        pipe.hset(keys.world(kind), mapping={_id(row): msgspec.json.encode(row) for row in rows})
                pipe.incr(keys.world_version())
                version = int((await pipe.execute())[-1])
            await self.put_stock(items.stock)
        await self.refresh()
        return version

    async def remove(self, kind: Kind, item_id: str, *, dangling: bool = False) -> int:
        """Take an item out of the world; returns the new version. Raises `NotFound`, or `Conflict` if it is needed."""
        await self.refresh()
        rest = _without(self._current.items, kind, item_id)
        problems = [] if dangling else check_references(rest)
        if problems:
            raise Conflict("still_referenced", f"{kind} {item_id!r} is still needed: {'; '.join(problems[:5])}")
        with reaching_store():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hdel(keys.world(kind), item_id)
                pipe.incr(keys.world_version())
                removed, version = await pipe.execute()
        if not removed:
            raise NotFound("unknown_item", f"there is no {kind} {item_id!r}")
        await self.refresh()
        return int(version)

    async def put_stock(self, stock: Sequence[Stock]) -> None:
        """Set what stores have. Raises `InputError` for a store that doesn't exist."""
        if not stock:
            return
        by_store: dict[str, dict[FieldT, EncodableT]] = {}
        for row in stock:
            by_store.setdefault(row.store, {})[row.sku] = row.quantity
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for store, quantities in by_store.items():
                    pipe.hset(keys.stock(store), mapping=quantities)
                await pipe.execute()

    async def stock(self, wanted: Iterable[tuple[StoreId, Sku]]) -> Mapping[tuple[StoreId, Sku], int]:
        """Pieces in stock of each (store, SKU); a pair that nobody ever reported is missing. One round trip."""
        pairs = list(dict.fromkeys(wanted))
        if not pairs:
            return {}
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for store, sku in pairs:
                    pipe.hget(keys.stock(store), sku)
                found = await pipe.execute()
        return {pair: int(quantity) for pair, quantity in zip(pairs, found, strict=True) if quantity is not None}

    async def refresh(self) -> None:
        """Swap in the newest version, if there is one."""
        async with self._refreshing:
            with reaching_store():
                version = int(await self._redis.get(keys.world_version()) or 0)
                if version == self._current.version:
                    return
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.get(keys.world_version())
                    for kind in _TYPES:
                        pipe.hvals(keys.world(kind))
                    version, *rows = await pipe.execute()
            decoded = {
                kind: [msgspec.json.decode(row, type=item_type) for row in found]
                for (kind, item_type), found in zip(_TYPES.items(), rows, strict=True)
            }
            items = WorldFile(
                stores=_sorted(decoded["store"]),
                fences=_sorted(decoded["fence"]),
                products=_sorted(decoded["product"]),
                promotions=_sorted(decoded["promotion"]),
            )
            # Building the index of a large world takes a while; the event loop goes on meanwhile.
            self._current = await asyncio.to_thread(build, int(version), items, self._current)
            logger.info(
                "world version %d: %d stores, %d fences, %d products, %d promotions",
                self._current.version,
                len(items.stores),
                len(self._current.fences.fences),
                len(items.products),
                len(items.promotions),
            )

    async def run(self) -> None:
        """Follow changes made by other processes, for ever."""
        while True:
            try:
                await self.refresh()
            except Unavailable as error:
                logger.warning("keeping world version %d: %s", self._current.version, error)
            await asyncio.sleep(_POLL_S)


def template_faults(items: WorldFile) -> list[str]:
    """What is wrong with the words of promotions, one sentence each."""
    return [f"promotion {each.id!r}: {fault}" for each in items.promotions for fault in check_words(each)]


def _id(item: Item) -> str:
    return item.sku if isinstance(item, Product) else item.id


def _sorted(items: Iterable[Any]) -> list[Any]:
    return sorted(items, key=_id)


def _by_kind(items: WorldFile) -> dict[Kind, Sequence[Item]]:
    return {"store": items.stores, "fence": items.fences, "product": items.products, "promotion": items.promotions}


def _merge(old: WorldFile, new: WorldFile) -> WorldFile:
    merged = {kind: {_id(item): item for item in rows} for kind, rows in _by_kind(old).items()}
    for kind, rows in _by_kind(new).items():
        merged[kind].update({_id(item): item for item in rows})
    return _world_file(merged, new.stock)


def _without(items: WorldFile, kind: Kind, item_id: str) -> WorldFile:
    rest = {name: {_id(item): item for item in rows} for name, rows in _by_kind(items).items()}
    if rest[kind].pop(item_id, None) is None:
        raise NotFound("unknown_item", f"there is no {kind} {item_id!r}")
    return _world_file(rest, [])


def _world_file(items: Mapping[Kind, Mapping[str, Any]], stock: list[Stock]) -> WorldFile:
    return WorldFile(
        stores=list(items["store"].values()),
        fences=list(items["fence"].values()),
        products=list(items["product"].values()),
        promotions=list(items["promotion"].values()),
        stock=stock,
    )
