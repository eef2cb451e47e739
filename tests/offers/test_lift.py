"""Lift and its intervals, against published figures, against scipy, and by simulation."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats.contingency import relative_risk

from offers.lift import LEAST_WINDOWS, Arm, Estimate, Lift, compare, t_quantile, wilson


def arm(amounts: Sequence[int], bought: int | None = None) -> Arm:
    """An arm of windows with these revenues."""
    return Arm(
        windows=len(amounts),
        bought=sum(amount > 0 for amount in amounts) if bought is None else bought,
        revenue_cents=sum(amounts),
        squares=sum(amount**2 for amount in amounts),
    )


def rates(bought: int, windows: int) -> Arm:
    return Arm(windows=windows, bought=bought)


def test_newcombes_own_examples() -> None:
    """Table II of Newcombe 1998, method 10."""
    for (one, other), low, high in [
        ((rates(56, 70), rates(48, 80)), 0.0524, 0.3339),
        ((rates(9, 10), rates(3, 10)), 0.1705, 0.8090),
        ((rates(10, 10), rates(0, 20)), 0.6791, 1.0000),
        ((rates(10, 10), rates(0, 10)), 0.6075, 1.0000),
    ]:
        found = compare(one, other).difference
        assert found is not None
        assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.data())
def test_as_scipy_has_them(data: st.DataObject) -> None:
    """Wilson's interval, the relative lift's and Welch's are those of another implementation."""
    amounts = st.lists(st.sampled_from([0, 0, 0, 1, 250, 499, 12_000, 1_000_000]), min_size=LEAST_WINDOWS, max_size=80)
    one, other = data.draw(amounts), data.draw(amounts)
    treated, held_out = arm(one), arm(other)
    expected = stats.binomtest(treated.bought, treated.windows).proportion_ci(method="wilson")
    assert wilson(treated.bought, treated.windows) == pytest.approx((expected.low, expected.high), abs=1e-12)
    lift = compare(treated, held_out)
    if treated.bought and held_out.bought:
        risk = relative_risk(treated.bought, treated.windows, held_out.bought, held_out.windows)
        interval = risk.confidence_interval(0.95)
        assert lift.relative is not None
        assert lift.relative.value == pytest.approx(risk.relative_risk - 1)
        assert (lift.relative.low, lift.relative.high) == pytest.approx((interval.low - 1, interval.high - 1))
    else:
        assert lift.relative is None
    if len(set(one)) == len(set(other)) == 1:
        assert lift.revenue_cents is None
    else:
        welch = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
        assert lift.revenue_cents is not None
        # Student's quantile is an expansion, good to four places.
        assert lift.revenue_cents.low == pytest.approx(welch.low, rel=1e-4, abs=1e-4 * (welch.high - welch.low))
        assert lift.revenue_cents.high == pytest.approx(welch.high, rel=1e-4, abs=1e-4 * (welch.high - welch.low))


@given(st.floats(LEAST_WINDOWS - 1, 1e6))
def test_students_quantile(freedom: float) -> None:
    assert t_quantile(freedom) == pytest.approx(float(stats.t.ppf(0.975, freedom)), abs=1e-4)


def test_too_little_to_say() -> None:
    """With too few windows in an arm nothing is said; and nothing relative to no purchase at all."""
    assert compare(rates(9, LEAST_WINDOWS - 1), rates(50, 100)) == Lift()
    assert compare(rates(50, 100), rates(0, 0)) == Lift()
    assert rates(0, 0).rate is None
    assert rates(0, 0).mean_cents is None
    lift = compare(rates(5, 100), rates(0, 100))
    assert lift.difference is not None
    assert (lift.relative, lift.revenue_cents) == (None, None)


def test_the_intervals_hold_what_they_promise() -> None:
    """Of 400 simulated experiments with a known lift, about 95 % of the intervals contain it."""
    chance = random.Random(7)
    true_treated, true_held, mean_cents = 0.12, 0.08, 1_500

    def simulate(rate: float, windows: int) -> Arm:
        amounts = [
            1 + round(chance.expovariate(1 / mean_cents)) if chance.random() < rate else 0 for _ in range(windows)
        ]
        return arm(amounts)

    # A purchase is one cent and an exponential amount, rounded.
    mean = 1 + 1 / (math.expm1(1 / mean_cents)) * math.exp(0.5 / mean_cents)
    truths = (true_treated - true_held, true_treated / true_held - 1, (true_treated - true_held) * mean)
    hits = [0, 0, 0]
    for _ in range(400):
        lift = compare(simulate(true_treated, 900), simulate(true_held, 300))
        estimates = (lift.difference, lift.relative, lift.revenue_cents)
        for place, (estimate, truth) in enumerate(zip(estimates, truths, strict=True)):
            hits[place] += _holds(estimate, truth)
    assert all(0.92 * 400 <= hit <= 0.98 * 400 for hit in hits), hits


def _holds(estimate: Estimate | None, truth: float) -> bool:
    return estimate is not None and estimate.low <= truth <= estimate.high
