"""Why not: what keeps one promotion from one customer, now and in the decisions of late.

Asks the very functions that decide (`offers.candidates`, `offers.gates`) about a moment as the promotion waits for one,
and puts what they looked at into words. It must not have an opinion of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from nearcast.customer import Customer, Presence
from nearcast.decisions import Candidate, Decision, Reason, WouldBe
from nearcast.events import DeliveryStatus
from nearcast.hours import store_is_open
from nearcast.ids import CustomerId, DecisionId, EventId, FenceId, PromotionId, Sku, StoreId
from nearcast.moments import Moment, Transition, moments_of_transitions
from nearcast.world import Budget, Cap, Fence, Promotion, Trigger, Where, Who
from offers.arms import is_held_out, place_in
from offers.candidates import crosses_points, fits, has_status, is_of, is_owned, settled, suits, things
from offers.catalogue import Catalogue
from offers.gates import (
    PASSING_TRIGGERS,
    PLACE_TRIGGERS,
    Asked,
    audience,
    bound_cents,
    capped_channels,
    clock_of,
    counted,
    every_gate,
    fence_closed,
    needs_open_store,
    needs_stock,
    own_caps,
    taken,
)
from offers.gates import Situation as Looked
from offers.policy import Policy
from offers.worth import annoyance_cents, cost_cents, ignored

#: How many decisions in which the promotion was a candidate are shown.
SHOWN_DECISIONS = 20
_EVENT = EventId("why-not")


class Situation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The moment that was asked about. `assumed`: the customer is not known to be in it; it stands for one to come."""

    trigger: Trigger
    assumed: bool
    store: StoreId | None = None
    fence: FenceId | None = None
    fence_kind: str | None = None
    sku: Sku | None = None


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the promotion asks of a moment; `holds` is null where only the moment itself can tell."""

    name: str
    holds: bool | None
    detail: str


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """A gate, in the order in which they are asked. The first that does not pass is the reason."""

    name: Reason
    passes: bool
    detail: str


class Thing(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the promotion would be about (null: nothing in particular), and how it fares."""

    sku: Sku | None
    stopped_by: Reason | None
    gates: list[Gate]
    #: What is missing, and so the thing is another or at another store.
    instead_of: Sku | None = None
    store: StoreId | None = None


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """What a message of it would bring: the model's probability, at the moment, x value - cost.

    `exploration` is the share of such decisions that are left to chance, which asks for no worth.
    """

    value_cents: float
    #: In all, and how much of it is annoyance: the price of so many offers ignored in a row.
    cost_cents: float
    annoyance_cents: float
    ignored: int
    #: It is made if the probability is above this; 1: never, but by chance. None: whatever it is, being an alert or a
    #: notice.
    worth_it_from: float | None
    exploration: float


class PastThing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one thing of the promotion fared; without `stopped_by` it won."""

    sku: Sku | None = None
    stopped_by: Reason | None = None
    propensity: float | None = None
    value_cents: float | None = None
    cost_cents: float | None = None
    expected_cents: float | None = None
    probability: float | None = None


class Past(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A decision in which the promotion was a candidate. `winner` is the promotion that won, if one did."""

    decision: DecisionId
    at_ms: int
    trigger: Trigger
    things: list[PastThing]
    rules_version: str
    model_version: str
    store: StoreId | None = None
    fence: FenceId | None = None
    winner: PromotionId | None = None
    winner_expected_cents: float | None = None
    #: Whether chance chose; and what would have been chosen, had the customer not been held out of it.
    explored: bool = False
    would_be: WouldBe | None = None
    #: What became of the message, if this promotion won and somebody reported something.
    message_status: DeliveryStatus | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """`candidate` says whether all conditions hold; only then is a decision made in which the gates are asked.

    Of the decisions of late: how many there are, what stopped this promotion in how many, and the newest of these.
    """

    customer: CustomerId
    promotion: PromotionId
    at_ms: int
    rules_version: str
    summary: str
    situation: Situation
    candidate: bool
    conditions: list[Condition]
    things: list[Thing]
    worth: Worth
    #: The customer is held out: of this promotion, or of all.
    held_out: bool
    decisions: int
    stopped_by: dict[str, int]
    past: list[Past]


