"""The catalogue snapshot: its version and its indexes."""

from nearcast.ids import FenceId
from nearcast.world import Cap, OpenHours
from offers.catalogue import Catalogue
from tests.offers.examples import BOOTS, DOORSTEP, PRODUCTS, SHOP, STORE, STOVE, TENT, promotion


def test_version_is_the_content_and_not_the_order() -> None:
    """The same content has the same version, in whatever order it comes."""
    deals = [promotion(id="a"), promotion(id="b")]
    hours = {DOORSTEP: [], FenceId("a"): []}
    one = Catalogue.build([STORE], PRODUCTS, deals, hours)
    other = Catalogue.build([STORE], reversed(PRODUCTS), reversed(deals), dict(reversed(hours.items())))
    assert one.version == other.version
    assert one.by_trigger == other.by_trigger


def test_any_change_is_a_new_version() -> None:
    """A changed store, product or promotion, or one less, makes another version."""
    deal = promotion()
    versions = {
        Catalogue.build([STORE], PRODUCTS, [deal]).version,
        Catalogue.build([STORE], PRODUCTS, []).version,
        Catalogue.build([], PRODUCTS, [deal]).version,
        Catalogue.build([STORE], PRODUCTS[1:], [deal]).version,
        Catalogue.build([STORE], PRODUCTS, [promotion(caps=[Cap(count=2, period_s=60)])]).version,
        Catalogue.build([STORE], PRODUCTS, [deal], {DOORSTEP: []}).version,
        Catalogue.build([STORE], PRODUCTS, [deal], {DOORSTEP: [OpenHours(0, 0, 1)]}).version,
    }
    assert len(versions) == 7


def test_indexes() -> None:
    """Promotions are found by trigger, products by segment, and what is displayed by store and segment."""
    found = Catalogue.build(
        [STORE], PRODUCTS, [promotion(id="b"), promotion(id="a"), promotion(id="c", trigger="exit")]
    )
    assert [deal.id for deal in found.by_trigger["walk_past"]] == ["a", "b"]
    assert [deal.id for deal in found.by_trigger["exit"]] == ["c"]
    assert found.skus_of_segment == {"camping": (STOVE, TENT), "shoes": (BOOTS,)}
    assert found.on_display == {(SHOP, "camping"): (TENT,)}
    assert found.segments[TENT] == "camping"


def test_nothing_is_a_catalogue_too() -> None:
    """A retailer who has described nothing yet has an empty catalogue with a version."""
    empty = Catalogue.build([], [], [])
    assert len(empty.version) == 16
    assert not empty.by_trigger
