"""One winner or nothing: ranking, and what the decision records."""

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nearcast.decisions import Candidate, Decision, Reason, WouldBe
from nearcast.ids import CustomerId, EventId, PromotionId, Sku, decision_id
from nearcast.world import Experiment, What, When, Who
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
    scores_of,
    sent,
    what_happens,
)


def test_propensity_times_value_wins() -> None:
    """A likely small offer can be worth more than an unlikely big one; the loser is marked as outranked."""
    world = catalogue(promotion(id="big", value_cents=1000), promotion(id="small", value_cents=100))
    screened = [Candidate(promotion=PromotionId("big")), Candidate(promotion=PromotionId("small"))]
    decision = decide(moment(), customer(), screened, scores_of({0: 0.05, 1: 0.6}), world, Policy())
    assert decision.promotion == "small"
    assert [(c.propensity, c.expected_cents, c.stopped_by) for c in decision.candidates] == [
        (0.05, 50.0, Reason.OUTRANKED),
        (0.6, 60.0, None),
    ]


@pytest.mark.parametrize(
    ("value", "cost", "propensity", "row", "expected", "reason"),
    [
        (100, 0, 0.1, 0, 10.0, None),
        (100, 9, 0.1, 0, 1.0, None),
        (100, 10, 0.1, 0, 0.0, Reason.NOT_WORTH_IT),
        (100, 40, 0.1, 0, -30.0, Reason.NOT_WORTH_IT),
        (100, 0, 0.0, 0, 0.0, Reason.NOT_WORTH_IT),
        (0, 0, 0.9, 0, 0.0, Reason.NOT_WORTH_IT),
        # Two cents for one ignored, six for two, fourteen for three.
        (100, 0, 0.1, 1, 8.0, None),
        (100, 3, 0.1, 2, 1.0, None),
        (100, 4, 0.1, 2, 0.0, Reason.NOT_WORTH_IT),
        (100, 0, 0.1, 3, -4.0, Reason.NOT_WORTH_IT),
        (200, 0, 0.1, 3, 6.0, None),
    ],
)
def test_what_is_worth_it(
    value: int, cost: int, propensity: float, row: int, expected: float, reason: Reason | None
) -> None:
    """By hand: propensity times value, less the message's cost, less what so many ignored offers in a row cost."""
    deal = promotion(value_cents=value, cost_cents=cost)
    ann = customer(messages=[sent("earlier", name=f"m{n}") for n in range(row)])
    decision = what_happens(ann, deal, policy=Policy(annoyance_cents=2.0), propensity=propensity)
    assert decision is not None
    (candidate,) = decision.candidates
    assert (candidate.propensity, candidate.value_cents) == (propensity, value)
    assert candidate.cost_cents == pytest.approx(cost + {0: 0, 1: 2, 2: 6, 3: 14}[row])
    assert candidate.expected_cents == pytest.approx(expected, abs=1e-9)
    assert (decision.reason, candidate.stopped_by) == (reason, reason)
    assert decision.outcome == ("nothing" if reason else "offer")


def test_an_alert_is_never_worth_too_little() -> None:
    """Somebody waits: no value, no annoyance and no exploration keeps staff from hearing of it."""
    alert = promotion(trigger="help_request", kind="assist", value_cents=0)
    ann = customer(messages=[sent("earlier", name=f"m{n}") for n in range(30)])
    for event in range(20):
        at = moment(trigger="help_request", event=EventId(f"e{event}"))
        policy = Policy(exploration=1.0, holdout=1.0, caps=())
        decision = what_happens(ann, alert, promotion(id="offer", trigger="help_request"), at=at, policy=policy)
        assert decision is not None
        assert (decision.outcome, decision.promotion, decision.chosen_probability) == ("assist", "deal", 1.0)
        assert (decision.explored, decision.candidates[0].cost_cents) == (False, 0.0)


def test_a_record_can_be_scored_again() -> None:
    """The inputs, their meaning and every term of the value are in the decision, in the store's own format, too."""
    decision = what_happens(customer(), promotion(cost_cents=3), propensity=0.25)
    assert decision is not None
    kept = msgspec.json.decode(msgspec.json.encode(decision), type=Decision)
    assert kept == decision
    (candidate,) = kept.candidates
    assert (kept.features_hash, candidate.inputs) == ("hash-1", [0.25, 0.0])
    assert (candidate.propensity, candidate.value_cents, candidate.cost_cents) == (0.25, 100.0, 3.0)
    assert candidate.expected_cents == 0.25 * 100 - 3


def test_held_out() -> None:
    """Whoever is held out gets nothing, or the next best; the record says what it would have been."""
    dear = promotion(id="dear", value_cents=500, what=What(skus=[TENT]), holdout=1.0)
    held = what_happens(customer(), dear)
    assert held is not None
    assert (held.outcome, held.reason, held.chosen_probability) == ("nothing", Reason.HOLDOUT, 1.0)
    assert held.would_be == WouldBe(promotion=PromotionId("dear"), sku=TENT)
    assert [(c.stopped_by, c.probability, c.expected_cents) for c in held.candidates] == [(Reason.HOLDOUT, 0.0, 250.0)]

    next_best = what_happens(customer(), dear, promotion())
    assert next_best is not None
    assert (next_best.outcome, next_best.promotion, next_best.would_be) == ("offer", "deal", held.would_be)
    assert [c.stopped_by for c in next_best.candidates] == [None, Reason.HOLDOUT]

    everybody = what_happens(customer(), promotion(), policy=Policy(holdout=1.0))
    assert everybody is not None
    assert (everybody.reason, everybody.would_be) == (Reason.HOLDOUT, WouldBe(promotion=PromotionId("deal")))
    worthless = what_happens(customer(), promotion(), policy=Policy(holdout=1.0), propensity=0.0)
    assert worthless is not None
    assert (worthless.reason, worthless.would_be) == (Reason.NOT_WORTH_IT, None)
    assert [candidate.stopped_by for candidate in worthless.candidates] == [Reason.NOT_WORTH_IT]
    capped = what_happens(customer(messages=[sent()]), promotion(), policy=Policy(holdout=1.0))
    assert capped is not None
    assert (capped.reason, capped.would_be) == (Reason.CAPPED, None)