def situation_for(
    promotion: Promotion,
    customer: Customer,
    presence: Presence,
    fences: Mapping[FenceId, Fence],
    catalogue: Catalogue,
    store: StoreId | None,
    now_ms: int,
) -> tuple[Moment, bool]:
    """The moment to ask about, and whether it is assumed.

    For a trigger that comes from a place: in a fence that the customer is in, where the promotion fits; else in the
    first one where it would fit. `store` asks for a fence, or an event, of that store.
    """
    if promotion.trigger in PLACE_TRIGGERS | PASSING_TRIGGERS:
        here = [fences[fence] for fence in presence.inside if fence in fences]
        for assumed, places in ((False, here), (True, fences.values())):
            moments = (moment for fence in places for moment in _moments_in(fence, fences, customer, now_ms))
            found = _fitting(promotion, customer, catalogue, store, moments)
            if found is not None:
                return found, assumed
    sku = _newest(promotion, catalogue, customer)
    moment = Moment(
        event=_EVENT,
        customer=customer.id,
        trigger=promotion.trigger,
        at_ms=now_ms,
        subject="",
        store=None if promotion.trigger == "cart_abandoned" else store,
        sku=sku,
        status=next(iter(promotion.when.statuses), ""),
        points=_rise(promotion, customer),
    )
    return moment, not (promotion.trigger == "cart_abandoned" and customer.cart_abandoned)


def explain(
    promotion: Promotion,
    moment: Moment,
    assumed: bool,
    customer: Customer,
    catalogue: Catalogue,
    stock: Mapping[tuple[StoreId, Sku], int],
    policy: Policy,
    decisions: Sequence[Decision],
) -> Explanation:
    """The explanation, as of the time of `moment`. `stock` as for `offers.decide.screen`; `decisions` newest first."""
    found = things(promotion, moment, customer, catalogue) if suits(promotion, moment) else []
    worth = _worth(promotion, customer, catalogue, policy, moment.at_ms)
    asked = [
        _thing(promotion, sku, moment, customer, catalogue, stock, policy, worth)
        # Of what is no candidate the gates can be asked, too, as far as they don't need a thing.
        for sku in (found or [moment.sku])
    ]
    past = [_past(promotion, decision, customer) for decision in decisions if _considered(promotion, decision)]
    stopped: dict[str, int] = {}
    for each in past:
        for reason in dict.fromkeys(thing.stopped_by or "won" for thing in each.things):
            stopped[reason] = stopped.get(reason, 0) + 1
    return Explanation(
        customer=customer.id,
        promotion=promotion.promotion_id,
        at_ms=moment.at_ms,
        rules_version=catalogue.version,
        summary=_summary(bool(found), assumed, asked, worth),
        situation=Situation(
            trigger=moment.trigger,
            assumed=assumed,
            store=moment.store,
            fence=moment.fence,
            fence_kind=moment.fence_kind,
            sku=moment.sku,
        ),
        candidate=bool(found),
        conditions=list(_conditions(promotion, moment, assumed, customer, catalogue, bool(found))),
        things=asked,
        worth=worth,
        held_out=is_held_out(promotion, customer.id, policy),
        decisions=len(decisions),
        stopped_by=dict(sorted(stopped.items())),
        past=past[:SHOWN_DECISIONS],
    )


def things_asked(promotion: Promotion, moment: Moment, customer: Customer, catalogue: Catalogue) -> list[Candidate]:
    """What `explain` will ask the gates about: for looking up the stock."""
    found = things(promotion, moment, customer, catalogue) or [moment.sku]
    return [Candidate(promotion=promotion.promotion_id, sku=sku) for sku in found]


