"""The catalogue: stores, products and promotions as one immutable snapshot, with the indexes that candidates need.

Built whole and swapped whole, never changed; what it works out when it is first asked, it remembers. Its version is a
hash of its content, so the same content has the same version (and gives the same decision ids) in every process and
whatever order it was given in.
"""

import hashlib
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from types import MappingProxyType
from typing import Self, TypeVar

import msgspec

from nearcast.hours import Timetable
from nearcast.ids import FenceId, PromotionId, Sku, StoreId
from nearcast.world import Product, Promotion, Store, Trigger
from offers.reach import Reach

_Key = TypeVar("_Key")
_Answer = TypeVar("_Answer")
_EARTH_RADIUS_M = 6_371_008.8
#: Of the stores around one, and of the things like one, no more are known than the nearest. Stores that are farther
#: away than `What.within_m` can be are not around.
MAX_NEIGHBOURS = 64
MAX_DISTANCE_M = 100_000.0
MAX_ALIKE = 5
#: How many answers of either are remembered.
_REMEMBERED = 20_000


class Goods(msgspec.Struct, frozen=True):
    """What a promotion is about, in one store."""

    #: The SKUs and segments that it names.
    names: frozenset[str]
    #: These segments, and those of these SKUs.
    segments: frozenset[str]
    #: The things that somebody gets to see who never had to do with any of it.
    things: tuple[Sku, ...]


