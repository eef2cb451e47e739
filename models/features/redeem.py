"""What the redeem model sees of one candidate: will this customer redeem a coupon of this promotion?

Called once per candidate. Features keep their range as a history grows: decayed sums, shares and logarithms rather than
lifetime totals.
"""

import math
from collections.abc import Sequence

from models.features.base import FeatureSet
from nearcast.customer import Customer, Decayed, History
from nearcast.world import Promotion

_DAY_MS = 86_400_000
#: "Never bought" and "bought a year ago" look the same.
_LONG_AGO_DAYS = 365.0

_COLUMNS = (
    # Baskets, and spending in currency units, decayed with a half-life of four weeks.
    "log_recent_baskets",
    "log_recent_spend",
    # Mean spending per basket, in currency units.
    "log_basket_spend",
    "log_days_since_purchase",
    # Of all baskets, those in which a coupon took something off; of the undiscounted value, what coupons took off.
    "coupon_basket_share",
    "coupon_spend_share",
    # Messages remembered (at most `nearcast.customer.KEPT_MESSAGES`), and coupons redeemed so far.
    "log_messages",
    "log_redemptions",
    "log_distinct_segments",
    # Of all spending, that in the segments on offer; days since anything of them was bought.
    "segment_spend_share",
    "segment_log_days_since_purchase",
)
REDEEM = FeatureSet("redeem", 1, _COLUMNS)


def row(customer: Customer, promotion: Promotion, segment: str | None, at_ms: int) -> list[float]:
    """The features of offering `promotion` to `customer` at `at_ms`, in the order of `REDEEM.columns`.

    `segment` is the product segment of the candidate's SKU. It counts only if the promotion names no segments itself:
    the model was trained on what a whole promotion offers. A promotion without segments and SKUs offers everything.
    """
    history = customer.history
    spend = history.spend_cents
    baskets = history.baskets or 1
    segment_share, segment_last_ms = _segment_history(history, promotion, segment)
    return [
        math.log1p(_now(history.recent_baskets, at_ms)),
        math.log1p(_now(history.recent_spend, at_ms) / 100),
        math.log1p(spend / 100 / baskets),
        _log_days_since(history.last_ms, at_ms),
        history.coupon_baskets / baskets,
        history.coupon_cents / ((spend + history.coupon_cents) or 1),
        math.log1p(len(customer.messages)),
        math.log1p(customer.redemptions),
        math.log1p(len(history.segments)),
        segment_share,
        _log_days_since(segment_last_ms, at_ms),
    ]


def _segment_history(history: History, promotion: Promotion, segment: str | None) -> tuple[float, int]:
    """The share of spending in the segments on offer, 0..1, and when they were last bought (0 = never)."""
    segments: Sequence[str] = promotion.what.segments
    if not segments:
        if segment is not None:
            segments = (segment,)
        elif not promotion.what.skus:
            return (1.0 if history.spend_cents else 0.0), history.last_ms
    spend_cents = last_ms = 0
    for name in segments:
        entry = history.segments.get(name)
        if entry is not None:
            spend_cents += entry.spend_cents
            last_ms = max(last_ms, entry.last_ms)
    return spend_cents / (history.spend_cents or 1), last_ms


def _now(decayed: Decayed, at_ms: int) -> float:
    # A moment older than the last purchase must not make the sum grow backwards in time, without bound.
    return decayed.at(max(at_ms, decayed.at_ms))


def _log_days_since(last_ms: int, at_ms: int) -> float:
    days = (at_ms - last_ms) / _DAY_MS if last_ms else _LONG_AGO_DAYS
    return math.log1p(min(max(days, 0.0), _LONG_AGO_DAYS))
