"""One model judged on one history: everything that the report shows, as figures.

The model scores as it serves, through `models.scorer`. It is not trained again, but for the rolling origin, where its
algorithm is fitted anew at each cut.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from models.manifest import Manifest, Metrics, Window
from models.scorer import Scorer
from models.training import report_figures as figures
from models.training.dataset import Dataset, date_of, ms_of, window_of
from models.training.evaluate import judgeable, measure
from models.training.report_figures import Bin, Comparison, Curve, Drift, Importance, Interval, Part
from models.training.task import Outcomes, Probabilities, Rows, Task
from nearcast.errors import ConfigurationError

#: Rows scored at once.
_BLOCK = 8_192
#: With fewer outcomes before a cut, or in the month after it, a fit or an AUC says nothing.
_LEAST_BEFORE, _LEAST_IN_BLOCK = 20, 5
#: Cut dates at most, the last ones.
_MOST_CUTS = 12
#: Rows that are fitted on at each cut, at most: more make the report late, and the fit hardly better.
MOST_FITTED = 100_000


class Fold(NamedTuple):
    """The model's algorithm, fitted on rows before `cut` and judged on the month that begins there."""

    cut: str
    train_rows: int
    rows: int
    positives: int
    model: Metrics
    #: The baseline of the greatest AUC in this very month, and that.
    baseline: str
    baseline_auc: float


@dataclass(frozen=True)
class Evaluation:
    """What was measured."""

    manifest: Manifest
    #: Of the data that the model is judged on here.
    fingerprint: str
    customers_left_out: int
    train: Window
    test: Window
    customers: int
    #: On the test rows: "model", and each baseline by name.
    metrics: Mapping[str, Metrics]
    auc: Interval
    average_precision: Interval
    compared: list[Comparison]
    roc: Mapping[str, Curve]
    precision_recall: Mapping[str, Curve]
    gain: Mapping[str, Curve]
    bins: list[Bin]
    groups: list[Part]
    #: Empty if each group is a week of its own.
    weeks: list[Part]
    folds: list[Fold]
    importances: list[Importance]
    effects: Mapping[str, Curve]
    feature_drifts: list[Drift]
    score_drift: Drift
    scores: Probabilities
    outcome: Outcomes
    cautions: list[str]


def evaluate(
    scorer: Scorer,
    task: Task,
    dataset: Dataset,
    fingerprint: str,
    customers_left_out: int,
    seed: int,
    progress: Callable[[str, float], None],
) -> Evaluation:
    """Judge `scorer` on the test rows of `dataset`. `progress` hears "score", "refit" and "effects" from 0 to 1.

    Raises `ConfigurationError` if the training or test rows are none, or their outcomes are all the same.
    """
    begins_ms = ms_of(task.test_from)
    train, test = dataset.where(dataset.at_ms < begins_ms), dataset.where(dataset.at_ms >= begins_ms)
    _check(train, f"before {task.test_from}, which baselines are fitted on,")
    _check(test, f"from {task.test_from} on, which the model is judged on,")
    progress("score", 0.0)
    scores, before = _score(scorer, test.rows), _score(scorer, train.rows)
    guesses: dict[str, Probabilities] = {"model": scores, **task.baselines(train, test)}
    progress("score", 0.3)
    metrics = {name: measure(test, guess) for name, guess in guesses.items()}
    draws = figures.resampled(test.customer, seed)
    auc, average_precision = figures.model_areas(test.outcome, scores, draws)
    others = {name: guess for name, guess in guesses.items() if name != "model"}
    compared = figures.comparisons(test.outcome, scores, others, draws)
    progress("score", 0.7)
    groups, weeks = figures.by_group(test, scores, draws), figures.by_week(test, scores, draws)
    progress("score", 1.0)
    folds = _folds(scorer.manifest, task, dataset, seed, lambda fraction: progress("refit", fraction))
    places = {name: task.features.columns.index(name) for name in scorer.manifest.features}
    progress("effects", 0.0)
    importances = figures.importances(
        test, lambda rows: _score(scorer, rows), places, seed, lambda fraction: progress("effects", 0.9 * fraction)
    )
    effects = figures.effects(test, lambda rows: _score(scorer, rows), places, seed)
    feature_drifts, score_drift = figures.drifts((train.rows, before), (test.rows, scores), places)
    progress("effects", 1.0)
    return Evaluation(
        manifest=scorer.manifest,
        fingerprint=fingerprint,
        customers_left_out=customers_left_out,
        train=window_of(train),
        test=window_of(test),
        customers=len(np.unique(test.customer)),
        metrics=metrics,
        auc=auc,
        average_precision=average_precision,
        compared=compared,
        roc={name: figures.roc(test.outcome, guess) for name, guess in guesses.items()},
        precision_recall={name: figures.precision_recall(test.outcome, guess) for name, guess in guesses.items()},
        gain={name: figures.gain(test.outcome, guess) for name, guess in guesses.items()},
        bins=figures.calibration_bins(test, scores),
        groups=groups,
        weeks=weeks,
        folds=folds,
        importances=importances,
        effects=effects,
        feature_drifts=feature_drifts,
        score_drift=score_drift,
        scores=scores,
        outcome=test.outcome,
        cautions=list(_cautions(scorer.manifest, fingerprint, customers_left_out, test, metrics["model"])),
    )


