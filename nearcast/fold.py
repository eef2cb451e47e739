"""The fold: one event applied to one customer. Deterministic, in event time, without I/O.

`apply` changes the customer it is given and says what else follows: moments, events to emit, an erasure. The same
function serves the live engine, replay and training, so a feature means the same in all three.

A location event changes `Presence`, not `Customer`: that is `geofence.tracker`'s part.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from nearcast.customer import (
    KEPT_MESSAGES,
    KEPT_STITCHES,
    KEPT_THINGS,
    KEPT_VIEWS,
    KEPT_VISITORS,
    REACTED,
    SEEN_EVENTS,
    UNSEEN,
    CartItem,
    ChannelHistory,
    Customer,
    Decayed,
    SegmentHistory,
    SentMessage,
)
from nearcast.decisions import Decision
from nearcast.events import (
    MAX_QUANTITY,
    Action,
    AnyEvent,
    Cart,
    Channel,
    Consent,
    DeliveryStatus,
    Erase,
    Event,
    Identify,
    Location,
    Profile,
    Purchase,
    Receipt,
    Stitch,
    Timer,
    fence_of,
    sku_of,
    store_of,
)
from nearcast.ids import FenceId, MessageId, Sku, derived_event_id
from nearcast.moments import Moment
from nearcast.world import Trigger

CART_TIMER = "cart_abandoned"
DEADLINE_TIMER = "deadline"
#: Of stays (`geofence.tracker`): it belongs to the presence, not to the customer that is folded here.
PRESENCE_TIMER = "presence"
#: Of pickups (`geofence.trips`): the same.
PICKUP_TIMER = "pickup"
#: Of moments that wait for the end of quiet hours.
HOLD_TIMER = "held"
#: How many of those a customer can have; the oldest go first.
KEPT_HELD = 16
#: How many redemptions of one coupon that were called off are remembered.
KEPT_CALLED_OFF = 16

#: Receipts may overtake each other; a message moves forward along this order. "failed" stands first, since any other
#: report knows better, and only the channel that sent a message can undo "sent".
#: "expired" says that nobody reported anything until the deadline; any report from after that knows better.
_STATUS_ORDER: dict[DeliveryStatus | None, int] = {
    None: 0,
    "failed": 1,
    "expired": 2,
    "sent": 3,
    "suppressed": 4,
    "delivered": 5,
    "recalled": 6,
    "opened": 7,
    "dismissed": 8,
    "applied": 9,
    "redeemed": 10,
    "rolled_back": 11,  # never a message's own status: it is "applied" again
}
#: How far a message got that has this status, or had it once; the others say nothing of that.
STAGES: dict[DeliveryStatus, int] = {
    "sent": 1,
    "delivered": 2,
    "dismissed": 2,
    "opened": 3,
    "applied": 4,
    "redeemed": 5,
}
_MOMENT = msgspec.json.Decoder(Moment)
#: A message that got so far was handed over; a receipt of an earlier step may be missing.
_HANDED_OVER: frozenset[DeliveryStatus | None] = REACTED | {"sent", "delivered", "dismissed"}
_MOMENT_OF_ACTION: dict[str, Trigger] = {
    "app_open": "app_open",
    "qr_scan": "qr_scan",
    "product_view": "product_view",
    "wifi_lookup": "wifi_lookup",
    "wishlist_add": "wishlist_add",
    "help_request": "help_request",
    "order_ready": "order_ready",
    "order_status": "order_status",
}


class FoldRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the retailer can set about the fold."""

    #: A cart left alone for this long counts as abandoned.
    cart_abandoned_after_ms: int = 30 * 60_000
    #: An event that is older than this when it arrives is late: see `is_late`.
    late_after_ms: int = 60 * 60_000


class Folded(msgspec.Struct):
    """What followed from an event. Anything but "applied" changed nothing."""

    status: Literal["applied", "duplicate", "stale"] = "applied"
    moments: list[Moment] = []
    emit: list[Event] = []
    erased: bool = False
    #: What a message that was not sent gives back of budgets: (pool, pieces, cents).
    returned: list[tuple[str, int, int]] = []


