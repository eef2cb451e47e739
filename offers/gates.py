"""The gates: every question that a candidate must pass, in one fixed order.

`GATES` is that order, and `docs/reference/promotions.md` lists the same. The first gate that stops a candidate gives
the reason. What must still hold at the time of sending is a function of its own, which `offers.recheck` asks again.

Most gates can stop nothing most of the time: because of what the promotion is (`concerns`), or because of what moment
it is. A decision asks only the others, which a mask with one bit for each gate tells quickly.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import get_args
from zoneinfo import ZoneInfo

import msgspec

from nearcast.customer import UNSEEN, Customer, SentMessage
from nearcast.decisions import Candidate, Reason
from nearcast.events import Channel
from nearcast.hours import is_open, store_is_open, zone_named
from nearcast.ids import FenceId, Sku, StoreId
from nearcast.moments import Moment
from nearcast.world import PICKUP_TRIGGERS, Budget, Cap, MessageKind, Promotion, Store, Trigger, When, Who
from offers.arms import in_arm
from offers.catalogue import Catalogue
from offers.hours import began_ms, in_quiet_hours, quiet_until_ms, zone_for
from offers.once import once
from offers.policy import Policy

#: Triggers that come from where a customer is. Their messages hold only while the customer is still there.
PLACE_TRIGGERS: frozenset[Trigger] = frozenset({"enter", "dwell", "walk_past", "near_product"})
#: These too, but then the customer is not in the fence.
PASSING_TRIGGERS: frozenset[Trigger] = frozenset({"exit", "approach", "cross"})
CHANNELS: tuple[Channel, ...] = get_args(Channel)
_BY_PLACE = PLACE_TRIGGERS | PASSING_TRIGGERS | PICKUP_TRIGGERS


class Situation:
    """All that a gate may look at, beside the promotion and the candidate.

    What several promotions ask for is worked out once.
    """

    def __init__(
        self,
        moment: Moment,
        customer: Customer,
        catalogue: Catalogue,
        stock: Mapping[tuple[StoreId, Sku], int],
        policy: Policy,
    ) -> None:
        self.moment = moment
        self.customer = customer
        self.catalogue = catalogue
        self.stock = stock
        self.policy = policy
        self.now_ms = moment.at_ms

    def with_stock(self, stock: Mapping[tuple[StoreId, Sku], int]) -> "Situation":
        """The same, once the stock is known."""
        known = object.__new__(Situation)
        known.__dict__.update(self.__dict__, stock=stock)
        return known

    @once
    def opted_out(self) -> bool:
        return self.customer.opted_out

    @once
    def consented(self) -> frozenset[str]:
        """The channels, and what else there is, that the customer consents to."""
        if self.opted_out:
            return frozenset()
        return frozenset([scope for scope, (given, _) in self.customer.consents.items() if given])

    @once
    def may_not_locate(self) -> bool:
        """Whether it came from where they are, which may not be used."""
        return may_not_locate(self.customer, self.moment.trigger)

    @once
    def store(self) -> Store | None:
        """The moment's."""
        return self.catalogue.stores.get(self.moment.store) if self.moment.store is not None else None

    @once
    def zone(self) -> ZoneInfo | None:
        """The customer's, else the store's, else None: UTC."""
        return zone_for(self.customer, self.store)

    @once
    def store_closed(self) -> bool:
        return store_closed(self.moment.store, self.moment.fence, self.catalogue, self.now_ms)

    @once
    def quiet_until_ms(self) -> int | None:
        """When the quiet hours are over that it is now; `now_ms` if it is not quiet now, None if they never are."""
        window = self.policy.quiet_hours
        return self.now_ms if window is None else quiet_until_ms(window, self.zone, self.now_ms)

    @once
    def offers(self) -> list[SentMessage]:
        return offers_to(self.customer, self.catalogue)

    @once
    def spent_caps(self) -> list[Cap]:
        """The policy's caps that are used up."""
        return used_up(self.policy.caps, self.offers, self.now_ms, self.zone)

    @once
    def _sent(self) -> dict[str, Sequence[SentMessage]]:
        """What `messages_of` found."""
        return {}

    @once
    def _promotions_sent(self) -> set[str]:
        return {sent.promotion for sent in self.customer.messages}

    @once
    def open_of_promotion(self) -> int:
        return OF_PROMOTION.open_at(self)

    @once
    def open_of_thing(self) -> int:
        return OF_THING.open_at(self)

    @once
    def _open_of_timing(self) -> int:
        return OF_TIMING.open_at(self)

    @once
    def _open_of_timing_if_new(self) -> int:
        """The same for a promotion that the customer has no messages of."""
        never = _BITS[Reason.CAPPED] if self.spent_caps else _BITS[Reason.CAPPED] | _BITS[Reason.CAPPED_CHANNELS]
        return self._open_of_timing & ~never

    def open_of_timing(self, promotion: Promotion) -> int:
        return self._open_of_timing if promotion.id in self._promotions_sent else self._open_of_timing_if_new

    def messages_of(self, promotion: Promotion) -> Sequence[SentMessage]:
        """The customer's messages of a promotion: what its own caps count."""
        name = promotion.id
        if name not in self._promotions_sent:
            return ()
        known = self._sent.get(name)
        if known is None:
            known = self._sent[name] = [sent for sent in self.customer.messages if sent.promotion == name]
        return known


