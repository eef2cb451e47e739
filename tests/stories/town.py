"""The town of the stories: shops, each with a street around it, some with departments and shelves; things, and stock.

Every story has shops of its own, a good walk apart, so that one may close or sell out without disturbing another.
"""

from nearcast.world import Circle, Display, Fence, Product, Stock, Store
from offers.worldfile import WorldFile

_LAT, _LNG = 48.2, 16.37
#: One metre of latitude, in degrees.
METRE = 1 / 111_195

#: How many metres north of the first one each shop is; within three kilometres of each other only where a story says
#: so: of what is sold out at Ring, Markt has some and so has Prater, farther off; of Hafen's, Insel.
_SHOPS = {
    "graben": 0, "ring": 10_000, "markt": 11_000, "prater": 12_000, "karlsplatz": 20_000, "opern": 30_000,
    "stephan": 40_000, "volks": 50_000, "hafen": 60_000, "insel": 61_500, "mariahilf": 70_000, "neubau": 80_000,
    "wieden": 90_000, "schotten": 100_000, "josef": 110_000, "nacht": 120_000, "spittel": 130_000, "alser": 140_000,
    "doebling": 150_000, "liesing": 160_000, "favoriten": 170_000, "hietzing": 180_000, "simmering": 190_000,
}  # fmt: skip
_STOCK = {
    "graben": {"scarf": 4}, "ring": {"boots": 0}, "markt": {"boots": 3}, "prater": {"boots": 9},
    "opern": {"coat": 2}, "stephan": {"radio": 5}, "volks": {"lamp": 3},
    "hafen": {"tent": 0, "tarp": 0}, "insel": {"tent": 6}, "mariahilf": {"tent": 0, "tent-xl": 2},
    "neubau": {"headphones": 7}, "nacht": {"scarf": 4}, "spittel": {"scarf": 4}, "alser": {"scarf": 4},
    "doebling": {"scarf": 4}, "favoriten": {"vase": 1}, "hietzing": {"lamp": 3},
}  # fmt: skip
#: Parts of a shop, by the id of their fence.
_DEPARTMENTS = {"opern-coats": "opern", "schotten-electronics": "schotten"}


def at(shop: str, metres_north: float = 0.0) -> tuple[float, float]:
    """Latitude and longitude so far north of a shop's middle."""
    return _LAT + (_SHOPS[shop] + metres_north) * METRE, _LNG


def beacon(shop: str, sku: str) -> str:
    """The beacon at a shelf: only who stands there hears it."""
    return f"{shop}/{sku}"


def access_point(department: str) -> str:
    """The Wi-Fi of a department."""
    return f"{department}/wifi"


def _fences(shop: str) -> list[Fence]:
    lat, lng = at(shop)
    around = Fence(id=f"{shop}-street", store=shop, kind="vicinity", geometry=Circle((lng, lat), 150.0))
    inside = Fence(id=f"{shop}-shop", store=shop, kind="store", parent=around.id, geometry=Circle((lng, lat), 60.0))
    parts = [
        Fence(
            id=department,
            store=shop,
            kind="department",
            parent=inside.id,
            geometry=Circle((lng, lat), 20.0),
            dwell_s=20,
            access_points=[access_point(department)],
        )
        for department, of_shop in _DEPARTMENTS.items()
        if of_shop == shop
    ]
    return [around, inside, *parts]


def _thing(sku: str, name: str, segment: str, price_cents: int, **aisles: str) -> Product:
    displays = []
    for shop, aisle in aisles.items():
        lat, lng = at(shop)
        shelf = Display(store=shop, lat=lat, lng=lng, aisle=aisle, parent=f"{shop}-shop", beacons=[beacon(shop, sku)])
        displays.append(shelf)
    return Product(sku=sku, name=name, segment=segment, price_cents=price_cents, displays=displays)


TOWN = WorldFile(
    stores=[
        Store(
            id=shop,
            name=shop.capitalize(),
            lat=at(shop)[0],
            lng=at(shop)[1],
            time_zone="Europe/Vienna",
            # The one that is never open.
            hours=[] if shop == "nacht" else None,
        )
        for shop in _SHOPS
    ],
    fences=[fence for shop in _SHOPS for fence in _fences(shop)],
    products=[
        _thing("scarf", "Scarf", "scarves", 4_000),
        _thing("boots", "Boots", "shoes", 12_000),
        _thing("coat", "Winter coat", "winter-coats", 20_000, opern="2"),
        _thing("old-coat", "Last year's coat", "winter-coats", 18_000),
        _thing("radio", "Radio", "promoted", 9_000, stephan="4"),
        _thing("lamp", "Reading lamp", "lighting", 6_000, volks="7", hietzing="1"),
        _thing("tent", "Tent for two", "camping", 19_900),
        _thing("tent-xl", "Tent for three", "camping", 24_900, mariahilf="9"),
        _thing("tarp", "Tarpaulin", "camping", 3_900),
        _thing("headphones", "Headphones", "audio", 15_000, neubau="3"),
        _thing("vase", "Vase", "glass", 5_000),
        _thing("kettle", "Kettle", "kitchen", 4_900),
    ],
    stock=[
        Stock(store=shop, sku=sku, quantity=quantity)
        for shop, shelves in _STOCK.items()
        for sku, quantity in shelves.items()
    ],
)
