"""Deciding: screen the candidates by the gates, then choose among the others. At most one wins a moment.

Event time only: what is decided about a moment depends on the moment's own time, never on when it is looked at, so a
replay decides the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from nearcast.customer import Customer
from nearcast.decisions import Candidate, Decision, Reason, WouldBe
from nearcast.ids import DecisionId, PromotionId, Sku, StoreId, decision_id, place_of
from nearcast.moments import Moment
from nearcast.world import Discount, Promotion
from offers.arms import is_held_out, place_in
from offers.candidates import settled
from offers.catalogue import Catalogue
from offers.choice import Choice, Option, choose
from offers.gates import GATES, Asked, Gate, Situation, capped_channels, concerning, gates_in, stopped_by
from offers.policy import Policy
from offers.worth import cost_cents, ignored_of

_PLACE_OF_GATE = {reason: place for place, (reason, _) in enumerate(GATES)}


class Screened(list[Candidate]):
    """Candidates that gates were asked about, with the situation that was found then: the next step goes on with it."""

    def __init__(self, candidates: Iterable[Candidate], situation: Situation) -> None:
        super().__init__(candidates)
        self.situation = situation


def rule_out(
    moment: Moment, customer: Customer, candidates: Iterable[Candidate], catalogue: Catalogue, policy: Policy
) -> list[Candidate]:
    """The candidates in the order given; those that are stopped whatever the thing is, with the reason.

    The first half of `screen`: of what is stopped here the stock need not be looked up.
    """
    situation = Situation(moment, customer, catalogue, {}, policy)
    reasons: dict[PromotionId, Reason | None] = {}
    ruled = Screened((), situation)
    for candidate in candidates:
        if candidate.stopped_by is not None:
            ruled.append(candidate)
            continue
        name = candidate.promotion
        if name not in reasons:
            promotion = catalogue.promotions[name]
            gates = gates_in(situation.open_of_promotion & concerning(promotion, catalogue))
            reasons[name] = stopped_by(gates, Asked(situation, promotion, candidate))
        reason = reasons[name]
        ruled.append(candidate if reason is None else replace(candidate, stopped_by=reason))
    return ruled


def screen(
    moment: Moment,
    customer: Customer,
    candidates: Iterable[Candidate],
    catalogue: Catalogue,
    stock: Mapping[tuple[StoreId, Sku], int],
    policy: Policy,
) -> list[Candidate]:
    """The candidates in the order given, each with the reason of the gate that stopped it, if one did; and with the
    other store or thing, or the price, that an offer would be about.

    `stock` holds the pieces for `stock_wanted`; a pair that is missing counts as none. What is stopped
    already stays so.
    """
    situation = _found(candidates, moment, customer, catalogue, policy)
    if situation is None:
        candidates = rule_out(moment, customer, candidates, catalogue, policy)
        situation = Situation(moment, customer, catalogue, {}, policy)
    situation = situation.with_stock(stock)
    screened = Screened((), situation)
    known: dict[PromotionId, _Timed] = {}
    for candidate in candidates:
        if candidate.stopped_by is not None:
            screened.append(candidate)
            continue
        timed = known.get(candidate.promotion)
        if timed is None:
            timed = known[candidate.promotion] = _timed(candidate, situation)
        found = candidate
        if timed.needs_settling:
            found = settled(candidate, moment, customer, catalogue, stock)
        reason = stopped_by(timed.gates, Asked(situation, timed.promotion, found)) or timed.stopped_by
        screened.append(found if reason is None else replace(found, stopped_by=reason))
    return screened


class _Timed(msgspec.Struct, frozen=True):
    """What is the same for all the things of a promotion at one moment."""

    promotion: Promotion
    #: Those that look at the thing.
    gates: Sequence[Gate]
    needs_settling: bool
    #: What stops those that pass these.
    stopped_by: Reason | None


def _timed(candidate: Candidate, at: Situation) -> _Timed:
    promotion = at.catalogue.promotions[candidate.promotion]
    concerned, what = concerning(promotion, at.catalogue), promotion.what
    return _Timed(
        promotion,
        gates_in(at.open_of_thing & concerned),
        what.instead is not None or what.price_rule is not None,
        stopped_by(gates_in(at.open_of_timing(promotion) & concerned), Asked(at, promotion, candidate)),
    )


def _found(
    candidates: Iterable[Candidate], moment: Moment, customer: Customer, catalogue: Catalogue, policy: Policy
) -> Situation | None:
    """The situation that the step before found, if it was asked about the very same."""
    if not isinstance(candidates, Screened):
        return None
    known = candidates.situation
    same = known.moment is moment and known.customer is customer
    return known if same and known.catalogue is catalogue and known.policy is policy else None


class Scores(NamedTuple):
    """What a model said of the candidates that no gate stopped, by their index."""

    #: P(redeem).
    propensities: Mapping[int, float]
    #: The feature rows that it said this of, for the record.
    inputs: Mapping[int, list[float]]
    model_version: str
    features_hash: str


def decide(
    moment: Moment,
    customer: Customer,
    screened: Sequence[Candidate],
    scores: Scores,
    catalogue: Catalogue,
    policy: Policy,
) -> Decision:
    """The decision about a moment that has candidates.

    What no gate stopped is worth propensity x value - cost (`offers.worth`), and `offers.choice` chooses. Of equals it
    takes the first by promotion id, then by relevance: the order that the candidates of one promotion are in.
    """
    situation = _found(screened, moment, customer, catalogue, policy)
    if situation is None:
        situation = Situation(moment, customer, catalogue, {}, policy)
    names = [candidate.promotion for candidate in screened]
    decision = Decision(
        id=_id(moment, catalogue.version),
        moment=moment,
        outcome="nothing",
        at_ms=moment.at_ms,
        deadline_ms=moment.at_ms,
        candidates=list(screened),
        rules_version=catalogue.version,
        model_version=scores.model_version,
        store=moment.store,
        arms=_arms(moment, names, catalogue),
    )
    passed = [index for index, candidate in enumerate(screened) if candidate.stopped_by is None]
    if not passed:
        decision.reason = _furthest(screened)
        _hold(decision, situation)
        return decision
    passed.sort(key=names.__getitem__)
    decision.features_hash = scores.features_hash
    of_promotion = _deals([names[index] for index in passed], situation)
    deals = [of_promotion[names[index]] for index in passed]
    propensities = [scores.propensities[index] for index in passed]
    options = [
        Option(propensity * deal.value_cents - deal.cost_cents, deal.is_alert, deal.is_held)
        for propensity, deal in zip(propensities, deals, strict=True)
    ]
    choice = choose(options, policy.exploration, _chance(moment) if policy.exploration else (0.0, 0.0))
    fates = _fates(options, choice)
    judged = []
    for place, (index, option, deal) in enumerate(zip(passed, options, deals, strict=True)):
        given = screened[index]
        candidate = Candidate(
            promotion=given.promotion,
            sku=given.sku,
            stopped_by=fates[place],
            propensity=propensities[place],
            value_cents=deal.value_cents,
            cost_cents=deal.cost_cents,
            expected_cents=option.expected_cents,
            probability=choice.probabilities[place],
            held_out=option.is_held,
            inputs=scores.inputs[index],
            instead_of=given.instead_of,
            store=given.store,
            price=given.price,
        )
        decision.candidates[index] = candidate
        judged.append(candidate)
    _record(decision, choice, judged, situation)
    if decision.promotion is None:
        _hold(decision, situation)
    return decision


def _hold(decision: Decision, situation: Situation) -> None:
    """Nothing is done about the moment now: if a candidate waits for the end of quiet hours, say when that is."""
    if any(candidate.stopped_by is Reason.HELD for candidate in decision.candidates):
        decision.held_until_ms = situation.quiet_until_ms or 0


class _Deal(msgspec.Struct, frozen=True):
    """What is the same for all the things of a promotion that passed every gate."""

    value_cents: float
    cost_cents: float
    is_alert: bool
    is_held: bool


def _deals(names: Iterable[PromotionId], at: Situation) -> dict[PromotionId, _Deal]:
    times_ignored = ignored_of(at.offers, at.policy, at.now_ms)
    deals = {}
    for name in dict.fromkeys(names):
        promotion = at.catalogue.promotions[name]
        deals[name] = _Deal(
            value_cents=float(promotion.value_cents),
            cost_cents=cost_cents(promotion, times_ignored, at.policy),
            is_alert=promotion.kind != "offer",
            is_held=is_held_out(promotion, at.customer.id, at.policy),
        )
    return deals


def _fates(options: Sequence[Option], choice: Choice) -> list[Reason | None]:
    """Why each option was not chosen; None for the one that was."""
    beaten, worthless = Reason.OUTRANKED, Reason.NOT_WORTH_IT
    if choice.explored:
        beaten = worthless = Reason.EXPLORED
    fates: list[Reason | None] = []
    for place, option in enumerate(options):
        is_worth_it = option.is_worth_it
        if place == choice.chosen:
            fates.append(None)
        elif option.is_held and (is_worth_it or place == choice.wanted):
            fates.append(Reason.HOLDOUT)
        else:
            fates.append(beaten if is_worth_it else worthless)
    return fates


def _record(decision: Decision, choice: Choice, options: Sequence[Candidate], situation: Situation) -> None:
    """Write the choice down."""
    decision.explored = choice.explored
    if choice.wanted is not None and options[choice.wanted].stopped_by == Reason.HOLDOUT:
        decision.would_be = WouldBe(promotion=options[choice.wanted].promotion, sku=options[choice.wanted].sku)
    if choice.chosen is None:
        decision.chosen_probability = choice.probability_of_nothing
        if decision.would_be is not None:
            decision.reason = Reason.HOLDOUT
        else:
            decision.reason = Reason.EXPLORED if choice.explored else Reason.NOT_WORTH_IT
        return
    decision.chosen_probability = choice.probabilities[choice.chosen]
    winner = options[choice.chosen]
    promotion = situation.catalogue.promotions[winner.promotion]
    decision.outcome = promotion.kind
    decision.deadline_ms = decision.at_ms + round(promotion.deadline_s * 1000)
    decision.promotion = promotion.promotion_id
    decision.sku, decision.instead_of = winner.sku, winner.instead_of
    if winner.store is not None:
        decision.store = winner.store
    decision.price, decision.discount = winner.price, promotion.what.discount
    if winner.price is not None:
        decision.discount = Discount(amount_cents=winner.price.list_cents - winner.price.offered_cents)
    capped = capped_channels(situation, promotion)
    decision.capped_channels = [channel for channel in promotion.channels if channel in capped]


def _arms(moment: Moment, names: Iterable[PromotionId], catalogue: Catalogue) -> dict[str, float]:
    experiments = [catalogue.promotions[name].experiment for name in dict.fromkeys(names)]
    return {found.name: place_in(found, moment.customer) for found in experiments if found is not None}


def _id(moment: Moment, rules_version: str) -> DecisionId:
    return decision_id(moment.customer, moment.event, moment.trigger, moment.subject, moment.at_ms, rules_version)


def _chance(moment: Moment) -> tuple[float, float]:
    """Whether to draw, and what: of the moment alone, so that other rules, tried in a replay, meet the same chance."""
    about = _id(moment, "")
    return place_of("explore", about), place_of("draw", about)


def _furthest(stopped: Iterable[Candidate]) -> Reason | None:
    """The reason of the candidate that passed most gates: it came closest to being made."""
    reasons = (candidate.stopped_by for candidate in stopped if candidate.stopped_by is not None)
    return max(reasons, key=lambda reason: _PLACE_OF_GATE[reason], default=None)
