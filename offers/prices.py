"""A price made for one customer: what they last paid for a thing of its segment, within the bounds of the rule."""

import math

from nearcast.customer import Customer
from nearcast.decisions import Price
from nearcast.world import PriceRule, Product


def price_for(rule: PriceRule, product: Product, customer: Customer, at_ms: int) -> Price | None:
    """The price, with every figure that it came from; None where there is none to make.

    That is so where they bought nothing of the segment within the rule's time, where the list price is not known, and
    where they paid as much as that or more.
    """
    bought = customer.history.segments.get(product.segment)
    if bought is None or bought.last_price_cents <= 0 or bought.last_ms <= at_ms - rule.within_s * 1000:
        return None
    listed = product.price_cents
    # Rounded in the shop's favour, and a thousandth of a cent is no cent: percentages are not exact in binary.
    least = math.ceil(listed * (100.0 - rule.most_percent) / 100.0 - 1e-3)
    offered = max(bought.last_price_cents, least)
    if offered >= listed:
        return None
    return Price(
        list_cents=listed,
        anchor_cents=bought.last_price_cents,
        anchor_at_ms=bought.last_ms,
        least_cents=least,
        offered_cents=offered,
    )