@dataclass(frozen=True)
class Catalogue:
    """Use `Catalogue.build`. Of things that share an id, the last one given counts."""

    stores: Mapping[StoreId, Store]
    products: Mapping[Sku, Product]
    promotions: Mapping[PromotionId, Promotion]
    #: By trigger, in the order of their ids.
    by_trigger: Mapping[Trigger, tuple[Promotion, ...]]
    #: The same promotions, found by where and what they are for.
    reach: Mapping[Trigger, Reach] = field(repr=False, compare=False)
    #: SKU → product segment.
    segments: Mapping[str, str]
    #: Segment → its SKUs, sorted.
    skus_of_segment: Mapping[str, tuple[Sku, ...]]
    #: Store and segment → the SKUs of the segment that have a display position in the store, sorted.
    on_display: Mapping[tuple[str, str], tuple[Sku, ...]]
    #: When those fences are in use that have hours or special days, their own or of a fence around them; by the clock
    #: of their store.
    fence_hours: Mapping[FenceId, Timetable]
    #: Those that have budgets.
    budgeted: frozenset[PromotionId]
    #: The rules version: 64 bits of a content hash, as 16 hexadecimal digits.
    version: str
    _neighbours: dict[StoreId, tuple[tuple[float, Store], ...]] = field(default_factory=dict, repr=False, compare=False)
    #: By promotion, the gates that concern it, as a mask: `offers.gates` notes them.
    gates: dict[str, int] = field(default_factory=dict, repr=False, compare=False)
    #: By promotion and store: `offers.candidates` notes them.
    goods: dict[tuple[str, StoreId | None], Goods] = field(default_factory=dict, repr=False, compare=False)
    _alike: dict[tuple[StoreId, Sku], tuple[Sku, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(
        cls,
        stores: Iterable[Store],
        products: Iterable[Product],
        promotions: Iterable[Promotion],
        fence_hours: Mapping[FenceId, Timetable] = MappingProxyType({}),
    ) -> Self:
        stores_by_id = {store.id: store for store in stores}
        products_by_sku = {product.sku: product for product in products}
        promotions_by_id = {promotion.id: promotion for promotion in promotions}

        by_trigger: dict[Trigger, list[Promotion]] = {}
        for _, promotion in sorted(promotions_by_id.items()):
            by_trigger.setdefault(promotion.trigger, []).append(promotion)
        of_segment: dict[str, list[Sku]] = {}
        displayed: dict[tuple[str, str], list[Sku]] = {}
        for sku, product in sorted(products_by_sku.items()):
            of_segment.setdefault(product.segment, []).append(Sku(sku))
            for store in {display.store for display in product.displays}:
                displayed.setdefault((store, product.segment), []).append(Sku(sku))

        return cls(
            stores={StoreId(store_id): store for store_id, store in stores_by_id.items()},
            products={Sku(sku): product for sku, product in products_by_sku.items()},
            promotions={PromotionId(promotion_id): promotion for promotion_id, promotion in promotions_by_id.items()},
            by_trigger={trigger: tuple(group) for trigger, group in by_trigger.items()},
            reach={trigger: Reach(group) for trigger, group in by_trigger.items()},
            segments={sku: product.segment for sku, product in products_by_sku.items()},
            skus_of_segment={segment: tuple(skus) for segment, skus in of_segment.items()},
            on_display={place: tuple(skus) for place, skus in displayed.items()},
            fence_hours=fence_hours,
            budgeted=frozenset(promotion.promotion_id for promotion in promotions_by_id.values() if promotion.budgets),
            version=_content_hash(stores_by_id, products_by_sku, promotions_by_id, fence_hours),
        )

    def neighbours(self, store: StoreId) -> tuple[tuple[float, Store], ...]:
        """The stores around one, with their distance in metres, the nearest first; of equals by id."""
        known = self._neighbours.get(store)
        if known is None:
            known = tuple(heapq.nsmallest(MAX_NEIGHBOURS, self._around(store), key=lambda each: (each[0], each[1].id)))
            remember(self._neighbours, store, known)
        return known

    def alike(self, store: StoreId, sku: Sku) -> tuple[Sku, ...]:
        """Things of the same segment, other than this one: first those on display in the store, then the nearest in
        price; of equals by SKU."""
        known = self._alike.get((store, sku))
        if known is None:
            known = self._find_alike(store, sku)
            remember(self._alike, (store, sku), known)
        return known

    def _around(self, store: StoreId) -> Iterator[tuple[float, Store]]:
        here = self.stores.get(store)
        if here is None:
            return
        # Farther north or south than that it is too far, whatever the longitude.
        reach = math.degrees(MAX_DISTANCE_M / _EARTH_RADIUS_M)
        for other in self.stores.values():
            if abs(other.lat - here.lat) <= reach and other.id != store:
                metres = distance_m(here, other)
                if metres <= MAX_DISTANCE_M:
                    yield metres, other

    def _find_alike(self, store: StoreId, sku: Sku) -> tuple[Sku, ...]:
        wanted = self.products.get(sku)
        if wanted is None:
            return ()
        displayed = frozenset(self.on_display.get((store, wanted.segment), ()))
        return tuple(
            heapq.nsmallest(
                MAX_ALIKE,
                (other for other in self.skus_of_segment[wanted.segment] if other != sku),
                key=lambda other: (
                    other not in displayed,
                    abs(self.products[other].price_cents - wanted.price_cents),
                    other,
                ),
            )
        )


def distance_m(one: Store, other: Store) -> float:
    """The great-circle distance (haversine)."""
    across = math.sin(math.radians(other.lng - one.lng) / 2)
    along = math.sin(math.radians(other.lat - one.lat) / 2)
    half_chord = along * along + math.cos(math.radians(one.lat)) * math.cos(math.radians(other.lat)) * across * across
    return 2 * _EARTH_RADIUS_M * math.asin(math.sqrt(min(half_chord, 1.0)))


def remember(answers: dict[_Key, _Answer], key: _Key, answer: _Answer) -> None:
    """Note an answer; once there are many, forget the others first."""
    if len(answers) >= _REMEMBERED:
        answers.clear()
    answers[key] = answer


def _content_hash(
    stores: Mapping[str, Store],
    products: Mapping[str, Product],
    promotions: Mapping[str, Promotion],
    fence_hours: Mapping[FenceId, Timetable],
) -> str:
    encoder = msgspec.json.Encoder(order="sorted")
    content: list[object] = [[kind[key] for key in sorted(kind)] for kind in (stores, products, promotions)]
    if fence_hours:
        content.append(sorted(fence_hours.items(), key=itemgetter(0)))
    return hashlib.blake2b(encoder.encode(content), digest_size=8).hexdigest()