class Asked(msgspec.Struct, frozen=True):
    """What a gate is asked about."""

    at: Situation
    promotion: Promotion
    candidate: Candidate


#: Why it stops a candidate, and whether it does.
Gate = tuple[Reason, Callable[[Asked], bool]]


def stopped_by(gates: Iterable[Gate], asked: Asked) -> Reason | None:
    """The reason of the first gate that stops the candidate; None if it passes them all."""
    for reason, stops in gates:
        if stops(asked):
            return reason
    return None


def every_gate(asked: Asked) -> list[tuple[Reason, bool]]:
    """All gates in their order, each with whether it stops the candidate; a decision asks on only until one does."""
    return [(reason, stops(asked)) for reason, stops in GATES]


def may_not_contact(customer: Customer, kind: MessageKind, trigger: Trigger, channels: Iterable[Channel]) -> bool:
    """No consent to any of the channels; or to the use of their location, where that is what led here.

    Alerts go to staff: no channel's consent is needed.
    """
    if may_not_locate(customer, trigger):
        return True
    return kind != "assist" and not any(customer.consented(channel) for channel in channels)


def may_not_locate(customer: Customer, trigger: Trigger) -> bool:
    """Whether the trigger comes from where the customer is, and they withdrew consent to the use of that."""
    return trigger in _BY_PLACE and not customer.consents.get("location", (True, 0))[0]


def _has_window(when: When) -> bool:
    return when.starts_ms is not None or when.ends_ms is not None


def outside_window(promotion: Promotion, now_ms: int) -> bool:
    starts_ms, ends_ms = promotion.when.starts_ms, promotion.when.ends_ms
    return (starts_ms is not None and now_ms < starts_ms) or (ends_ms is not None and now_ms >= ends_ms)


def outside_hours(when: When, customer: Customer, store: Store | None, now_ms: int) -> bool:
    """True if the promotion has hours, and it is not within them by the clock that they are meant for."""
    return when.hours is not None and not is_open(when.hours, clock_of(when, customer, store), now_ms)


def clock_of(when: When, customer: Customer, store: Store | None) -> ZoneInfo | None:
    """The zone of a promotion's hours; where the one it names is not known, the other of customer and store, else
    None: UTC."""
    if when.zone == "customer":
        return zone_for(customer, store)
    if when.zone != "store":
        return zone_named(when.zone)
    of_store = zone_named(store.time_zone) if store is not None else None
    return of_store or zone_for(customer, None)


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

    An earlier talk doesn't count against a customer who asks for help now, and none does against a notice.
    """
    last_ms = customer.last_staff_contact_ms
    if not last_ms or kind == "notice":
        return False
    window_ms = 0 if asks_for_help(kind, trigger) else policy.staff_contact_quiet_ms
    return last_ms > at_ms - window_ms


def asks_for_help(kind: MessageKind, trigger: Trigger) -> bool:
    """An alert that somebody waits for: they asked for help, or come for their order."""
    return kind == "assist" and (trigger == "help_request" or trigger in PICKUP_TRIGGERS)


def needs_stock(kind: MessageKind, trigger: Trigger) -> bool:
    """Whether the thing that it is about has to be there."""
    return trigger != "order_status" and not asks_for_help(kind, trigger)


def needs_open_store(trigger: Trigger) -> bool:
    """Whether it is meant for somebody who is in the store, or could come now: how an order goes on is told anyway."""
    return trigger != "order_status"


def is_quiet(
    customer: Customer, kind: MessageKind, store: StoreId | None, catalogue: Catalogue, policy: Policy, now_ms: int
) -> bool:
    """True within quiet hours for all that goes to the customer: in their zone, else the store's, else UTC."""
    if policy.quiet_hours is None or kind == "assist":
        return False
    zone = zone_for(customer, catalogue.stores.get(store) if store is not None else None)
    return in_quiet_hours(policy.quiet_hours, zone, now_ms)