def _moments_in(fence: Fence, fences: Mapping[FenceId, Fence], customer: Customer, now_ms: int) -> Iterator[Moment]:
    """Every moment that the fence can be the place of."""
    around: list[FenceId] = []
    above = fence
    while above.parent is not None and (parent := fences.get(FenceId(above.parent))) is not None:
        around.append(parent.fence_id)
        above = parent
    for kind in ("enter", "dwell", "exit", "approach", "cross"):
        transition = Transition(kind, fence, now_ms, 1.0, around=tuple(around))
        yield from moments_of_transitions(_EVENT, customer.id, [transition])


def _fitting(
    promotion: Promotion, customer: Customer, catalogue: Catalogue, store: StoreId | None, moments: Iterable[Moment]
) -> Moment | None:
    """The first moment that would lead to the promotion; else the first at a fitting place, of a fitting thing."""
    place: Moment | None = None
    for moment in moments:
        if moment.trigger != promotion.trigger or not fits(promotion.where, moment):
            continue
        if (store is None or moment.store == store) and (moment.sku is None or is_of(promotion, moment.sku, catalogue)):
            if things(promotion, moment, customer, catalogue):
                return moment
            place = place or moment
    return place


def _newest(promotion: Promotion, catalogue: Catalogue, customer: Customer) -> Sku | None:
    """For triggers that are about one thing: the newest of the promotion's, else the newest at all."""
    seen = {"product_view": customer.viewed, "wishlist_add": customer.wishlist}.get(promotion.trigger, {})
    newest = sorted(seen, key=lambda sku: (not is_of(promotion, sku, catalogue), -seen[sku], sku))
    return newest[0] if newest else None


def _rise(promotion: Promotion, customer: Customer) -> tuple[int, int] | None:
    """For "points_reached": the rise of the points that leads to it."""
    if promotion.trigger != "points_reached":
        return None
    needed = promotion.who.min_points or 0
    return needed - 1, max(needed, customer.points)


def _conditions(
    promotion: Promotion, moment: Moment, assumed: bool, customer: Customer, catalogue: Catalogue, candidate: bool
) -> Iterator[Condition]:
    yield _trigger(promotion, moment, assumed, customer)
    where = promotion.where
    within = f", in {_list(moment.around)}" if moment.around else ""
    for name, only_where, asked, has in (
        ("where.stores", Where(stores=where.stores), where.stores, moment.store or "nowhere"),
        ("where.fences", Where(fences=where.fences), where.fences, f"{moment.fence or 'nowhere'}{within}"),
        ("where.kinds", Where(kinds=where.kinds), where.kinds, moment.fence_kind or "nowhere"),
    ):
        if only_where != Where():
            detail = f"asks for {_list(asked)}; it is {has}"
            yield Condition(name=name, holds=fits(only_where, moment), detail=detail)
    if promotion.trigger == "points_reached":
        detail = f"when the points rise to {promotion.who.min_points}; there are {customer.points}"
        yield Condition(name="who.min_points", holds=crosses_points(promotion, moment), detail=detail)
    if promotion.when.statuses:
        detail = f"asks for {_list(promotion.when.statuses)}; it is {moment.status or 'unknown'}"
        yield Condition(name="when.statuses", holds=has_status(promotion, moment), detail=detail)
    if promotion.what.instead is not None:
        detail = f"the thing is missing at a store; it is at {moment.store or 'none'}"
        yield Condition(name="what.instead", holds=moment.store is not None, detail=detail)
    who = promotion.who
    for name, only_who, things_of in (
        ("who.in_cart", Who(in_cart=who.in_cart), customer.cart),
        ("who.on_wishlist", Who(on_wishlist=who.on_wishlist), customer.wishlist),
    ):
        if only_who != Who():
            bare = msgspec.structs.replace(promotion, who=only_who)
            own = [sku for sku in things_of if is_of(promotion, sku, catalogue) and is_owned(bare, sku, customer)]
            yield Condition(name=name, holds=bool(own), detail=f"of the promotion's things there: {_list(own)}")
    if moment.sku is not None:
        yield Condition(
            name="what",
            holds=is_of(promotion, moment.sku, catalogue),
            detail=f"the moment is about {moment.sku} (segment {catalogue.segments.get(moment.sku, 'unknown')})",
        )
    elif not candidate and fits(where, moment):
        yield Condition(name="what", holds=False, detail="there is none of the promotion's things that could be meant")


