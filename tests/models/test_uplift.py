"""What offers change: against worlds whose truth is known, published figures, and by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models.training.logged import Floats, LogWriter
from models.training.uplift import Curve, Units, newcombe, read_units, uplift
from nearcast.errors import InputError


def units_of(
    treated: Sequence[bool], outcome: Sequence[bool], promotion: Sequence[int] | None = None, rows: Floats | None = None
) -> Units:
    """Customers of promotions called 0, 1, ..."""
    count = len(treated)
    codes = np.zeros(count, dtype=np.int64) if promotion is None else np.asarray(promotion, dtype=np.int64)
    return Units(
        treated=np.asarray(treated, dtype=bool),
        outcome=np.asarray(outcome, dtype=bool),
        promotion=codes,
        promotions=tuple(str(number) for number in range(codes.max() + 1)),
        rows=np.zeros((count, 0)) if rows is None else rows,
        propensity=np.full(count, 0.1) if rows is None else 1 / (1 + np.exp(-rows[:, 1])),
        left_out={},
    )


def world(seed: int, count: int = 4_000) -> Units:
    """A tenth is held out. Who buys anyhow is told by the second input, which the served propensity goes by; whom the
    offer moves by the first alone: by 0.2 if it is positive.
    """
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, 3))
    treated = random.random(count) > 0.1
    chance = 0.1 + 0.3 * (rows[:, 1] > 0.5) + 0.2 * treated * (rows[:, 0] > 0)
    return units_of(treated.tolist(), (random.random(count) < chance).tolist(), rows=rows)


def test_newcombe() -> None:
    """The interval of the paper's first example: 56 of 70 against 48 of 80."""
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    # And its example of zeros: 0 of 10 against 0 of 20.
    assert newcombe(0, 10, 0, 20) == pytest.approx((-0.1611, 0.2775), abs=5e-5)


def test_curves_by_hand() -> None:
    """Eight customers, one tie: every point worked out on paper."""
    #            best first                     | tied       | last
    treated = [True, False, True, False, True, False, True, False]
    outcome = [True, False, True, False, False, True, False, True]
    score = np.array([9, 8, 7, 6, 5, 5, 2, 1], dtype=float)
    share, qini, gain = Curve(score, units_of(treated, outcome)).points(np.ones(8))
    assert share.tolist() == [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 6 / 8, 7 / 8, 1]
    # Hits offered - hits held out * offered / held out, of four offered; with nobody held out nothing is taken off.
    assert (4 * qini).tolist() == [0, 1, 1, 2, 2, 2 - 1, pytest.approx(2 - 4 / 3), 2 - 2]
    assert gain == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, (2 / 3 - 1 / 3) * 6 / 8, (2 / 4 - 1 / 3) * 7 / 8, 0])
    areas = Curve(score, units_of(treated, outcome)).areas(np.ones(8))
    assert areas == pytest.approx((np.trapezoid(qini, share) - 0.0, np.trapezoid(gain, share)))
    # A random order: one score for all, a straight line, no area beside it.
    assert Curve(np.zeros(8), units_of(treated, outcome)).areas(np.ones(8)) == (0.0, 0.0)


def test_the_lift_is_covered() -> None:
    """The 95 % interval of the observed lift holds the true effect in at least 90 % of the worlds."""
    # Too few are held out to learn a ranking from, so there is none.
    found = [uplift(world(seed, count=600)) for seed in range(60)]
    assert all(report.rankings == {} for report in found)
    assert np.mean([low <= 0.1 <= high for low, high in (report.overall.interval for report in found)]) >= 0.9


def test_who_redeems_is_not_who_changes() -> None:
    """Rankings by uplift find those whom the offer moves: their Qini interval is above 0, which is a random ranking's.
    The served propensity goes by who buys anyhow, and does no better than chance.
    """
    report = uplift(world(3))
    assert (report.overall.offered + report.overall.held_out, report.customers) == (4_000, 4_000)
    assert report.random_auuc == pytest.approx(report.overall.lift / 2)
    for name in ("two models", "transformed outcome"):
        ranking = report.rankings[name]
        assert ranking.qini_interval[0] > 0, name
        assert ranking.auuc_interval[0] < ranking.auuc < ranking.auuc_interval[1]
        # Nobody and everybody: no gain, and the lift.
        assert (ranking.shares[0], ranking.gains[0], ranking.shares[-1]) == (0, 0, 1)
        assert ranking.gains[-1] == pytest.approx(report.overall.lift)
        # The perfect ranking offers to the half that is moved, and gains 0.1: its coefficient is 0.025.
        assert ranking.qini < 0.04
    low, high = report.rankings["served propensity"].qini_interval
    assert low < 0 < high