def is_late(event: AnyEvent, arrived_ms: int, rules: FoldRules) -> bool:
    """Whether an event came so late that its moment is over. Events that nearcast itself wrote never are.

    What does not depend on order (purchases, consents, profiles, sign-ins) is folded all the same.
    """
    return event.ts < arrived_ms - rules.late_after_ms and isinstance(event, Location | Cart | Action)


def is_dropped_when_late(event: AnyEvent) -> bool:
    """A late fix or change of a cart has been overtaken. A late action is folded, but is worth no moment."""
    return isinstance(event, Location | Cart)


def apply(customer: Customer, event: AnyEvent, segments: Mapping[str, str], rules: FoldRules) -> Folded:
    """Fold `event` into `customer`, in place. `segments` gives the product segment of a SKU."""
    if isinstance(event, Location):
        return Folded()
    if isinstance(event, Receipt):
        # Idempotent by the order of statuses, so receipts need no place among the remembered ids.
        return _fold_receipt(customer, event)
    mark = _event_mark(event)
    if mark in (customer.stitched if isinstance(event, Stitch) else customer.seen):
        return Folded(status="duplicate")
    folded = _fold(customer, event, segments, rules)
    if folded.status == "applied":
        if isinstance(event, Stitch):
            customer.stitched = [*customer.stitched[1 - KEPT_STITCHES :], mark]
        else:
            customer.seen = [*customer.seen[1 - SEEN_EVENTS :], mark]
    return folded


def _fold(customer: Customer, event: AnyEvent, segments: Mapping[str, str], rules: FoldRules) -> Folded:
    match event:
        case Cart():
            return _fold_cart(customer, event, rules)
        case Purchase():
            _fold_purchase(customer, event, segments)
        case Action():
            return _fold_action(customer, event)
        case Consent():
            _fold_consent(customer, event)
        case Profile():
            return _fold_profile(customer, event)
        case Timer():
            return _fold_timer(customer, event)
        case Identify():
            return _fold_identify(customer, event)
        case Stitch():
            _fold_stitch(customer, event, rules)
        case Erase():
            others = [visitor for visitor in customer.visitors if visitor not in event.visitors]
            return Folded(erased=True, emit=[_erase_of(visitor, event) for visitor in others])
    return Folded()


def record_message(
    customer: Customer,
    message: MessageId,
    decision: Decision,
    *,
    fence: FenceId | None = None,
    channels: Sequence[Channel] = (),
    tags: Sequence[str] = (),
) -> None:
    """Remember that a message was decided, so that caps count it from this moment on.

    It holds in `fence`, may go by `channels`, and its promotion has `tags`.
    """
    if decision.promotion is None:
        raise ValueError(f"decision {decision.id} has no promotion, so there is no message to record")
    sent = SentMessage(
        message,
        decision.id,
        decision.promotion,
        decision.at_ms,
        deadline_ms=decision.deadline_ms,
        is_alert=decision.outcome == "assist",
        store=decision.store,
        fence=fence,
        sku=decision.sku,
        channels=list(channels),
        tags=list(tags),
        charges=[(each.pool, each.pieces, each.cents) for each in decision.charges],
        kind=decision.outcome,
    )
    kept = customer.messages
    if len(kept) >= KEPT_MESSAGES:
        # What reached nobody counts for no cap, so it goes first.
        idle = next((n for n, old in enumerate(kept) if old.status in UNSEEN or old.status == "expired"), 0)
        kept = [*kept[:idle], *kept[idle + 1 :]]
    customer.messages = [*kept, sent]
    _set_deadline_timer(customer)


def hold(customer: Customer, moment: Moment, until_ms: int) -> None:
    """Keep a moment until then; it comes back as a moment of its timer. One that is held already is not held twice."""
    kept = [(due_ms, data) for due_ms, data in customer.held if not _is_same(moment, data)]
    customer.held = [*kept[1 - KEPT_HELD :], (until_ms, msgspec.json.encode(moment))]
    _set_hold_timer(customer)