def test_two_arms() -> None:
    """Everybody gets one of the two, about half each, always the same; the record says where they are."""
    arms = [
        promotion(id=name, experiment=Experiment(name="words", starts=starts, ends=ends))
        for name, starts, ends in (("plain", 0.0, 0.5), ("loud", 0.5, 1.0))
    ]
    won = []
    for number in range(400):
        who = CustomerId(f"c{number}")
        shopper = replace(customer(), id=who)
        first, again = (
            what_happens(shopper, *arms, at=moment(customer=who, event=EventId(event))) for event in ("e1", "e2")
        )
        assert first is not None
        assert again is not None
        assert first.promotion == again.promotion == ("plain" if first.arms["words"] < 0.5 else "loud")
        assert {c.stopped_by for c in first.candidates} == {None, Reason.OTHER_ARM}
        won.append(first.promotion)
    assert won.count(PromotionId("plain")) == pytest.approx(200, abs=50)


def test_exploration_of_many_decisions() -> None:
    """As often as the logged probabilities say, chance chooses each action that the gates let pass; and a replay with
    other rules draws the same."""
    deals = [promotion(id="a", value_cents=400), promotion(id="b", value_cents=200), promotion(id="c", value_cents=0)]
    stopped = promotion(id="stopped", who=Who(loyalty=["gold"]))
    policy = Policy(exploration=0.4)
    count, found = 1_500, Counter[str]()
    for number in range(count):
        at = moment(event=EventId(f"e{number}"))
        decision = what_happens(customer(), *deals, stopped, at=at, policy=policy)
        assert decision is not None
        action = decision.promotion or "nothing"
        found[action] += 1
        told = {c.promotion: c.probability for c in decision.candidates}
        assert told == pytest.approx({"a": 0.7, "b": 0.1, "c": 0.1, "stopped": None})
        assert decision.chosen_probability == pytest.approx(told.get(PromotionId(action), 0.1))
        assert decision.explored or action == "a"
        assert (decision.reason == Reason.EXPLORED) is (action == "nothing")
        if number % 10:
            continue
        changed = what_happens(customer(), *deals, promotion(id="later", trigger="exit"), at=at, policy=policy)
        assert changed is not None
        assert changed.id != decision.id
        assert (changed.explored, changed.promotion) == (decision.explored, decision.promotion)
    assert {action: n / count for action, n in found.items()} == pytest.approx(
        {"a": 0.7, "b": 0.1, "c": 0.1, "nothing": 0.1}, abs=0.06
    )


def test_weighed_by_its_probability_a_log_tells_of_another_policy() -> None:
    """What the probabilities are for: the value of always making the second-best offer, estimated from decisions that
    mostly made the best one (inverse propensity scores), is what it brings when it is always made."""
    policy = Policy(exploration=0.5)
    deals = [promotion(id="a", value_cents=400), promotion(id="b", value_cents=200)]
    count, estimate = 2_000, 0.0
    for number in range(count):
        decision = what_happens(customer(), *deals, at=moment(event=EventId(f"e{number}")), policy=policy)
        assert decision is not None
        reward = 200.0 if decision.promotion == "b" and number % 4 == 0 else 0.0
        estimate += reward / decision.chosen_probability / count
    assert estimate == pytest.approx(50.0, abs=25.0)


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
    decide(moment(), customer(), screened, scores_of({1: 0.1, 2: 0.2}), world, Policy())
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
def test_ranking(entries: list[tuple[str, str | None, float, bool]], seed: int) -> None:
    """However promotions are shuffled, the largest expected value wins; of equals the first promotion's first thing,
    since those of one promotion come in the order of their relevance. What is worth nothing never wins."""
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
    decision = decide(moment(), customer(), screened, scores_of(propensities), world, Policy())

    passed = [(-p * values[name], name, place) for place, (name, _, p, passes) in enumerate(entries) if passes]
    best = sorted(entry for entry in passed if entry[0] < 0)
    stops = [candidate.stopped_by for candidate in decision.candidates]
    assert stops.count(Reason.NOT_WORTH_IT) == len(passed) - len(best)
    if not best:
        reason = Reason.NOT_WORTH_IT if passed else Reason.CAPPED
        assert (decision.outcome, decision.reason) == ("nothing", reason)
        return
    _, name, place = best[0]
    assert (decision.outcome, decision.promotion, decision.sku) == ("offer", name, screened[place].sku)
    assert [index for index, stop in enumerate(stops) if stop is None] == [place]
    assert stops.count(Reason.OUTRANKED) == len(best) - 1
