"""A small retailer that the stories are told about: one shop, a few products, one shopper."""

from collections.abc import Mapping, Sequence
from typing import Any

from nearcast.customer import CartItem, Customer, Presence, SentMessage, Stay
from nearcast.decisions import Decision
from nearcast.events import Channel, DeliveryStatus
from nearcast.hours import Timetable
from nearcast.ids import CustomerId, DecisionId, EventId, FenceId, MessageId, PromotionId, Sku, StoreId
from nearcast.moments import Moment
from nearcast.world import Display, OpenHours, Product, Promotion, Store, Words
from offers.candidates import candidates
from offers.catalogue import Catalogue
from offers.decide import Scores, decide, screen
from offers.policy import Policy

#: Sunday 15 June 2025, 15:06:40 UTC.
NOW_MS = 1_750_000_000_000
HOUR_MS = 3_600_000
SHOP = StoreId("shop")
DOORSTEP = FenceId("doorstep")
TENT, STOVE, BOOTS = Sku("tent"), Sku("stove"), Sku("boots")

STORE = Store(id=SHOP, name="Shop", lat=48.2, lng=16.37, time_zone="Europe/Vienna")
PRODUCTS = [
    Product(sku=TENT, name="Tent", segment="camping", displays=[Display(store=SHOP, lat=48.2, lng=16.37)]),
    Product(sku=STOVE, name="Stove", segment="camping"),
    Product(sku=BOOTS, name="Boots", segment="shoes"),
]
ALL_IN_STOCK = {(SHOP, TENT): 3, (SHOP, STOVE): 3, (SHOP, BOOTS): 3}


def promotion(**fields: Any) -> Promotion:
    return Promotion(
        **{"id": "deal", "name": "Deal", "trigger": "walk_past", "words": {"en": Words(title="Hi")}, **fields}
    )


def catalogue(
    *promotions: Promotion,
    store: Store = STORE,
    fence_hours: Mapping[FenceId, Sequence[OpenHours]] | None = None,
    products: Sequence[Product] = PRODUCTS,
    others: Sequence[Store] = (),
) -> Catalogue:
    times = {fence: Timetable(hours) for fence, hours in (fence_hours or {}).items()}
    return Catalogue.build([store, *others], products, promotions, times)


def customer(*, cart: tuple[Sku, ...] = (), consents: tuple[str, ...] = ("websocket",), **fields: Any) -> Customer:
    """A customer who consented to push messages a day ago, and put things into the cart an hour ago."""
    return Customer(
        id=CustomerId("ann"),
        cart={sku: CartItem(1, None, NOW_MS - HOUR_MS) for sku in cart},
        consents=dict.fromkeys(consents, (True, NOW_MS - 24 * HOUR_MS)),
        **fields,
    )


def moment(**fields: Any) -> Moment:
    """Walking past the shop, unless said otherwise."""
    return Moment(
        **{
            "event": EventId("e1"),
            "customer": CustomerId("ann"),
            "trigger": "walk_past",
            "at_ms": NOW_MS,
            "subject": DOORSTEP,
            "store": SHOP,
            "fence": DOORSTEP,
            "fence_kind": "vicinity",
            **fields,
        }
    )


def sent(
    promotion_id: str = "deal",
    at_ms: int = NOW_MS - HOUR_MS,
    status: DeliveryStatus | None = "delivered",
    name: str = "m0",
) -> SentMessage:
    channel: Channel = "websocket"
    return SentMessage(MessageId(name), DecisionId("d0"), PromotionId(promotion_id), at_ms, status, channel)


def inside(*fences: FenceId) -> Presence:
    return Presence(last_ms=NOW_MS, inside={fence: Stay(NOW_MS, NOW_MS) for fence in fences})


def scores_of(propensities: Mapping[int, float]) -> Scores:
    """What a model with two features said."""
    return Scores(propensities, {index: [p, float(index)] for index, p in propensities.items()}, "model-1", "hash-1")


def what_happens(
    shopper: Customer,
    *promotions: Promotion,
    at: Moment | None = None,
    stock: dict[tuple[StoreId, Sku], int] | None = None,
    policy: Policy | None = None,
    store: Store = STORE,
    fence_hours: Mapping[FenceId, Sequence[OpenHours]] | None = None,
    propensity: float = 0.5,
    products: Sequence[Product] = PRODUCTS,
    others: Sequence[Store] = (),
) -> Decision | None:
    """The decision that the engine would come to; None if there was nothing to decide."""
    at = at or moment()
    world = catalogue(*promotions, store=store, fence_hours=fence_hours, products=products, others=others)
    found = candidates(at, shopper, world)
    if not found:
        return None
    screened = screen(at, shopper, found, world, ALL_IN_STOCK if stock is None else stock, policy or Policy())
    passed = {index: propensity for index, candidate in enumerate(screened) if candidate.stopped_by is None}
    return decide(at, shopper, screened, scores_of(passed), world, policy or Policy())
