"""Which messages are over because of what a customer did: they left, bought it, were helped, or don't want any.

Only messages that nobody has opened yet. What happens in the world instead (the stock runs out, the store closes) is
`offers.recheck.over`'s part.
"""

from collections.abc import Callable, Collection

from nearcast.customer import REACTED, Customer, SentMessage
from nearcast.decisions import Reason
from nearcast.events import Action, AnyEvent, Cart, Consent, DeliveryStatus, Purchase
from nearcast.ids import FenceId, Sku
from nearcast.messages import Recall

#: A message with one of these may be on a screen, and nobody has opened it. None: it may be on its way.
_UNOPENED: frozenset[DeliveryStatus | None] = frozenset({None, "sent", "delivered"})


def on_leaving(customer: Customer, fence: FenceId, now_ms: int) -> list[Recall]:
    """What held in a fence, now that the customer has left it."""
    return _over(customer, now_ms, Reason.LEFT, lambda sent: sent.fence == fence)


def on_event(customer: Customer, event: AnyEvent, had_in_cart: Collection[Sku]) -> list[Recall]:
    """What an event of the customer has put an end to. `had_in_cart` is what was in their cart before it."""
    match event:
        case Action(action="staff_contact"):
            return _over(customer, event.ts, Reason.STAFF_CONTACT, _is_offer, also_later=True)
        case Consent(granted=False, scope="all"):
            return _over(customer, event.ts, Reason.OPTED_OUT, lambda _: True, also_later=True)
        case Consent(granted=False, scope="location"):
            return _over(customer, event.ts, Reason.NO_CONSENT, lambda sent: sent.fence is not None, also_later=True)
        case Consent(granted=False):
            return _over(
                customer, event.ts, Reason.NO_CONSENT, lambda sent: event.scope in sent.may_be_on, also_later=True
            )
        case Purchase():
            bought = {line.sku for line in event.items}
            return _over(customer, event.ts, Reason.BOUGHT, lambda sent: _is_offer(sent) and sent.sku in bought)
        case Cart(action="order"):
            return _over(customer, event.ts, Reason.BOUGHT, lambda sent: _is_offer(sent) and sent.sku in had_in_cart)
        case _:
            return []


def may_have_reserved(customer: Customer) -> bool:
    """Whether a coupon may be reserved for the customer as long as they are in some store."""
    return any(_is_offer(sent) and (sent.status in _UNOPENED or sent.status in REACTED) for sent in customer.messages)


def _is_offer(sent: SentMessage) -> bool:
    return sent.kind == "offer"


def _over(
    customer: Customer,
    now_ms: int,
    reason: Reason,
    is_about: Callable[[SentMessage], bool],
    *,
    also_later: bool = False,
) -> list[Recall]:
    """`also_later`: also messages that were decided after this by their own clock, but before it was heard of."""
    return [
        Recall(
            message=sent.message,
            decision=sent.decision,
            customer=customer.id,
            kind="assist" if sent.is_alert else "notice" if sent.kind == "notice" else "offer",
            reason=reason,
            store=sent.store,
        )
        for sent in customer.messages
        if sent.status in _UNOPENED
        and (also_later or sent.at_ms <= now_ms)
        and now_ms < sent.deadline_ms
        and is_about(sent)
    ]
