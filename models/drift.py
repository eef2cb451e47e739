"""Drift: do feature rows and scores still look like those that the model was trained on?

Measured by the population stability index (PSI): over the buckets of a number's training deciles, the sum of
(now - then) x ln(now / then) of the shares. 0 is no difference; below 0.1 nothing to see, above 0.25 another
population, by the rule of thumb that credit scoring has for it (Siddiqi, Credit Risk Scorecards, 2006).

Scoring only puts rows aside, a bounded number a minute. Counting them is done by whoever calls `turn`.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.manifest import Manifest, Reference, Spread

_BUCKETS = 10
#: Fewer rows say more about chance than about drift: PSI of equal populations is about 9 / rows.
MIN_ROWS = 1_000
#: Of one minute; an hour of these is plenty, and counting them takes about 2 ms.
ROWS_A_MINUTE = 2_000
_MINUTES = 60
#: A share that is zero would be an infinite difference.
_LEAST_SHARE = 1e-4

Floats = NDArray[np.float32] | NDArray[np.float64]


class Drift(NamedTuple):
    """How far the rows of the last hour are from the training rows."""

    rows: int
    #: By feature.
    psi: dict[str, float]
    score_psi: float
    #: Mean score now less mean score in training.
    score_shift: float


def reference_of(rows: Floats, scores: Floats) -> Reference:
    """What `Drift` compares with: training rows [rows, features] and the model's scores for them."""
    return Reference([_spread(rows[:, column]) for column in range(rows.shape[1])], _spread(scores))


def psi(expected: Sequence[float], counts: NDArray[np.int64]) -> float:
    """The population stability index of counted buckets against their expected shares."""
    then = np.maximum(np.asarray(expected), _LEAST_SHARE)
    now = np.maximum(counts / counts.sum(), _LEAST_SHARE)
    return float(((now - then) * np.log(now / then)).sum())


class DriftWatch:
    """Counts what one model scores, over a sliding hour."""

    def __init__(self, manifest: Manifest) -> None:
        """`manifest` must have a reference."""
        if manifest.reference is None:
            raise ValueError("no reference to compare with")
        self._names = manifest.features
        self._spreads = [*manifest.reference.features, manifest.reference.score]
        self._edges = [np.asarray(spread.edges) for spread in self._spreads]
        self._waiting: list[tuple[NDArray[np.float32], Sequence[float]]] = []
        self._room = ROWS_A_MINUTE
        self._minutes: deque[tuple[list[NDArray[np.int64]], float]] = deque(maxlen=_MINUTES)

    def add(self, rows: NDArray[np.float32], scores: Sequence[float]) -> None:
        """Rows [rows, features] of the model, and its scores for them."""
        if self._room > 0:
            self._waiting.append((rows[: self._room], scores[: self._room]))
            self._room -= len(rows)

    def turn(self) -> None:
        """A minute is over: count what was put aside, and forget the minute an hour ago."""
        waiting, self._waiting, self._room = self._waiting, [], ROWS_A_MINUTE
        if not waiting:
            self._minutes.append(([], 0.0))
            return
        scores = np.concatenate([scores for _, scores in waiting]).astype(np.float32)
        columns = [*np.concatenate([rows for rows, _ in waiting]).T, scores]
        counts = [
            np.bincount(np.searchsorted(edges, column), minlength=len(edges) + 1)
            for edges, column in zip(self._edges, columns, strict=True)
        ]
        self._minutes.append((counts, float(scores.sum(dtype=np.float64))))

    def measure(self) -> Drift | None:
        """None as long as there are fewer than `MIN_ROWS`."""
        counted = [counts for counts, _ in self._minutes if counts]
        rows = sum(int(counts[-1].sum()) for counts in counted)
        if rows < MIN_ROWS:
            return None
        totals = [np.sum(buckets, axis=0) for buckets in zip(*counted, strict=True)]
        *features, score = (psi(spread.shares, total) for spread, total in zip(self._spreads, totals, strict=True))
        mean = sum(total for _, total in self._minutes) / rows
        return Drift(rows, dict(zip(self._names, features, strict=True)), score, mean - self._spreads[-1].mean)


def _spread(values: Floats) -> Spread:
    # As the scorer sees them: a value on an edge must fall on the same side later.
    narrow = np.asarray(values, dtype=np.float32)
    edges = np.unique(np.quantile(narrow, np.arange(1, _BUCKETS) / _BUCKETS, method="inverted_cdf"))
    counts = np.bincount(np.searchsorted(edges, narrow), minlength=len(edges) + 1)
    return Spread(
        [float(edge) for edge in edges], (counts / len(narrow)).tolist(), float(narrow.mean(dtype=np.float64))
    )
