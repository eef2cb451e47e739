"""The sample retailer: six shops of a small grocery chain in Vienna, described as any retailer would describe theirs.

Pure, and deterministic by seed. Products are real ones out of the households' baskets (`clients.history`); where they
stand, how many pieces a shop has and how the shops are built is made up, because no public data says it. The result
is a world document for `PUT /v1/catalogue`, and the floor plan that the simulator walks on.
"""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from clients import city
from clients.geo import Spot
from clients.history import Item
from clients.sample_offers import promotions_for
from nearcast.world import Circle, Display, Fence, Polygon, Product, Promotion, Stock, Store

#: The demo squeezes a walk of minutes into seconds, so staying counts after seconds as well.
DWELL_S = 5.0
VICINITY_M = 120.0
MAX_PRODUCTS = 500

STORE_NAMES = ("Rochusmarkt", "Landstraße", "Arenbergpark", "Kardinal-Nagl-Platz", "Ungargasse", "Rabengasse")
#: In the order of the floor plan's departments; a small house has the first three.
DEPARTMENTS = ("Fresh food", "Pantry", "Home & care", "Drinks")

_FRESH = {"PRODUCE", "MEAT", "MEAT-PCKGD", "SEAFOOD", "SEAFOOD-PCKGD", "DELI", "PASTRY", "FLORAL"}
_DAIRY = {"FLUID MILK PRODUCTS", "EGGS", "CHEESE", "YOGURT", "MILK BY-PRODUCTS", "MARGARINES"}
_CARE = {"DRUG GM", "COSMETICS", "NUTRITION"}
_DRINKS = {
    "SOFT DRINKS",
    "BEERS/ALES",
    "DOMESTIC WINE",
    "IMPORTED WINE",
    "LIQUOR",
    "COFFEE",
    "TEAS",
    "WATER - CARBONATED/FLVRD DRINK",
    "REFRGRATD JUICES/DRNKS",
    "CANNED JUICES",
    "ISOTONIC DRINKS",
}


class Stand(NamedTuple):
    """Where one product stands."""

    sku: str
    spot: Spot


class Floor(NamedTuple):
    """A department of one shop."""

    fence: str
    name: str
    outline: city.Ring
    stands: tuple[Stand, ...]


class Shop(NamedTuple):
    store: Store
    house: city.Building
    floors: tuple[Floor, ...]


class Retailer(NamedTuple):
    """The whole chain, as nearcast structs and as a plan to walk on."""

    shops: tuple[Shop, ...]
    items: Mapping[str, Item]
    fences: tuple[Fence, ...]
    products: tuple[Product, ...]
    promotions: tuple[Promotion, ...]
    stock: tuple[Stock, ...]

    def documents(self, rows: int = 1_000) -> list[dict[str, object]]:
        """World documents of at most `rows` rows for `PUT /v1/catalogue`, to be sent in this order."""
        first = {
            "stores": [shop.store for shop in self.shops],
            "fences": self.fences,
            "products": self.products,
            "promotions": self.promotions,
        }
        stock = [self.stock[start : start + rows] for start in range(0, len(self.stock), rows)]
        return [msgspec.to_builtins(first), *(msgspec.to_builtins({"stock": part}) for part in stock)]

    def shop(self, store: str) -> Shop:
        return next(shop for shop in self.shops if shop.store.id == store)


def build(items: Mapping[str, Item], wanted: Sequence[str], seed: int) -> Retailer:
    """The retailer that sells `wanted` (as far as it is in `items`) and the items most in demand beside it."""
    rng = random.Random(seed)
    sold = _choose(items, wanted)
    by_department: dict[str, list[Item]] = {name: [] for name in DEPARTMENTS}
    for item in sold.values():
        by_department[department_of(item)].append(item)
    shops = tuple(_shop(index, by_department, rng) for index in range(len(STORE_NAMES)))
    return Retailer(
        shops=shops,
        items=sold,
        fences=tuple(fence for shop in shops for fence in _fences(shop)),
        products=tuple(_product(item, shops) for item in sold.values()),
        promotions=promotions_for(_segments(by_department), _fence_ids(shops)),
        stock=tuple(
            Stock(store=shop.store.id, sku=sku, quantity=0 if rng.random() < 0.06 else rng.randint(2, 60))
            for shop in shops
            for sku in sold
        ),
    )


