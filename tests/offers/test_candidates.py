"""Which promotions, for which things, a moment could lead to."""

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nearcast.customer import CartItem, Customer, SegmentHistory
from nearcast.ids import FenceId, Sku, StoreId
from nearcast.moments import Moment
from nearcast.world import Display, OpenHours, Product, Promotion, Store, What, When, Where, Who
from offers.candidates import MAX_STORES, MAX_THINGS, candidates, stock_wanted, suits, things
from offers.catalogue import Catalogue
from tests.offers.examples import (
    BOOTS,
    DOORSTEP,
    HOUR_MS,
    NOW_MS,
    PRODUCTS,
    SHOP,
    STORE,
    STOVE,
    TENT,
    catalogue,
    customer,
    moment,
    promotion,
    what_happens,
)


def skus(at: Moment, shopper: Customer, world: Catalogue) -> list[Sku | None]:
    return [candidate.sku for candidate in candidates(at, shopper, world)]


def test_only_the_trigger_that_happened() -> None:
    """A promotion of another trigger is no candidate."""
    world = catalogue(promotion(id="pass"), promotion(id="open", trigger="app_open"))
    assert [c.promotion for c in candidates(moment(), customer(), world)] == ["pass"]


def test_only_where_it_is_meant_to_be() -> None:
    """Stores, fences and kinds must each fit the place of the moment; left empty they fit anywhere."""
    world = catalogue(
        promotion(id="anywhere"),
        promotion(id="shop", where=Where(stores=[SHOP])),
        promotion(id="other-shop", where=Where(stores=["elsewhere"])),
        promotion(id="doorstep", where=Where(fences=["other", DOORSTEP])),
        promotion(id="other-fence", where=Where(fences=["other"])),
        promotion(id="vicinity", where=Where(kinds=["vicinity"])),
        promotion(id="department", where=Where(kinds=["department"])),
        promotion(id="both", where=Where(stores=[SHOP], kinds=["department"])),
    )
    found = [c.promotion for c in candidates(moment(), customer(), world)]
    assert found == ["anywhere", "doorstep", "shop", "vicinity"]


def test_what_is_promised_for_a_department_holds_at_its_shelves() -> None:
    """A fence stands for all the fences in it, however deep; not for those around it."""
    world = catalogue(
        promotion(id="department", trigger="enter", where=Where(fences=["dairy"])),
        promotion(id="other", trigger="enter", where=Where(fences=["bakery"])),
        promotion(id="shelf", trigger="enter", where=Where(fences=["milk"])),
        promotion(id="shelves-only", trigger="enter", where=Where(fences=["dairy"], kinds=["shelf"])),
        promotion(id="store", trigger="enter", where=Where(fences=["bakery", "hall"])),
    )

    def found(fence: str, kind: str, *around: str) -> list[str]:
        at = moment(trigger="enter", fence=fence, fence_kind=kind, around=around)
        return [candidate.promotion for candidate in candidates(at, customer(), world)]

    assert found("milk", "shelf", "dairy", "hall") == ["department", "shelf", "shelves-only", "store"]
    assert found("dairy", "department", "hall") == ["department", "store"]
    assert found("hall", "store") == ["store"]


def test_without_things_there_is_one_candidate() -> None:
    """A promotion for nothing in particular is one candidate without a SKU."""
    assert skus(moment(), customer(cart=(TENT,)), catalogue(promotion())) == [None]


def test_in_cart_means_what_is_in_the_cart() -> None:
    """A promotion that asks for a cart item is about those items; it is no candidate for an empty cart."""
    world = catalogue(promotion(who=Who(in_cart=True)))
    assert skus(moment(), customer(cart=(TENT, BOOTS)), world) == [BOOTS, TENT]
    assert skus(moment(), customer(), world) == []


