"""A small town for engine tests: one store with a vicinity, a department and a shelf, and what may be said there."""

from geofence.displays import display_fences
from nearcast.world import Circle, Discount, Display, Fence, Product, Promotion, Stock, Store, What, Where, Who, Words
from offers.worldfile import WorldFile

LAT, LNG = 48.2086, 16.37
#: One metre of latitude, in degrees.
METRE = 1 / 111_195


def _words(title: str) -> dict[str, Words]:
    return {"en": Words(title=title)}


WORLD = WorldFile(
    stores=[Store(id="graben", name="Graben", lat=LAT, lng=LNG)],
    fences=[
        Fence(id="near", store="graben", kind="vicinity", geometry=Circle((LNG, LAT), 120.0)),
        Fence(id="inside", store="graben", kind="store", parent="near", geometry=Circle((LNG, LAT), 40.0), dwell_s=60),
    ],
    products=[
        Product(sku="beans", name="Espresso beans", segment="coffee", price_cents=1_299),
        Product(
            sku="grinder",
            name="Grinder",
            segment="kitchen",
            price_cents=8_900,
            displays=[Display(store="graben", lat=LAT + 10 * METRE, lng=LNG, radius_m=3.0)],
        ),
        Product(sku="gone", name="Sold out", segment="coffee", price_cents=500),
    ],
    promotions=[
        Promotion(
            id="abandoned",
            name="Your cart is near",
            trigger="walk_past",
            who=Who(in_cart=True),
            what=What(discount=Discount(percent=15)),
            words=_words("{{ product }}: {{ discount }} off at {{ store }}"),
        ),
        Promotion(
            id="welcome",
            name="For gold members",
            trigger="enter",
            who=Who(loyalty=["gold"]),
            where=Where(kinds=["store"]),
            what=What(discount=Discount(amount_cents=200)),
            words=_words("Welcome, {{ customer }}"),
        ),
        Promotion(
            id="grind",
            name="At the grinder",
            trigger="near_product",
            what=What(skus=["grinder"], discount=Discount(percent=10)),
            value_cents=900,
            words=_words("{{ product }} now {{ discount }} off"),
        ),
        Promotion(
            id="help",
            name="Needs help",
            trigger="dwell",
            kind="assist",
            where=Where(kinds=["store"]),
            words=_words("Help"),
        ),
    ],
    stock=[
        Stock(store="graben", sku="beans", quantity=5),
        Stock(store="graben", sku="grinder", quantity=2),
        Stock(store="graben", sku="gone", quantity=0),
    ],
)

FENCES = [*WORLD.fences, *(fence for product in WORLD.products for fence in display_fences(product))]


def metres_north(metres: float) -> float:
    """The latitude so far north of the store."""
    return LAT + metres * METRE
