"""The sections of an evaluation report that show how the model does, and say what that means and what it doesn't."""

from collections.abc import Mapping, Sequence

import numpy as np

from models.training import plots
from models.training.plots import Series, percent
from models.training.report_document import Block, Details, Plots, Section, Table, Text
from models.training.report_evaluation import MOST_FITTED, Evaluation
from models.training.report_figures import PSI_LARGE, PSI_SMALL, REPEATS, Curve, Interval, Part, lift

#: Baselines drawn beside the model, the best ones; the table has them all.
_DRAWN = 2


def ranking(found: Evaluation) -> Section:
    """ROC and precision-recall curves."""
    rate = found.metrics["model"].rate
    drawn = _drawn(found)
    chance = _line(0, 1)
    return Section(
        "Ranking",
        [
            Plots(
                [
                    plots.curves(
                        "roc",
                        f"ROC curve: AUC {found.auc.value:.3f}, the diagonal is chance",
                        [*_series(found.roc, drawn), Series("chance", chance, "guide")],
                        ("false alarms among rows without", "found among rows with"),
                    ),
                    plots.curves(
                        "pr",
                        f"Precision-recall curve: average precision {found.average_precision.value:.3f}, "
                        f"chance is {rate:.3f}",
                        [
                            *_series(found.precision_recall, drawn),
                            Series("chance", _line(rate, rate), "guide"),
                        ],
                        ("found (recall)", "right among those taken (precision)"),
                        legend="upper right",
                    ),
                ]
            ),
            Text(
                "On the ROC curve each point is a threshold; further to the upper left is better. Average precision is "
                f"{span(found.average_precision)}. Where the outcome is rare, as here ({percent(rate, 1)}), the "
                "precision-recall curve says more of what a shop notices: of those it writes to, how many answer."
            ),
        ],
    )


def calibration(found: Evaluation) -> Section:
    """Whether scores mean what they say."""
    model = found.metrics["model"]
    off = [one for one in found.bins if not one.rate.low <= one.predicted <= one.rate.high]
    apart = (
        f"In {len(off)} of {len(found.bins)} bins the mean prediction lies outside the interval: "
        + "; ".join(f"{one.predicted:.2f} predicted, {one.rate.value:.2f} observed ({one.rows:,} rows)" for one in off)
        if off
        else "In every bin the mean prediction lies within the interval of the rate"
    )
    return Section(
        "Calibration: do scores mean what they say?",
        [
            Plots(
                [
                    plots.calibration(
                        "calibration",
                        f"Rate observed over mean predicted, with each bin's number of rows; ECE {model.ece:.3f}",
                        found.bins,
                    )
                ]
            ),
            Text(
                "A row scored 0.2 should have the outcome one time in five. The mean distance from that is "
                f"{model.ece:.3f} (ECE, ten bins of equal width). {apart}. Calibration matters because a score is "
                "multiplied by money; it says nothing about ranking."
            ),
            Details(
                "The bins",
                [
                    Table(
                        "Ten bins of equal width; empty ones are left out",
                        ("rows", "mean predicted", "rate observed", "95 %"),
                        [
                            (f"{one.rows:,}", f"{one.predicted:.3f}", f"{one.rate.value:.3f}", _range(one.rate))
                            for one in found.bins
                        ],
                    )
                ],
            ),
        ],
    )


def gain(found: Evaluation) -> Section:
    """What asking only some finds."""
    model = found.gain["model"]
    shares = [0.01, 0.05, 0.1, 0.2, 0.3, 0.5]
    drawn = _drawn(found)
    return Section(
        "Gain and lift: what is found by asking only some",
        [
            Plots(
                [
                    plots.curves(
                        "gain",
                        f"Cumulative gain: the best-scored fifth of rows holds {percent(lift(model, 0.2) * 0.2)} of "
                        "outcomes",
                        [*_series(found.gain, drawn), Series("at random", _line(0, 1), "guide")],
                        ("share of rows taken, best first", "share of outcomes found"),
                    ),
                    plots.lifts(
                        "lift",
                        f"Lift: in the top tenth the outcome is {lift(model, 0.1):.1f} times as frequent as among all",
                        {name: found.gain[name] for name in ("model", *drawn)},
                    ),
                ]
            ),
            Table(
                "The model, by share of rows taken",
                ("rows taken", "outcomes found", "lift"),
                [
                    (percent(share), percent(lift(model, share) * share, 1), f"{lift(model, share):.2f}")
                    for share in shares
                ],
            ),
            Text(
                f"Whoever asks only the best-scored fifth reaches {percent(lift(model, 0.2) * 0.2)} of all who would "
                "have the outcome. That is not yet gained by asking: some of them would have come anyway (uplift), "
                "which history without a hold-out can't tell."
            ),
        ],
    )


