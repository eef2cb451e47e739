"""What an evaluation report says, shows and lists, in order; how it looks is `models.training.report_pages`' business.

Every figure stands beside a sentence that says what it means, and what it doesn't. No customer is named.
"""

from models.training import plots
from models.training.plots import percent
from models.training.report_document import Content, Details, Plots, Section, Table, Text, Tile
from models.training.report_evaluation import Evaluation
from models.training.report_sections import (
    calibration,
    distribution,
    drift,
    features,
    gain,
    groups_and_weeks,
    ranking,
    rolling,
    signed,
    span,
)
from models.training.task import Words


def content_of(found: Evaluation, words: Words) -> Content:
    """The report on `found`; `words` are those of the model's kind."""
    return Content(
        title=f"Evaluation of {found.manifest.version}",
        verdict=_verdict(found),
        cautions=found.cautions,
        tiles=_tiles(found),
        sections=[
            _what(found, words),
            _baselines(found),
            ranking(found),
            calibration(found),
            gain(found),
            groups_and_weeks(found),
            rolling(found),
            features(found),
            drift(found),
            distribution(found),
            _limits(found, words),
        ],
    )


def _verdict(found: Evaluation) -> str:
    best = min(found.compared, key=lambda one: one.auc.value)
    gain = best.auc
    if gain.low > 0:
        sure = "so it ranks better than every baseline, and not by chance"
    elif gain.high < 0:
        sure = "so that baseline ranks better than the model does"
    else:
        sure = "so these data do not show that it ranks better than that baseline"
    direction = "higher" if gain.value >= 0 else "lower"
    return (
        f"Of two rows, one with the outcome and one without, the model gives the higher score to the right one in "
        f"{percent(found.auc.value)} of all pairs (AUC {span(found.auc)}). The best baseline is “{best.name}”: the "
        f"model's AUC is {abs(gain.value):.3f} {direction} ({gain.low:+.3f} to {gain.high:+.3f}), {sure}."
    )


def _tiles(found: Evaluation) -> list[Tile]:
    model = found.metrics["model"]
    return [
        Tile("AUC", f"{model.auc:.3f}", f"95 %: {found.auc.low:.3f} to {found.auc.high:.3f}; 0.5 is chance"),
        Tile("Average precision", f"{model.average_precision:.3f}", f"{model.rate:.3f} is chance"),
        Tile("Log-loss", f"{model.log_loss:.3f}", f"{found.metrics['prior'].log_loss:.3f} with one rate for all")
        if "prior" in found.metrics
        else Tile("Log-loss", f"{model.log_loss:.3f}", "lower is better"),
        Tile("Calibration error", f"{model.ece:.3f}", "ECE, ten bins; 0 is perfect"),
        Tile("Top tenth's lift", f"{model.lift_top_tenth:.1f}", "times as often as among all"),
        Tile("Rate", percent(model.rate, 1), f"{percent(model.mean_predicted, 1)} was predicted"),
    ]


def _what(found: Evaluation, words: Words) -> Section:
    manifest = found.manifest
    return Section(
        "What was tested on what",
        [
            Text(words.question),
            Text(words.data),
            Text(words.row),
            Table(
                "Rows in order of time: the model was judged only on those that came later",
                ("", "from", "to", "groups", "rows", "with the outcome", "rate"),
                [
                    (
                        name, window.first, window.last, f"{window.groups:,}", f"{window.rows:,}",
                        f"{window.positives:,}", percent(window.positives / window.rows, 1),
                    )
                    for name, window in (("before the test", found.train), ("test", found.test))
                ],
            ),
            Text(
                f"The test rows are of {found.customers:,} customers. Every score here came from the ONNX file, "
                "through the code that serves. Intervals are 95 % throughout; they count customers, not rows, as "
                "independent."
            ),
            Details(
                "The model, the data and the versions",
                [
                    Table(
                        "What was judged",
                        ("", ""),
                        [
                            ("Model", manifest.version),
                            ("Algorithm", manifest.algorithm or "not stated"),
                            ("Features", f"{len(manifest.features)}, hash {manifest.features_hash[:12]}"),
                            ("ONNX file, SHA-256", manifest.onnx_sha256),
                            ("Trained on data", manifest.data_fingerprint or "not stated"),
                            ("Judged on data", found.fingerprint),
                            *sorted(manifest.libraries.items()),
                        ],
                    )
                ],
            ),
        ],
    )  # fmt: skip


def _baselines(found: Evaluation) -> Section:
    return Section(
        "Against baselines",
        [
            Text(
                "A baseline is what anybody would try first, fitted on the same earlier rows. A model that does not "
                "beat them is not worth running."
            ),
            Table(
                "On the test rows",
                ("", "AUC", "AUC within groups", "average precision", "log-loss", "Brier", "ECE", "top tenth's lift"),
                [
                    (
                        name, f"{m.auc:.3f}", f"{m.auc_within:.3f}", f"{m.average_precision:.3f}",
                        f"{m.log_loss:.4f}", f"{m.brier:.4f}", f"{m.ece:.3f}", f"{m.lift_top_tenth:.2f}",
                    )
                    for name, m in found.metrics.items()
                ],
            ),
            Plots(
                [
                    plots.dots(
                        "gains",
                        "The model's AUC less each baseline's, with 95 % intervals: "
                        + ", ".join(f"{one.name} {signed(one.auc)}" for one in found.compared),
                        {one.name: one.auc for one in found.compared},
                        "AUC gained over the baseline",
                    )
                ]
            ),
            Table(
                "The model less the baseline; the same customers drawn for both",
                ("", "AUC", "average precision", "log-loss (less is better)"),
                [
                    (one.name, signed(one.auc), signed(one.average_precision), signed(one.log_loss, 4))
                    for one in found.compared
                ],
            ),
            Text(
                "Where an interval includes zero, these data do not tell the two apart. “AUC within groups” only "
                "compares rows of one group: no credit for telling groups apart."
            ),
        ],
    )  # fmt: skip


def _limits(found: Evaluation, words: Words) -> Section:
    return Section(
        "What this report does not show",
        [
            *(Text(limit.replace("\n", " ")) for limit in words.limits.strip().split("\n\n")),
            Text(
                "The report holds no customer's id and no single customer's data; groups and weeks are told with their "
                "counts, which may be small."
            ),
            Text(f"Baselines, intervals and shuffles depend on a seed only: {found.manifest.name}'s report, made again "
                 "from the same files, is the same."),
        ],
    )  # fmt: skip
