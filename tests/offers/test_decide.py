"""One winner or nothing: ranking, and what the decision records."""

import random

from hypothesis import given
from hypothesis import strategies as st

from nearcast.decisions import Candidate, Reason
from nearcast.ids import PromotionId, Sku, decision_id
from nearcast.world import What, When, Who
from offers.candidates import candidates
from offers.decide import decide, screen
from offers.policy import Policy
from tests.offers.examples import (
    ALL_IN_STOCK,
    DOORSTEP,
    NOW_MS,
    SHOP,
    TENT,
    catalogue,
    customer,
    moment,
    promotion,
    what_happens,
)


def test_propensity_times_value_wins() -> None:
    """A likely small offer can be worth more than an unlikely big one; the loser is marked as outranked."""
    world = catalogue(promotion(id="big", value_cents=1000), promotion(id="small", value_cents=100))
    screened = [Candidate(promotion=PromotionId("big")), Candidate(promotion=PromotionId("small"))]
    decision = decide(moment(), screened, {0: 0.05, 1: 0.6}, world, "model-7")
    assert decision.promotion == "small"
    assert [(c.propensity, c.expected_cents, c.stopped_by) for c in decision.candidates] == [
        (0.05, 50.0, Reason.OUTRANKED),
        (0.6, 60.0, None),
    ]


def test_what_a_decision_records() -> None:
    """Id, times, versions, place and thing: enough to explain it later."""
    deal = promotion(what=What(skus=[TENT]), deadline_s=90.5)
    decision = what_happens(customer(), deal)
    assert decision is not None
    version = catalogue(deal).version
    assert decision.id == decision_id(decision.customer, moment().event, "walk_past", DOORSTEP, NOW_MS, version)
    assert (decision.at_ms, decision.deadline_ms) == (NOW_MS, NOW_MS + 90_500)
    assert (decision.rules_version, decision.model_version) == (version, "model-1")
    assert (decision.store, decision.sku, decision.customer) == (SHOP, TENT, "ann")


def test_nothing_to_decide_is_no_decision() -> None:
    """Without a candidate the caller has nothing to decide, and records nothing."""
    assert what_happens(customer(), promotion(trigger="exit")) is None
    assert what_happens(customer(), promotion(who=Who(in_cart=True))) is None


def test_nothing_for_the_reason_that_was_furthest() -> None:
    """Of several stopped candidates the one that passed most gates gives the reason."""
    ended = promotion(id="a-ended", when=When(ends_ms=NOW_MS))
    sold_out = promotion(id="b-sold-out", what=What(skus=[TENT]))
    not_yours = promotion(id="c-not-yours", who=Who(loyalty=["gold"]))
    decision = what_happens(customer(), ended, sold_out, not_yours, stock={})
    assert decision is not None
    assert (decision.outcome, decision.reason) == ("nothing", Reason.OUT_OF_STOCK)
    assert [c.stopped_by for c in decision.candidates] == ["outside_window", "out_of_stock", "not_in_audience"]
    assert all(c.propensity is None and c.expected_cents is None for c in decision.candidates)
    assert (decision.promotion, decision.sku, decision.store) == (None, None, SHOP)


def test_screening_changes_nothing_it_is_given() -> None:
    """Screening and deciding give new candidates: the same input can be decided again, with other rules."""
    world = catalogue(promotion(who=Who(loyalty=["gold"])), promotion(id="other"), promotion(id="third"))
    found = candidates(moment(), customer(), world)
    before = [candidate.stopped_by for candidate in found]
    screened = screen(moment(), customer(), found, world, ALL_IN_STOCK, Policy())
    stops = [candidate.stopped_by for candidate in screened]
    decide(moment(), screened, {1: 0.1, 2: 0.2}, world, "m")
    assert [candidate.stopped_by for candidate in found] == before
    assert [candidate.stopped_by for candidate in screened] == stops == ["not_in_audience", None, None]


entries = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.sampled_from([None, "s1", "s2", "s3"]),
        st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda entry: entry[:2],
)


@given(entries=entries, seed=st.integers(0, 10))
def test_ranking_does_not_depend_on_order(entries: list[tuple[str, str | None, float, bool]], seed: int) -> None:
    """However candidates are shuffled, one wins: the largest expected value, then the first promotion and SKU."""
    values = {"a": 100, "b": 200, "c": 50, "d": 0}
    world = catalogue(*(promotion(id=name, value_cents=cents) for name, cents in values.items()))
    random.Random(seed).shuffle(entries)
    screened = [
        Candidate(
            promotion=PromotionId(name),
            sku=None if sku is None else Sku(sku),
            stopped_by=None if passed else Reason.CAPPED,
        )
        for name, sku, _, passed in entries
    ]
    propensities = {index: entry[2] for index, entry in enumerate(entries) if entry[3]}
    decision = decide(moment(), screened, propensities, world, "m")

    best = sorted((-p * values[name], name, sku or "") for name, sku, p, passed in entries if passed)
    if not best:
        assert (decision.outcome, decision.reason) == ("nothing", Reason.CAPPED)
        return
    assert (decision.outcome, decision.promotion, decision.sku or "") == ("offer", *best[0][1:])
    winners = [candidate for candidate in decision.candidates if candidate.stopped_by is None]
    assert len(winners) == 1
    assert sum(candidate.stopped_by == Reason.OUTRANKED for candidate in decision.candidates) == len(best) - 1