def _trigger(promotion: Promotion, moment: Moment, assumed: bool, customer: Customer) -> Condition:
    trigger = promotion.trigger
    if moment.fence is not None:
        held, said = (False, "is not in it") if assumed else (True, "is in it")
        return Condition(
            name="trigger", holds=held, detail=f"{trigger} of the fence {moment.fence}: the customer {said}"
        )
    if trigger in PLACE_TRIGGERS | PASSING_TRIGGERS:
        return Condition(name="trigger", holds=False, detail=f"{trigger}: there is no fence where the promotion fits")
    if trigger == "cart_abandoned":
        due_ms = customer.timers.get("cart_abandoned")
        when = f"; it will be at {_time(due_ms)} if nothing changes" if due_ms else ""
        said = "is abandoned" if customer.cart_abandoned else "is empty" if not customer.cart else "is in use"
        return Condition(name="trigger", holds=customer.cart_abandoned, detail=f"the cart {said}{when}")
    return Condition(name="trigger", holds=None, detail=f"{trigger}: when an event says so")


def _thing(
    promotion: Promotion,
    sku: Sku | None,
    moment: Moment,
    customer: Customer,
    catalogue: Catalogue,
    stock: Mapping[tuple[StoreId, Sku], int],
    policy: Policy,
    worth: Worth,
) -> Thing:
    candidate = settled(Candidate(promotion=promotion.promotion_id, sku=sku), moment, customer, catalogue, stock)
    looked_at = Asked(Looked(moment, customer, catalogue, stock, policy), promotion, candidate)
    asked = every_gate(looked_at)
    stopped_by = next((reason for reason, stops in asked if stops), None)
    return Thing(
        sku=candidate.sku,
        stopped_by=stopped_by or _lost_for_sure(promotion, customer, policy, worth),
        gates=[Gate(name=reason, passes=not stops, detail=_DETAILS[reason](looked_at)) for reason, stops in asked],
        instead_of=candidate.instead_of,
        store=candidate.store,
    )


def _lost_for_sure(promotion: Promotion, customer: Customer, policy: Policy, worth: Worth) -> Reason | None:
    """Why a thing that passes every gate is not chosen, whatever the model says of it and however chance falls."""
    if worth.worth_it_from == 1.0 and not worth.exploration:
        return Reason.NOT_WORTH_IT
    return Reason.HOLDOUT if is_held_out(promotion, customer.id, policy) else None


def _worth(promotion: Promotion, customer: Customer, catalogue: Catalogue, policy: Policy, at_ms: int) -> Worth:
    times_ignored = ignored(customer, catalogue, policy, at_ms)
    value, cost = float(promotion.value_cents), cost_cents(promotion, times_ignored, policy)
    return Worth(
        value_cents=value,
        cost_cents=cost,
        annoyance_cents=annoyance_cents(promotion, times_ignored, policy),
        ignored=times_ignored,
        worth_it_from=None if promotion.kind != "offer" else cost / value if cost < value else 1.0,
        exploration=0.0 if promotion.kind != "offer" else policy.exploration,
    )


def _summary(candidate: bool, assumed: bool, asked: Iterable[Thing], worth: Worth) -> str:
    stopped = [thing.stopped_by for thing in asked]
    if not candidate:
        return "no candidate: see the conditions that don't hold"
    if None not in stopped:
        return f"stopped by {_list(dict.fromkeys(reason.value for reason in stopped if reason))}"
    exploration = f"(exploration {worth.exploration:g})"
    if worth.worth_it_from == 1.0:
        said = f"it is worth too little whatever the model says, but chance may make it {exploration}"
    else:
        chance = f", or chance chooses otherwise {exploration}" if worth.exploration else ""
        when = "at such a moment" if assumed else "now"
        said = f"nothing stops it {when}, unless another promotion is worth more, or this one too little{chance}"
    return f"{said}; the moment has not come yet" if assumed else said


