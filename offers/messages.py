"""The message that a decision puts into the outbox. Texts are made when it is sent, not here."""

from nearcast.decisions import Decision
from nearcast.ids import message_id
from nearcast.messages import Message
from offers.catalogue import Catalogue
from offers.gates import PLACE_TRIGGERS


def message_of(decision: Decision, catalogue: Catalogue) -> Message | None:
    """The outbox message; None if nothing was decided. `catalogue` is the one that the decision was made with.

    `channels` are the promotion's, in the decision's order if it has one: which of them the customer consents to is
    asked when it is sent.
    """
    if decision.promotion is None:
        return None
    promotion = catalogue.promotions[decision.promotion]
    moment = decision.moment
    return Message(
        id=message_id(decision.id, "customer" if promotion.kind == "offer" else "staff"),
        decision=decision.id,
        kind=promotion.kind,
        customer=decision.customer,
        promotion=promotion.promotion_id,
        trigger=moment.trigger,
        event=moment.event,
        at_ms=decision.at_ms,
        deadline_ms=decision.deadline_ms,
        coupon_expires_ms=decision.at_ms + round(promotion.coupon_valid_s * 1000),
        channels=list(decision.channels or promotion.channels),
        store=decision.store,
        fence=moment.fence if moment.trigger in PLACE_TRIGGERS else None,
        sku=decision.sku,
        pickup=moment.pickup,
    )
