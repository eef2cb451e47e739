"""The figures of an evaluation report: curves, tables, intervals, effects, drift. Pure, but for the chance of a seed.

Intervals are 95 %. They take customers, not rows, as independent: one customer's rows resemble each other.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from models.drift import psi, reference_of
from models.manifest import Spread
from models.training.dataset import Dataset
from models.training.evaluate import judgeable
from models.training.task import Outcomes, Probabilities, Rows

Floats = NDArray[np.float64]
#: Rows in, probabilities out, as the server would answer.
Score = Callable[[Rows], Probabilities]

RESAMPLES = 400
REPEATS = 20
#: A population stability index below which drift is small, and from which on it is large. The usual rule of thumb.
PSI_SMALL, PSI_LARGE = 0.1, 0.25
_DAY_MS = 86_400_000
_WEEK_MS = 7 * _DAY_MS
#: 1970-01-05, a Monday.
_FIRST_MONDAY_MS = 4 * _DAY_MS
_Z = 1.959964
#: Rows that effects are measured on, at most: scoring them some hundred times must not take minutes.
_EFFECT_ROWS = 10_000
_CURVE_ROWS = 500
_STEPS = 12
#: Customers are resampled fewer times when there are very many rows.
_MOST_DRAWN = 20_000_000


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """Points to be joined, in order of `x`."""

    x: Floats
    y: Floats


class Bin(NamedTuple):
    """Rows of similar score: how many, mean predicted, and the rate that was observed."""

    rows: int
    predicted: float
    rate: Interval


class Part(NamedTuple):
    """The test rows of one group or week. `auc` is None where all outcomes are the same."""

    name: str
    rows: int
    positives: int
    predicted: float
    rate: Interval
    auc: Interval | None


class Comparison(NamedTuple):
    """How the model does beside one baseline: differences, model minus baseline."""

    name: str
    auc: Interval
    average_precision: Interval
    log_loss: Interval


class Importance(NamedTuple):
    """What is lost when one feature's values are shuffled among the rows."""

    feature: str
    auc_lost: Interval
    log_loss_gained: Interval


class Drift(NamedTuple):
    """How the distribution of something differs between training and test rows."""

    name: str
    psi: float
    train_mean: float
    test_mean: float


class Ranking:
    """Rows in order of score, to find the areas under their curves for many weightings of the rows."""

    def __init__(self, outcome: Outcomes, scores: Probabilities) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        #: Where a run of equal scores ends: order within it is luck, so it counts as one step.
        self._ends = np.flatnonzero(np.append(np.diff(ordered) != 0, True))
        self._outcome = outcome[self._order]

    def areas(self, weights: Floats) -> tuple[float, float]:
        """AUC and average precision; not a number where the weighted rows have outcomes of one kind only."""
        ordered = weights[self._order]
        hits = np.cumsum(ordered * self._outcome)[self._ends]
        all_rows = np.cumsum(ordered)[self._ends]
        misses = all_rows - hits
        if hits[-1] == 0 or misses[-1] == 0:
            return math.nan, math.nan
        new_hits = np.diff(hits, prepend=0.0)
        above = hits - new_hits / 2
        auc = (np.diff(misses, prepend=0.0) * above).sum() / (hits[-1] * misses[-1])
        precision = np.divide(hits, all_rows, out=np.zeros_like(hits), where=all_rows > 0)
        return float(auc), float((new_hits * precision).sum() / hits[-1])