def used_up(
    caps: Iterable[Cap], messages: Collection[SentMessage], now_ms: int, zone: ZoneInfo | None = None
) -> list[Cap]:
    """The caps that one more message now would exceed."""
    # Where there are fewer of any kind there are fewer that count.
    return [cap for cap in caps if len(messages) >= cap.count and counted(cap, messages, now_ms, zone) >= cap.count]


def counted(cap: Cap, messages: Iterable[SentMessage], now_ms: int, zone: ZoneInfo | None = None) -> int:
    """How many messages count towards a cap now. Calendar periods are those of a clock in `zone` (None: UTC).

    A message counts from when it was decided until its period is over, unless it never reached anybody. One that is
    dated later than `now_ms` (events of different topics overtake each other) counts as well; and one whose channel is
    not known yet counts for every channel that it may go by.
    """
    if cap.period is not None:
        begins_ms = began_ms(cap.period, zone, now_ms)
    else:
        begins_ms = now_ms - (cap.period_s or 0) * 1000 + 1
    recent = [sent for sent in messages if sent.at_ms >= begins_ms and sent.status not in UNSEEN]
    if cap.tags:
        recent = [sent for sent in recent if not set(cap.tags).isdisjoint(sent.tags)]
    if cap.channels:
        recent = [sent for sent in recent if _may_be_by(sent, cap.channels)]
    return len(recent)


def _may_be_by(sent: SentMessage, channels: Collection[Channel]) -> bool:
    may_be_on = sent.may_be_on
    # Of messages from before their channels were kept nothing is known: they count for every one.
    return not may_be_on or not may_be_on.isdisjoint(channels)


def is_about(cap: Cap, promotion: Promotion) -> bool:
    """Whether the cap can stop the promotion: if it has tags, one of the promotion's is among them."""
    return not cap.tags or not set(cap.tags).isdisjoint(promotion.tags)


def capped_channels(at: Situation, promotion: Promotion) -> set[Channel]:
    """The channels that no further message of the promotion may go by now, because of a cap on them."""
    own = at.messages_of(promotion)
    spent = at.spent_caps if promotion.kind == "offer" else ()
    if promotion.kind == "assist" or not (own or spent):
        return set()
    caps = [cap for cap in promotion.caps if cap.channels and is_about(cap, promotion)]
    used = used_up(caps, own, at.now_ms, at.zone)
    used += [cap for cap in spent if cap.channels and is_about(cap, promotion)]
    return {channel for cap in used for channel in cap.channels}


def taken(budget: Budget, promotion: Promotion, at: Situation) -> tuple[int, int]:
    """How many pieces, and cents at most, the customer was offered of a budget per customer in its period (of UTC).

    What reached nobody took nothing. As far back as the customer's messages are kept.
    """
    begins_ms = 0 if budget.period == "all" else began_ms(budget.period, None, at.now_ms)
    pieces = sum(sent.at_ms >= begins_ms and sent.status not in UNSEEN for sent in at.messages_of(promotion))
    return pieces, pieces * bound_cents(promotion)


def bound_cents(promotion: Promotion) -> int:
    """What one coupon of the promotion takes off at most; 0 where that is not bound."""
    discount = promotion.what.discount
    return (discount.bound_cents or 0) if discount is not None else 0


def offers_to(customer: Customer, catalogue: Catalogue) -> list[SentMessage]:
    """What the caps over all promotions count. Alerts go to staff and don't wear the customer out; notices are what
    they wait for."""
    return [
        sent for sent in customer.messages if sent.kind == "offer" or (not sent.kind and _was_offer(sent, catalogue))
    ]


def _was_offer(sent: SentMessage, catalogue: Catalogue) -> bool:
    """Of a message from before its kind was kept."""
    known = catalogue.promotions.get(sent.promotion)
    return not sent.is_alert and (known is None or known.kind == "offer")