def _is_same(moment: Moment, data: bytes) -> bool:
    held = _MOMENT.decode(data)
    return (held.trigger, held.subject) == (moment.trigger, moment.subject)


def _set_hold_timer(customer: Customer) -> None:
    if customer.held:
        customer.timers[HOLD_TIMER] = min(due_ms for due_ms, _ in customer.held)
    else:
        customer.timers.pop(HOLD_TIMER, None)


def _event_mark(event: Event) -> int:
    return int.from_bytes(hashlib.blake2b(event.event_id.encode(), digest_size=8).digest(), "little")


def _fold_cart(customer: Customer, event: Cart, rules: FoldRules) -> Folded:
    sku = sku_of(event)
    if event.action in ("clear", "order"):
        customer.cart = {sku: item for sku, item in customer.cart.items() if item.changed_ms > event.ts}
        customer.cart_cleared_ms = max(customer.cart_cleared_ms, event.ts)
    elif event.ts < customer.cart_cleared_ms:
        return Folded(status="stale")
    elif sku is not None:
        item = customer.cart.get(sku)
        if item is not None and event.action == "set" and event.ts < item.changed_ms:
            return Folded(status="stale")
        had = item.quantity if item else 0
        quantity = {"add": had + event.quantity, "remove": had - event.quantity, "set": event.quantity}[event.action]
        if quantity > 0:
            price = event.price_cents if event.price_cents is not None else (item.price_cents if item else None)
            changed_ms = max(event.ts, item.changed_ms if item else 0)
            customer.cart[sku] = CartItem(min(quantity, MAX_QUANTITY), price, changed_ms)
            _bound_cart(customer)
        else:
            customer.cart.pop(sku, None)
    if event.ts >= customer.cart_changed_ms:
        customer.cart_changed_ms = event.ts
        customer.cart_abandoned = False
    _set_cart_timer(customer, rules)
    return Folded()


def _bound_cart(customer: Customer) -> None:
    while len(customer.cart) > KEPT_THINGS:
        del customer.cart[min(customer.cart, key=lambda sku: (customer.cart[sku].changed_ms, sku))]


def _bound(things: dict[Sku, int], kept: int) -> None:
    """Drop the oldest things, by their time, until `kept` are left."""
    while len(things) > kept:
        del things[min(things, key=lambda sku: (things[sku], sku))]


def _set_cart_timer(customer: Customer, rules: FoldRules) -> None:
    if customer.cart and not customer.cart_abandoned:
        customer.timers[CART_TIMER] = customer.cart_changed_ms + rules.cart_abandoned_after_ms
    else:
        customer.timers.pop(CART_TIMER, None)


def _set_deadline_timer(customer: Customer) -> None:
    """Wait for the first deadline of a message that nobody has reported anything about."""
    waiting = [sent.deadline_ms for sent in customer.messages if sent.status is None and sent.deadline_ms]
    if waiting:
        customer.timers[DEADLINE_TIMER] = min(waiting)
    else:
        customer.timers.pop(DEADLINE_TIMER, None)