def _considered(promotion: Promotion, decision: Decision) -> bool:
    return any(candidate.promotion == promotion.id for candidate in decision.candidates)


def _past(promotion: Promotion, decision: Decision, customer: Customer) -> Past:
    won = decision.promotion == promotion.id
    winner = next((each for each in decision.candidates if each.stopped_by is None), None)
    return Past(
        decision=decision.id,
        at_ms=decision.at_ms,
        trigger=decision.moment.trigger,
        store=decision.store,
        fence=decision.moment.fence,
        things=[
            PastThing(
                sku=each.sku,
                stopped_by=each.stopped_by,
                propensity=each.propensity,
                value_cents=each.value_cents,
                cost_cents=each.cost_cents,
                expected_cents=each.expected_cents,
                probability=each.probability,
            )
            for each in decision.candidates
            if each.promotion == promotion.id
        ],
        winner=decision.promotion,
        winner_expected_cents=winner.expected_cents if winner is not None else None,
        rules_version=decision.rules_version,
        model_version=decision.model_version,
        explored=decision.explored,
        would_be=decision.would_be,
        message_status=next((sent.status for sent in customer.messages if won and sent.decision == decision.id), None),
    )


def _opted_out(on: Asked) -> str:
    granted, since_ms = on.at.customer.consents.get("all", (True, 0))
    return "has not opted out" if granted else f"opted out of everything at {_time(since_ms)}"


def _no_consent(on: Asked) -> str:
    if on.promotion.kind == "assist":
        return "an alert to staff needs no channel's consent"
    given = [channel for channel in on.promotion.channels if on.at.customer.consented(channel)]
    location = "" if on.at.customer.location_allowed else "; the use of their location was withdrawn"
    return f"channels {_list(on.promotion.channels)}; consented to {_list(given)}{location}"


def _low_confidence(on: Asked) -> str:
    return f"a transition must be at least {on.at.policy.min_confidence:g} likely; this is taken as certain"


def _spoofed(on: Asked) -> str:
    if on.promotion.kind != "offer":
        return "an alert or a notice is sent all the same"
    return f"a doubt of {on.at.moment.doubt:g} about the position; up to {on.at.policy.max_doubt:g} is let pass"


def _outside_window(on: Asked) -> str:
    when = on.promotion.when
    starts = _time(when.starts_ms) if when.starts_ms is not None else "ever"
    ends = _time(when.ends_ms) if when.ends_ms is not None else "ever"
    return f"from {starts} for {ends}" if ends == "ever" else f"from {starts} until {ends}"


def _outside_hours(on: Asked) -> str:
    hours = on.promotion.when.hours
    if hours is None:
        return "at any hour"
    windows = (f"{_DAYS[window.weekday]} {_clock(window.opens)}-{_clock(window.closes)}" for window in hours)
    return f"{_list(windows)} in {clock_of(on.promotion.when, on.at.customer, on.at.store) or 'UTC'}"


def _not_in_audience(on: Asked) -> str:
    who, customer = on.promotion.who, on.at.customer
    last_ms = customer.history.last_ms
    words = {
        "groups": lambda: f"asks for groups {_list(who.groups)}; has {_list(customer.groups)}",
        "loyalty": lambda: f"asks for loyalty {_list(who.loyalty)}; has {customer.loyalty or 'none'}",
        "bought": lambda: f"asks for purchases of {_list(who.bought)}",
        "no_purchase_within_s": lambda: (
            f"asks for no purchase in {who.no_purchase_within_s} s; last {_time(last_ms) if last_ms else 'never'}"
        ),
        "attributes": lambda: "; ".join(
            f"asks for {name} {_list(values)}; has {customer.attributes.get(name, 'none')}"
            for name, values in who.attributes.items()
        ),
        "min_points": lambda: f"asks for {who.min_points} points; has {customer.points}",
        "consents": lambda: f"asks for consent to {_list(who.consents)}",
    }
    said = [
        f"{words[name]()} ({'holds' if holds else 'does not hold'})"
        for name, holds in audience(on.promotion, customer, on.at.now_ms).items()
    ]
    return "; ".join(said) or "asks for nobody in particular"