def _opted_out(on: Asked) -> bool:
    return on.at.opted_out


def _no_consent(on: Asked) -> bool:
    return on.at.may_not_locate or (on.promotion.kind != "assist" and on.at.consented.isdisjoint(on.promotion.channels))


def _low_confidence(on: Asked) -> bool:
    return on.at.moment.confidence < on.at.policy.min_confidence


def _spoofed(on: Asked) -> bool:
    return on.promotion.kind == "offer" and on.at.moment.doubt > on.at.policy.max_doubt


def _outside_window(on: Asked) -> bool:
    return outside_window(on.promotion, on.at.now_ms)


def _outside_hours(on: Asked) -> bool:
    return outside_hours(on.promotion.when, on.at.customer, on.at.store, on.at.now_ms)


def _not_in_audience(on: Asked) -> bool:
    return False in audience(on.promotion, on.at.customer, on.at.now_ms).values()


def audience(promotion: Promotion, customer: Customer, now_ms: int) -> dict[str, bool]:
    """What the promotion asks of the customer, by the field of `who`, each with whether it holds.

    What it asks of a thing (`in_cart`, `on_wishlist`) makes candidates; see there.
    """
    who = promotion.who
    asked = {}
    if who.groups:
        asked["groups"] = not set(who.groups).isdisjoint(customer.groups)
    if who.loyalty:
        asked["loyalty"] = customer.loyalty in who.loyalty
    if who.bought:
        asked["bought"] = any(segment in customer.history.segments for segment in who.bought)
    if who.no_purchase_within_s is not None:
        last_ms = customer.history.last_ms
        asked["no_purchase_within_s"] = not last_ms or last_ms <= now_ms - who.no_purchase_within_s * 1000
    if who.attributes:
        has = customer.attributes
        asked["attributes"] = all(has.get(name) in values for name, values in who.attributes.items() if values)
    if who.min_points is not None:
        asked["min_points"] = customer.points >= who.min_points
    if who.consents:
        asked["consents"] = all(customer.consented(scope) for scope in who.consents)
    return asked


def _other_arm(on: Asked) -> bool:
    return on.promotion.experiment is not None and not in_arm(on.promotion.experiment, on.at.customer.id)


def _personal_prices_off(on: Asked) -> bool:
    return on.promotion.what.price_rule is not None and not on.at.policy.personal_prices


def _no_product(on: Asked) -> bool:
    return on.candidate.sku is not None and on.candidate.sku not in on.at.catalogue.products


def _store_closed(on: Asked) -> bool:
    # Elsewhere only open stores are looked for.
    return on.promotion.what.instead != "elsewhere" and needs_open_store(on.at.moment.trigger) and on.at.store_closed


def _out_of_stock(on: Asked) -> bool:
    store, sku = on.at.moment.store, on.candidate.sku
    if store is None or sku is None or on.at.stock.get((store, sku), 0) > 0:
        return False
    return on.promotion.what.instead is None and needs_stock(on.promotion.kind, on.at.moment.trigger)


def _in_stock(on: Asked) -> bool:
    if on.promotion.what.instead is None or on.at.moment.store is None:
        return False
    wanted = on.candidate.instead_of or on.candidate.sku
    return wanted is not None and on.at.stock.get((on.at.moment.store, wanted), 0) > 0


def _nowhere_else(on: Asked) -> bool:
    return on.promotion.what.instead == "elsewhere" and on.candidate.store is None


def _no_alternative(on: Asked) -> bool:
    return on.promotion.what.instead == "alternative" and on.candidate.instead_of is None


def _no_anchor_price(on: Asked) -> bool:
    return on.promotion.what.price_rule is not None and on.candidate.price is None


def _staff_contact(on: Asked) -> bool:
    return was_helped(on.at.customer, on.promotion.kind, on.at.moment.trigger, on.at.now_ms, on.at.policy)


def _waits(at: Situation, promotion: Promotion) -> bool:
    """Whether it is quiet, and the promotion waits until it is no longer."""
    return promotion.in_quiet_hours == "hold" and at.quiet_until_ms is not None


def _is_quiet(at: Situation, promotion: Promotion) -> bool:
    return promotion.kind != "assist" and at.quiet_until_ms != at.now_ms


def _quiet_hours(on: Asked) -> bool:
    return _is_quiet(on.at, on.promotion) and not _waits(on.at, on.promotion)