def _fold_purchase(customer: Customer, event: Purchase, segments: Mapping[str, str]) -> None:
    history = customer.history
    spend = sum(line.amount_cents for line in event.items)
    coupons = sum(line.coupon_cents for line in event.items)
    history.baskets += 1
    history.lines += len(event.items)
    history.spend_cents += spend
    history.coupon_cents += coupons
    history.coupon_baskets += coupons > 0
    history.first_ms = min(history.first_ms or event.ts, event.ts)
    history.last_ms = max(history.last_ms, event.ts)
    history.recent_baskets.add(1.0, event.ts)
    history.recent_spend.add(float(spend), event.ts)
    bought: set[str] = set()
    for line in event.items:
        sku = Sku(line.sku)
        # A purchase that is heard of late takes nothing out that was put in since.
        if sku in customer.cart and customer.cart[sku].changed_ms <= event.ts:
            del customer.cart[sku]
        if customer.wishlist.get(sku, event.ts + 1) <= event.ts:
            del customer.wishlist[sku]
        segment = segments.get(line.sku)
        if segment is None:
            continue
        entry = history.segments.setdefault(segment, SegmentHistory())
        entry.spend_cents += line.amount_cents
        if event.ts >= entry.last_ms:
            entry.last_ms = event.ts
            entry.last_price_cents = line.amount_cents // max(line.quantity, 1)
        if line.coupon_cents:
            if entry.coupons is None:
                entry.coupons = Decayed()
            entry.coupons.add(1.0, event.ts)
        if segment not in bought:
            bought.add(segment)
            entry.baskets += 1
            entry.recent.add(1.0, event.ts)
    if not customer.cart:
        customer.cart_abandoned = False
        customer.timers.pop(CART_TIMER, None)


def _fold_action(customer: Customer, event: Action) -> Folded:
    sku = sku_of(event)
    match event.action:
        case "wishlist_add" if sku is not None:
            customer.wishlist[sku] = max(event.ts, customer.wishlist.get(sku, 0))
            _bound(customer.wishlist, KEPT_THINGS)
        case "wishlist_remove" if sku is not None and customer.wishlist.get(sku, event.ts + 1) <= event.ts:
            del customer.wishlist[sku]
        case "product_view" if sku is not None:
            _remember_view(customer, sku, event.ts)
        case "staff_contact":
            customer.last_staff_contact_ms = max(customer.last_staff_contact_ms, event.ts)
    trigger = _MOMENT_OF_ACTION.get(event.action)
    if trigger is None:
        return Folded()
    return Folded(
        moments=[
            Moment(
                event=event.event_id,
                customer=event.customer,
                trigger=trigger,
                at_ms=event.ts,
                subject=event.order or event.sku or event.fence or event.store or "",
                store=store_of(event),
                fence=fence_of(event),
                sku=sku,
                order=event.order or "",
                status=event.status or "",
            )
        ]
    )


def _remember_view(customer: Customer, sku: Sku, at_ms: int) -> None:
    customer.viewed[sku] = max(at_ms, customer.viewed.get(sku, 0))
    _bound(customer.viewed, KEPT_VIEWS)


def _fold_consent(customer: Customer, event: Consent) -> None:
    # A withdrawal always counts, even if a clock dates it before the grant: when in doubt, leave people alone. Only a
    # grant dated after it makes good for it.
    _, since = customer.consents.get(event.scope, (False, -1))
    if not event.granted:
        customer.consents[event.scope] = (False, max(event.ts, since))
        if event.scope in ("all", "location"):
            # They could lead to nothing, and say where somebody was.
            customer.held = [
                (due_ms, data)
                for due_ms, data in customer.held
                if event.scope == "location" and _MOMENT.decode(data).fence is None
            ]
            _set_hold_timer(customer)
    elif event.ts > since:
        customer.consents[event.scope] = (True, event.ts)


def _fold_profile(customer: Customer, event: Profile) -> Folded:
    before, was_known = customer.points, customer.points_known
    for field in ("name", "email", "phone", "locale", "time_zone", "loyalty", "groups", "attributes", "points"):
        value = getattr(event, field)
        if value is not None:
            setattr(customer, field, value)
    customer.points_known = was_known or event.points is not None
    if customer.points <= before or not was_known:
        # The first balance is no rise: whoever is loaded with many points has had them before.
        return Folded()
    return Folded(
        moments=[
            Moment(
                event=event.event_id,
                customer=customer.id,
                trigger="points_reached",
                at_ms=event.ts,
                subject=str(customer.points),
                points=(before, customer.points),
            )
        ]
    )


