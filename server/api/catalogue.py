"""The world over HTTP: stores, fences, products, promotions and stock.

Putting is by id: what is named is put or replaced, everything else stays. A document is checked as a whole and takes
effect as a whole, or not at all.
"""

from typing import Literal

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from nearcast.world import (
    Cap,
    Circle,
    Discount,
    Display,
    Fence,
    Product,
    Promotion,
    Stock,
    Store,
    What,
    Words,
)
from offers.worldfile import WorldFile
from server.api.auth import Allow, Behind
from server.api.bodies import accepts, answer, checked_id, read
from server.api.services import WorldKind

router = APIRouter(tags=["catalogue"])

Collection = Literal["stores", "fences", "products", "promotions"]
_KIND: dict[Collection, WorldKind] = {
    "stores": "store",
    "fences": "fence",
    "products": "product",
    "promotions": "promotion",
}
_STOCK = Stock(store="graben", sku="4711", quantity=12)
_EXAMPLE = WorldFile(
    stores=[Store(id="graben", name="Graben", lat=48.2086, lng=16.3700, time_zone="Europe/Vienna")],
    fences=[Fence(id="graben-door", store="graben", kind="store", geometry=Circle((16.3700, 48.2086), 40.0))],
    products=[
        Product(
            sku="4711",
            name="Espresso beans",
            segment="coffee",
            price_cents=1_299,
            displays=[Display(store="graben", lat=48.2086, lng=16.3701, aisle="3")],
        )
    ],
    promotions=[
        Promotion(
            id="coffee-walk-past",
            name="Coffee for those who walk past",
            trigger="walk_past",
            what=What(segments=["coffee"], discount=Discount(percent=15)),
            caps=[Cap(count=1, period_s=86_400)],
            words={
                "en": Words(
                    title="{{ product }}: {{ discount }} off", body="Still in your cart, in stock at {{ store }}."
                )
            },
        )
    ],
    stock=[_STOCK],
)


class WorldVersion(msgspec.Struct, frozen=True):
    """The version of the world from which on a change is in it."""

    version: int


@router.put(
    "/v1/catalogue",
    dependencies=[Depends(Allow("admin"))],
    openapi_extra=accepts(WorldFile, {"small shop": _EXAMPLE}),
)
async def put_catalogue(request: Request, services: Behind) -> Response:
    """Put stores, fences, products, promotions and stock."""
    return answer(WorldVersion(await services.put_world(await read(request, WorldFile))))


@router.get("/v1/catalogue/{collection}", dependencies=[Depends(Allow("admin"))])
async def get_collection(collection: Collection, services: Behind) -> Response:
    """All things of one kind."""
    return Response(await services.get_world(_KIND[collection]), media_type="application/json")


@router.delete("/v1/catalogue/{collection}/{item_id:path}", dependencies=[Depends(Allow("admin"))])
async def delete_item(collection: Collection, item_id: str, services: Behind) -> Response:
    """Take one thing out of the world."""
    return answer(WorldVersion(await services.remove_world(_KIND[collection], checked_id(item_id, "path.item_id"))))


@router.put(
    "/v1/stock",
    dependencies=[Depends(Allow("intake"))],
    openapi_extra=accepts(list[Stock], {"one product": [_STOCK]}),
)
async def put_stock(request: Request, services: Behind) -> Response:
    """Set how many pieces of products stores have."""
    return answer(WorldVersion(await services.put_world(WorldFile(stock=await read(request, list[Stock])))))
