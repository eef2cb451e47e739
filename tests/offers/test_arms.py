"""Hold-outs and arms: the right share of the customers, always the same ones, and unrelated to each other."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.ids import CustomerId, place_of
from nearcast.world import Experiment
from offers.arms import in_arm, is_held_out, place_in
from offers.policy import Policy
from tests.offers.examples import promotion

PEOPLE = [CustomerId(f"c{number}") for number in range(20_000)]
#: Five standard deviations of a share of 20,000.
NEAR = 5 * (0.25 / len(PEOPLE)) ** 0.5
NOBODY = Policy()


def test_the_places_stay() -> None:
    """Written down: a release that moved people between arms would spoil every experiment under way."""
    assert place_of("a", "b") == pytest.approx(0.9699142814205317, abs=1e-15)
    assert place_in(Experiment(name="words", starts=0, ends=1), CustomerId("ann")) == place_of(
        "experiment", "words", "ann"
    )


@given(parts=st.lists(st.text(max_size=5), min_size=1, max_size=3))
def test_a_place_is_in_the_whole(parts: list[str]) -> None:
    """From 0 to below 1, the same every time."""
    assert 0 <= place_of(*parts) < 1
    assert place_of(*parts) == place_of(*parts)


def test_shares_are_right_and_unrelated() -> None:
    """Every share has its size; and in each, that of every other one is what it is among all."""
    policy, salted = Policy(holdout=0.2), Policy(holdout=0.2, holdout_salt="june")
    deal, other = promotion(holdout=0.3), promotion(id="other", holdout=0.3)
    arm = Experiment(name="words", starts=0.0, ends=0.4)
    shares = {
        "all": (0.2, {who for who in PEOPLE if is_held_out(promotion(), who, policy)}),
        "all, salted": (0.2, {who for who in PEOPLE if is_held_out(promotion(), who, salted)}),
        "deal": (0.3, {who for who in PEOPLE if is_held_out(deal, who, NOBODY)}),
        "other": (0.3, {who for who in PEOPLE if is_held_out(other, who, NOBODY)}),
        "arm": (0.4, {who for who in PEOPLE if in_arm(arm, who)}),
        "explored": (0.1, {who for who in PEOPLE if place_of("explore", who) < 0.1}),
    }
    for share, people in shares.values():
        assert len(people) / len(PEOPLE) == pytest.approx(share, abs=NEAR)
    for (one, ones), (two, others) in combinations(shares.values(), 2):
        assert len(ones & others) / len(PEOPLE) == pytest.approx(one * two, abs=NEAR)


def test_both_hold_outs_count() -> None:
    """Held out of all, or of this promotion; never of an alert to staff."""
    policy, deal = Policy(holdout=0.2), promotion(holdout=0.3)
    held = sum(is_held_out(deal, who, policy) for who in PEOPLE) / len(PEOPLE)
    assert held == pytest.approx(1 - 0.8 * 0.7, abs=NEAR)
    everybody = Policy(holdout=1.0)
    assert all(is_held_out(promotion(), who, everybody) for who in PEOPLE[:100])
    assert not any(is_held_out(promotion(kind="assist"), who, everybody) for who in PEOPLE[:100])
    assert not any(is_held_out(promotion(), who, NOBODY) for who in PEOPLE[:100])


@given(cuts=st.lists(st.floats(0.001, 0.999), unique=True, max_size=5), who=st.text(max_size=5).map(CustomerId))
def test_arms_share_everybody_out(cuts: list[float], who: CustomerId) -> None:
    """Arms side by side from 0 to 1: everybody is in exactly one."""
    edges = [0.0, *sorted(cuts), 1.0]
    arms = [Experiment(name="words", starts=left, ends=right) for left, right in pairwise(edges)]
    assert sum(in_arm(arm, who) for arm in arms) == 1
