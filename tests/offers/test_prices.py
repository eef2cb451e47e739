"""Prices made for one customer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.customer import SegmentHistory
from nearcast.decisions import Price, Reason
from nearcast.world import Discount, PriceRule, Product, What
from offers.policy import Policy
from offers.prices import price_for
from tests.offers.examples import HOUR_MS, NOW_MS, TENT, customer, promotion, what_happens

DAY_S = 86_400


@pytest.mark.parametrize(
    ("listed", "paid", "most_percent", "offered"),
    [
        (10_000, 8_000, 30, 8_000),  # in line with the last one bought
        (10_000, 5_000, 30, 7_000),  # but no more off than the rule allows
        (10_000, 7_000, 30, 7_000),
        (9_999, 1, 30, 7_000),  # 6,999.3, rounded in the shop's favour
        (1_000, 1, 90, 100),  # 100 is not 100.00000000000003
        (10_000, 10_000, 30, None),  # no reduction
        (10_000, 12_000, 30, None),
        (0, 12_000, 30, None),  # the list price isn't known
        (10_000, 0, 30, None),  # it was a gift
        (100, 1, 0.5, None),  # half a cent is no reduction
    ],
)
def test_the_price(listed: int, paid: int, most_percent: float, offered: int | None) -> None:
    """By hand: what they last paid, between the lowest price that the rule allows and the list price."""
    ann = customer()
    ann.history.segments["coats"] = SegmentHistory(baskets=1, last_ms=NOW_MS - HOUR_MS, last_price_cents=paid)
    coat = Product(sku="coat", name="Coat", segment="coats", price_cents=listed)
    price = price_for(PriceRule(most_percent=most_percent), coat, ann, NOW_MS)
    assert (price and price.offered_cents) == offered
    if price is not None:
        assert (price.list_cents, price.anchor_cents, price.anchor_at_ms) == (listed, paid, NOW_MS - HOUR_MS)


@given(listed=st.integers(1, 10**6), paid=st.integers(1, 10**6), most_percent=st.floats(0.01, 100))
def test_never_more_off_than_allowed(listed: int, paid: int, most_percent: float) -> None:
    """Whatever they paid: below the list price, not below what they paid, and at most so much off."""
    ann = customer()
    ann.history.segments["coats"] = SegmentHistory(baskets=1, last_ms=NOW_MS, last_price_cents=paid)
    coat = Product(sku="coat", name="Coat", segment="coats", price_cents=listed)
    price = price_for(PriceRule(most_percent=most_percent), coat, ann, NOW_MS)
    if price is not None:
        assert paid <= price.offered_cents < listed
        assert (listed - price.offered_cents) * 100 <= most_percent * listed + 0.1


def test_old_purchases_say_nothing() -> None:
    """A purchase counts until the rule's time is over."""
    ann = customer()
    ann.history.segments["coats"] = SegmentHistory(baskets=1, last_ms=NOW_MS - DAY_S * 1000, last_price_cents=80)
    coat = Product(sku="coat", name="Coat", segment="coats", price_cents=100)
    assert price_for(PriceRule(most_percent=50, within_s=DAY_S), coat, ann, NOW_MS) is None
    assert price_for(PriceRule(most_percent=50, within_s=DAY_S + 1), coat, ann, NOW_MS) is not None


def test_a_price_in_line_with_the_last_one_paid_is_off_unless_allowed_and_recorded() -> None:
    """Off by default; switched on, the decision has the discount, and every figure that it came from."""
    deal = promotion(what=What(skus=[TENT], price_rule=PriceRule(most_percent=50)))
    ann = customer()
    ann.history.segments["camping"] = SegmentHistory(baskets=1, last_ms=NOW_MS - HOUR_MS, last_price_cents=70)
    world = [Product(sku=TENT, name="Tent", segment="camping", price_cents=100)]
    off = what_happens(ann, deal, products=world)
    assert off is not None
    assert (off.reason, off.candidates[0].price) == (Reason.PERSONAL_PRICES_OFF, None)
    allowed = Policy(personal_prices=True)
    made = what_happens(ann, deal, products=world, policy=allowed)
    assert made is not None
    assert made.outcome == "offer"
    assert made.discount == Discount(amount_cents=30)
    price = Price(list_cents=100, anchor_cents=70, anchor_at_ms=NOW_MS - HOUR_MS, least_cents=50, offered_cents=70)
    assert (made.price, made.candidates[0].price) == (price, price)
    none = what_happens(customer(), deal, products=world, policy=allowed)
    assert none is not None
    assert none.reason == Reason.NO_ANCHOR_PRICE
