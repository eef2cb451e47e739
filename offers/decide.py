"""Deciding: screen the candidates by the gates, then choose the one worth most. At most one wins a moment.

Event time only: what is decided about a moment depends on the moment's own time, never on when it is looked at, so a
replay decides the same.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from nearcast.customer import Customer
from nearcast.decisions import Candidate, Decision, Reason
from nearcast.ids import PromotionId, Sku, StoreId, decision_id
from nearcast.moments import Moment
from offers.catalogue import Catalogue
from offers.gates import GATES, PROMOTION_GATES, THING_GATES, Situation, stopped_by
from offers.policy import Policy

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


def decide(
    moment: Moment,
    screened: Sequence[Candidate],
    propensities: Mapping[int, float],
    catalogue: Catalogue,
    model_version: str,
) -> Decision:
    """The decision about a moment that has candidates.

    `propensities` maps the index of every candidate that no gate stopped to P(redeem). The largest expected value
    (propensity times the promotion's `value_cents`) wins; of equals, the first by promotion id, then by SKU.
    """
    scored = [_score(index, candidate, propensities, catalogue) for index, candidate in enumerate(screened)]
    passed = [index for index, candidate in enumerate(scored) if candidate.stopped_by is None]
    decision = Decision(
        id=decision_id(moment.customer, moment.event, moment.trigger, moment.subject, moment.at_ms, catalogue.version),
        moment=moment,
        outcome="nothing",
        at_ms=moment.at_ms,
        deadline_ms=moment.at_ms,
        candidates=scored,
        rules_version=catalogue.version,
        model_version=model_version,
        store=moment.store,
    )
    if not passed:
        decision.reason = _furthest(scored)
        return decision

    winner = min(passed, key=lambda index: _rank(scored[index]))
    for index in passed:
        if index != winner:
            scored[index] = replace(scored[index], stopped_by=Reason.OUTRANKED)
    promotion = catalogue.promotions[scored[winner].promotion]
    decision.outcome = promotion.kind
    decision.deadline_ms = moment.at_ms + round(promotion.deadline_s * 1000)
    decision.promotion = promotion.promotion_id
    decision.sku = scored[winner].sku
    return decision


def _score(index: int, candidate: Candidate, propensities: Mapping[int, float], catalogue: Catalogue) -> Candidate:
    if candidate.stopped_by is not None:
        return candidate
    propensity = propensities[index]
    value_cents = catalogue.promotions[candidate.promotion].value_cents
    return replace(candidate, propensity=propensity, expected_cents=propensity * value_cents)


def _rank(candidate: Candidate) -> tuple[float, str, str]:
    return -(candidate.expected_cents or 0.0), candidate.promotion, candidate.sku or ""


def _furthest(stopped: Iterable[Candidate]) -> Reason | None:
    """The reason of the candidate that passed most gates: it came closest to being made."""
    reasons = (candidate.stopped_by for candidate in stopped if candidate.stopped_by is not None)
    return max(reasons, key=lambda reason: _PLACE_OF_GATE[reason], default=None)