def _held(on: Asked) -> bool:
    return _is_quiet(on.at, on.promotion) and _waits(on.at, on.promotion)


def _capped(on: Asked) -> bool:
    own = on.at.messages_of(on.promotion)
    return bool(own) and bool(used_up(own_caps(on.promotion), own, on.at.now_ms, on.at.zone))


def own_caps(promotion: Promotion) -> list[Cap]:
    """The promotion's caps on all of its messages, whatever the channel."""
    return [cap for cap in promotion.caps if not cap.channels and is_about(cap, promotion)]


def _capped_overall(on: Asked) -> bool:
    # Alerts and notices neither count nor are counted.
    if on.promotion.kind != "offer":
        return False
    spent = on.at.spent_caps
    return bool(spent) and any(not cap.channels and is_about(cap, on.promotion) for cap in spent)


def _capped_channels(on: Asked) -> bool:
    capped = capped_channels(on.at, on.promotion)
    return bool(capped) and not any(
        channel not in capped and channel in on.at.consented for channel in on.promotion.channels
    )


def _budget_exhausted(on: Asked) -> bool:
    """Of the budgets per customer; those that customers share are the engine's to ask."""
    return any(
        exhausted(budget, on.promotion, taken(budget, on.promotion, on.at))
        for budget in on.promotion.budgets
        if budget.per == "customer"
    )


def exhausted(budget: Budget, promotion: Promotion, used: tuple[int, int]) -> bool:
    """Whether one more offer is too much for the budget, of which so many pieces and cents are used."""
    pieces, cents = used
    return (budget.pieces is not None and pieces >= budget.pieces) or (
        budget.cents is not None and cents + bound_cents(promotion) > budget.cents
    )


def _has_personal_budget(promotion: Promotion) -> bool:
    return any(budget.per == "customer" for budget in promotion.budgets)


#: Those that don't look at the thing, nor at its stock: asked once for all the things of a promotion.
PROMOTION_GATES: tuple[Gate, ...] = (
    (Reason.OPTED_OUT, _opted_out),
    (Reason.NO_CONSENT, _no_consent),
    (Reason.LOW_CONFIDENCE, _low_confidence),
    (Reason.SPOOFED, _spoofed),
    (Reason.OUTSIDE_WINDOW, _outside_window),
    (Reason.OUTSIDE_HOURS, _outside_hours),
    (Reason.NOT_IN_AUDIENCE, _not_in_audience),
    (Reason.OTHER_ARM, _other_arm),
    (Reason.PERSONAL_PRICES_OFF, _personal_prices_off),
)
THING_GATES: tuple[Gate, ...] = (
    (Reason.NO_PRODUCT, _no_product),
    (Reason.STORE_CLOSED, _store_closed),
    (Reason.OUT_OF_STOCK, _out_of_stock),
    (Reason.IN_STOCK, _in_stock),
    (Reason.NOWHERE_ELSE, _nowhere_else),
    (Reason.NO_ALTERNATIVE, _no_alternative),
    (Reason.NO_ANCHOR_PRICE, _no_anchor_price),
)
#: Again asked once for all the things of a promotion.
TIMING_GATES: tuple[Gate, ...] = (
    (Reason.STAFF_CONTACT, _staff_contact),
    (Reason.QUIET_HOURS, _quiet_hours),
    (Reason.CAPPED, _capped),
    (Reason.CAPPED_OVERALL, _capped_overall),
    (Reason.CAPPED_CHANNELS, _capped_channels),
    (Reason.BUDGET_EXHAUSTED, _budget_exhausted),
    (Reason.HELD, _held),
)
#: The order: what forbids any contact first, then what rules the promotion out, then what may be different later; and
#: last what alone is worth waiting for.
GATES = PROMOTION_GATES + THING_GATES + TIMING_GATES
#: Of some gates, the promotions that they concern: of the others they stop nothing, and are not asked.
_CONCERNS: Mapping[Reason, Callable[[Promotion], bool]] = {
    Reason.SPOOFED: lambda promotion: promotion.kind == "offer",
    Reason.OUTSIDE_WINDOW: lambda promotion: _has_window(promotion.when),
    Reason.OUTSIDE_HOURS: lambda promotion: promotion.when.hours is not None,
    Reason.NOT_IN_AUDIENCE: lambda promotion: promotion.who != Who(),
    Reason.OTHER_ARM: lambda promotion: promotion.experiment is not None,
    Reason.PERSONAL_PRICES_OFF: lambda promotion: promotion.what.price_rule is not None,
    Reason.OUT_OF_STOCK: lambda promotion: promotion.what.instead is None,
    Reason.IN_STOCK: lambda promotion: promotion.what.instead is not None,
    Reason.NOWHERE_ELSE: lambda promotion: promotion.what.instead == "elsewhere",
    Reason.NO_ALTERNATIVE: lambda promotion: promotion.what.instead == "alternative",
    Reason.NO_ANCHOR_PRICE: lambda promotion: promotion.what.price_rule is not None,
    Reason.STAFF_CONTACT: lambda promotion: promotion.kind != "notice",
    Reason.QUIET_HOURS: lambda promotion: promotion.kind != "assist",
    Reason.CAPPED: lambda promotion: bool(own_caps(promotion)),
    Reason.CAPPED_OVERALL: lambda promotion: promotion.kind == "offer",
    Reason.CAPPED_CHANNELS: lambda promotion: promotion.kind != "assist",
    Reason.BUDGET_EXHAUSTED: _has_personal_budget,
    Reason.HELD: lambda promotion: promotion.in_quiet_hours == "hold",
}