def test_in_cart_of_the_things_named() -> None:
    """With SKUs or segments, only cart items among them count."""
    ann = customer(cart=(TENT, BOOTS))
    by_segment = promotion(who=Who(in_cart=True), what=What(segments=["camping"]))
    by_sku = promotion(who=Who(in_cart=True), what=What(skus=[BOOTS, STOVE]))
    assert skus(moment(), ann, catalogue(by_segment)) == [TENT]
    assert skus(moment(), ann, catalogue(by_sku)) == [BOOTS]


def test_on_wishlist_and_in_cart_must_both_hold() -> None:
    """Asked for both, a thing must be on the wishlist and in the cart."""
    ann = customer(cart=(TENT, BOOTS), wishlist={TENT: NOW_MS, STOVE: NOW_MS})
    assert skus(moment(), ann, catalogue(promotion(who=Who(on_wishlist=True)))) == [TENT, STOVE]
    assert skus(moment(), ann, catalogue(promotion(who=Who(on_wishlist=True, in_cart=True)))) == [TENT]


def test_a_moment_about_a_product_is_about_that_one_only() -> None:
    """Standing at a product or looking at it: the promotion must be about it, and then is about nothing else."""
    at_stove = moment(trigger="near_product", sku=STOVE)

    def found(**fields: Any) -> list[Sku | None]:
        return skus(at_stove, customer(cart=(TENT,)), catalogue(promotion(trigger="near_product", **fields)))

    assert found() == [STOVE]
    assert found(what=What(segments=["camping"])) == [STOVE]
    assert found(what=What(skus=[TENT])) == []
    assert found(what=What(segments=["shoes"])) == []
    assert found(who=Who(in_cart=True)) == []


def test_most_relevant_things_first() -> None:
    """First what the customer showed interest in, then the segments they buy from most, displayed things first."""
    world = catalogue(promotion(trigger="enter", what=What(segments=["camping", "shoes"])))
    enter = moment(trigger="enter")
    assert skus(enter, customer(), world) == [TENT, STOVE, BOOTS]
    assert skus(enter, customer(viewed={BOOTS: NOW_MS}), world) == [BOOTS, TENT, STOVE]
    ann = customer(wishlist={STOVE: NOW_MS})
    ann.history.segments["shoes"] = SegmentHistory(baskets=1)
    ann.history.segments["shoes"].recent.add(1.0, NOW_MS - HOUR_MS)
    assert skus(enter, ann, world) == [STOVE, BOOTS, TENT]


def test_newest_cart_item_first() -> None:
    """Of several cart items the one changed last comes first."""
    ann = customer()
    ann.cart = {TENT: CartItem(1, None, NOW_MS), BOOTS: CartItem(1, None, NOW_MS - 1), STOVE: CartItem(1, None, NOW_MS)}
    assert skus(moment(), ann, catalogue(promotion(who=Who(in_cart=True)))) == [STOVE, TENT, BOOTS]


def test_never_more_than_a_few_things() -> None:
    """A promotion for a big segment gives a bounded number of candidates, always the same ones."""
    many = [Product(sku=f"sku-{number:04}", name="x", segment="big") for number in range(1000)]
    world = Catalogue.build([STORE], [*many, *PRODUCTS], [promotion(trigger="enter", what=What(segments=["big"]))])
    found = skus(moment(trigger="enter"), customer(), world)
    assert found == [f"sku-{number:04}" for number in range(MAX_THINGS)]


def test_a_named_thing_that_does_not_exist_stays_a_candidate() -> None:
    """A SKU that the catalogue doesn't know is left to the gates, which say so."""
    assert skus(moment(), customer(), catalogue(promotion(what=What(skus=["gone"])))) == ["gone"]


def test_stock_is_asked_once_per_store_and_thing() -> None:
    """Two promotions for one thing need one stock figure; no store or no thing needs none."""
    world = catalogue(*(promotion(id=name, what=What(skus=[TENT])) for name in "ab"), promotion(id="c"))
    found = candidates(moment(), customer(), world)
    assert stock_wanted(moment(), found, world) == [(SHOP, TENT)]
    assert stock_wanted(moment(store=None), found, world) == []


