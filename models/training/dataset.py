"""From history to labelled feature rows, by replaying it through the serving fold.

One row per addressed household and campaign, taken at the campaign's start from what was known strictly before it: at
one instant rows come first, then the campaign's message is recorded, then events are folded. What came of a campaign
(redemptions) reaches the customer as receipts, as in live serving, and so only touches rows of later campaigns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.features import FEATURES, row
from models.training.history import Campaign, History
from nearcast import fold
from nearcast.customer import Customer
from nearcast.decisions import Decision
from nearcast.events import Purchase, Receipt
from nearcast.ids import (
    CustomerId,
    DecisionId,
    EventId,
    MessageId,
    PromotionId,
    derived_event_id,
    message_id,
)
from nearcast.moments import Moment

_OBSERVE, _SEND, _FOLD = range(3)
_RULES = fold.FoldRules()
_Step = tuple[int, int, Campaign | Purchase | Receipt]


@dataclass(frozen=True)
class Dataset:
    """Rows in the order of `Example`s: by household, then by time. All arrays have one entry per row."""

    rows: NDArray[np.float64]
    redeemed: NDArray[np.bool_]
    starts_ms: NDArray[np.int64]
    campaign: NDArray[np.str_]
    household: NDArray[np.str_]
    #: Baskets with a coupon so far: no feature, but a baseline.
    coupon_baskets: NDArray[np.int64]

    def where(self, mask: NDArray[np.bool_]) -> "Dataset":
        """The rows for which `mask` holds."""
        return Dataset(
            self.rows[mask],
            self.redeemed[mask],
            self.starts_ms[mask],
            self.campaign[mask],
            self.household[mask],
            self.coupon_baskets[mask],
        )


@dataclass(frozen=True)
class _Example:
    row: list[float]
    redeemed: bool
    starts_ms: int
    campaign: str
    household: str
    coupon_baskets: int


def replay(history: History, progress: Callable[[float], None] = lambda _: None) -> Dataset:
    """Every row of `history`. `progress` hears the fraction done.

    Campaigns that start before the history does give no rows: their customers are unknown, not new.
    """
    examples: list[_Example] = []
    for number, household in enumerate(history.households):
        examples.extend(_replay_household(history, household))
        if number % 50 == 0:
            progress(number / len(history.households))
    progress(1.0)
    return Dataset(
        rows=np.array([example.row for example in examples], dtype=np.float64).reshape(-1, len(FEATURES)),
        redeemed=np.array([example.redeemed for example in examples], dtype=np.bool_),
        starts_ms=np.array([example.starts_ms for example in examples], dtype=np.int64),
        campaign=np.array([example.campaign for example in examples], dtype=np.str_),
        household=np.array([example.household for example in examples], dtype=np.str_),
        coupon_baskets=np.array([example.coupon_baskets for example in examples], dtype=np.int64),
    )


def _replay_household(history: History, household: CustomerId) -> Iterator[_Example]:
    customer = Customer(id=household)
    redeemed = {promotion for _, promotion in history.redemptions.get(household, [])}
    for at_ms, order, what in sorted(_steps(history, household), key=lambda step: step[:2]):
        if not isinstance(what, Campaign):
            fold.apply(customer, what, history.segments, _RULES)
        elif order == _SEND:
            fold.record_message(customer, *_message(household, what.promotion.promotion_id, at_ms))
        elif at_ms >= history.begins_ms:
            yield _Example(
                row=row(customer, what.promotion, None, at_ms),
                redeemed=what.promotion.promotion_id in redeemed,
                starts_ms=at_ms,
                campaign=what.promotion.id,
                household=household,
                coupon_baskets=customer.history.coupon_baskets,
            )


def _steps(history: History, household: CustomerId) -> Iterator[_Step]:
    for campaign in history.campaigns:
        if household in campaign.households:
            yield campaign.starts_ms, _OBSERVE, campaign
            yield campaign.starts_ms, _SEND, campaign
    for purchase in history.purchases(household):
        yield purchase.ts, _FOLD, purchase
    for number, (at_ms, promotion) in enumerate(history.redemptions.get(household, [])):
        decision, message = _ids(household, promotion)
        receipt = Receipt(
            id=derived_event_id("redemption", household, promotion, str(number)),
            uid=household,
            ts=at_ms,
            message=message,
            decision=decision,
            status="redeemed",
        )
        yield at_ms, _FOLD, receipt


def _ids(household: CustomerId, promotion: PromotionId) -> tuple[DecisionId, MessageId]:
    decision = DecisionId(f"{household}/{promotion}")
    return decision, message_id(decision, "customer")


def _message(household: CustomerId, promotion: PromotionId, at_ms: int) -> tuple[MessageId, Decision]:
    """A campaign received, as the message and decision that live serving would have made."""
    decision, message = _ids(household, promotion)
    moment = Moment(
        event=EventId(f"{household}/{promotion}"), customer=household, trigger="enter", at_ms=at_ms, subject=promotion
    )
    return message, Decision(
        id=decision,
        moment=moment,
        outcome="offer",
        at_ms=at_ms,
        deadline_ms=at_ms,
        candidates=[],
        rules_version="history",
        model_version="none",
        promotion=promotion,
    )
