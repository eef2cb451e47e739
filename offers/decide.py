"""Deciding: screen the candidates by the gates, then choose among the others. At most one wins a moment.

Event time only: what is decided about a moment depends on the moment's own time, never on when it is looked at, so a
replay decides the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from nearcast.customer import Customer
from nearcast.decisions import Candidate, Decision, Reason, WouldBe
from nearcast.ids import DecisionId, PromotionId, Sku, StoreId, decision_id, place_of
from nearcast.moments import Moment
from offers.arms import is_held_out, place_in
from offers.catalogue import Catalogue
from offers.choice import Choice, Option, choose
from offers.gates import GATES, PROMOTION_GATES, THING_GATES, Situation, stopped_by
from offers.policy import Policy
from offers.worth import cost_cents, ignored

_PLACE_OF_GATE = {reason: place for place, (reason, _) in enumerate(GATES)}


def rule_out(
    moment: Moment, customer: Customer, candidates: Iterable[Candidate], catalogue: Catalogue, policy: Policy
) -> list[Candidate]:
    """The candidates in the order given; those that are stopped whatever the thing is, with the reason.

    The first half of `screen`: of what is stopped here the stock need not be looked up.
    """
    reasons: dict[PromotionId, Reason | None] = {}
    ruled = []
    for candidate in candidates:
        if candidate.stopped_by is not None:
            ruled.append(candidate)
            continue
        name = candidate.promotion
        if name not in reasons:
            promotion = catalogue.promotions[name]
            situation = Situation(promotion, None, moment, customer, catalogue, {}, policy, moment.at_ms)
            reasons[name] = stopped_by(PROMOTION_GATES, situation)
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
    """The candidates in the order given, each with the reason of the gate that stopped it, if one did.

    `stock` holds the pieces for `stock_wanted`; a pair that is missing counts as none. What is stopped
    already stays so.
    """
    screened = []
    for candidate in rule_out(moment, customer, candidates, catalogue, policy):
        reason = candidate.stopped_by
        if reason is None:
            promotion = catalogue.promotions[candidate.promotion]
            situation = Situation(promotion, candidate.sku, moment, customer, catalogue, stock, policy, moment.at_ms)
            reason = stopped_by(THING_GATES, situation)
        screened.append(candidate if reason is candidate.stopped_by else replace(candidate, stopped_by=reason))
    return screened


class Scores(NamedTuple):
    """What a model said of the candidates that no gate stopped, by their index."""

    #: P(redeem).
    propensities: Mapping[int, float]
    #: The feature rows that it said this of, for the record.
    inputs: Mapping[int, Sequence[float]]
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
    times_ignored = ignored(customer, catalogue, policy, moment.at_ms)
    candidates = [
        candidate if candidate.stopped_by else _valued(candidate, index, scores, catalogue, policy, times_ignored)
        for index, candidate in enumerate(screened)
    ]
    decision = Decision(
        id=_id(moment, catalogue.version),
        moment=moment,
        outcome="nothing",
        at_ms=moment.at_ms,
        deadline_ms=moment.at_ms,
        candidates=candidates,
        rules_version=catalogue.version,
        model_version=scores.model_version,
        store=moment.store,
        arms=_arms(moment, candidates, catalogue),
    )
    passed = [index for index, candidate in enumerate(candidates) if candidate.stopped_by is None]
    if not passed:
        decision.reason = _furthest(candidates)
        return decision
    passed.sort(key=lambda index: candidates[index].promotion)
    decision.features_hash = scores.features_hash
    options = [_option(candidates[index], customer, catalogue, policy) for index in passed]
    choice = choose(options, policy.exploration, _chance(moment) if policy.exploration else (0.0, 0.0))
    for place, index in enumerate(passed):
        # Ours alone: the ones given were copied when they got their value.
        candidate = candidates[index]
        candidate.probability = choice.probabilities[place]
        candidate.held_out = options[place].is_held
        if place != choice.chosen:
            candidate.stopped_by = _lost(options[place], choice, place)
    _record(decision, choice, [candidates[index] for index in passed], catalogue)
    return decision


def _valued(
    candidate: Candidate, index: int, scores: Scores, catalogue: Catalogue, policy: Policy, times_ignored: int
) -> Candidate:
    promotion, propensity = catalogue.promotions[candidate.promotion], scores.propensities[index]
    cost = cost_cents(promotion, times_ignored, policy)
    return replace(
        candidate,
        propensity=propensity,
        value_cents=float(promotion.value_cents),
        cost_cents=cost,
        expected_cents=propensity * promotion.value_cents - cost,
        inputs=list(scores.inputs[index]),
    )


def _option(candidate: Candidate, customer: Customer, catalogue: Catalogue, policy: Policy) -> Option:
    promotion = catalogue.promotions[candidate.promotion]
    is_held = is_held_out(promotion, customer.id, policy)
    return Option(candidate.expected_cents or 0.0, promotion.kind == "assist", is_held)


def _lost(option: Option, choice: Choice, place: int) -> Reason:
    """Why an option that was not chosen was not."""
    if option.is_held and (option.is_worth_it or place == choice.wanted):
        return Reason.HOLDOUT
    if choice.explored:
        return Reason.EXPLORED
    return Reason.OUTRANKED if option.is_worth_it else Reason.NOT_WORTH_IT


def _record(decision: Decision, choice: Choice, options: Sequence[Candidate], catalogue: Catalogue) -> None:
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
    promotion = catalogue.promotions[winner.promotion]
    decision.outcome = promotion.kind
    decision.deadline_ms = decision.at_ms + round(promotion.deadline_s * 1000)
    decision.promotion = promotion.promotion_id
    decision.sku = winner.sku


def _arms(moment: Moment, candidates: Iterable[Candidate], catalogue: Catalogue) -> dict[str, float]:
    experiments = (catalogue.promotions[candidate.promotion].experiment for candidate in candidates)
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