ELSEWHERE = promotion(what=What(skus=[TENT], instead="elsewhere", within_m=50_000))


def angle_m(one: Store, other: Store) -> float:
    """The distance by the angle between two vectors: another formula than the code's."""

    def vector(store: Store) -> tuple[float, float, float]:
        lat, lng = math.radians(store.lat), math.radians(store.lng)
        return math.cos(lat) * math.cos(lng), math.cos(lat) * math.sin(lng), math.sin(lat)

    (a, b, c), (x, y, z) = vector(one), vector(other)
    across = math.hypot(b * z - c * y, c * x - a * z, a * y - b * x)
    return 6_371_008.8 * math.atan2(across, a * x + b * y + c * z)


town = st.lists(
    st.tuples(st.floats(-0.6, 0.6), st.floats(-0.9, 0.9), st.booleans(), st.integers(0, 2)), min_size=1, max_size=20
)


@given(
    others=town, lat=st.sampled_from([0.0, 48.2, -89.9]), lng=st.sampled_from([16.37, 179.9]), here=st.integers(0, 1)
)
def test_the_nearest_other_store_that_has_it(
    others: list[tuple[float, float, bool, int]], lat: float, lng: float, here: int
) -> None:
    """By brute force, at a pole and at the antimeridian too: of the nearest 8 stores that are open and near enough the
    first with stock; none, if there is none; and only where this store has none."""
    hours: list[OpenHours] = []
    home = Store(id="shop", name="Shop", lat=lat, lng=lng)
    stores = [
        Store(
            id=f"s{n:02}",
            name="",
            lat=max(-90.0, lat + north),
            lng=(lng + east + 180) % 360 - 180,
            hours=None if is_open else hours,
        )
        for n, (north, east, is_open, _) in enumerate(others)
    ]
    stock = {(SHOP, TENT): here} | {
        (store.store_id, TENT): entry[3] for store, entry in zip(stores, others, strict=True)
    }
    decided = what_happens(customer(), ELSEWHERE, store=home, others=stores, stock=stock)
    near = sorted((angle_m(home, store), store.id, entry[3]) for store, entry in zip(stores, others, strict=True)
                  if entry[2] and angle_m(home, store) <= 50_000)[:MAX_STORES]  # fmt: skip
    expected = next((store for _, store, quantity in near if quantity), None)
    assert decided is not None
    if here:
        assert decided.reason == "in_stock"
    elif expected is None:
        assert decided.reason == "nowhere_else"
    else:
        assert (decided.outcome, decided.store, decided.sku) == ("offer", expected, TENT)
    assert decided.moment.store == SHOP


def test_only_the_stock_that_is_asked_for_is_looked_up() -> None:
    """What `stock_wanted` says is all that the decision needs: the nearest open stores, the things most alike."""
    stores = [Store(id=f"s{n:02}", name="", lat=48.2, lng=16.37 + n / 1_000) for n in range(1, 20)]
    world = catalogue(ELSEWHERE, promotion(id="other", what=What(skus=[STOVE], instead="alternative")), others=stores)
    found = candidates(moment(), customer(), world)
    nearest = [StoreId(f"s{n:02}") for n in range(1, MAX_STORES + 1)]
    assert stock_wanted(moment(), found, world) == [
        (SHOP, TENT), *((store, TENT) for store in nearest), (SHOP, STOVE), (SHOP, TENT),
    ][: MAX_STORES + 2]  # fmt: skip