def _other_arm(on: Asked) -> str:
    experiment = on.promotion.experiment
    if experiment is None:
        return "takes part in no experiment"
    place = place_in(experiment, on.at.customer.id)
    return f"at {place:.4f} in {experiment.name}; this arm is from {experiment.starts:g} to {experiment.ends:g}"


def _personal_prices_off(on: Asked) -> str:
    if on.promotion.what.price_rule is None:
        return "makes no price for one customer"
    return f"prices for one customer are switched {'on' if on.at.policy.personal_prices else 'off'}"


def _no_product(on: Asked) -> str:
    sku = on.candidate.sku
    if sku is None:
        return "about no thing in particular"
    return f"{sku} is {'' if sku in on.at.catalogue.products else 'not '}in the catalogue"


def _store_closed(on: Asked) -> str:
    if on.at.moment.store is None:
        return "no store is involved"
    if on.promotion.what.instead == "elsewhere" or not needs_open_store(on.at.moment.trigger):
        return "not asked of the store where they are"
    store, fence = on.at.store, on.at.moment.fence
    if store is None:
        return f"there is no store {on.at.moment.store}"
    said = f"{store.id} is {_open(store_is_open(store, on.at.moment.at_ms))}"
    if fence not in on.at.catalogue.fence_hours:
        return said
    return f"{said}, {fence} in it is {_open(not fence_closed(store, fence, on.at.catalogue, on.at.moment.at_ms))}"


def _out_of_stock(on: Asked) -> str:
    if on.promotion.what.instead is not None:
        return "not asked: it is for things that are out of stock"
    if (
        on.at.moment.store is None
        or on.candidate.sku is None
        or not needs_stock(on.promotion.kind, on.at.moment.trigger)
    ):
        return "not asked: no store, or no thing, or it is a call for help or about an order"
    return _pieces(on.at, on.at.moment.store, on.candidate.sku)


def _in_stock(on: Asked) -> str:
    wanted = on.candidate.instead_of or on.candidate.sku
    if on.promotion.what.instead is None or on.at.moment.store is None or wanted is None:
        return "not asked: it is for what the store has"
    return _pieces(on.at, on.at.moment.store, wanted)


def _nowhere_else(on: Asked) -> str:
    if on.promotion.what.instead != "elsewhere":
        return "not asked: it sends nobody to another store"
    within = f"an open store within {on.promotion.what.within_m:g} m"
    if on.candidate.store is None or on.candidate.sku is None:
        return f"needs {within} that has it"
    return f"{within}: {_pieces(on.at, on.candidate.store, on.candidate.sku)}"


def _no_alternative(on: Asked) -> str:
    if on.promotion.what.instead != "alternative":
        return "not asked: it offers nothing in place of something else"
    if on.candidate.instead_of is None or on.at.moment.store is None or on.candidate.sku is None:
        return "needs another thing of the segment that the store has"
    return f"{_pieces(on.at, on.at.moment.store, on.candidate.sku)} instead of {on.candidate.instead_of}"


def _no_anchor_price(on: Asked) -> str:
    if on.promotion.what.price_rule is None:
        return "makes no price for one customer"
    price = on.candidate.price
    if price is None:
        return "needs a price that they paid in the segment, below the list price"
    return (
        f"{price.offered_cents} cents: paid {price.anchor_cents} at {_time(price.anchor_at_ms)}, "
        f"list {price.list_cents}, at least {price.least_cents}"
    )


def _staff_contact(on: Asked) -> str:
    if on.promotion.kind == "notice":
        return "a notice is sent all the same"
    last_ms = on.at.customer.last_staff_contact_ms
    quiet_s = on.at.policy.staff_contact_quiet_ms // 1000
    return f"left alone for {quiet_s} s after staff spoke to them; last {_time(last_ms) if last_ms else 'never'}"


