"""Which promotions, for which things, a moment could lead to."""

from typing import Any

from nearcast.customer import CartItem, Customer, SegmentHistory
from nearcast.ids import Sku
from nearcast.moments import Moment
from nearcast.world import Product, What, Where, Who
from offers.candidates import MAX_THINGS, candidates, stock_wanted
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
    assert stock_wanted(moment(), found) == [(SHOP, TENT)]
    assert stock_wanted(moment(store=None), found) == []
