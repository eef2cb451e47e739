"""A model as it serves: whatever it does, each row gets a number from 0 to 1, and the caller no exception.

What the model can't score gets the fallback score: the share of outcomes in its training, or a constant where nobody
told that. A model that fails or is too slow three times in a row is set aside for a while, then gets one more try.
"""

import logging
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.drift import DriftWatch
from models.scorer import BUDGET_S, Scorer, ScoringError, TooSlow
from nearcast import metrics
from nearcast.clock import Clock, SystemClock

logger = logging.getLogger("nearcast.models")

#: Stands for a model's version where its score is the fallback.
FALLBACK = "fallback"
_FAILURES_IN_A_ROW = 3


class Limits(NamedTuple):
    """What a model may take, and what stands in for it."""

    #: CPU time of one call.
    budget_s: float = BUDGET_S
    #: How long a model that keeps failing is left alone.
    pause_s: float = 60.0
    #: The score where there is no model, or one whose manifest has no base rate.
    fallback_score: float = 0.05


class Scored(NamedTuple):
    """A score per row, and the version of the model that gave it, or `FALLBACK`."""

    values: list[float]
    versions: list[str]


class Guard:
    """One model, or none."""

    def __init__(self, scorer: Scorer | None, limits: Limits = Limits(), clock: Clock | None = None) -> None:  # noqa: B008
        self.scorer = scorer
        self.version = FALLBACK if scorer is None else scorer.version
        base_rate = None if scorer is None else scorer.manifest.base_rate
        self.fallback_score = limits.fallback_score if base_rate is None else base_rate
        self.drift = None if scorer is None or scorer.manifest.reference is None else DriftWatch(scorer.manifest)
        self._limits = limits
        self._clock = clock or SystemClock()
        self._failures = 0
        self._resting_until_s = -math.inf
        self._good = metrics.MODEL_ROWS.labels(self.version, "scored")

    @property
    def is_set_aside(self) -> bool:
        """Whether it is left alone just now."""
        return self._clock.monotonic_s() < self._resting_until_s

    def score(self, rows: NDArray[np.float32]) -> Scored:
        """For rows [rows, features of the kind]."""
        if self.scorer is None:
            return self._instead(len(rows), "no_model")
        if self._failures >= _FAILURES_IN_A_ROW and self.is_set_aside:
            return self._instead(len(rows), "set_aside")
        try:
            values = self.scorer.score(rows, self._limits.budget_s)
        except ScoringError as error:
            self._failed(error)
            return self._instead(len(rows), "slow" if isinstance(error, TooSlow) else "failed")
        self._recovered()
        made = self._checked(values)
        if self.drift is not None:
            self._watch(self.drift, self.scorer.choose(rows), made)
        return made

    def _watch(self, drift: DriftWatch, rows: NDArray[np.float32], made: Scored) -> None:
        """Count the rows whose scores are the model's."""
        if FALLBACK in made.versions:
            good = [place for place, version in enumerate(made.versions) if version != FALLBACK]
            if good:
                drift.add(rows[good], [made.values[place] for place in good])
        else:
            drift.add(rows, made.values)

    def _checked(self, values: list[float]) -> Scored:
        versions = [self.version] * len(values)
        # Not a number anywhere makes the sum none.
        if not values or (math.isfinite(sum(values)) and min(values) >= 0 and max(values) <= 1):
            self._good.inc(len(values))
            return Scored(values, versions)
        bad = [place for place, value in enumerate(values) if not 0 <= value <= 1]
        for place in bad:
            values[place], versions[place] = self.fallback_score, FALLBACK
        self._good.inc(len(values) - len(bad))
        metrics.MODEL_ROWS.labels(self.version, "not_a_probability").inc(len(bad))
        return Scored(values, versions)

    def _instead(self, count: int, result: str) -> Scored:
        metrics.MODEL_ROWS.labels(self.version, result).inc(count)
        return Scored([self.fallback_score] * count, [FALLBACK] * count)

    def _failed(self, error: ScoringError) -> None:
        self._failures += 1
        if self._failures < _FAILURES_IN_A_ROW:
            logger.warning("model %s: %s; the fallback score %g serves", self.version, error, self.fallback_score)
            return
        self._resting_until_s = self._clock.monotonic_s() + self._limits.pause_s
        metrics.MODEL_SET_ASIDE.labels(self.version).set(1)
        logger.error(
            "model %s is set aside for %g s, and the fallback score %g serves: %s. "
            "`nearcast models rollback %s` goes back to the model before it",
            self.version,
            self._limits.pause_s,
            self.fallback_score,
            error,
            self.scorer.manifest.kind if self.scorer else "KIND",
        )

    def _recovered(self) -> None:
        if self._failures >= _FAILURES_IN_A_ROW:
            metrics.MODEL_SET_ASIDE.labels(self.version).set(0)
            logger.info("model %s scores again", self.version)
        self._failures = 0
