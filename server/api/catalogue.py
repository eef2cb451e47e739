"""The world over HTTP: stores, fences, products, promotions and stock.

Putting is by id: what is named is put or replaced, everything else stays. A document is checked as a whole and takes
effect as a whole, or not at all.

Fences are also put and got as GeoJSON. Reading it tries every outline, so that is done beside the event loop.
"""

import asyncio
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from geofence.geojson import FeatureCollection, collection_of, fences_from_geojson, fences_to_geojson
from nearcast.world import (
    Cap,
    Circle,
    Corridor,
    Discount,
    Display,
    Fence,
    OpenHours,
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
GEOJSON = "application/geo+json"
_FENCES = [
    Fence(
        id="graben-door",
        store="graben",
        kind="store",
        geometry=Circle((16.3700, 48.2086), 40.0),
        approach_m=150.0,
        hours=[OpenHours(weekday=day, opens=8 * 60, closes=20 * 60) for day in range(6)],
    ),
    Fence(
        id="graben-queue",
        store="graben",
        kind="department",
        geometry=Corridor([(16.3700, 48.2086), (16.3702, 48.2086)], 2.0),
        parent="graben-door",
        dwell_s=120.0,
        codes=["graben-queue-poster"],
    ),
]
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


@router.put(
    "/v1/fences",
    dependencies=[Depends(Allow("admin"))],
    openapi_extra=accepts(FeatureCollection, {"a store and its queue": collection_of(_FENCES)}, GEOJSON),
)
async def put_fences(request: Request, services: Behind) -> Response:
    """Put fences as a GeoJSON FeatureCollection; see docs/fences.md."""
    fences = await asyncio.to_thread(fences_from_geojson, await request.body())
    return answer(WorldVersion(await services.put_world(WorldFile(fences=fences))))


@router.get("/v1/fences", dependencies=[Depends(Allow("admin"))])
async def get_fences(
    services: Behind, store: Annotated[str | None, Query(description="Only the fences of this store.")] = None
) -> Response:
    """All fences, or those of one store, as a GeoJSON FeatureCollection."""
    wanted = checked_id(store, "query.store") if store is not None else None
    found = await services.get_world("fence")
    return Response(await asyncio.to_thread(_as_geojson, found, wanted), media_type=GEOJSON)


def _as_geojson(found: bytes, store: str | None) -> bytes:
    fences = msgspec.json.decode(found, type=list[Fence])
    return fences_to_geojson(fence for fence in fences if store is None or fence.store == store)


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