def _quiet_hours(on: Asked) -> str:
    window = on.at.policy.quiet_hours
    if window is None:
        return "there are none"
    return f"{_clock(window.starts)} to {_clock(window.ends)} in {on.at.zone or 'UTC'}"


def _capped(on: Asked) -> str:
    own = on.at.messages_of(on.promotion)
    return _used(own_caps(on.promotion), lambda cap: counted(cap, own, on.at.now_ms, on.at.zone))


def _capped_overall(on: Asked) -> str:
    caps = [cap for cap in on.at.policy.caps if not cap.channels]
    return _used(caps, lambda cap: counted(cap, on.at.offers, on.at.now_ms, on.at.zone))


def _capped_channels(on: Asked) -> str:
    return f"channels {_list(on.promotion.channels)}; used up for {_list(sorted(capped_channels(on.at, on.promotion)))}"


def _budget_exhausted(on: Asked) -> str:
    budgets = [budget for budget in on.promotion.budgets if budget.per == "customer"]
    if not budgets:
        return "no budget per customer; those that are shared are asked when it is decided"
    return ", ".join(_taken(budget, on.promotion, on.at) for budget in budgets)


def _held(on: Asked) -> str:
    if on.promotion.in_quiet_hours != "hold":
        return "it waits for nothing"
    until_ms = on.at.quiet_until_ms
    return (
        "it is not quiet now" if until_ms == on.at.now_ms else f"waits until {_time(until_ms) if until_ms else 'ever'}"
    )


_DETAILS: dict[Reason, Callable[[Asked], str]] = {
    Reason.OPTED_OUT: _opted_out,
    Reason.NO_CONSENT: _no_consent,
    Reason.LOW_CONFIDENCE: _low_confidence,
    Reason.SPOOFED: _spoofed,
    Reason.OUTSIDE_WINDOW: _outside_window,
    Reason.OUTSIDE_HOURS: _outside_hours,
    Reason.NOT_IN_AUDIENCE: _not_in_audience,
    Reason.OTHER_ARM: _other_arm,
    Reason.PERSONAL_PRICES_OFF: _personal_prices_off,
    Reason.NO_PRODUCT: _no_product,
    Reason.STORE_CLOSED: _store_closed,
    Reason.OUT_OF_STOCK: _out_of_stock,
    Reason.IN_STOCK: _in_stock,
    Reason.NOWHERE_ELSE: _nowhere_else,
    Reason.NO_ALTERNATIVE: _no_alternative,
    Reason.NO_ANCHOR_PRICE: _no_anchor_price,
    Reason.STAFF_CONTACT: _staff_contact,
    Reason.QUIET_HOURS: _quiet_hours,
    Reason.CAPPED: _capped,
    Reason.CAPPED_OVERALL: _capped_overall,
    Reason.CAPPED_CHANNELS: _capped_channels,
    Reason.BUDGET_EXHAUSTED: _budget_exhausted,
    Reason.HELD: _held,
}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def _pieces(at: Looked, store: StoreId, sku: Sku) -> str:
    return f"{at.stock.get((store, sku), 0)} pieces of {sku} at {store}"


def _used(caps: Iterable[Cap], count: Callable[[Cap], int]) -> str:
    return ", ".join(f"{count(cap)} of {cap.count} {_period(cap)}" for cap in caps) or "no caps"


def _period(cap: Cap) -> str:
    said = f"in {cap.period_s} s" if cap.period is None else f"in the {cap.period}"
    return f"{said} tagged {_list(cap.tags)}" if cap.tags else said


def _taken(budget: Budget, promotion: Promotion, at: Looked) -> str:
    pieces, cents = taken(budget, promotion, at)
    said = [] if budget.pieces is None else [f"{pieces} of {budget.pieces} pieces"]
    if budget.cents is not None:
        said.append(f"{cents} of {budget.cents} cents, {bound_cents(promotion)} more at most")
    return f"{' and '.join(said)} ({budget.period})"


def _open(is_open: bool) -> str:
    return "open" if is_open else "closed"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