def department_of(item: Item) -> str:
    if item.department in _CARE:
        return "Home & care"
    if item.segment in _DRINKS or item.department == "SPIRITS":
        return "Drinks"
    if item.department in _FRESH or item.segment in _DAIRY:
        return "Fresh food"
    return "Pantry"


def _choose(items: Mapping[str, Item], wanted: Sequence[str]) -> dict[str, Item]:
    chosen = {sku: items[sku] for sku in wanted if sku in items}
    for item in sorted(items.values(), key=lambda item: (-item.demand, item.sku)):
        if len(chosen) >= MAX_PRODUCTS:
            break
        chosen.setdefault(item.sku, item)
    return dict(list(chosen.items())[:MAX_PRODUCTS])


def _shop(index: int, by_department: Mapping[str, list[Item]], rng: random.Random) -> Shop:
    house = city.building(index)
    lat, lng = city.FRAME.lat_lng(city.centre(house.outline))
    store = Store(id=f"store-{index + 1}", name=STORE_NAMES[index], lat=lat, lng=lng, time_zone="Europe/Vienna")
    floors = []
    for name, department in zip(DEPARTMENTS, house.departments, strict=False):
        shelf = sorted(by_department[name], key=lambda item: (-item.demand * rng.uniform(0.5, 1.0), item.sku))
        stands = tuple(Stand(item.sku, spot) for item, spot in zip(shelf, department.stands, strict=False))
        floors.append(Floor(f"{store.id}/{_slug(name)}", name, department.outline, stands))
    return Shop(store, house, tuple(floors))


def _fences(shop: Shop) -> list[Fence]:
    store, building = shop.store, f"{shop.store.id}/building"
    centre = Circle(center=(store.lng, store.lat), radius_m=VICINITY_M)
    return [
        Fence(
            id=f"{store.id}/vicinity", store=store.id, kind="vicinity", name=f"Around {store.name}",
            geometry=centre, exit_margin_m=15.0,
        ),
        Fence(
            id=building, store=store.id, kind="store", name=store.name, geometry=_polygon(shop.house.outline),
            parent=f"{store.id}/vicinity", dwell_s=DWELL_S, exit_margin_m=5.0,
        ),
        *(
            Fence(
                id=floor.fence, store=store.id, kind="department", name=floor.name, geometry=_polygon(floor.outline),
                parent=building, dwell_s=DWELL_S, exit_margin_m=1.5,
            )
            for floor in shop.floors
        ),
    ]  # fmt: skip


def _polygon(ring: city.Ring) -> Polygon:
    corners = [city.FRAME.lat_lng(spot) for spot in (*ring, ring[0])]
    return Polygon(coordinates=[[(lng, lat) for lat, lng in corners]])


def _product(item: Item, shops: Sequence[Shop]) -> Product:
    displays = []
    for shop in shops:
        for floor in shop.floors:
            for stand in floor.stands:
                if stand.sku == item.sku:
                    lat, lng = city.FRAME.lat_lng(stand.spot)
                    displays.append(Display(store=shop.store.id, lat=lat, lng=lng, aisle=floor.name))
    return Product(
        sku=item.sku,
        name=item.name,
        segment=item.segment,
        variant=item.variant,
        price_cents=item.price_cents,
        displays=displays,
    )


def _segments(by_department: Mapping[str, Sequence[Item]]) -> dict[str, list[str]]:
    """Product segments by department, most bought first."""
    ranked = {}
    for name, items in by_department.items():
        demand: dict[str, int] = {}
        for item in items:
            demand[item.segment] = demand.get(item.segment, 0) + item.demand
        ranked[name] = sorted(demand, key=lambda segment: (-demand[segment], segment))
    return ranked


def _fence_ids(shops: Sequence[Shop]) -> dict[str, list[str]]:
    """Department fences of all shops, by the department's name."""
    return {
        name: [floor.fence for shop in shops for floor in shop.floors if floor.name == name] for name in DEPARTMENTS
    }


def _slug(name: str) -> str:
    return name.lower().replace(" & ", "-").replace(" ", "-")
