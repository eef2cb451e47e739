"""Drift: the population stability index, computed as a textbook would, and over a window that slides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.drift import MIN_ROWS, ROWS_A_MINUTE, DriftWatch, psi, reference_of
from models.manifest import Manifest, Reference, files_of
from tests.models import onnx_files


def watch_of(reference: Reference, width: int) -> DriftWatch:
    names = [f"f{place}" for place in range(width)]
    manifest = Manifest(
        kind="redeem", name="m", onnx_sha256="0" * 64, features=names, features_hash="0" * 64, reference=reference
    )
    return DriftWatch(manifest)


def textbook(then: NDArray[np.float32], now: NDArray[np.float32]) -> float:
    """PSI by deciles of `then`, with plain loops; equal deciles are one bucket."""
    ordered = np.sort(then)
    edges = sorted({float(ordered[int(np.ceil(len(then) * tenth / 10)) - 1]) for tenth in range(1, 10)})
    total = 0.0
    for low, high in zip([-np.inf, *edges], [*edges, np.inf], strict=True):
        expected = max(np.mean([low < value <= high for value in then]), 1e-4)
        actual = max(np.mean([low < value <= high for value in now]), 1e-4)
        total += (actual - expected) * np.log(actual / expected)
    return float(total)


def shifted(rng: np.random.Generator, count: int, by: float) -> NDArray[np.float32]:
    """A normal column, one that is mostly zero, one that is constant, one of few values."""
    return np.column_stack(
        [
            rng.normal(by, 1, count),
            np.where(rng.random(count) < 0.7 - by / 5, 0, rng.exponential(1, count)),
            np.full(count, 3.0),
            rng.integers(0, 3, count) * (1 + by) / 10,
        ]
    ).astype(np.float32)


@pytest.mark.parametrize("by", [0.0, 0.3, 1.0])
def test_psi_is_what_the_textbook_says(by: float) -> None:
    """For columns with and without point masses, and for the score."""
    rng = np.random.default_rng(5)
    then, now = shifted(rng, 3_000, 0.0), shifted(rng, 1_500, by)
    then_scores, now_scores = 1 / (1 + np.exp(-then[:, 0])), 1 / (1 + np.exp(-now[:, 0]))
    watch = watch_of(reference_of(then, then_scores), 4)
    for first in range(0, 1_500, 100):
        watch.add(now[first : first + 100], now_scores[first : first + 100].tolist())
    watch.turn()
    drift = watch.measure()
    assert drift is not None
    assert drift.rows == 1_500
    assert drift.psi == pytest.approx({f"f{place}": textbook(then[:, place], now[:, place]) for place in range(4)})
    assert drift.score_psi == pytest.approx(textbook(then_scores, now_scores), abs=1e-9)
    assert drift.score_shift == pytest.approx(now_scores.mean() - then_scores.mean(), abs=1e-6)
    if not by:
        assert max(*drift.psi.values(), drift.score_psi) < 0.02
    else:
        assert min(drift.psi["f0"], drift.score_psi) > 0.05


@given(st.lists(st.integers(0, 1_000), min_size=2, max_size=10).filter(any))
def test_psi_is_no_less_than_nothing(counts: list[int]) -> None:
    """Zero for equal shares; finite and positive for others, empty buckets included."""
    found = np.array(counts)
    assert psi((found / found.sum()).tolist(), found) == pytest.approx(0, abs=1e-12)
    even = psi([1 / len(counts)] * len(counts), found)
    assert 0 <= even < 100


def test_few_rows_say_nothing() -> None:
    """One row less than the least number: no figure; with it: one."""
    rng = np.random.default_rng(6)
    rows = shifted(rng, 2_000, 0.0)
    watch = watch_of(reference_of(rows, rows[:, 0]), 4)
    watch.turn()
    assert watch.measure() is None
    watch.add(rows[: MIN_ROWS - 1], rows[: MIN_ROWS - 1, 0].tolist())
    watch.turn()
    assert watch.measure() is None
    watch.add(rows[:1], rows[:1, 0].tolist())
    assert watch.measure() is None
    watch.turn()
    drift = watch.measure()
    assert drift is not None
    assert drift.rows == MIN_ROWS


def test_the_window_is_an_hour() -> None:
    """What was seen counts for sixty minutes, and not for one more."""
    rng = np.random.default_rng(7)
    rows = shifted(rng, 2_000, 0.0)
    watch = watch_of(reference_of(rows, rows[:, 0]), 4)
    watch.add(rows, rows[:, 0].tolist())
    for _ in range(60):
        watch.turn()
        assert watch.measure() is not None
    watch.turn()
    assert watch.measure() is None


def test_a_minute_takes_only_so_many_rows() -> None:
    """A rush costs no more memory and time than a busy minute; the next minute counts again."""
    rng = np.random.default_rng(8)
    rows = shifted(rng, 3 * ROWS_A_MINUTE, 0.0)
    watch = watch_of(reference_of(rows, rows[:, 0]), 4)
    for expected in (ROWS_A_MINUTE, 2 * ROWS_A_MINUTE):
        for first in range(0, len(rows), 300):
            watch.add(rows[first : first + 300], rows[first : first + 300, 0].tolist())
        watch.turn()
        drift = watch.measure()
        assert drift is not None
        assert drift.rows == expected


def test_a_reference_travels_with_the_manifest() -> None:
    """Written and read back, it is the same; the edges are the 32-bit numbers that will be compared with them."""
    rng = np.random.default_rng(9)
    rows = shifted(rng, 500, 0.0)
    reference = reference_of(rows, rows[:, 0])
    files = files_of("own", onnx_files.files_of(onnx_files.sound(), reference=reference))
    assert files.manifest.reference == reference
    edges = reference.features[0].edges
    assert len(edges) == 9
    assert [float(np.float32(edge)) for edge in edges] == edges
