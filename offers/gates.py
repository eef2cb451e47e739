"""The gates: every question that a candidate must pass, in one fixed order.

`GATES` is that order, and `docs/reference/promotions.md` lists the same. The first gate that stops a candidate gives
the reason. What must still hold at the time of sending is a function of its own, which `offers.recheck` asks again.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from nearcast.customer import UNSEEN, Customer, SentMessage
from nearcast.decisions import Candidate, Reason
from nearcast.events import Channel
from nearcast.hours import is_open, store_is_open, zone_named
from nearcast.ids import FenceId, Sku, StoreId
from nearcast.moments import Moment
from nearcast.world import PICKUP_TRIGGERS, Cap, MessageKind, Promotion, Store, Trigger
from offers.arms import in_arm
from offers.catalogue import Catalogue
from offers.hours import in_quiet_hours, zone_for
from offers.policy import Policy

#: Triggers that come from where a customer is. Their messages hold only while the customer is still there.
PLACE_TRIGGERS: frozenset[Trigger] = frozenset({"enter", "dwell", "walk_past", "near_product"})
#: These too, but then the customer is not in the fence.
PASSING_TRIGGERS: frozenset[Trigger] = frozenset({"exit", "approach", "cross"})


class Situation(NamedTuple):
    """All that a gate may look at."""

    promotion: Promotion
    sku: Sku | None
    moment: Moment
    customer: Customer
    catalogue: Catalogue
    stock: Mapping[tuple[StoreId, Sku], int]
    policy: Policy
    now_ms: int


#: Why it stops a candidate, and whether it does.
Gate = tuple[Reason, Callable[[Situation], bool]]


def stopped_by(gates: Iterable[Gate], situation: Situation) -> Reason | None:
    """The reason of the first gate that stops the candidate; None if it passes them all."""
    for reason, stops in gates:
        if stops(situation):
            return reason
    return None


def every_gate(
    candidate: Candidate,
    moment: Moment,
    customer: Customer,
    catalogue: Catalogue,
    stock: Mapping[tuple[StoreId, Sku], int],
    policy: Policy,
    now_ms: int,
) -> list[tuple[Reason, bool]]:
    """All gates in their order, each with whether it stops the candidate; a decision asks on only until one does."""
    promotion = catalogue.promotions[candidate.promotion]
    situation = Situation(promotion, candidate.sku, moment, customer, catalogue, stock, policy, now_ms)
    return [(reason, stops(situation)) for reason, stops in GATES]


def may_not_contact(customer: Customer, kind: MessageKind, trigger: Trigger, channels: Iterable[Channel]) -> bool:
    """No consent to any of the channels; or to the use of their location, where that is what led here.

    Alerts to staff are not marketing: no channel's consent is needed.
    """
    by_place = trigger in PLACE_TRIGGERS | PASSING_TRIGGERS | PICKUP_TRIGGERS
    if by_place and not customer.consents.get("location", (True, 0))[0]:
        return True
    return kind == "offer" and not any(customer.consented(channel) for channel in channels)


def outside_window(promotion: Promotion, now_ms: int) -> bool:
    starts_ms, ends_ms = promotion.when.starts_ms, promotion.when.ends_ms
    return (starts_ms is not None and now_ms < starts_ms) or (ends_ms is not None and now_ms >= ends_ms)


def store_closed(store: StoreId | None, fence: FenceId | None, catalogue: Catalogue, now_ms: int) -> bool:
    """True if the store, or the fence in it, is closed now, or the store is not in the catalogue (any more).

    No store is never closed.
    """
    if store is None:
        return False
    known = catalogue.stores.get(store)
    return known is None or not store_is_open(known, now_ms) or fence_closed(known, fence, catalogue, now_ms)


def fence_closed(store: Store, fence: FenceId | None, catalogue: Catalogue, now_ms: int) -> bool:
    """True if the fence has hours or special days, and it is not within them now."""
    times = catalogue.fence_hours.get(fence) if fence is not None else None
    zone = zone_named(store.time_zone)
    return times is not None and not is_open(times.hours, zone, now_ms, times.special_days, times.narrowed_by)


def was_helped(customer: Customer, kind: MessageKind, trigger: Trigger, at_ms: int, policy: Policy) -> bool:
    """True if staff spoke to the customer since the moment or within the policy's window before it.

    An earlier talk doesn't count against a customer who asks for help now.
    """
    window_ms = 0 if asks_for_help(kind, trigger) else policy.staff_contact_quiet_ms
    last_ms = customer.last_staff_contact_ms
    return last_ms > 0 and last_ms > at_ms - window_ms


def asks_for_help(kind: MessageKind, trigger: Trigger) -> bool:
    """An alert that somebody waits for: they asked for help, or come for their order."""
    return kind == "assist" and (trigger == "help_request" or trigger in PICKUP_TRIGGERS)


def is_quiet(
    customer: Customer, kind: MessageKind, store: StoreId | None, catalogue: Catalogue, policy: Policy, now_ms: int
) -> bool:
    """True for an offer within quiet hours: in the customer's zone, else the store's, else UTC."""
    if policy.quiet_hours is None or kind != "offer":
        return False
    zone = zone_for(customer, catalogue.stores.get(store) if store is not None else None)
    return in_quiet_hours(policy.quiet_hours, zone, now_ms)


def used_up(caps: Iterable[Cap], messages: Iterable[SentMessage], now_ms: int) -> bool:
    """True if one more message now would exceed a cap."""
    known = list(messages)
    return any(counted(cap, known, now_ms) >= cap.count for cap in caps)


def counted(cap: Cap, messages: Iterable[SentMessage], now_ms: int) -> int:
    """How many messages count towards a cap now.

    A message counts from when it was decided until its period is over, unless it never reached anybody. One that is
    dated later than `now_ms` (events of different topics overtake each other) counts as well.
    """
    since_ms = now_ms - (cap.period_s or 0) * 1000
    return sum(sent.at_ms > since_ms and sent.status not in UNSEEN for sent in messages)


def _opted_out(on: Situation) -> bool:
    return on.customer.opted_out


def _no_consent(on: Situation) -> bool:
    return may_not_contact(on.customer, on.promotion.kind, on.moment.trigger, on.promotion.channels)


def _low_confidence(on: Situation) -> bool:
    return on.moment.confidence < on.policy.min_confidence


def _spoofed(on: Situation) -> bool:
    return on.promotion.kind == "offer" and on.moment.doubt > on.policy.max_doubt


def _outside_window(on: Situation) -> bool:
    return outside_window(on.promotion, on.now_ms)


def _not_in_audience(on: Situation) -> bool:
    who = on.promotion.who
    in_group = not who.groups or not set(who.groups).isdisjoint(on.customer.groups)
    return not in_group or (bool(who.loyalty) and on.customer.loyalty not in who.loyalty)


def _other_arm(on: Situation) -> bool:
    return on.promotion.experiment is not None and not in_arm(on.promotion.experiment, on.customer.id)


def _no_product(on: Situation) -> bool:
    return on.sku is not None and on.sku not in on.catalogue.products


def _store_closed(on: Situation) -> bool:
    return store_closed(on.moment.store, on.moment.fence, on.catalogue, on.now_ms)


def _out_of_stock(on: Situation) -> bool:
    if on.moment.store is None or on.sku is None or asks_for_help(on.promotion.kind, on.moment.trigger):
        return False
    return on.stock.get((on.moment.store, on.sku), 0) <= 0


def _staff_contact(on: Situation) -> bool:
    return was_helped(on.customer, on.promotion.kind, on.moment.trigger, on.moment.at_ms, on.policy)


def _quiet_hours(on: Situation) -> bool:
    return is_quiet(on.customer, on.promotion.kind, on.moment.store, on.catalogue, on.policy, on.now_ms)


def messages_of(customer: Customer, promotion: Promotion) -> list[SentMessage]:
    """What the promotion's own caps count."""
    return [sent for sent in customer.messages if sent.promotion == promotion.id]


