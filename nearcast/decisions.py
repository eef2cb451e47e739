"""Decisions: what was done about a moment, and every gate and score that led there."""

from enum import StrEnum

import msgspec

from nearcast.ids import CustomerId, DecisionId, PromotionId, Sku, StoreId
from nearcast.moments import Moment


class Reason(StrEnum):
    """Why a candidate, or a whole moment, led to nothing. Stable codes: they reach metrics, records and "why not?"."""

    OPTED_OUT = "opted_out"
    NO_CONSENT = "no_consent"
    LOW_CONFIDENCE = "low_confidence"
    SPOOFED = "spoofed"
    OUTSIDE_WINDOW = "outside_window"
    NOT_IN_AUDIENCE = "not_in_audience"
    NO_PRODUCT = "no_product"
    STORE_CLOSED = "store_closed"
    OUT_OF_STOCK = "out_of_stock"
    STAFF_CONTACT = "staff_contact"
    QUIET_HOURS = "quiet_hours"
    CAPPED = "capped"
    CAPPED_OVERALL = "capped_overall"
    OUTRANKED = "outranked"
    # Found only when about to send:
    LEFT = "left"
    TOO_LATE = "too_late"
    UNREACHABLE = "unreachable"
    PROMOTION_ENDED = "promotion_ended"
    ERASED = "erased"


class Candidate(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One promotion (for one thing) that a moment could lead to, and how it fared."""

    promotion: PromotionId
    sku: Sku | None = None
    #: The gate that stopped it, or OUTRANKED; None for the winner.
    stopped_by: Reason | None = None
    #: P(redeem) from the model, and propensity x value in cents; None if a gate stopped it before scoring.
    propensity: float | None = None
    expected_cents: float | None = None


class Decision(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The outcome of one moment.

    `outcome` is "offer" or "assist" (a message was put in the outbox) or "nothing"; for "nothing" `reason` is the
    gate that stopped the candidate that got furthest.
    """

    id: DecisionId
    moment: Moment
    outcome: str
    at_ms: int
    deadline_ms: int
    candidates: list[Candidate]
    rules_version: str
    model_version: str
    promotion: PromotionId | None = None
    sku: Sku | None = None
    store: StoreId | None = None
    reason: Reason | None = None

    @property
    def customer(self) -> CustomerId:
        return self.moment.customer
