"""The catalogue: stores, products and promotions as one immutable snapshot, with the indexes that candidates need.

Built whole and swapped whole, never changed. Its version is a hash of its content, so the same content has the same
version (and gives the same decision ids) in every process and whatever order it was given in.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import Self

import msgspec

from nearcast.hours import Timetable
from nearcast.ids import FenceId, PromotionId, Sku, StoreId
from nearcast.world import Product, Promotion, Store, Trigger


@dataclass(frozen=True)
class Catalogue:
    """Use `Catalogue.build`. Of things that share an id, the last one given counts."""

    stores: Mapping[StoreId, Store]
    products: Mapping[Sku, Product]
    promotions: Mapping[PromotionId, Promotion]
    #: By trigger, in the order of their ids.
    by_trigger: Mapping[Trigger, tuple[Promotion, ...]]
    #: SKU → product segment.
    segments: Mapping[str, str]
    #: Segment → its SKUs, sorted.
    skus_of_segment: Mapping[str, tuple[Sku, ...]]
    #: Store and segment → the SKUs of the segment that have a display position in the store, sorted.
    on_display: Mapping[tuple[str, str], tuple[Sku, ...]]
    #: When those fences are in use that have hours or special days, their own or of a fence around them; by the clock
    #: of their store.
    fence_hours: Mapping[FenceId, Timetable]
    #: The rules version: 64 bits of a content hash, as 16 hexadecimal digits.
    version: str

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
            segments={sku: product.segment for sku, product in products_by_sku.items()},
            skus_of_segment={segment: tuple(skus) for segment, skus in of_segment.items()},
            on_display={place: tuple(skus) for place, skus in displayed.items()},
            fence_hours=fence_hours,
            version=_content_hash(stores_by_id, products_by_sku, promotions_by_id, fence_hours),
        )


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
