"""The check just before sending: does a message that was decided a moment ago still hold?

Unlike the decision this looks at the time now, and at where the customer is now. Caps are not asked again: the message
itself was counted when it was decided.
"""

from nearcast.customer import Customer, Presence
from nearcast.decisions import Reason
from nearcast.events import Channel
from nearcast.messages import Message
from nearcast.world import Promotion
from offers.candidates import is_owned
from offers.catalogue import Catalogue
from offers.gates import (
    is_quiet,
    may_not_contact,
    needs_open_store,
    needs_stock,
    outside_hours,
    outside_window,
    store_closed,
    was_helped,
)
from offers.policy import Policy


def recheck(
    message: Message,
    customer: Customer,
    presence: Presence,
    catalogue: Catalogue,
    stock: int | None,
    policy: Policy,
    now_ms: int,
) -> Reason | None:
    """Why the message must not be sent any more, or None if it may be. Everything is as known at `now_ms`.

    `stock` is the number of pieces of the message's SKU at its store; None, nothing on record, counts as none.
    """
    kind, trigger, store = message.kind, message.trigger, message.store
    # Committing a decision records its message, so a customer who doesn't know it is a new record after an erasure.
    if all(sent.message != message.id for sent in customer.messages):
        return Reason.ERASED
    if customer.opted_out:
        return Reason.OPTED_OUT
    if now_ms > message.deadline_ms:
        return Reason.TOO_LATE
    if may_not_contact(customer, kind, trigger, message.channels):
        return Reason.NO_CONSENT
    if message.fence is not None and message.fence not in presence.inside:
        return Reason.LEFT
    if (reason := over(message, catalogue, stock, now_ms)) is not None:
        return reason
    promotion = catalogue.promotions[message.promotion]
    place = catalogue.stores.get(store) if store is not None else None
    if outside_hours(promotion.when, customer, place, now_ms):
        return Reason.OUTSIDE_HOURS
    if was_helped(customer, kind, trigger, message.at_ms, policy):
        return Reason.STAFF_CONTACT
    if is_quiet(customer, kind, store, catalogue, policy, now_ms):
        return Reason.QUIET_HOURS
    return _no_longer_theirs(message, promotion, customer, catalogue)


def over(message: Message, catalogue: Catalogue, stock: int | None, now_ms: int) -> Reason | None:
    """What in the world, whoever the customer is, has put an end to a message: the part of `recheck` that holds for
    one that has been sent, too."""
    promotion = catalogue.promotions.get(message.promotion)
    if promotion is None or outside_window(promotion, now_ms):
        return Reason.PROMOTION_ENDED
    store, trigger = message.store, message.trigger
    if needs_open_store(trigger) and store_closed(store, message.fence, catalogue, now_ms):
        return Reason.STORE_CLOSED
    if store is None or message.sku is None or not needs_stock(message.kind, trigger):
        return None
    return Reason.OUT_OF_STOCK if (stock or 0) <= 0 else None


def _no_longer_theirs(
    message: Message, promotion: Promotion, customer: Customer, catalogue: Catalogue
) -> Reason | None:
    """Of a promotion for things in the cart or on the wishlist: why the thing is no longer there, if so.

    A purchase takes it out. Which SKUs were bought isn't kept, but when something of its segment was.
    """
    thing = message.instead_of or message.sku
    if thing is None or is_owned(promotion, thing, customer):
        return None
    bought = customer.history.segments.get(catalogue.segments.get(thing, ""))
    return Reason.BOUGHT if bought is not None and bought.last_ms >= message.at_ms else Reason.NOT_IN_AUDIENCE


def allowed_channels(message: Message, customer: Customer) -> list[Channel]:
    """The message's channels, in order, that the customer consents to and can be reached on. May be empty.

    An alert goes to staff, on their tablets; never to the customer.
    """
    if message.kind == "assist":
        return ["websocket"]
    reachable: dict[Channel, bool] = {"websocket": True, "sms": bool(customer.phone), "email": bool(customer.email)}
    return [channel for channel in message.channels if reachable[channel] and customer.consented(channel)]
