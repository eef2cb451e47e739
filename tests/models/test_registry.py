"""Models as they serve: a fallback for all that fails, canaries for some, shadows that change nothing."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from models.fallback import FALLBACK, Guard, Limits
from models.features.redeem import REDEEM
from models.manifest import files_of
from models.registry import FixedModels, Serving
from models.scorer import Scorer
from nearcast.clock import ManualClock
from nearcast.ids import CustomerId, place_of
from tests.models import onnx_files
from tests.models.onnx_files import CRASH, NAN, SLOW, TRIGGER, WIDTH, mean_sigmoid

LIMITS = Limits(budget_s=0.05, pause_s=30.0, fallback_score=0.125)
PEOPLE = [CustomerId(f"customer-{number}") for number in range(4_000)]


def moody(shift: float = 0.0, **more: object) -> Scorer:
    """A model that misbehaves on command."""
    return Scorer.of(files_of("own", onnx_files.files_of(onnx_files.moody(shift), **more)), "redeem")


def rows_of(count: int, *, trigger: int | None = None, at: int = 0) -> np.ndarray:
    rows = np.random.default_rng(count).normal(0, 1, (count, WIDTH)).astype(np.float32)
    if trigger is not None:
        rows[at, trigger] = TRIGGER
    return rows


def counted(scorer: Scorer, result: str) -> float:
    """How many rows of this model the metrics know with this result."""
    labels = {"model": scorer.version, "result": result}
    return REGISTRY.get_sample_value("nearcast_model_rows_total", labels) or 0.0


def test_a_row_without_a_number_gets_the_base_rate() -> None:
    """It alone; the decision it is for is not said to be the model's."""
    scorer = moody(shift=0.1, base_rate=0.25)
    rows, before = rows_of(5, trigger=NAN, at=3), counted(scorer, "not_a_probability")
    values, versions = Guard(scorer, LIMITS).score(rows)
    expected = mean_sigmoid(rows, 0.1)
    expected[3] = 0.25
    assert values == pytest.approx(expected, abs=1e-6)
    assert versions == [scorer.version] * 3 + [FALLBACK, scorer.version]
    assert counted(scorer, "not_a_probability") == before + 1


@pytest.mark.parametrize(("trigger", "result"), [(CRASH, "failed"), (SLOW, "slow")])
def test_a_model_that_keeps_failing_is_set_aside_for_a_while(trigger: int, result: str) -> None:
    """Three failures in a row, then it is left alone; after the pause it has one try, then all its chances again."""
    scorer, clock = moody(shift=0.2), ManualClock()
    guard = Guard(scorer, LIMITS, clock)
    bad, good = rows_of(4, trigger=trigger), rows_of(4)
    before = {name: counted(scorer, name) for name in (result, "set_aside")}

    def fails(rows: np.ndarray) -> bool:
        values, versions = guard.score(rows)
        if versions == [FALLBACK] * 4:
            assert values == [LIMITS.fallback_score] * 4
            return True
        assert versions == [scorer.version] * 4
        assert values == pytest.approx(mean_sigmoid(rows, 0.2), abs=1e-6)
        return False

    # Two failures and a success are not three in a row.
    assert [fails(rows) for rows in (bad, bad, good, bad, bad)] == [True, True, False, True, True]
    assert not guard.is_set_aside
    assert fails(bad)
    assert guard.is_set_aside
    assert fails(good)
    clock.advance(29_999)
    assert fails(good)
    clock.advance(1)
    # One more failure is enough now.
    assert fails(bad)
    assert fails(good)
    clock.advance(30_000)
    assert not fails(good)
    assert [fails(rows) for rows in (bad, bad, good)] == [True, True, False]
    assert counted(scorer, result) == before[result] + 4 * 8
    assert counted(scorer, "set_aside") == before["set_aside"] + 4 * 3


def test_without_a_model_there_is_a_constant() -> None:
    """Nothing to score with is not an error either."""
    assert Guard(None, LIMITS).score(rows_of(2)) == ([0.125, 0.125], [FALLBACK, FALLBACK])
    assert FixedModels().serving("redeem").score(rows_of(1), PEOPLE[:1]).versions == [FALLBACK]
    assert Serving(Guard(None, LIMITS)).score([], []) == ([], [])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 1.0])