def concerns(reason: Reason, promotion: Promotion) -> bool:
    """Whether the gate can stop the promotion at all."""
    return reason not in _CONCERNS or _CONCERNS[reason](promotion)


#: Of some gates, the moments at which they can stop anything: at all others they are not asked.
_MATTERS: Mapping[Reason, Callable[[Situation], bool]] = {
    Reason.OPTED_OUT: lambda at: at.opted_out,
    Reason.LOW_CONFIDENCE: lambda at: at.moment.confidence < at.policy.min_confidence,
    Reason.SPOOFED: lambda at: at.moment.doubt > at.policy.max_doubt,
    Reason.STORE_CLOSED: lambda at: at.store_closed,
    Reason.OUT_OF_STOCK: lambda at: at.moment.store is not None,
    Reason.STAFF_CONTACT: lambda at: at.customer.last_staff_contact_ms > 0,
    Reason.QUIET_HOURS: lambda at: at.quiet_until_ms != at.now_ms,
    Reason.CAPPED: lambda at: bool(at.customer.messages),
    Reason.CAPPED_OVERALL: lambda at: bool(at.spent_caps),
    Reason.CAPPED_CHANNELS: lambda at: bool(at.customer.messages),
    Reason.HELD: lambda at: at.quiet_until_ms != at.now_ms,
}
_BITS = {reason: 1 << place for place, (reason, _) in enumerate(GATES)}


class Stage:
    """Gates that are asked one after the other: those that look at one kind of thing."""

    def __init__(self, gates: Sequence[Gate]) -> None:
        self._all = sum(_BITS[reason] for reason, _ in gates)
        self._sometimes = [(_BITS[reason], _MATTERS[reason]) for reason, _ in gates if reason in _MATTERS]

    def open_at(self, at: Situation) -> int:
        """A mask of those that can stop something at this moment."""
        mask = self._all
        for bit, matters in self._sometimes:
            if not matters(at):
                mask ^= bit
        return mask


OF_PROMOTION, OF_THING, OF_TIMING = Stage(PROMOTION_GATES), Stage(THING_GATES), Stage(TIMING_GATES)


def concerning(promotion: Promotion, catalogue: Catalogue) -> int:
    """A mask of the gates that can stop the promotion, worked out once for each version of the catalogue."""
    known = catalogue.gates.get(promotion.id)
    if known is None:
        known = sum(_BITS[reason] for reason, _ in GATES if concerns(reason, promotion))
        if _is_for_products(promotion, catalogue):
            known &= ~_BITS[Reason.NO_PRODUCT]
        catalogue.gates[promotion.id] = known
    return known


def _is_for_products(promotion: Promotion, catalogue: Catalogue) -> bool:
    """Whether it names what it is for, and the catalogue has all of that."""
    what = promotion.what
    return bool(what.skus or what.segments) and all(sku in catalogue.products for sku in what.skus)


# Some dozens of masks are all there are in practice.
@lru_cache(maxsize=4096)
def gates_in(mask: int) -> tuple[Gate, ...]:
    """The gates of a mask, in their order."""
    return tuple(gate for gate in GATES if mask & _BITS[gate[0]])
