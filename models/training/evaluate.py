"""How good probabilities are, against baselines that anyone would try first.

Pure. Baselines are fitted on the training rows, like the model, and judged on the same later rows.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from models.features import FEATURES
from models.manifest import Metrics
from models.training.dataset import Dataset

Probabilities = NDArray[np.float64]
_RESAMPLES = 1_000


def judgeable(redeemed: NDArray[np.bool_]) -> bool:
    """True if there are outcomes of both kinds, without which ranking means nothing."""
    return bool(redeemed.any() and not redeemed.all())


def measure(rows: Dataset, probabilities: Probabilities) -> Metrics:
    """The figures of one set of probabilities. Needs outcomes of both kinds."""
    redeemed = rows.redeemed
    return Metrics(
        auc=_auc(redeemed, probabilities),
        auc_within=_auc_within(rows, probabilities),
        log_loss=float(log_loss(redeemed, probabilities, labels=[False, True])),
        brier=float(brier_score_loss(redeemed, probabilities)),
        lift_top_tenth=_lift_top_tenth(redeemed, probabilities),
        mean_predicted=float(probabilities.mean()),
        rate=float(redeemed.mean()),
    )


def baselines(train: Dataset, test: Dataset) -> dict[str, Probabilities]:
    """Probabilities on `test` from one thing known about the customer, or none."""

    def one_column(of_train: NDArray[np.float64], of_test: NDArray[np.float64]) -> Probabilities:
        model = LogisticRegression().fit(of_train.reshape(-1, 1), train.redeemed)
        probabilities: Probabilities = model.predict_proba(of_test.reshape(-1, 1))[:, 1]
        return probabilities

    def feature(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        column = FEATURES.index(name)
        return train.rows[:, column], test.rows[:, column]

    before = feature("log_redemptions")
    return {
        "prior": np.full(len(test.redeemed), train.redeemed.mean()),
        "redeemed before": one_column((before[0] > 0).astype(np.float64), (before[1] > 0).astype(np.float64)),
        "coupon count": one_column(np.log1p(train.coupon_baskets), np.log1p(test.coupon_baskets)),
        "coupon share": one_column(*feature("coupon_basket_share")),
    }


def auc_intervals(
    test: Dataset, model: Probabilities, others: Mapping[str, Probabilities], seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % bootstrap intervals: of the model's AUC, and of its gain over the best of `others`.

    Whole households are resampled: one household's rows are not independent of each other.
    """
    random = np.random.default_rng(seed)
    _, household = np.unique(test.household, return_inverse=True)
    rows_of = [np.flatnonzero(household == number) for number in range(household.max() + 1)]
    aucs, gains = [], []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([rows_of[number] for number in random.integers(0, len(rows_of), len(rows_of))])
        redeemed = test.redeemed[drawn]
        if not judgeable(redeemed):
            continue
        auc = _auc(redeemed, model[drawn])
        aucs.append(auc)
        gains.append(auc - max(_auc(redeemed, other[drawn]) for other in others.values()))
    return _interval(aucs), _interval(gains)


def calibration(redeemed: NDArray[np.bool_], probabilities: Probabilities) -> list[tuple[int, float, float]]:
    """Five groups of equal size by rising score: rows, mean predicted, rate observed."""
    groups = np.array_split(np.argsort(probabilities, kind="stable"), 5)
    return [(len(group), float(probabilities[group].mean()), float(redeemed[group].mean())) for group in groups]


def _auc(redeemed: NDArray[np.bool_], probabilities: Probabilities) -> float:
    """How often a redeemed row scores above another, over all pairs; ties count half. Fast, for the bootstrap."""
    others, scores = np.sort(probabilities[~redeemed]), probabilities[redeemed]
    below = np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")
    return float(below.mean() / 2 / len(others))


def _auc_within(rows: Dataset, probabilities: Probabilities) -> float:
    """The mean of the campaigns' AUCs, weighted by their pairs of a redeemed and another row."""
    aucs, pairs = [0.5], [0]
    for campaign in np.unique(rows.campaign):
        mine = rows.campaign == campaign
        redeemed = rows.redeemed[mine]
        if judgeable(redeemed):
            aucs.append(_auc(redeemed, probabilities[mine]))
            pairs.append(int(redeemed.sum() * (~redeemed).sum()))
    return float(np.average(aucs, weights=pairs)) if any(pairs) else 0.5


def _lift_top_tenth(redeemed: NDArray[np.bool_], probabilities: Probabilities) -> float:
    count = max(1, len(redeemed) // 10)
    least = np.partition(probabilities, -count)[-count]
    above, ties = probabilities > least, probabilities == least
    # Of rows that tie for the last places, the expected number of redemptions: order among them is luck.
    hits = redeemed[above].sum() + (count - above.sum()) * redeemed[ties].mean()
    return float(hits / count / redeemed.mean())


def _interval(values: list[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
