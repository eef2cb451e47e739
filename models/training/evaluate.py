"""How good probabilities are. Pure."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss

from models.manifest import Metrics
from models.training.dataset import Dataset
from models.training.task import Probabilities

#: So often a bootstrap resamples; with many rows seldom, since it takes long and the interval is narrow.
_RESAMPLES = 1_000
_RESAMPLED_ROWS = 5_000_000


def judgeable(outcome: NDArray[np.bool_]) -> bool:
    """True if there are outcomes of both kinds, without which ranking means nothing."""
    return bool(outcome.any() and not outcome.all())


def measure(rows: Dataset, probabilities: Probabilities) -> Metrics:
    """The figures of one set of probabilities. Needs outcomes of both kinds."""
    outcome = rows.outcome
    return Metrics(
        auc=_auc(outcome, probabilities),
        auc_within=_auc_within(rows, probabilities),
        average_precision=float(average_precision_score(outcome, probabilities)),
        ece=_ece(outcome, probabilities),
        log_loss=float(log_loss(outcome, probabilities, labels=[False, True])),
        brier=float(brier_score_loss(outcome, probabilities)),
        lift_top_tenth=_lift_top_tenth(outcome, probabilities),
        mean_predicted=float(probabilities.mean()),
        rate=float(outcome.mean()),
    )


def auc_intervals(
    test: Dataset, model: Probabilities, others: Mapping[str, Probabilities], seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % bootstrap intervals: of the model's AUC, and of its gain over the best of `others`.

    Whole customers are resampled: one customer's rows are not independent of each other.
    """
    random = np.random.default_rng(seed)
    _, customer = np.unique(test.customer, return_inverse=True)
    rows_of = [np.flatnonzero(customer == number) for number in range(customer.max() + 1)]
    aucs, gains = [], []
    for _ in range(max(100, min(_RESAMPLES, _RESAMPLED_ROWS // len(test.outcome)))):
        drawn = np.concatenate([rows_of[number] for number in random.integers(0, len(rows_of), len(rows_of))])
        outcome = test.outcome[drawn]
        if not judgeable(outcome):
            continue
        auc = _auc(outcome, model[drawn])
        aucs.append(auc)
        gains.append(auc - max(_auc(outcome, other[drawn]) for other in others.values()))
    return _interval(aucs), _interval(gains)


def calibration(outcome: NDArray[np.bool_], probabilities: Probabilities) -> list[tuple[int, float, float]]:
    """Five groups of equal size by rising score: rows, mean predicted, rate observed."""
    groups = np.array_split(np.argsort(probabilities, kind="stable"), 5)
    return [(len(group), float(probabilities[group].mean()), float(outcome[group].mean())) for group in groups]


def _auc(outcome: NDArray[np.bool_], probabilities: Probabilities) -> float:
    """How often a outcome row scores above another, over all pairs; ties count half. Fast, for the bootstrap."""
    others, scores = np.sort(probabilities[~outcome]), probabilities[outcome]
    below = np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")
    return float(below.mean() / 2 / len(others))


def _auc_within(rows: Dataset, probabilities: Probabilities) -> float:
    """The mean of the groups' AUCs, weighted by their pairs of a outcome and another row."""
    aucs, pairs = [0.5], [0]
    for group in np.unique(rows.group):
        mine = rows.group == group
        outcome = rows.outcome[mine]
        if judgeable(outcome):
            aucs.append(_auc(outcome, probabilities[mine]))
            pairs.append(int(outcome.sum() * (~outcome).sum()))
    return float(np.average(aucs, weights=pairs)) if any(pairs) else 0.5


def _ece(outcome: NDArray[np.bool_], probabilities: Probabilities) -> float:
    """Expected calibration error, ten bins of equal width."""
    bins = np.minimum((probabilities * 10).astype(np.int64), 9)
    apart = [abs(probabilities[bins == b].sum() - outcome[bins == b].sum()) for b in range(10)]
    return float(sum(apart) / len(outcome))


def _lift_top_tenth(outcome: NDArray[np.bool_], probabilities: Probabilities) -> float:
    count = max(1, len(outcome) // 10)
    least = np.partition(probabilities, -count)[-count]
    above, ties = probabilities > least, probabilities == least
    # Of rows that tie for the last places, the expected number of redemptions: order among them is luck.
    hits = outcome[above].sum() + (count - above.sum()) * outcome[ties].mean()
    return float(hits / count / outcome.mean())


def _interval(values: list[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