def test_a_canary_decides_for_its_share(share: float) -> None:
    """As many customers as said, each always with the same model, and scored by it."""
    active, canary = moody(shift=-0.1), moody(shift=0.1)
    serving = Serving(Guard(active, LIMITS), canary=Guard(canary, LIMITS), share=share)
    rows = rows_of(len(PEOPLE))
    values, versions = serving.score(rows, PEOPLE)
    arms = np.array([version == canary.version for version in versions])
    # Four standard deviations of a fair draw.
    assert abs(arms.mean() - share) <= 4 * math.sqrt(share * (1 - share) / len(PEOPLE))
    assert values == pytest.approx(np.where(arms, mean_sigmoid(rows, 0.1), mean_sigmoid(rows, -0.1)), abs=1e-6)
    assert [serving.guard_of(customer).version for customer in PEOPLE] == versions
    again = Serving(Guard(active, LIMITS), canary=Guard(canary, LIMITS), share=share)
    assert again.score(rows[::-1], PEOPLE[::-1]) == (values[::-1], versions[::-1])


def test_a_share_that_grows_keeps_its_customers() -> None:
    """Nobody goes back to the old model when a canary gets more customers."""
    active, canary = Guard(moody(shift=-0.1), LIMITS), Guard(moody(shift=0.1), LIMITS)
    arms = [
        {customer for customer in PEOPLE if Serving(active, canary=canary, share=share).guard_of(customer) is canary}
        for share in (0.05, 0.1, 0.3, 1.0)
    ]
    assert arms[0] < arms[1] < arms[2] < arms[3]
    assert arms[3] == set(PEOPLE)


def test_other_canaries_have_other_customers() -> None:
    """Who gets one version says nothing about who gets the next."""
    both = sum(
        place_of("canary", "a", customer) < 0.5 and place_of("canary", "b", customer) < 0.5 for customer in PEOPLE
    )
    assert abs(both / len(PEOPLE) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(PEOPLE))


@given(st.text(max_size=30))
def test_a_place_is_in_the_whole(customer: str) -> None:
    """From 0 to below 1, so a share of 1 is everybody."""
    assert 0 <= place_of("canary", "v", CustomerId(customer)) < 1


def test_a_batch_with_a_canary_scores_as_its_rows_do() -> None:
    """However rows are cut into batches, each gets the same score from the same model."""
    serving = Serving(Guard(moody(-0.1), LIMITS), canary=Guard(moody(0.1), LIMITS), share=0.4)
    rows, people = rows_of(60), PEOPLE[:60]
    whole = serving.score(rows, people)
    for size in (1, 7, 16):
        cut = [serving.score(rows[first : first + size], people[first : first + size]) for first in range(0, 60, size)]
        assert [value for part in cut for value in part.values] == whole.values
        assert [version for part in cut for version in part.versions] == whole.versions


@pytest.mark.parametrize("trigger", [None, NAN, CRASH, SLOW])
def test_a_shadow_changes_nothing(trigger: int | None) -> None:
    """Whatever it does, the scores that decide are those without it."""
    active, shadow = Scorer.of(files_of("own", onnx_files.files_of(onnx_files.sound())), "redeem"), moody(0.4)
    rows, people = rows_of(20, trigger=trigger), [PEOPLE[place // 4] for place in range(20)]
    alone = Serving(Guard(active, LIMITS)).score(rows, people)
    assert Serving(Guard(active, LIMITS), shadow=Guard(shadow, LIMITS)).score(rows, people) == alone


def test_a_shadow_is_compared_with_what_decides() -> None:
    """By how much it differs on each row, and whether it would put the same candidate first."""
    names = list(REDEEM.columns)
    active = Scorer.of(files_of("own", onnx_files.files_of(onnx_files.sound(width=1), features=names[:1])), "redeem")
    shadow = Scorer.of(
        files_of("own", onnx_files.files_of(onnx_files.sound(width=1), features=names[1:2], name="other")), "redeem"
    )
    rows = np.zeros((6, WIDTH), dtype=np.float32)
    # Anna has three candidates and both find the second best; Ben's two they rank the other way round; Carla has one.
    rows[:, :2] = [(0, 0), (2, 1), (1, 0), (0, 1), (1, 0), (1, 1)]
    people = [CustomerId(name) for name in ("anna", "anna", "anna", "ben", "ben", "carla")]

    def seen() -> list[float]:
        names = [("winners_total", {"result": "same"}), ("winners_total", {"result": "other"})]
        names += [("difference_sum", {}), ("difference_count", {})]
        return [
            REGISTRY.get_sample_value(f"nearcast_model_shadow_{name}", {"model": shadow.version, **labels}) or 0.0
            for name, labels in names
        ]

    before = seen()
    Serving(Guard(active, LIMITS), shadow=Guard(shadow, LIMITS)).score(rows, people)
    differences = np.abs(1 / (1 + np.exp(-rows[:, 0])) - 1 / (1 + np.exp(-rows[:, 1])))
    assert np.subtract(seen(), before) == pytest.approx([1, 1, differences.sum(), 6], abs=1e-5)