def offers_to(customer: Customer, catalogue: Catalogue) -> list[SentMessage]:
    """What the caps over all promotions count. Alerts go to staff and don't wear the customer out."""
    promotions = catalogue.promotions
    return [
        sent
        for sent in customer.messages
        if not sent.is_alert and (sent.promotion not in promotions or promotions[sent.promotion].kind == "offer")
    ]


def _capped(on: Situation) -> bool:
    return used_up(on.promotion.caps, messages_of(on.customer, on.promotion), on.now_ms)


def _capped_overall(on: Situation) -> bool:
    # Alerts neither count nor are counted.
    if on.promotion.kind == "assist":
        return False
    return used_up(on.policy.caps, offers_to(on.customer, on.catalogue), on.now_ms)


#: Those that don't look at the thing, nor at its stock: asked once for all the things of a promotion.
PROMOTION_GATES: tuple[Gate, ...] = (
    (Reason.OPTED_OUT, _opted_out),
    (Reason.NO_CONSENT, _no_consent),
    (Reason.LOW_CONFIDENCE, _low_confidence),
    (Reason.SPOOFED, _spoofed),
    (Reason.OUTSIDE_WINDOW, _outside_window),
    (Reason.NOT_IN_AUDIENCE, _not_in_audience),
    (Reason.OTHER_ARM, _other_arm),
)
THING_GATES: tuple[Gate, ...] = (
    (Reason.NO_PRODUCT, _no_product),
    (Reason.STORE_CLOSED, _store_closed),
    (Reason.OUT_OF_STOCK, _out_of_stock),
    (Reason.STAFF_CONTACT, _staff_contact),
    (Reason.QUIET_HOURS, _quiet_hours),
    (Reason.CAPPED, _capped),
    (Reason.CAPPED_OVERALL, _capped_overall),
)
#: The order: what forbids any contact first, then what rules the promotion out, then what may be different later.
GATES = PROMOTION_GATES + THING_GATES
