"""A retailer's world as plain lists, and whether everything that its entries name exists."""

from collections.abc import Container, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import msgspec

from nearcast.world import Fence, FenceKind, OpenHours, Product, Promotion, Stock, Store
from offers.documents import Path

#: A fence is in one that is as wide as itself, or wider.
_WIDTH: Mapping[FenceKind, int] = {"product": 0, "shelf": 1, "department": 2, "store": 3, "vicinity": 4}


class WorldFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one file holds, or several together; every list may be left out."""

    stores: list[Store] = []
    fences: list[Fence] = []
    products: list[Product] = []
    promotions: list[Promotion] = []
    stock: list[Stock] = []


def check_references(world: WorldFile) -> list[str]:
    """One sentence for each reference to something that `world` doesn't have; empty if all is well.

    Give it everything at once, also what came from several files.
    """
    return [*_of_fences(world), *_of_products(world), *_of_promotions(world), *_of_stock(world)]


def remarks(world: WorldFile) -> list[str]:
    """What is allowed and hardly meant, one sentence each."""
    stores = {store.id: store for store in world.stores if store.hours is not None and not store.special_days}
    return [
        f"fence {fence.id!r} is never in use: its hours and those of its store have no minute in common"
        for fence in world.fences
        if fence.hours is not None and not fence.special_days and (store := stores.get(fence.store)) is not None
        if minutes_of(tuple(fence.hours)).isdisjoint(minutes_of(tuple(store.hours or ())))
    ]


@lru_cache(maxsize=1024)
def minutes_of(hours: tuple[OpenHours, ...]) -> frozenset[int]:
    """The minutes of the week that the hours cover."""
    return frozenset(
        (each.weekday * 1440 + minute) % (7 * 1440)
        for each in hours
        for minute in range(each.opens, each.closes if each.closes > each.opens else each.closes + 1440)
    )


def _missing(what: str, kind: str, names: Iterable[str], known: Container[str]) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{what} names the {kind} {name!r}, which does not exist"


def _of_fences(world: WorldFile) -> Iterator[str]:
    stores = {store.id for store in world.stores}
    fences = {fence.id: fence for fence in world.fences}
    skus = {product.sku for product in world.products}
    for fence in world.fences:
        what = f"fence {fence.id!r}"
        yield from _missing(what, "store", [fence.store], stores)
        if fence.parent is not None:
            yield from _missing(what, "parent", [fence.parent], fences)
            parent = fences.get(fence.parent)
            if parent is not None and parent.store != fence.store:
                yield f"{what} belongs to the store {fence.store!r}, but its parent to {parent.store!r}"
            if parent is not None and _WIDTH[parent.kind] < _WIDTH[fence.kind]:
                yield f"{what} is a {fence.kind}, which can't be in a {parent.kind} ({parent.id!r})"
        if fence.sku is not None:
            yield from _missing(what, "product", [fence.sku], skus)


def _of_products(world: WorldFile) -> Iterator[str]:
    stores = {store.id for store in world.stores}
    fences = {fence.id: fence for fence in world.fences}
    for product in world.products:
        what = f"product {product.sku!r}"
        yield from _missing(what, "store", [shown.store for shown in product.displays], stores)
        for shown in product.displays:
            if shown.parent is not None:
                yield from _missing(what, "parent", [shown.parent], fences)
                parent = fences.get(shown.parent)
                if parent is not None and parent.store != shown.store:
                    yield f"{what} is on display in the store {shown.store!r}, but its parent is in {parent.store!r}"


def _of_promotions(world: WorldFile) -> Iterator[str]:
    for found in promotion_references(world):
        yield f"promotion {found.promotion!r} {found.detail}"


class Finding(NamedTuple):
    """Something about a promotion: in which field, by its path, and what."""

    promotion: str
    path: Path
    detail: str


def promotion_references(world: WorldFile) -> Iterator[Finding]:
    """Each reference of a promotion to something that `world` doesn't have."""
    stores = {store.id for store in world.stores}
    fences = {fence.id for fence in world.fences}
    skus = {product.sku for product in world.products}
    segments = {product.segment for product in world.products}
    for promotion in world.promotions:
        for part, kind, names, known in (
            (("where", "stores"), "store", promotion.where.stores, stores),
            (("where", "fences"), "fence", promotion.where.fences, fences),
            (("what", "skus"), "product", promotion.what.skus, skus),
            (("what", "segments"), "segment", promotion.what.segments, segments),
        ):
            for number, name in enumerate(names):
                if name not in known:
                    detail = f"names the {kind} {name!r}, which does not exist"
                    yield Finding(promotion.id, (*part, number), detail)


def _of_stock(world: WorldFile) -> Iterator[str]:
    stores = {store.id for store in world.stores}
    skus = {product.sku for product in world.products}
    for stock in world.stock:
        what = f"stock of {stock.sku!r} at {stock.store!r}"
        yield from _missing(what, "store", [stock.store], stores)
        yield from _missing(what, "product", [stock.sku], skus)