def groups_and_weeks(found: Evaluation) -> Section:
    """Where and when the model is right."""
    blocks: list[Block] = []
    for name, title, parts in (("groups", "group", found.groups), ("weeks", "week", found.weeks)):
        if not parts:
            continue
        by_week = title == "week"
        caption = "By calendar week; the date is its Monday" if by_week else "By group, in order of time"
        blocks.append(
            Plots(
                [
                    plots.timeline(
                        name,
                        f"Mean predicted and rate observed by {title}",
                        [part.name for part in parts],
                        [part.rate for part in parts],
                        [part.predicted for part in parts],
                        words=("observed, 95 %", "predicted", "rate"),
                        share=True,
                    ),
                    plots.timeline(
                        f"{name}-auc",
                        f"AUC by {title}, where there are outcomes of both kinds",
                        [part.name for part in parts if part.auc],
                        [part.auc for part in parts if part.auc],
                        [],
                        words=("AUC, 95 %", "", "AUC"),
                        share=False,
                    ),
                ]
            )
        )
        blocks.append(_parts_table(caption, title, parts))
    off = [part for part in found.groups if not part.rate.low <= part.predicted <= part.rate.high]
    said = f"In {len(off)} of {len(found.groups)} groups the mean prediction lies outside the interval of the rate" + (
        ": " + ", ".join(part.name for part in off[:12]) if off else ""
    )
    blocks.append(
        Text(
            f"{said}. By chance alone it would be about one in twenty. Small groups have wide intervals: read them as "
            "that, not as a finding."
        )
    )
    return Section("By group and by week", blocks)


def _parts_table(caption: str, title: str, parts: Sequence[Part]) -> Table:
    return Table(
        caption,
        (title, "rows", "with the outcome", "mean predicted", "rate", "95 %", "AUC", "95 %"),
        [
            (
                part.name, f"{part.rows:,}", f"{part.positives:,}", f"{part.predicted:.3f}", f"{part.rate.value:.3f}",
                _range(part.rate), f"{part.auc.value:.3f}" if part.auc else "", _range(part.auc) if part.auc else "",
            )
            for part in parts
        ],
    )  # fmt: skip


def rolling(found: Evaluation) -> Section:
    """The algorithm on other days."""
    title = "Rolling origin: had it been trained on another day"
    if not found.folds:
        return Section(
            title,
            [
                Text(
                    "Not measured: either the model's algorithm is not one that training here knows, or no month has "
                    "enough outcomes before it and in it."
                )
            ],
        )
    ahead = sum(fold.model.auc > fold.baseline_auc for fold in found.folds)
    return Section(
        title,
        [
            Plots(
                [
                    plots.timeline(
                        "rolling",
                        "AUC by cut date: the model's algorithm and the best baseline of each month",
                        [fold.cut for fold in found.folds],
                        [fold.model.auc for fold in found.folds],
                        [fold.baseline_auc for fold in found.folds],
                        words=("fitted anew", "best baseline", "AUC"),
                        share=False,
                    )
                ]
            ),
            Table(
                f"Fitted on the rows before the cut (at most {MOST_FITTED:,}), judged on the month after it",
                ("cut", "fitted on", "judged on", "with the outcome", "AUC", "best baseline", "average precision",
                 "log-loss", "ECE"),
                [
                    (
                        fold.cut, f"{fold.train_rows:,}", f"{fold.rows:,}", f"{fold.positives:,}",
                        f"{fold.model.auc:.3f}", f"{fold.baseline_auc:.3f} ({fold.baseline})",
                        f"{fold.model.average_precision:.3f}", f"{fold.model.log_loss:.3f}", f"{fold.model.ece:.3f}",
                    )
                    for fold in found.folds
                ],
            ),
            Text(
                f"The same algorithm, fitted again at each cut, is ahead of the month's best baseline in {ahead} of "
                f"{len(found.folds)} months. The baseline is picked with hindsight for each month, the model is not. "
                "Months with too few outcomes are left out. These are other fits than the file that is judged above, "
                "and months from before the test also served to choose the algorithm. A row from shortly before a "
                "cut counts with its final outcome, even if that came after the cut."
            ),
        ],
    )  # fmt: skip