def _score(scorer: Scorer, rows: Rows) -> Probabilities:
    narrow = rows.astype(np.float32)
    blocks = [scorer.score(narrow[begin : begin + _BLOCK]) for begin in range(0, len(narrow), _BLOCK)]
    return np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks])


def _folds(
    manifest: Manifest, task: Task, dataset: Dataset, seed: int, progress: Callable[[float], None]
) -> list[Fold]:
    """Empty for a model of an algorithm that isn't the task's: it can't be fitted again here."""
    progress(0.0)
    found = []
    columns = [task.features.columns.index(name) for name in manifest.features]
    if manifest.algorithm in task.algorithms(seed):
        cuts = list(figures.month_starts(dataset.at_ms))[-_MOST_CUTS:]
        for number, (cut, begin_ms, end_ms) in enumerate(cuts, 1):
            before = figures.sample(dataset.where(dataset.at_ms < begin_ms), MOST_FITTED, seed)
            block = dataset.where((dataset.at_ms >= begin_ms) & (dataset.at_ms < end_ms))
            if _enough(before, _LEAST_BEFORE) and _enough(block, _LEAST_IN_BLOCK):
                lessons, outcomes = before.lessons()
                model = task.algorithms(seed)[manifest.algorithm].fit(lessons[:, columns], outcomes)
                judged = measure(block, model.predict_proba(block.rows[:, columns])[:, 1])
                aucs = {name: measure(block, guess).auc for name, guess in task.baselines(before, block).items()}
                best = max(aucs, key=lambda name: aucs[name])
                rows, positives = len(block.outcome), int(block.outcome.sum())
                found.append(Fold(cut, len(before.outcome), rows, positives, judged, best, aucs[best]))
            progress(number / len(cuts))
    progress(1.0)
    return found


def _cautions(
    manifest: Manifest, fingerprint: str, customers_left_out: int, test: Dataset, measured: Metrics
) -> Iterator[str]:
    """What keeps the report from meaning what it seems to."""
    if customers_left_out:
        yield f"A trial on part of the data: {customers_left_out:,} customers were left out."
    if not manifest.data_fingerprint:
        yield "The model's manifest does not say what it was trained on: it may have seen the rows it is judged on."
    elif manifest.data_fingerprint != fingerprint:
        yield "The model was trained on other data than it is judged on here."
    first = date_of(int(test.at_ms.min()))
    if manifest.train.last >= first:
        yield f"The model was trained on rows up to {manifest.train.last}, and is judged on rows from {first} on."
    recorded = manifest.metrics.get("model")
    same_rows = (manifest.data_fingerprint, manifest.customers_left_out) == (fingerprint, customers_left_out)
    if recorded is not None and same_rows and abs(recorded.auc - measured.auc) > 0.0005:
        yield (
            f"The manifest states an AUC of {recorded.auc:.3f} for these data, measured is {measured.auc:.3f}: "
            "the code that makes rows has changed since, or the model has."
        )


def _check(rows: Dataset, which: str) -> None:
    if len(rows.outcome) == 0:
        raise ConfigurationError(f"there are no rows {which} in these data")
    if not judgeable(rows.outcome):
        kind = "have the outcome" if rows.outcome.any() else "lack the outcome"
        raise ConfigurationError(f"all {len(rows.outcome)} rows {which} {kind}: nothing can be told apart")


def _enough(rows: Dataset, least: int) -> bool:
    positives = int(rows.outcome.sum())
    return min(positives, len(rows.outcome) - positives) >= least
