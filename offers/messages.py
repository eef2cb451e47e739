"""The message that a decision puts into the outbox. Texts are made when it is sent, not here."""

from nearcast.decisions import Decision
from nearcast.ids import message_id
from nearcast.messages import Message
from nearcast.world import Promotion
from offers.catalogue import Catalogue
from offers.gates import PLACE_TRIGGERS


def message_of(decision: Decision, catalogue: Catalogue) -> Message | None:
    """The outbox message; None if nothing was decided. `catalogue` is the one that the decision was made with.

    `channels` are the promotion's, in the decision's order if it has one, without those that are capped: which of them
    the customer consents to is asked when it is sent.
    """
    if decision.promotion is None:
        return None
    promotion = catalogue.promotions[decision.promotion]
    moment = decision.moment
    # Who is sent elsewhere need not stay here.
    is_here = moment.trigger in PLACE_TRIGGERS and decision.store == moment.store
    return Message(
        id=message_id(decision.id, "staff" if promotion.kind == "assist" else "customer"),
        decision=decision.id,
        kind=promotion.kind,
        customer=decision.customer,
        promotion=promotion.promotion_id,
        trigger=moment.trigger,
        event=moment.event,
        at_ms=decision.at_ms,
        deadline_ms=decision.deadline_ms,
        coupon_expires_ms=decision.at_ms + round(promotion.coupon_valid_s * 1000),
        channels=[
            channel for channel in decision.channels or promotion.channels if channel not in decision.capped_channels
        ],
        store=decision.store,
        fence=moment.fence if is_here else None,
        sku=decision.sku,
        pickup=moment.pickup,
        fall_back_ms=_fall_back_ms(decision, promotion),
        discount=decision.discount,
        instead_of=decision.instead_of,
        order=moment.order,
        status=moment.status,
    )


def _fall_back_ms(decision: Decision, promotion: Promotion) -> int:
    """When the next channel's turn is; 0 if never, for alerts have no other, or not before the deadline."""
    if promotion.fall_back_s is None or promotion.kind == "assist":
        return 0
    at_ms = decision.at_ms + round(promotion.fall_back_s * 1000)
    return at_ms if at_ms < decision.deadline_ms else 0
