"""What the demo page shows: the scene (once) and what moves on it (four times a second)."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from clients import city
from clients.demo.cast import PHONES, Person
from clients.sample import Retailer
from clients.simulator import Dot
from nearcast.world import Circle, Fence, Polygon

#: A page that was just opened must not be flooded.
_KEPT_LINES = 30


class Ticker:
    """Lines of news for the page, each shown once."""

    def __init__(self) -> None:
        self._lines: deque[dict[str, object]] = deque(maxlen=_KEPT_LINES)

    def tell(self, kind: str, text: str) -> None:
        self._lines.append({"at_ms": int(time.time() * 1000), "kind": kind, "text": text})

    def take(self) -> list[dict[str, object]]:
        """What is new since the last call."""
        lines = list(self._lines)
        self._lines.clear()
        return lines


def scene(retailer: Retailer, people: Sequence[Person], staff_store: str, gateway_url: str) -> dict[str, Any]:
    """Everything that stands still. The API adds tokens to `phones`, `staff` and `live`."""
    store = retailer.shop(staff_store).store
    return {
        "gateway_url": gateway_url,
        "stores": [
            {"id": shop.store.id, "name": shop.store.name, "lat": shop.store.lat, "lng": shop.store.lng}
            for shop in retailer.shops
        ],
        "streets": [[list(city.FRAME.lat_lng(end)) for end in street] for street in city.streets()],
        "fences": {"type": "FeatureCollection", "features": [_feature(fence) for fence in retailer.fences]},
        "displays": [
            {"store": display.store, "sku": product.sku, "lat": display.lat, "lng": display.lng}
            for product in retailer.products
            for display in product.displays
        ],
        "phones": [{"customer": person.uid, "name": person.name} for person in people[:PHONES]],
        "staff": {"store": store.id, "name": store.name},
        "live": {},
    }


def moving(
    dots: Sequence[Dot],
    phones: Mapping[str, int],
    counters: dict[str, Any],
    news: list[dict[str, object]],
    footfall: Mapping[str, Any] | None = None,
    why_not: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One publication of the live channel.

    `phones` gives the place on the page of those who have one, `footfall` what the API says of each shop, by id;
    `why_not` what led to nothing, None if that is as it was.
    """
    return {
        "at_ms": int(time.time() * 1000),
        "shoppers": [{"id": dot.uid, "lat": dot.lat, "lng": dot.lng, "phone": phones.get(dot.uid)} for dot in dots],
        "counters": counters,
        "feed": news,
        "footfall": footfall or {},
        "why_not": why_not,
    }


def _feature(fence: Fence) -> dict[str, Any]:
    properties: dict[str, Any] = {"id": fence.id, "store": fence.store, "kind": fence.kind, "name": fence.name}
    geometry = fence.geometry
    if isinstance(geometry, Circle):
        properties["radius_m"] = geometry.radius_m
        return _geojson(properties, "Point", list(geometry.center))
    kind = "Polygon" if isinstance(geometry, Polygon) else "MultiPolygon"
    return _geojson(properties, kind, geometry.coordinates)


def _geojson(properties: dict[str, Any], kind: str, coordinates: object) -> dict[str, Any]:
    return {"type": "Feature", "properties": properties, "geometry": {"type": kind, "coordinates": coordinates}}
