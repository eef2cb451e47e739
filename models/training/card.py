"""The model card: what the model is, in plain English and figures, from what training measured."""

import textwrap
from collections.abc import Iterable

from models.manifest import Manifest, Metrics, Window
from models.training.task import Words


def card(
    manifest: Manifest,
    strict: Metrics | None,
    calibration: list[tuple[int, float, float]],
    trials: list[tuple[str, float, float]],
    parity: float,
    words: Words,
) -> str:
    """Markdown. `strict` is the test without groups that overlap training; `trials` are name, AUC, log-loss."""
    metrics = manifest.metrics
    best = max(metrics[name].auc for name in metrics if name != "model")
    limits = words.limits.strip().split("\n\n")
    low, high = manifest.auc_interval
    gain_low, gain_high = manifest.auc_gain_interval
    subset = (
        f"\n**A trial on part of the data: {manifest.customers_left_out} customers were left out.**\n"
        if manifest.customers_left_out
        else ""
    )
    return f"""# Model card: {manifest.version}
{subset}
{_wrapped(f"**What it answers.** {words.question}")}

**What it is.** A {manifest.algorithm}; {len(manifest.features)} features; an ONNX file. Seed {manifest.seed}.

{_wrapped(f"**Data.** {words.data}")}
{_wrapped(words.row)}

| | groups | from | to | rows | with the outcome |
|---|---|---|---|---|---|
{_window("trained on", manifest.train)}
{_window("tested on", manifest.test)}

## Out of time, against baselines

| | AUC | AUC within groups | average precision | log-loss | Brier | ECE | top tenth's lift | mean predicted | rate |
|---|---|---|---|---|---|---|---|---|---|
{_rows(metrics)}

AUC {metrics["model"].auc:.3f}, 95 % interval {low:.3f} to {high:.3f}; {metrics["model"].auc - best:+.3f} over the best
baseline, interval {gain_low:+.3f} to {gain_high:+.3f} (bootstrap over customers). {_strict(strict)}"AUC within
groups" only compares rows of the same group; ECE: expected calibration error, ten bins.

Calibration on the test rows, five parts of equal size by rising score:

| rows | mean predicted | rate |
|---|---|---|
{_lines(f"| {rows} | {predicted:.3f} | {observed:.3f} |" for rows, predicted, observed in calibration)}

## How it was chosen

By log-loss on the last training rows, then fitted again on all of training:

| candidate | AUC | log-loss |
|---|---|---|
{_lines(f"| {name} | {auc:.3f} | {loss:.4f} |" for name, auc, loss in trials)}

The ONNX file agrees with the scikit-learn model on every test row: largest difference {parity:.0e}, same ranking.

## Limits

{_lines(_wrapped(limit, "* ") for limit in limits)}
"""


def _wrapped(paragraph: str, bullet: str = "") -> str:
    return textwrap.fill(paragraph.replace("\n", " "), 120, initial_indent=bullet, subsequent_indent=" " * len(bullet))


def _window(label: str, window: Window) -> str:
    first, last = window.first, window.last
    return f"| {label} | {window.groups} | {first} | {last} | {window.rows:,} | {window.positives:,} |"


def _rows(metrics: dict[str, Metrics]) -> str:
    return _lines(
        f"| {name} | {m.auc:.3f} | {m.auc_within:.3f} | {m.average_precision:.3f} | {m.log_loss:.3f} | {m.brier:.3f} "
        f"| {m.ece:.3f} | {m.lift_top_tenth:.2f} | {m.mean_predicted:.3f} | {m.rate:.3f} |"
        for name, m in metrics.items()
    )


def _strict(strict: Metrics | None) -> str:
    if strict is None:
        return ""
    return (
        "Without the\ntest rows from before the last training outcome was complete: "
        f"AUC {strict.auc:.3f}, log-loss {strict.log_loss:.3f}. "
    )


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