@settings(max_examples=50)
@given(
    things_=st.lists(
        st.tuples(st.integers(0, 30), st.booleans(), st.booleans(), st.sampled_from(["camping", "shoes"])), max_size=12
    ),
    price=st.integers(0, 30),
    here=st.integers(0, 1),
)
def test_an_alternative_in_this_store(things_: list[tuple[int, bool, bool, str]], price: int, here: int) -> None:
    """By brute force: of the five of its segment that stand first (on display here, then the nearest in price), the
    first that the store has."""
    display = PRODUCTS[0].displays
    wanted = Product(sku="wanted", name="", segment="camping", price_cents=price)
    products = [
        Product(sku=f"t{n:02}", name="", segment=segment, price_cents=cents, displays=display if shown else [])
        for n, (cents, shown, _, segment) in enumerate(things_)
    ]
    stock = {(SHOP, Sku(f"t{n:02}")): int(has) for n, (_, _, has, _) in enumerate(things_)}
    stock[SHOP, Sku("wanted")] = here
    deal = promotion(what=What(skus=["wanted"], instead="alternative"))
    decided = what_happens(customer(), deal, products=[wanted, *products], stock=stock)
    order = sorted((not shown, abs(cents - price), f"t{n:02}", has)
                   for n, (cents, shown, has, segment) in enumerate(things_) if segment == "camping")[:5]  # fmt: skip
    expected = next((sku for _, _, sku, has in order if has), None)
    assert decided is not None
    if here:
        assert decided.reason == "in_stock"
    elif expected is None:
        assert decided.reason == "no_alternative"
    else:
        assert (decided.outcome, decided.sku, decided.instead_of, decided.store) == ("offer", expected, "wanted", SHOP)


def test_instead_of_nothing() -> None:
    """What is missing must be a thing, at a store: else there is nothing to offer in its place."""
    for instead in ("elsewhere", "alternative"):
        deal = promotion(what=What(skus=[TENT], instead=instead))
        assert candidates(moment(store=None), customer(), catalogue(deal)) == []
        assert candidates(moment(), customer(), catalogue(promotion(what=What(instead=instead)))) == []
        assert [c.sku for c in candidates(moment(), customer(), catalogue(deal))] == [TENT]


@pytest.mark.parametrize(
    ("points", "reached"),
    [((99, 100), True), ((0, 500), True), ((100, 101), False), ((98, 99), False), (None, False)],
)
def test_points_reached_once(points: tuple[int, int] | None, reached: bool) -> None:
    """Only the rise that crosses the threshold leads to the promotion."""
    deal = promotion(trigger="points_reached", who=Who(min_points=100))
    found = candidates(moment(trigger="points_reached", points=points), customer(), catalogue(deal))
    assert bool(found) is reached


def test_statuses_of_an_order() -> None:
    """A promotion can name the statuses that it is about; without any it is about all."""
    world = catalogue(
        promotion(id="all", trigger="order_status"),
        promotion(id="shipped", trigger="order_status", when=When(statuses=["shipped", "packed"])),
    )

    def found(status: str) -> list[str]:
        at = moment(trigger="order_status", status=status, order="A-1")
        return [candidate.promotion for candidate in candidates(at, customer(), world)]

    assert found("packed") == ["all", "shipped"]
    assert found("delayed") == found("") == ["all"]


names = st.sampled_from(["tent", "stove", "boots", "camping", "shoes", "gone"])
deals = st.builds(
    lambda number, **fields: promotion(id=f"p{number:03}", **fields),
    number=st.integers(0, 99),
    trigger=st.sampled_from(["walk_past", "enter"]),
    where=st.builds(
        Where,
        stores=st.lists(st.sampled_from(["shop", "other"]), max_size=2),
        fences=st.lists(st.sampled_from(["doorstep", "hall", "street"]), max_size=2),
        kinds=st.lists(st.sampled_from(["vicinity", "store"]), max_size=1),
    ),
    what=st.builds(What, skus=st.lists(names, max_size=2), segments=st.lists(names, max_size=2)),
    who=st.builds(Who, in_cart=st.booleans(), on_wishlist=st.booleans()),
)
own = st.sets(st.sampled_from([TENT, STOVE, BOOTS]))


