"""What the redeem model sees of one candidate: will this customer redeem a coupon of this promotion?

`customer_part` is computed once per customer and moment, `candidate_row` once per candidate. Features keep their range
as a history grows: rates, shares and logarithms rather than lifetime totals.
"""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

from models.features.base import FeatureSet
from nearcast.customer import HALF_LIFE_MS, UNSEEN, Customer, SegmentHistory
from nearcast.world import Promotion

_DAY_MS = 86_400_000
_DAY_S = 86_400
#: What a decaying sum of one a millisecond, kept for ever, comes to.
_MEMORY_MS = HALF_LIFE_MS / math.log(2)
#: Rates are per four weeks, of a time that is a week longer than the customer is known: who has been here for a day
#: with one basket does not buy thirty a month.
_RATE_MS = 28 * _DAY_MS
_GRACE_MS = 7 * _DAY_MS
#: Added to redemptions, and 1 to messages: somebody who was sent one and redeemed it isn't sure to redeem the next.
_PRIOR_REDEMPTIONS = 0.1
#: Shares are taken in units of these before the logarithm: below that, more or less is not much of a difference.
_FEW_BASKETS = 0.02
_FEW_MESSAGES = 0.05
#: The shortest and the longest window that training knows, in days; a coupon that is valid for a shorter or a longer
#: time is taken for one of these.
SHORTEST_DAYS = 4.0
LONGEST_DAYS = 60.0
#: "Bought a year ago", before that and never look the same.
_LONG_AGO_DAYS = 365.0

_COLUMNS = (
    # Spending in currency units, decayed with a half-life of four weeks.
    "log_recent_spend",
    # Of all baskets, those in which a coupon took something off.
    "log_coupon_basket_share",
    # Of the offers remembered (at most `nearcast.customer.KEPT_MESSAGES`) that reached somebody, those redeemed.
    "log_redemption_share",
    # Of the segments on offer, per four weeks and decayed: purchases (a basket counts once for each segment), and lines
    # on which a coupon took something off.
    "log_segment_rate",
    "log_segment_coupon_rate",
    # Of all spending, that in the segments on offer; days since anything of them was bought.
    "segment_spend_share",
    "log_days_since_segment",
    # How long the coupon can be redeemed, in days.
    "log_days_valid",
)
REDEEM = FeatureSet("redeem", 3, _COLUMNS)


#: The columns that are about the segments on offer.
_OnOffer = tuple[float, float, float, float]


_NEVER_BOUGHT: _OnOffer = (0.0, 0.0, 0.0, math.log1p(_LONG_AGO_DAYS))


class Part:
    """What is the same for all candidates of one customer at one moment."""

    __slots__ = ("_all", "at_ms", "head", "per_rate", "segments", "spend_cents")

    def __init__(self, customer: Customer, at_ms: int) -> None:
        history = customer.history
        self.at_ms = at_ms
        self.segments: Mapping[str, SegmentHistory] = history.segments
        self.spend_cents = history.spend_cents or 1
        known_ms = max(at_ms - history.first_ms, 0) if history.baskets else 0
        self.per_rate = _RATE_MS / (_MEMORY_MS * (1 - math.exp2(-known_ms / HALF_LIFE_MS)) + _GRACE_MS)
        statuses = [
            sent.status
            for sent in customer.messages
            if sent.status not in UNSEEN and not sent.is_alert and sent.kind != "notice"
        ]
        reached, redeemed = len(statuses), statuses.count("redeemed")
        self.head = (
            math.log1p(history.recent_spend.at(at_ms) / 100),
            math.log1p(history.coupon_baskets / (history.baskets or 1) / _FEW_BASKETS),
            math.log1p((redeemed + _PRIOR_REDEMPTIONS) / (reached + 1) / _FEW_MESSAGES),
        )
        self._all: _OnOffer | None = None

    def everything(self) -> "_OnOffer":
        """`on_offer` of all that the customer has bought: the same for each promotion on everything."""
        if self._all is None:
            self._all = self.on_offer(self.segments)
        return self._all

    def on_offer(self, segments: Iterable[str]) -> "_OnOffer":
        """The columns for these segments."""
        at_ms, exp2 = self.at_ms, math.exp2
        bought = coupons = 0.0
        spend_cents = last_ms = 0
        entries = list(filter(None, map(self.segments.get, segments)))
        if not entries:
            return _NEVER_BOUGHT
        for entry in entries:
            # `Decayed.at`, written out: a campaign can have hundreds of segments, and calls would cost most.
            recent = entry.recent
            age_ms = recent.at_ms - at_ms
            bought += recent.value * exp2(age_ms / HALF_LIFE_MS) if age_ms < 0 else recent.value
            if entry.coupons is not None:
                coupons += entry.coupons.at(at_ms)
            spend_cents += entry.spend_cents
            if entry.last_ms > last_ms:
                last_ms = entry.last_ms
        days = (at_ms - last_ms) / _DAY_MS if last_ms else _LONG_AGO_DAYS
        return (
            math.log1p(bought * self.per_rate),
            math.log1p(coupons * self.per_rate),
            spend_cents / self.spend_cents,
            math.log1p(min(max(days, 0.0), _LONG_AGO_DAYS)),
        )


def customer_part(customer: Customer, at_ms: int) -> Part:
    """What `candidate_row` needs of `customer` at `at_ms`."""
    return Part(customer, at_ms)


def candidate_row(part: Part, promotion: Promotion, segment: str | None) -> list[float]:
    """The features of offering `promotion`, in the order of `REDEEM.columns`.

    `segment` is the product segment of the candidate's SKU. It counts only if the promotion names no segments itself:
    the model was trained on what a whole promotion offers. A promotion without segments and SKUs offers everything.
    """
    what = promotion.what
    if what.segments:
        on_offer = part.on_offer(what.segments)
    elif segment is not None:
        on_offer = part.on_offer((segment,))
    elif what.skus:
        on_offer = part.on_offer(())
    else:
        on_offer = part.everything()
    return [*part.head, *on_offer, _log_days(promotion.coupon_valid_s)]


# Promotions have few.
@lru_cache(maxsize=1024)
def _log_days(valid_s: float) -> float:
    return math.log(min(max(valid_s / _DAY_S, SHORTEST_DAYS), LONGEST_DAYS))


def rows(customer: Customer, at_ms: int, offers: Iterable[tuple[Promotion, str | None]]) -> list[list[float]]:
    """`candidate_row` of each. Those of one promotion and segment are worked out once, and are one list."""
    part = Part(customer, at_ms)
    known: dict[tuple[str, str | None], list[float]] = {}
    made = []
    for promotion, segment in offers:
        key = promotion.id, segment
        found = known.get(key)
        if found is None:
            found = known[key] = candidate_row(part, promotion, segment)
        made.append(found)
    return made


def row(customer: Customer, promotion: Promotion, segment: str | None, at_ms: int) -> list[float]:
    """`candidate_row` of one candidate only."""
    return candidate_row(Part(customer, at_ms), promotion, segment)
