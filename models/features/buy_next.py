"""What the buy-next model sees of one product segment: will this customer buy from it within a week?

Only segments that the customer has bought from can be asked about: nothing is kept that would tell the others apart.
`part` is computed once per customer and moment, `row` once per segment. Rates and shares keep their range as a history
grows.
"""

import math
from typing import NamedTuple

from models.features.base import FeatureSet
from nearcast.customer import HALF_LIFE_MS, Customer, SegmentHistory

_DAY_MS = 86_400_000
_WEEK_MS = 7 * _DAY_MS
#: What a decaying sum of one a millisecond, kept for ever, comes to.
_MEMORY_MS = HALF_LIFE_MS / math.log(2)
#: "Bought a year ago" and before that look the same.
_LONG_AGO_DAYS = 365.0
#: Added to rates before the logarithm: one basket a year.
_SELDOM = 1 / 52
#: More overdue than this is given up rather than due.
_GIVEN_UP = 5.0

BUY_NEXT = FeatureSet(
    "buy_next",
    1,
    (
        # Baskets with the segment per week: decayed with a half-life of four weeks, and since the customer is known.
        "log_segment_recent_rate",
        "log_segment_rate",
        "log_days_since_segment",
        # Of all baskets, those with the segment: ever, and decayed.
        "segment_basket_share",
        "segment_recent_share",
        # Mean spending on the segment per basket with it, in currency units.
        "log_segment_basket_spend",
        # How many baskets with it would have come since the last one at the usual rate: 1 is when it is due.
        "segment_overdue",
        "log_segment_overdue",
        # Baskets of any kind per week, decayed and since the customer is known.
        "log_recent_rate",
        "log_rate",
        "log_days_since_purchase",
        "log_distinct_segments",
    ),
)


class Part(NamedTuple):
    """What is the same for all segments of one customer at one moment."""

    at_ms: int
    baskets: int
    recent_baskets: float
    #: What a sum, or a decayed sum, is divided by to make it a rate per week.
    weeks: float
    recent_weeks: float
    #: The last columns of every row.
    tail: tuple[float, float, float, float]


def customer_part(customer: Customer, at_ms: int) -> Part:
    """What `row` needs of `customer` at `at_ms`."""
    history = customer.history
    known_ms = max(at_ms - history.first_ms, 0) if history.baskets else 0
    # A week more than is known: who has been here for a day with one basket does not buy seven a week.
    weeks = known_ms / _WEEK_MS + 1
    recent_weeks = _MEMORY_MS * (1 - math.exp2(-known_ms / HALF_LIFE_MS)) / _WEEK_MS + 1
    recent_baskets = history.recent_baskets.at(at_ms)
    return Part(
        at_ms,
        history.baskets or 1,
        recent_baskets,
        weeks,
        recent_weeks,
        (
            math.log(recent_baskets / recent_weeks + _SELDOM),
            math.log(history.baskets / weeks + _SELDOM),
            math.log1p(_days_since(history.last_ms, at_ms)),
            math.log1p(len(history.segments)),
        ),
    )


def row(part: Part, segment: SegmentHistory) -> list[float]:
    """The features of one segment that the customer has bought from, in the order of `BUY_NEXT.columns`."""
    recent = segment.recent.at(part.at_ms)
    rate = segment.baskets / part.weeks
    days = _days_since(segment.last_ms, part.at_ms)
    overdue = rate * days / 7
    return [
        math.log(recent / part.recent_weeks + _SELDOM),
        math.log(rate + _SELDOM),
        math.log1p(days),
        segment.baskets / part.baskets,
        recent / (part.recent_baskets + 0.1),
        math.log1p(segment.spend_cents / 100 / (segment.baskets or 1)),
        min(overdue, _GIVEN_UP),
        math.log(overdue + 0.05),
        *part.tail,
    ]


def _days_since(last_ms: int, at_ms: int) -> float:
    return min(max((at_ms - last_ms) / _DAY_MS, 0.0), _LONG_AGO_DAYS)
