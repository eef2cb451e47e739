"""Decisions: what was done about a moment, and every gate and score that led there."""

from enum import StrEnum

import msgspec

from nearcast.events import Channel
from nearcast.ids import CustomerId, DecisionId, PromotionId, Sku, StoreId
from nearcast.moments import Moment
from nearcast.world import Discount


class Reason(StrEnum):
    """Why a candidate, or a whole moment, led to nothing. Stable codes: they reach metrics, records and "why not?"."""

    OPTED_OUT = "opted_out"
    NO_CONSENT = "no_consent"
    LOW_CONFIDENCE = "low_confidence"
    SPOOFED = "spoofed"
    OUTSIDE_WINDOW = "outside_window"
    NOT_IN_AUDIENCE = "not_in_audience"
    OTHER_ARM = "other_arm"
    OUTSIDE_HOURS = "outside_hours"
    PERSONAL_PRICES_OFF = "personal_prices_off"
    NO_PRODUCT = "no_product"
    STORE_CLOSED = "store_closed"
    OUT_OF_STOCK = "out_of_stock"
    #: Offers made where a thing is out of stock:
    IN_STOCK = "in_stock"
    NOWHERE_ELSE = "nowhere_else"
    NO_ALTERNATIVE = "no_alternative"
    NO_ANCHOR_PRICE = "no_anchor_price"
    STAFF_CONTACT = "staff_contact"
    QUIET_HOURS = "quiet_hours"
    CAPPED = "capped"
    CAPPED_OVERALL = "capped_overall"
    CAPPED_CHANNELS = "capped_channels"
    BUDGET_EXHAUSTED = "budget_exhausted"
    # Of what passed every gate:
    OUTRANKED = "outranked"
    NOT_WORTH_IT = "not_worth_it"
    HOLDOUT = "holdout"
    EXPLORED = "explored"
    #: Quiet hours, and it will be decided anew when they are over.
    HELD = "held"
    # Found only when about to send, or after it (then it is recalled):
    LEFT = "left"
    TOO_LATE = "too_late"
    UNREACHABLE = "unreachable"
    PROMOTION_ENDED = "promotion_ended"
    ERASED = "erased"
    BOUGHT = "bought"


class Price(msgspec.Struct, kw_only=True, frozen=True):
    """How a personal price came about, in cents, for the audit."""

    list_cents: int
    #: What the customer last paid for a thing of the segment, when, and the lowest that the rule allows.
    anchor_cents: int
    anchor_at_ms: int
    least_cents: int
    offered_cents: int


class Charge(msgspec.Struct, kw_only=True, frozen=True, array_like=True):
    """What one message takes of one budget. `pool` is made by `offers.budgets`."""

    pool: str
    pieces: int = 0
    cents: int = 0


class Candidate(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One promotion (for one thing) that a moment could lead to, and how it fared. Never part of a reference cycle."""

    promotion: PromotionId
    sku: Sku | None = None
    #: The gate that stopped it, or why it was not chosen all the same; None for the winner.
    stopped_by: Reason | None = None
    #: All that follows is None (or empty) if a gate stopped it before scoring. P(redeem) from the model.
    propensity: float | None = None
    #: What a redemption is worth, and what the message costs, annoyance included.
    value_cents: float | None = None
    cost_cents: float | None = None
    #: propensity x value - cost.
    expected_cents: float | None = None
    #: How likely it was to be chosen here. What is missing to 1 over all candidates is "nothing".
    probability: float | None = None
    #: The customer was held out of it, so no policy could have chosen it here.
    held_out: bool = False
    #: What the model was asked about, in the order of the feature set whose hash the decision has.
    inputs: list[float] = []
    #: What was out of stock, and where else it is to be had (None: at the moment's store).
    instead_of: Sku | None = None
    store: StoreId | None = None
    #: A price made for this customer.
    price: Price | None = None


class WouldBe(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What would have been chosen, had the customer not been held out of it."""

    promotion: PromotionId
    sku: Sku | None = None


class Decision(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The outcome of one moment.

    `outcome` is "offer", "notice" or "assist" (a message was put in the outbox) or "nothing"; for "nothing" `reason` is
    the gate that stopped the candidate that got furthest, or what became of those that passed them all.
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
    #: Where the offer holds, which is not always where the customer is.
    store: StoreId | None = None
    reason: Reason | None = None
    instead_of: Sku | None = None
    #: What the coupon takes off, as of now; later changes of the promotion don't change it.
    discount: Discount | None = None
    price: Price | None = None
    #: What it takes of budgets.
    charges: list[Charge] = []
    #: When a moment that was held is decided anew; 0: it was not held.
    held_until_ms: int = 0
    #: Of the model's inputs; empty if no candidate got as far as the model.
    features_hash: str = ""
    #: Whether chance had the say here; how likely the outcome was, "nothing" included.
    explored: bool = False
    chosen_probability: float = 1.0
    would_be: WouldBe | None = None
    #: By experiment, of those that its candidates take part in: where in 0..1 the customer is.
    arms: dict[str, float] = {}
    #: P(reacts) by channel, in the order in which they are to be tried, and the model that says so; empty: in the
    #: promotion's order.
    channels: dict[Channel, float] = {}
    channel_model_version: str = ""
    #: Of the promotion's channels, those that caps on channels leave out.
    capped_channels: list[Channel] = []

    @property
    def expected_cents(self) -> float:
        """What the winner is expected to bring; 0 for nothing."""
        won = next((candidate for candidate in self.candidates if candidate.stopped_by is None), None)
        return won.expected_cents or 0.0 if won is not None else 0.0

    @property
    def customer(self) -> CustomerId:
        return self.moment.customer