def features(found: Evaluation) -> Section:
    """What each feature adds and does."""
    top = max(float(curve.y.max()) for curve in found.effects.values())
    first = found.importances[0]
    clear = sum(one.auc_lost.low > 0 for one in found.importances)
    return Section(
        "What the features do",
        [
            Plots(
                [
                    plots.dots(
                        "importance",
                        "AUC lost when a feature is shuffled, the greatest first: "
                        + ", ".join(f"{one.feature} {one.auc_lost.value:.3f}" for one in found.importances[:3]),
                        {one.feature: one.auc_lost for one in found.importances},
                        "AUC lost when shuffled",
                    )
                ]
            ),
            Text(
                f"Each feature in turn was shuffled among the test rows, {REPEATS} times. Most is lost with "
                f"{first.feature} ({first.auc_lost.value:.3f}). For {clear} of {len(found.importances)} the interval "
                "is above zero. Features that say the same stand in for each other, so that each alone looks "
                "unimportant; and what a model uses is not what causes the outcome."
            ),
            Details(
                "Importance in figures",
                [
                    Table(
                        "What is lost when a feature is shuffled",
                        ("feature", "AUC lost", "log-loss gained"),
                        [
                            (one.feature, signed(one.auc_lost, 4), signed(one.log_loss_gained, 4))
                            for one in found.importances
                        ],
                    )
                ],
            ),
            Details(
                "How the mean score moves with each feature (partial dependence)",
                [
                    Plots(
                        [
                            plots.effect(
                                f"effect-{number}",
                                f"{one.feature}: mean score from {found.effects[one.feature].y[0]:.3f} to "
                                f"{found.effects[one.feature].y[-1]:.3f}",
                                found.effects[one.feature],
                                top,
                            )
                            for number, one in enumerate(found.importances, 1)
                        ],
                        small=True,
                    ),
                    Text(
                        "The mean score if every row had this value and kept all its others; values between the 2nd "
                        "and the 98th percentile. Some such rows can't exist: where features hang together, read the "
                        "shape only."
                    ),
                ],
            ),
        ],
    )


def drift(found: Evaluation) -> Section:
    """How rows differ from those before."""
    large = [one.name for one in found.feature_drifts if one.psi >= PSI_LARGE]
    score = found.score_drift
    told = f"{len(large)} of {len(found.feature_drifts)} features" + (f": {', '.join(large)}" if large else "")
    return Section(
        "Drift from training to test",
        [
            Text(
                "The population stability index (PSI) compares the distributions before and in the test window: "
                f"below {PSI_SMALL} little has changed, from {PSI_LARGE} on it is another population. That holds for "
                f"{told}. The scores themselves: PSI {score.psi:.3f}, mean {score.train_mean:.3f} before and "
                f"{score.test_mean:.3f} in the test. Drift alone is no fault: a model may bear it (see calibration), "
                "or not."
            ),
            Details(
                "Drift of each feature",
                [
                    Table(
                        "The most changed first; measured as the running server does",
                        ("feature", "PSI", "", "mean before", "mean in the test"),
                        [
                            (
                                one.name,
                                f"{one.psi:.3f}",
                                _size(one.psi),
                                f"{one.train_mean:.3f}",
                                f"{one.test_mean:.3f}",
                            )
                            for one in (*found.feature_drifts, score)
                        ],
                    )
                ],
            ),
        ],
    )


def distribution(found: Evaluation) -> Section:
    """Scores with and without the outcome."""
    having, without = found.scores[found.outcome], found.scores[~found.outcome]
    return Section(
        "How scores are spread",
        [
            Plots(
                [
                    plots.distribution(
                        "distribution",
                        f"Scores of rows with the outcome (mean {having.mean():.3f}) and without "
                        f"({without.mean():.3f})",
                        without,
                        having,
                    )
                ]
            ),
            Text(
                f"Rows with the outcome score {having.mean():.3f} on average, the others {without.mean():.3f}. Where "
                "the two overlap, no threshold can tell them apart. Each of the two adds up to 100 %; there are "
                f"{len(having):,} with and {len(without):,} without."
            ),
        ],
    )


def _drawn(found: Evaluation) -> list[str]:
    others = [name for name in found.metrics if name != "model" and found.metrics[name].auc != 0.5]
    return sorted(others, key=lambda name: -found.metrics[name].auc)[:_DRAWN]


def _series(by_name: Mapping[str, Curve], drawn: Sequence[str]) -> list[Series]:
    kinds = plots.OTHERS
    others = [Series(name, by_name[name], kind) for name, kind in zip(drawn, kinds, strict=False)]
    return [*others, Series("model", by_name["model"], "model")]


def _line(begin: float, end: float) -> Curve:
    return Curve(np.array([0.0, 1.0]), np.array([begin, end]))


def span(of: Interval) -> str:
    """A value and its interval."""
    return f"{of.value:.3f}, 95 % {_range(of)}"


def _range(of: Interval) -> str:
    return f"{of.low:.3f} to {of.high:.3f}"


def signed(of: Interval, digits: int = 3) -> str:
    """A difference and its interval."""
    return f"{of.value:+.{digits}f} ({of.low:+.{digits}f} to {of.high:+.{digits}f})"


def _size(psi: float) -> str:
    return "little" if psi < PSI_SMALL else "some" if psi < PSI_LARGE else "much"
