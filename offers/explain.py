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
from nearcast.world import Cap, Fence, Promotion, Trigger, Where, Who
from offers.arms import is_held_out, place_in
from offers.candidates import fits, is_of, is_owned, things
from offers.catalogue import Catalogue
from offers.gates import (
    PASSING_TRIGGERS,
    PLACE_TRIGGERS,
    asks_for_help,
    counted,
    every_gate,
    fence_closed,
    messages_of,
    offers_to,
)
from offers.hours import zone_for
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


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """What a message of it would bring: the model's probability, at the moment, x value - cost.

    `exploration` is the share of such decisions that are left to chance, which asks for no worth.
    """

    value_cents: float
    #: In all, and how much of it is annoyance: the price of so many offers ignored in a row.
    cost_cents: float
    annoyance_cents: float
    ignored: int
    #: It is made if the probability is above this; 1: never, but by chance. None: whatever it is, being an alert to
    #: staff.
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
    found = things(promotion, moment, customer, catalogue) if fits(promotion.where, moment) else []
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
    candidate = Candidate(promotion=promotion.promotion_id, sku=sku)
    asked = every_gate(candidate, moment, customer, catalogue, stock, policy, moment.at_ms)
    looked_at = _Looked(promotion, sku, moment, customer, catalogue, stock, policy)
    stopped_by = next((reason for reason, stops in asked if stops), None)
    return Thing(
        sku=sku,
        stopped_by=stopped_by or _lost_for_sure(promotion, customer, policy, worth),
        gates=[Gate(name=reason, passes=not stops, detail=_DETAILS[reason](looked_at)) for reason, stops in asked],
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
        worth_it_from=None if promotion.kind == "assist" else cost / value if cost < value else 1.0,
        exploration=0.0 if promotion.kind == "assist" else policy.exploration,
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


class _Looked(msgspec.Struct, frozen=True):
    """What a gate looked at."""

    promotion: Promotion
    sku: Sku | None
    moment: Moment
    customer: Customer
    catalogue: Catalogue
    stock: Mapping[tuple[StoreId, Sku], int]
    policy: Policy


def _opted_out(at: _Looked) -> str:
    granted, since_ms = at.customer.consents.get("all", (True, 0))
    return "has not opted out" if granted else f"opted out of everything at {_time(since_ms)}"


def _no_consent(at: _Looked) -> str:
    if at.promotion.kind == "assist":
        return "an alert to staff needs no channel's consent"
    given = [channel for channel in at.promotion.channels if at.customer.consented(channel)]
    location = "" if at.customer.location_allowed else "; the use of their location was withdrawn"
    return f"channels {_list(at.promotion.channels)}; consented to {_list(given)}{location}"


def _low_confidence(at: _Looked) -> str:
    return f"a transition must be at least {at.policy.min_confidence:g} likely; this is taken as certain"


def _spoofed(at: _Looked) -> str:
    if at.promotion.kind == "assist":
        return "an alert to staff is sent all the same"
    return f"a doubt of {at.moment.doubt:g} about the position; up to {at.policy.max_doubt:g} is let pass"


def _outside_window(at: _Looked) -> str:
    when = at.promotion.when
    starts = _time(when.starts_ms) if when.starts_ms is not None else "ever"
    ends = _time(when.ends_ms) if when.ends_ms is not None else "ever"
    return f"from {starts} for {ends}" if ends == "ever" else f"from {starts} until {ends}"


def _not_in_audience(at: _Looked) -> str:
    who, customer = at.promotion.who, at.customer
    return (
        f"asks for groups {_list(who.groups)} and loyalty {_list(who.loyalty)}; "
        f"has groups {_list(customer.groups)} and loyalty {customer.loyalty or 'none'}"
    )


def _other_arm(at: _Looked) -> str:
    experiment = at.promotion.experiment
    if experiment is None:
        return "takes part in no experiment"
    place = place_in(experiment, at.customer.id)
    return f"at {place:.4f} in {experiment.name}; this arm is from {experiment.starts:g} to {experiment.ends:g}"


def _no_product(at: _Looked) -> str:
    if at.sku is None:
        return "about no thing in particular"
    return f"{at.sku} is {'' if at.sku in at.catalogue.products else 'not '}in the catalogue"


def _store_closed(at: _Looked) -> str:
    if at.moment.store is None:
        return "no store is involved"
    store, fence = at.catalogue.stores.get(at.moment.store), at.moment.fence
    if store is None:
        return f"there is no store {at.moment.store}"
    said = f"{store.id} is {_open(store_is_open(store, at.moment.at_ms))}"
    if fence not in at.catalogue.fence_hours:
        return said
    return f"{said}, {fence} in it is {_open(not fence_closed(store, fence, at.catalogue, at.moment.at_ms))}"


def _out_of_stock(at: _Looked) -> str:
    if at.moment.store is None or at.sku is None or asks_for_help(at.promotion.kind, at.moment.trigger):
        return "not asked: no store, or no thing, or it is a call for help"
    return f"{at.stock.get((at.moment.store, at.sku), 0)} pieces of {at.sku} at {at.moment.store}"


def _staff_contact(at: _Looked) -> str:
    last_ms = at.customer.last_staff_contact_ms
    quiet_s = at.policy.staff_contact_quiet_ms // 1000
    return f"left alone for {quiet_s} s after staff spoke to them; last {_time(last_ms) if last_ms else 'never'}"


def _quiet_hours(at: _Looked) -> str:
    window = at.policy.quiet_hours
    if window is None:
        return "there are none"
    store = at.catalogue.stores.get(at.moment.store) if at.moment.store is not None else None
    return f"{_clock(window.starts)} to {_clock(window.ends)} in {zone_for(at.customer, store) or 'UTC'}"


def _capped(at: _Looked) -> str:
    own = messages_of(at.customer, at.promotion)
    return _used(at.promotion.caps, lambda cap: counted(cap, own, at.moment.at_ms))


def _capped_overall(at: _Looked) -> str:
    offers = offers_to(at.customer, at.catalogue)
    return _used(at.policy.caps, lambda cap: counted(cap, offers, at.moment.at_ms))


_DETAILS: dict[Reason, Callable[[_Looked], str]] = {
    Reason.OPTED_OUT: _opted_out,
    Reason.NO_CONSENT: _no_consent,
    Reason.LOW_CONFIDENCE: _low_confidence,
    Reason.SPOOFED: _spoofed,
    Reason.OUTSIDE_WINDOW: _outside_window,
    Reason.NOT_IN_AUDIENCE: _not_in_audience,
    Reason.OTHER_ARM: _other_arm,
    Reason.NO_PRODUCT: _no_product,
    Reason.STORE_CLOSED: _store_closed,
    Reason.OUT_OF_STOCK: _out_of_stock,
    Reason.STAFF_CONTACT: _staff_contact,
    Reason.QUIET_HOURS: _quiet_hours,
    Reason.CAPPED: _capped,
    Reason.CAPPED_OVERALL: _capped_overall,
}


def _used(caps: Iterable[Cap], count: Callable[[Cap], int]) -> str:
    return ", ".join(f"{count(cap)} of {cap.count} in {cap.period_s} s" for cap in caps) or "no caps"


def _open(is_open: bool) -> str:
    return "open" if is_open else "closed"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