@given(
    promotions=st.lists(deals, max_size=12, unique_by=lambda deal: deal.id),
    cart=own,
    wishlist=own,
    store=st.sampled_from(["shop", "other", None]),
    fence=st.sampled_from(["doorstep", "hall", None]),
    around=st.lists(st.sampled_from(["hall", "street"]), max_size=2, unique=True),
    sku=st.sampled_from([None, TENT, BOOTS, "gone"]),
)
def test_the_index_finds_what_looking_at_all_finds(
    promotions: list[Promotion],
    cart: set[Sku],
    wishlist: set[Sku],
    store: StoreId | None,
    fence: FenceId | None,
    around: list[FenceId],
    sku: Sku | None,
) -> None:
    """The same promotions for the same things in the same order."""
    at = moment(store=store, fence=fence, around=tuple(around), sku=sku)
    ann = customer(cart=tuple(cart), wishlist=dict.fromkeys(wishlist, NOW_MS))
    world = catalogue(*promotions)
    expected = [
        (deal.id, thing)
        for deal in sorted(promotions, key=lambda deal: deal.id)
        if deal.trigger == "walk_past" and suits(deal, at)
        for thing in things(deal, at, ann, world)
    ]
    assert [(each.promotion, each.sku) for each in candidates(at, ann, world)] == expected


@given(
    skus_=st.lists(names, max_size=3, unique=True),
    segments=st.lists(names, max_size=3, unique=True),
    viewed=st.dictionaries(st.sampled_from([TENT, STOVE, BOOTS, Sku("gone")]), st.integers(0, 3)),
    bought=st.dictionaries(st.sampled_from(["camping", "shoes", "tent"]), st.integers(1, 3)),
    displayed=st.sets(st.sampled_from([TENT, STOVE, BOOTS])),
)
@example(skus_=[], segments=["camping"], viewed={}, bought={}, displayed={TENT})
def test_things_in_the_order_of_relevance(
    skus_: list[str],
    segments: list[str],
    viewed: dict[Sku, int],
    bought: dict[str, int],
    displayed: set[Sku],
) -> None:
    """By sorting everything: the newest that they looked at, the SKUs named, the things of segments; for a stranger
    and a regular alike, in one store after the other."""
    shelf = [Display(store=SHOP, lat=48.2, lng=16.37)]
    products = [
        Product(sku=sku, name="", segment=segment, displays=shelf if sku in displayed else [])
        for sku, segment in ((TENT, "camping"), (STOVE, "camping"), (BOOTS, "shoes"))
    ]
    deal = promotion(what=What(skus=skus_, segments=segments))
    ann = customer(viewed={sku: NOW_MS + later for sku, later in viewed.items()})
    for segment, amount in bought.items():
        ann.history.segments[segment] = SegmentHistory(baskets=1)
        ann.history.segments[segment].recent.add(float(amount), NOW_MS)
    segment_of = {product.sku: product.segment for product in products}
    seen = sorted(viewed, key=lambda sku: (-viewed[sku], sku))
    world = catalogue(deal, products=products)
    for store in (SHOP, StoreId("other")):
        order: list[str] = [sku for sku in seen if sku in skus_ or segment_of.get(sku) in segments]
        order += sorted(skus_, key=lambda sku: (-bought.get(segment_of.get(sku, ""), 0), sku))
        for segment in sorted(segments, key=lambda segment: (-bought.get(segment, 0), segment)):
            shown = displayed if store == SHOP else set()
            of_segment = [sku for sku, found in segment_of.items() if found == segment]
            order += sorted(of_segment, key=lambda sku: (sku not in shown, sku))
        expected = list(dict.fromkeys(order))[:MAX_THINGS] if skus_ or segments else [None]
        assert skus(moment(store=store), ann, world) == expected


def test_a_promotion_for_nearly_everywhere() -> None:
    """One that names more places and things than the index lists is found all the same."""
    deal = promotion(
        where=Where(stores=[SHOP, *(f"s{n}" for n in range(200))]),
        what=What(skus=[TENT, *(f"t{n}" for n in range(200))]),
        who=Who(in_cart=True),
    )
    assert skus(moment(), customer(cart=(TENT,)), catalogue(deal)) == [TENT]
    assert skus(moment(store="elsewhere"), customer(cart=(TENT,)), catalogue(deal)) == []