def resampled(customers: NDArray[np.str_], seed: int) -> list[Floats]:
    """Weights for the rows: how often each row's customer is drawn, customers being drawn with replacement."""
    random = np.random.default_rng(seed)
    _, customer = np.unique(customers, return_inverse=True)
    count = int(customer.max()) + 1
    times = max(50, min(RESAMPLES, _MOST_DRAWN // len(customer)))
    drawn = (random.integers(0, count, count) for _ in range(times))
    return [np.bincount(some, minlength=count)[customer].astype(np.float64) for some in drawn]


def model_areas(outcome: Outcomes, scores: Probabilities, draws: Sequence[Floats]) -> tuple[Interval, Interval]:
    """AUC and average precision."""
    ranking = Ranking(outcome, scores)
    value = ranking.areas(np.ones(len(outcome)))
    drawn = np.array([ranking.areas(weights) for weights in draws])
    return _around(value[0], drawn[:, 0]), _around(value[1], drawn[:, 1])


def comparisons(
    outcome: Outcomes, scores: Probabilities, baselines: Mapping[str, Probabilities], draws: Sequence[Floats]
) -> list[Comparison]:
    """The model against each baseline, on the same drawn customers."""
    whole = np.ones(len(outcome))
    model = _measured(outcome, scores)
    of_model = np.array([model(weights) for weights in (whole, *draws)])
    found = []
    for name, guess in baselines.items():
        other = _measured(outcome, guess)
        apart = of_model - np.array([other(weights) for weights in (whole, *draws)])
        found.append(Comparison(name, *(_around(float(column[0]), column[1:]) for column in apart.T)))
    return found


def _measured(outcome: Outcomes, scores: Probabilities) -> Callable[[Floats], tuple[float, float, float]]:
    ranking, losses = Ranking(outcome, scores), row_losses(outcome, scores)
    return lambda weights: (*ranking.areas(weights), float(np.average(losses, weights=weights)))


def row_losses(outcome: Outcomes, scores: Probabilities) -> Floats:
    """The log-loss of each row."""
    least = float(np.finfo(np.float64).eps)
    safe = np.clip(scores, least, 1 - least)
    losses: Floats = -np.log(np.where(outcome, safe, 1 - safe))
    return losses


def roc(outcome: Outcomes, scores: Probabilities) -> Curve:
    """False positive rate, true positive rate."""
    false, true, _ = roc_curve(outcome, scores)
    return Curve(false, true)


def precision_recall(outcome: Outcomes, scores: Probabilities) -> Curve:
    """Recall, precision."""
    precision, recall, _ = precision_recall_curve(outcome, scores)
    return Curve(recall[::-1], precision[::-1])


def gain(outcome: Outcomes, scores: Probabilities) -> Curve:
    """The share of rows taken, best scores first; the share of all outcomes among them. Ties are taken evenly."""
    false, true, _ = roc_curve(outcome, scores, drop_intermediate=False)
    rate = outcome.mean()
    return Curve(true * rate + false * (1 - rate), true)


def lift(curve: Curve, share: float) -> float:
    """How much more often the outcome is among the best `share` of rows than among all."""
    return float(np.interp(share, curve.x, curve.y)) / share


def calibration_bins(test: Dataset, scores: Probabilities) -> list[Bin]:
    """Ten bins of equal width, those with rows."""
    number = np.minimum((scores * 10).astype(np.int64), 9)
    return [
        Bin(int(mine.sum()), float(scores[mine].mean()), _rate(test.outcome[mine], test.customer[mine]))
        for mine in (number == b for b in range(10))
        if mine.any()
    ]


def by_group(test: Dataset, scores: Probabilities, draws: Sequence[Floats]) -> list[Part]:
    """The groups (campaigns, weeks), in order of their first row."""
    names, first = np.unique(test.group, return_index=True)
    start = {str(name): int(test.at_ms[test.group == name].min()) for name in names[np.argsort(first)]}
    return _parts(test, scores, draws, [(name, test.group == name) for name in sorted(start, key=lambda n: start[n])])


def by_week(test: Dataset, scores: Probabilities, draws: Sequence[Floats]) -> list[Part]:
    """Calendar weeks, by the date of their Monday (UTC); empty if each is a group of its own, and told there."""
    week = (test.at_ms - _FIRST_MONDAY_MS) // _WEEK_MS
    both = {*zip(test.group.tolist(), week.tolist(), strict=True)}
    if len(both) == len({group for group, _ in both}) == len({number for _, number in both}):
        return []
    monday = (week * _WEEK_MS + _FIRST_MONDAY_MS).astype("datetime64[ms]").astype("datetime64[D]")
    return _parts(test, scores, draws, [(str(day), monday == day) for day in np.unique(monday)])


def _parts(
    test: Dataset, scores: Probabilities, draws: Sequence[Floats], masks: Sequence[tuple[str, NDArray[np.bool_]]]
) -> list[Part]:
    found = []
    for name, mine in masks:
        outcome, some = test.outcome[mine], scores[mine]
        auc = model_areas(outcome, some, [weights[mine] for weights in draws])[0] if judgeable(outcome) else None
        rate = _rate(outcome, test.customer[mine])
        found.append(Part(name, int(mine.sum()), int(outcome.sum()), float(some.mean()), rate, auc))
    return found


def importances(
    test: Dataset,
    score: Score,
    columns: Mapping[str, int],
    seed: int,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Importance]:
    """Each feature's, the greatest first.

    Its values are shuffled among the rows several times, and each time other customers are drawn, so that the interval
    holds both kinds of chance: mean and 1.96 standard deviations.
    """
    random = np.random.default_rng(seed)
    some = sample(test, _EFFECT_ROWS, seed)
    draws = [weights for weights in resampled(some.customer, seed)[:REPEATS] if judgeable(some.outcome[weights > 0])]
    as_is = _measured(some.outcome, score(some.rows))
    before = np.array([as_is(weights) for weights in draws])
    found = []
    for number, (feature, column) in enumerate(columns.items(), 1):
        lost = []
        for weights, known in zip(draws, before, strict=True):
            rows = some.rows.copy()
            rows[:, column] = random.permutation(rows[:, column])
            lost.append(known - np.array(_measured(some.outcome, score(rows))(weights)))
        auc, _, losses = (_spread(values) for values in np.array(lost).T)
        found.append(Importance(feature, auc, Interval(-losses.value, -losses.high, -losses.low)))
        progress(number / len(columns))
    return sorted(found, key=lambda one: -one.auc_lost.value)


def effects(test: Dataset, score: Score, columns: Mapping[str, int], seed: int) -> dict[str, Curve]:
    """Partial dependence: the mean score if every row had this value of the feature, for values that occur."""
    rows = sample(test, _CURVE_ROWS, seed).rows
    found = {}
    for feature, column in columns.items():
        values = np.unique(np.quantile(test.rows[:, column], np.linspace(0.02, 0.98, _STEPS)))
        changed = np.repeat(rows[None], len(values), axis=0)
        changed[:, :, column] = values[:, None]
        scores = score(changed.reshape(-1, rows.shape[1])).reshape(len(values), len(rows))
        found[feature] = Curve(values, scores.mean(axis=1))
    return found


def drifts(
    train: tuple[Rows, Probabilities], test: tuple[Rows, Probabilities], columns: Mapping[str, int]
) -> tuple[list[Drift], Drift]:
    """Each feature's drift from training rows to test rows, the greatest first, and that of the model's scores.

    Measured as a running server measures it (`models.drift`).
    """
    chosen = list(columns.values())
    reference = reference_of(train[0][:, chosen], train[1])
    *features, score = (
        _drift(name, spread, after.astype(np.float32))
        for name, spread, after in zip(
            (*columns, "score"),
            (*reference.features, reference.score),
            (*test[0][:, chosen].T, test[1]),
            strict=True,
        )
    )
    return sorted(features, key=lambda one: -one.psi), score


def _drift(name: str, spread: Spread, after: NDArray[np.float32]) -> Drift:
    counts = np.bincount(np.searchsorted(spread.edges, after), minlength=len(spread.shares))
    return Drift(name, psi(spread.shares, counts), spread.mean, float(after.mean(dtype=np.float64)))


def sample(rows: Dataset, most: int, seed: int) -> Dataset:
    """At most so many rows, drawn without replacement, in their order."""
    if len(rows.outcome) <= most:
        return rows
    drawn = np.zeros(len(rows.outcome), dtype=np.bool_)
    drawn[np.random.default_rng(seed).choice(len(drawn), most, replace=False)] = True
    return rows.where(drawn)


def month_starts(at_ms: NDArray[np.int64]) -> Iterator[tuple[str, int, int]]:
    """The months after the first that has rows: ISO date, begin and end."""
    months = np.unique(at_ms.astype("datetime64[ms]").astype("datetime64[M]"))
    for month in months[1:]:
        begin, end = (int((month + step).astype("datetime64[ms]").astype(np.int64)) for step in (0, 1))
        yield f"{month}-01", begin, end


def _rate(outcome: Outcomes, customers: NDArray[np.str_]) -> Interval:
    """The rate with Wilson's interval, as if each customer were one observation."""
    count, rate = len(np.unique(customers)), float(outcome.mean())
    middle = (rate + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(rate * (1 - rate) / count + _Z**2 / (4 * count**2))
    return Interval(rate, max(0.0, middle - half), min(1.0, middle + half))


def _around(value: float, drawn: Floats) -> Interval:
    """The bootstrap's percentiles; draws without outcomes of both kinds are left out."""
    known = drawn[np.isfinite(drawn)]
    if len(known) == 0:
        return Interval(value, math.nan, math.nan)
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _spread(values: Floats) -> Interval:
    middle, half = float(values.mean()), _Z * float(values.std(ddof=1))
    return Interval(middle, middle - half, middle + half)