def _fold_receipt(customer: Customer, event: Receipt) -> Folded:
    sent = next((sent for sent in customer.messages if sent.message == event.message), None)
    if sent is None:
        # Of someone erased meanwhile, or of an alert to staff long ago: it must not bring a record to life.
        return Folded(status="stale")
    is_news = False
    if event.channel is not None and event.status == "sent" and event.channel not in sent.on:
        sent.on, is_news = [*sent.on, event.channel], True
    if not event.final:
        # It may still arrive, or is there and may go by another channel as well: it goes on counting for caps.
        return Folded()
    if event.status == "rolled_back":
        return _fold_rollback(customer, sent, event)
    undone = event.status == "failed" and sent.status == "sent" and sent.channel == event.channel
    forward = undone or _STATUS_ORDER[event.status] > _STATUS_ORDER[sent.status]
    stage = STAGES.get(event.status, 0)
    if event.status == "redeemed":
        redemption = event.redemption_id or ""
        if redemption in sent.called_off:
            # Called off before it was heard of.
            forward = False
        elif sent.status == "redeemed" and redemption != sent.redemption:
            return _redeemed_next(sent, event)
    if not forward and stage <= sent.reached:
        return Folded(status="applied" if is_news else "duplicate")
    sent.reached = max(sent.reached, stage)
    if not forward:
        return Folded()
    if event.status == "redeemed":
        customer.redemptions += 1
        sent.redemption = event.redemption_id or ""
        sent.revenue_cents, sent.discount_cents = event.revenue_cents or 0, event.discount_cents or 0
    returned: list[tuple[str, int, int]] = []
    if event.status in ("suppressed", "failed") and event.unsent:
        returned, sent.charges = sent.charges, []
    before = sent.status
    sent.status = event.status
    if before not in _HANDED_OVER:
        # Later reports may come from elsewhere, such as the app about what came by SMS.
        sent.channel = event.channel or sent.channel
    _count(customer, sent, before, event.ts)
    _set_deadline_timer(customer)
    return Folded(returned=returned)


def _redeemed_next(sent: SentMessage, event: Receipt) -> Folded:
    """A coupon is redeemed again only once it was called off before: we'll hear of that."""
    redemption = event.redemption_id or ""
    if any(known == redemption for known, _, _ in sent.next_redemptions):
        return Folded(status="duplicate")
    after = (redemption, event.revenue_cents or 0, event.discount_cents or 0)
    sent.next_redemptions = [*sent.next_redemptions[1 - KEPT_CALLED_OFF :], after]
    return Folded()


def _fold_rollback(customer: Customer, sent: SentMessage, event: Receipt) -> Folded:
    """The coupon is as if it had not been redeemed; that it once was stays in `reached`."""
    redemption = event.redemption_id or ""
    if redemption in sent.called_off:
        return Folded(status="duplicate")
    sent.called_off = [*sent.called_off[1 - KEPT_CALLED_OFF :], redemption]
    sent.next_redemptions = [known for known in sent.next_redemptions if known[0] != redemption]
    if sent.status != "redeemed" or sent.redemption != redemption:
        return Folded()
    if sent.next_redemptions:
        (sent.redemption, sent.revenue_cents, sent.discount_cents), *sent.next_redemptions = sent.next_redemptions
        return Folded()
    customer.redemptions = max(0, customer.redemptions - 1)
    sent.status, sent.redemption, sent.revenue_cents, sent.discount_cents = "applied", "", 0, 0
    return Folded()


def _count(customer: Customer, sent: SentMessage, before: DeliveryStatus | None, at_ms: int) -> None:
    """Credit the channel that brought a message, which went on from `before`: handed over now, or (once) reacted to?"""
    had_reacted = sent.reacted or before in REACTED
    reacts = sent.status in REACTED and not had_reacted
    sent.reacted = had_reacted or reacts
    handed_over = (sent.status in _HANDED_OVER) - (before in _HANDED_OVER)
    if sent.status == "recalled" and sent.reacted:
        # It was taken back after it had done its work.
        handed_over = 0
    if sent.is_alert or sent.channel is None or not (handed_over or reacts):
        return
    history = customer.channels.setdefault(sent.channel, ChannelHistory())
    if handed_over:
        history.sent.add(handed_over, at_ms)
    if reacts:
        history.reacted.add(1.0, at_ms)