def test_without_an_effect_there_is_nothing_to_find() -> None:
    """Thirty inputs that say nothing: scored by models that had seen them, customers would seem to be moved. They were
    not seen, so the Qini interval holds 0.
    """
    for seed in range(2):
        random = np.random.default_rng(seed)
        treated, outcome = random.random(600) < 0.7, random.random(600) < 0.3
        report = uplift(units_of(treated.tolist(), outcome.tolist(), rows=random.normal(size=(600, 30))))
        low, high = report.rankings["two models"].qini_interval
        assert low < 0 < high
        assert report.overall.interval[0] < 0 < report.overall.interval[1]


def test_promotions_with_unlike_hold_outs() -> None:
    """One promotion holds half out and is liked anyhow, one a tenth and is not: thrown together the offers would seem
    to do harm. Within each they add a tenth, and so they do in all.
    """
    random = np.random.default_rng(1)
    promotion = np.repeat([0, 1], 4_000)
    treated = random.random(8_000) < np.where(promotion == 0, 0.5, 0.9)
    outcome = random.random(8_000) < np.where(promotion == 0, 0.7, 0.1) + 0.1 * treated
    report = uplift(units_of(treated.tolist(), outcome.tolist(), promotion.tolist()))
    assert outcome[treated].mean() - outcome[~treated].mean() < 0
    low, high = report.overall.interval
    assert 0.05 < low < 0.1 < high < 0.15
    assert sorted(report.promotions) == ["0", "1"]
    # Each has as many customers, however many of them were held out.
    assert report.overall.lift == pytest.approx(np.mean([one.lift for one in report.promotions.values()]))
    assert high - low < max(one.interval[1] - one.interval[0] for one in report.promotions.values())
    # Weighted by the odds, a ranking without sense gains nothing at its end but that.
    rows = random.normal(size=(8_000, 2))
    rankings = uplift(units_of(treated.tolist(), outcome.tolist(), promotion.tolist(), rows)).rankings
    assert rankings["two models"].gains[-1] == pytest.approx(
        np.average(
            [one.lift for one in report.promotions.values()], weights=[treated[:4_000].sum(), treated[4_000:].sum()]
        )
    )


def test_first_moments(tmp_path: Path) -> None:
    """A customer counts once, by the first moment worth an offer: made, or held back. Which inputs it had, and what is
    left out, is told.
    """
    path = tmp_path / "log.parquet"

    def moment(number: int, customer: str, offer: str | None, would_be: str | None, bought: bool | None) -> None:
        decision = {
            "decision": f"d{number}",
            "customer": customer,
            "at": number,
            "outcome": "offer" if offer else "nothing",
            "held_out": would_be is not None,
            "would_be_promotion": would_be,
        }
        outcome = {"purchased_after": bought}
        log.add(decision | {"position": -1, "kind": "nothing", "chosen": offer is None} | ({} if offer else outcome))
        for place, name in enumerate(("mocha", "latte")):
            about = {
                "position": place,
                "promotion": name,
                "kind": "offer",
                "chosen": name == offer,
                "f_x": number + place / 10,
            }
            log.add(decision | about | {"propensity": 0.1 * place} | (outcome if name == offer else {}))

    with LogWriter(path, ["x"]) as log:
        moment(9, "late", "mocha", None, False)
        moment(1, "ann", None, None, True)
        moment(2, "ann", "latte", None, True)
        moment(3, "ann", "mocha", None, False)
        moment(4, "bob", None, "latte", False)
        # Held out of one, and made the other: for the first it is a customer held out.
        moment(5, "cat", "mocha", "latte", True)
        moment(6, "dan", "latte", None, None)
    units = read_units(path)
    assert units.promotions == ("latte",)
    assert sorted(zip(units.rows[:, 0].tolist(), units.treated, units.outcome, strict=True)) == [
        (2.1, True, True),
        (4.1, False, False),
        (5.1, False, True),
    ]
    assert units.propensity.tolist() == [0.1] * 3
    assert units.left_out == {"the outcome is not known": 1, "nobody to compare with": 1}
    assert len(read_units(path, promotion="latte").treated) == 3
    with pytest.raises(InputError, match="no promotion of which some customers were held out"):
        read_units(path, promotion="mocha")
    with pytest.raises(InputError, match="has no column bought_tea"):
        read_units(path, outcome="bought_tea")
    with pytest.raises(InputError, match="must be true or false"):
        read_units(path, outcome="position")