def _fold_timer(customer: Customer, event: Timer) -> Folded:
    if customer.timers.get(event.kind) != event.due_ms:
        # The cart changed since, or the timer fired already.
        return Folded(status="stale")
    del customer.timers[event.kind]
    if event.kind == DEADLINE_TIMER:
        for sent in customer.messages:
            if sent.status is None and 0 < sent.deadline_ms <= event.due_ms:
                sent.status = "expired"
        _set_deadline_timer(customer)
        return Folded()
    if event.kind == HOLD_TIMER:
        return _fold_held(customer, event)
    if event.kind != CART_TIMER or not customer.cart:
        return Folded()
    customer.cart_abandoned = True
    return Folded(
        moments=[
            Moment(
                event=event.event_id,
                customer=customer.id,
                trigger="cart_abandoned",
                at_ms=event.ts,
                subject=str(event.due_ms),
            )
        ]
    )


def _fold_held(customer: Customer, event: Timer) -> Folded:
    """Quiet hours are over: the moments that waited for that are moments of now."""
    due = [_MOMENT.decode(data) for due_ms, data in customer.held if due_ms <= event.due_ms]
    customer.held = [(due_ms, data) for due_ms, data in customer.held if due_ms > event.due_ms]
    _set_hold_timer(customer)
    return Folded(
        moments=[
            msgspec.structs.replace(
                moment, event=event.event_id, at_ms=event.ts, held_since_ms=moment.held_since_ms or moment.at_ms
            )
            for moment in due
        ]
    )


def _fold_identify(customer: Customer, event: Identify) -> Folded:
    if event.uid is None:
        raise ValueError("decode has made sure that an identify event has a uid")
    stitch = Stitch(
        # Event ids are the clients' own: two visitors may both have used this one.
        id=derived_event_id("stitch", event.customer, event.event_id),
        uid=event.uid,
        anonymous_id=event.anonymous_id,
        ts=event.ts,
        cart={sku: (item.quantity, item.price_cents) for sku, item in customer.cart.items()},
        wishlist=dict(customer.wishlist),
        viewed=dict(customer.viewed),
    )
    customer.cart, customer.wishlist, customer.viewed = {}, {}, {}
    customer.timers.pop(CART_TIMER, None)
    return Folded(emit=[stitch])


def _erase_of(visitor: str, event: Erase) -> Erase:
    """The same erasure for an anonymous record that the customer had."""
    return Erase(
        id=derived_event_id("erase", event.customer, event.event_id, visitor), anonymous_id=visitor, ts=event.ts
    )


def _fold_stitch(customer: Customer, event: Stitch, rules: FoldRules) -> None:
    if event.anonymous_id is not None:
        others = [visitor for visitor in customer.visitors if visitor != event.anonymous_id]
        customer.visitors = [*others[1 - KEPT_VISITORS :], event.anonymous_id]
    # A cart that was ordered or emptied since the sign-in took what the visitor had put in with it.
    cart = event.cart if event.ts >= customer.cart_cleared_ms else {}
    for sku, (quantity, price_cents) in cart.items():
        item = customer.cart.get(sku)
        had, changed_ms = (item.quantity, item.changed_ms) if item else (0, 0)
        customer.cart[sku] = CartItem(min(had + quantity, MAX_QUANTITY), price_cents, max(event.ts, changed_ms))
    _bound_cart(customer)
    for sku, at_ms in event.wishlist.items():
        customer.wishlist[sku] = max(at_ms, customer.wishlist.get(sku, 0))
    _bound(customer.wishlist, KEPT_THINGS)
    for sku, at_ms in event.viewed.items():
        _remember_view(customer, sku, at_ms)
    if cart:
        customer.cart_changed_ms = max(customer.cart_changed_ms, event.ts)
        customer.cart_abandoned = False
        _set_cart_timer(customer, rules)
